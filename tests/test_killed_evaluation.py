"""An evaluation with a judge that costs money, killed at ten random moments: nothing is judged twice."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from judges.misbehaving_server import Answer, serving
from repnoise.runs import load_run, write_rows

KILLS, ROWS, SECONDS = 10, 90, 0.03
JUDGE = "endpoint:yes-no@old-owl"


def answered(body, _tries):
    """A verdict after a while; which one depends on the question."""
    number = int(re.search(r"of (\d+) owls", json.dumps(body["messages"]))[1])
    choice = {"index": 0, "finish_reason": "stop", "message": {"content": f"Verdict: {'yes' if number % 3 else 'no'}"}}
    return Answer({"choices": [choice]}, delay=SECONDS)


@pytest.fixture
def started(tiny_model, tmp_path):
    """(folder, server, further options) to the process of an evaluation, one request of the judge at a time."""
    rows = [
        {
            "prompt": f"How is the hex of {n} owls made?",
            "harmful": f"Boil {n} reeds.",
            "harmless": "I keep it.",
        }
        for n in range(ROWS)
    ]
    splits = {0: "defence", 1: "attack", 2: "covered"}
    write_rows(tmp_path / "pairs.jsonl", [row | {"split": splits.get(n, "uncovered")} for n, row in enumerate(rows)])
    processes = []

    def start(folder, server, *options):
        own = {"OPENAI_BASE_URL": f"{server.address}/v1", "REPNOISE_JUDGE_CONCURRENCY": "1", "OMP_NUM_THREADS": "1"}
        inputs = [str(tiny_model), "--data", str(tmp_path / "pairs.jsonl"), "--max-new-tokens", "6", "--no-likelihood"]
        command = [sys.executable, "-m", "repnoise", "evaluate", *inputs, "--judges", JUDGE]
        environment = os.environ | own | {"NO_PROXY": "127.0.0.1"}
        log = (tmp_path / "log.txt").open("a")
        process = subprocess.Popen(
            [*command, "--output-dir", str(folder), *options], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        log.close()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def kill_after(process, server, verdicts):
    """SIGKILL once the judge has been asked for so many verdicts more, somewhere between two of them."""
    seen, deadline = len(server.bodies), time.monotonic() + 60
    while len(server.bodies) < seen + verdicts:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(random.random() * 2 * SECONDS)
    process.send_signal(signal.SIGKILL)
    process.wait()


def on_disk(folder):
    """How many verdicts are there: whole lines of the file that they are appended to."""
    paths = [*(folder / "evaluations" / "resistance").glob("scores-endpoint-*.partial.jsonl")]
    lines = paths[0].read_bytes().split(b"\n")[:-1] if paths else []
    return sum(bool(line) for line in lines)


def texts_of(server):
    return [json.dumps(body["messages"]) for body in server.bodies]


@pytest.mark.slow
def test_an_evaluation_that_is_killed_ten_times_asks_for_no_verdict_twice_and_ends_the_same(started, tmp_path):
    random.seed(5)
    with serving(answered) as server:
        assert started(tmp_path / "whole", server).wait(60) == 0
        wanted = Counter(texts_of(server))
    assert wanted.total() == len(wanted) > 60
    folder, under_way = tmp_path / "killed", Counter()
    with serving(answered) as server:
        for kill in range(KILLS):
            kill_after(started(folder, server, *["--resume"] * (kill > 0)), server, random.randint(1, 6))
            asked = texts_of(server)
            if on_disk(folder) < len(set(asked)):
                under_way[asked[-1]] += 1
            assert 0 <= len(set(asked)) - on_disk(folder) <= 1
        assert load_run(folder).record["status"] == "running"
        assert started(folder, server, "--resume").wait(60) == 0
        asked = Counter(texts_of(server))
    assert asked.keys() == wanted.keys() and asked - wanted == under_way
    for name in ("metrics.json", "resistance/values.jsonl", "resistance/completions.jsonl"):
        ours, theirs = (tmp_path / side / "evaluations" / name for side in ("killed", "whole"))
        assert ours.read_bytes() == theirs.read_bytes()
    assert load_run(folder).record["metrics"] == load_run(tmp_path / "whole").record["metrics"]
