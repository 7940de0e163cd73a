"""Searches in processes of their own: killed at any moment, and two that share the work."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from repnoise.runs import load_run
from repnoise.search.queue import begun, open_study

SCRIPT = """\
import pathlib, sys
from repnoise.evals.generation import Generation
from repnoise.evaluate import Evaluating
from repnoise.inputs import Inputs
from repnoise.search import SearchConfig, search
from repnoise.search.space import Fixed

if __name__ == "__main__":
    model, data, trials, jobs, folder = sys.argv[1:6]
    evaluating = Evaluating(("resistance",), generation=Generation(max_new_tokens=4))
    own = {"attacks": ("none",), "most_steps": 20, "fixed": Fixed(batch_size=4), "allow_overlap": True}
    own |= {"trials": int(trials), "jobs": int(jobs), "output_dir": pathlib.Path(folder)}
    search(SearchConfig(Inputs(model, data), evaluating, **own))
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "search"


@pytest.fixture
def started(folder, tiny_model, pairs_file, tmp_path):
    """(trials, jobs) to the process of a search, in a group of its own with all that it starts."""
    script = tmp_path / "search.py"
    script.write_text(SCRIPT)
    processes = []

    def start(trials, jobs):
        inputs = (str(tiny_model), str(pairs_file), str(trials), str(jobs), str(folder))
        log = (tmp_path / "log.txt").open("a")
        command = [sys.executable, str(script), *inputs]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        log.close()
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def trials_of(folder):
    return begun(open_study(folder, None, "search").get_trials())


def ended(folder):
    if not (folder / "journal.jsonl").exists():
        return {}
    return {trial.number: (trial.params, trial.value) for trial in trials_of(folder) if trial.state.is_finished()}


def stamps(folder, numbers):
    return {n: (folder / "trials" / str(n) / "run.json").stat().st_mtime_ns for n in numbers}


@pytest.mark.slow
def test_a_search_that_is_killed_again_and_again_loses_and_repeats_nothing(folder, started, tmp_path):
    total, kills, moments = 14, 0, random.Random(0)
    before, made = {}, {}
    while True:
        process = started(total, 2)
        deadline = time.monotonic() + 120
        while (
            process.poll() is None and len(ended(folder)) < min(len(before) + 1, total) and time.monotonic() < deadline
        ):
            time.sleep(0.1)
        if process.poll() is not None or len(ended(folder)) == total:
            break
        time.sleep(moments.uniform(0.0, 0.4))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        found = ended(folder)
        assert {number: found[number] for number in before} == before
        assert stamps(folder, made) == made
        before, made = found, stamps(folder, found)
    assert process.wait() == 0, (tmp_path / "log.txt").read_text()
    assert kills >= 3 and sorted(ended(folder)) == list(range(total))
    assert stamps(folder, made) == made
    trials = trials_of(folder)
    assert all(trial.state.is_finished() for trial in trials) and max(t.user_attrs["attempts"] for t in trials) > 1
    found = json.loads((folder / "search.json").read_text())
    assert found["counts"]["begun"] == total and found["best"]["fresh_mean"] is not None
    assert found["best"]["config"] == load_run(folder / found["best"]["run"]).record["config"]
    assert not list(folder.rglob("model"))


@pytest.mark.slow
def test_two_processes_share_the_work_and_the_budget(folder, started, tmp_path):
    both = [started(7, 1), started(7, 1)]
    assert [process.wait() for process in both] == [0, 0], (tmp_path / "log.txt").read_text()
    trials = trials_of(folder)
    assert [trial.number for trial in trials] == list(range(7))
    assert len({trial.user_attrs["owner"]["lock"] for trial in trials}) == 2
    assert all(trial.user_attrs["attempts"] == 1 for trial in trials)
    assert len({str(trial.params) for trial in trials}) == 7
    assert (folder / "search.svg").read_text().startswith("<svg")
