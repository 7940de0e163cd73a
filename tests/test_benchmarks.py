"""The benchmarks of evaluation and demo run, and say what they are to say. That of a step is in test_estimate."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.slow


def quick(name, folder):
    """What a try of a benchmark prints, and what it writes."""
    command = [sys.executable, str(BENCHMARKS / name), "--quick", "--output", str(folder / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, json.loads((folder / "found.json").read_text())


def test_the_benchmark_of_evaluation_measures_generation_likelihoods_and_judges(tmp_path):
    shown, found = quick("evaluation.py", tmp_path)
    rows = {row["what"]: row for row in found["measured"]}
    generating = ["one by one", "batches of 4", "batches of 4, static cache"]
    assert [*rows] == [*generating, "likelihoods", "exact", "refusal"]
    assert all(len(row["seconds"]) == 2 and row["texts"] > 0 for row in rows.values())
    tokens = {rows[name]["tokens"] for name in generating}
    assert len(tokens) == 1 and 4 <= tokens.pop() <= 16, "the same texts however they are generated"
    assert all(f"| {name} |" in shown for name in rows)


def test_the_benchmark_of_the_demo_says_where_the_time_goes(tmp_path):
    shown, found = quick("demo.py", tmp_path)
    model, attack = found["runs"]
    assert (model["kind"], attack["kind"]) == ("models", "attacks")
    assert min(model["measuring"], attack["measuring"], attack["training"], found["report"]) > 0.01
    assert "| models (1) |" in shown and "| all |" in shown
