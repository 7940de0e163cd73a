"""Where the minutes of `repnoise demo --seeds 1` go: every run of it, one after the other on one core.

    python benchmarks/demo.py            # the demo's four models and their attacks
    python benchmarks/demo.py --quick    # a try, in seconds: one model as it is, one attack

The demo makes as many runs at a time as there are cores, so it takes about this sum divided by their number. A run is
loading, training (with saving what came of it) and measuring: generation, judges, likelihoods. Its seconds are those of
its own record; measuring is timed around `repnoise.evaluate.measure`, loading is what passed before the record began.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from repnoise import attack, defend
from repnoise.cells import Cell, one_core
from repnoise.demo import DemoOptions, _cells
from repnoise.report.command import write_report
from repnoise.runs import load_run

STAGES = ("loading", "training", "measuring")
QUICK: dict[str, Any] = {"defences": ("undefended",), "attacks": ("30@3e-4",)}


def main() -> None:
    """Make all runs and the report, and print a table; with --output, write what was measured as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one model as it is, one attack")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    one_core()
    with tempfile.TemporaryDirectory() as folder:
        cells = _cells(DemoOptions(Path(folder), **QUICK if options.quick else {}))
        runs = [measured(cell) for cell in cells]
        start = time.perf_counter()
        write_report([load_run(cell.path) for cell in cells], Path(folder))
        report = time.perf_counter() - start
    print(table(runs, report))
    if options.output:
        facts = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        options.output.write_text(json.dumps({**facts, "runs": runs, "report": report}, indent=2) + "\n")


def measured(cell: Cell) -> dict[str, Any]:
    """Seconds of each stage of one run."""
    measure, measuring = attack.measure, 0.0

    @wraps(measure)
    def timed(*arguments: Any, **named: Any) -> Any:
        nonlocal measuring
        start = time.perf_counter()
        found = measure(*arguments, **named)
        measuring += time.perf_counter() - start
        return found

    attack.measure = defend.measure = timed
    start = time.perf_counter()
    try:
        cell.make(cell.path, cell.name)
    finally:
        attack.measure = defend.measure = measure
    whole, record = time.perf_counter() - start, load_run(cell.path).record
    parts = {"loading": whole - record["seconds"], "training": record["seconds"] - measuring, "measuring": measuring}
    return {"kind": "attacks" if record["kind"] == "attack" else "models", "title": cell.title, **parts}


def table(runs: list[dict[str, Any]], report: float) -> str:
    """A Markdown table: a line for the runs of each kind, one for the longest of them, the report, and all together."""
    whole = sum(map(together, runs)) + report
    lines = ["| what | loading, s | training, s | measuring, s | together, s | share |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")

    def add(what: str, chosen: list[dict[str, Any]], seconds: float) -> None:
        stages = [f"{sum(run[stage] for run in chosen):.1f}" if chosen else "" for stage in STAGES]
        lines.append(f"| {what} | {' | '.join(stages)} | {seconds:.1f} | {100 * seconds / whole:.0f} % |")

    for kind in dict.fromkeys(run["kind"] for run in runs):
        own = [run for run in runs if run["kind"] == kind]
        longest = max(own, key=together)
        add(f"{kind} ({len(own)})", own, sum(map(together, own)))
        add(f"the longest of them, {longest['title']}", [longest], together(longest))
    add("report", [], report)
    add("all", runs, whole)
    return "\n".join(lines)


def together(run: dict[str, Any]) -> float:
    """Seconds of a run."""
    return sum(run[stage] for stage in STAGES)


if __name__ == "__main__":
    main()
