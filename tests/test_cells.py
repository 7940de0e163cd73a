"""Many runs at a time: what has to come first does, what fails is told, and what is finished is not made again."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from repnoise.cells import Cell, run_all
from repnoise.errors import RepnoiseError
from repnoise.runs import load_run, open_run, recording


def made(diary: Path, path: Path, name: str, sleep: float = 0.0) -> None:
    """A run that says in a diary when it was made; a finished one is left, as by the commands."""
    run = open_run(path, "attack", name, {"name": name})
    if not run.finished:
        with recording(run):
            start = time.monotonic()
            time.sleep(sleep)
            (path / "result.txt").write_text(name)
            with (diary).open("a") as file:
                file.write(f"{name} {start} {time.monotonic()}\n")


def failed(path: Path, name: str) -> None:
    raise RepnoiseError("The owl is out: come back at night.")


def killed(path: Path, name: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def broken(path: Path, name: str) -> None:
    raise ZeroDivisionError("a bug")


@pytest.fixture
def diary(tmp_path):
    return tmp_path / "diary.txt"


@pytest.fixture
def cell(tmp_path, diary):
    """(name, its needs by name, what makes it) to a cell."""

    def cell(name, *needs, make=None):
        return Cell(tmp_path / name, name, make or partial(made, diary), tuple(tmp_path / need for need in needs))

    return cell


def entries(diary):
    rows = [line.split() for line in diary.read_text().splitlines()]
    return {name: (float(start), float(end)) for name, start, end in rows}


@pytest.mark.slow
def test_what_is_needed_comes_first_and_two_run_at_a_time(cell, diary, tmp_path):
    make = partial(made, diary, sleep=0.6)
    cells = [cell("last", "left", "right"), cell("left", make=make), cell("right", make=make)]
    assert run_all(cells, jobs=2) == {}
    times = entries(diary)
    assert times["last"][0] >= max(times["left"][1], times["right"][1])
    assert times["left"][0] < times["right"][1] and times["right"][0] < times["left"][1]
    assert all(load_run(tmp_path / name).finished for name in ("left", "right", "last"))


def test_a_failure_stops_only_what_needs_it_and_every_reason_is_told(cell, diary, tmp_path):
    cells = [cell("bad", make=failed), cell("child", "bad"), cell("grandchild", "child"), cell("good")]
    assert run_all(cells, jobs=1) == {
        tmp_path / "bad": "The owl is out: come back at night.",
        tmp_path / "child": "what it needs has failed",
        tmp_path / "grandchild": "what it needs has failed",
    }
    assert list(entries(diary)) == ["good"]


@pytest.mark.slow
def test_the_same_again_makes_only_what_was_not_finished(cell, diary, tmp_path):
    cells = [cell("whole"), cell("half", "whole")]
    half = open_run(tmp_path / "half", "attack", "half", {"name": "half"})
    (half.path / "old.txt").write_text("of an interrupted process")
    assert run_all(cells, jobs=1) == {} and list(entries(diary)) == ["whole", "half"]
    assert not (half.path / "old.txt").exists()
    before = diary.read_text()
    assert run_all(cells, jobs=1) == {} and diary.read_text() == before


@pytest.mark.slow
def test_a_run_that_is_there_already_need_not_be_among_the_cells(cell, diary, tmp_path):
    made(diary, tmp_path / "before", "before")
    assert run_all([cell("after", "before")], jobs=1) == {}
    assert list(entries(diary)) == ["before", "after"]


def test_a_need_that_nobody_makes_is_a_reason_and_not_an_endless_wait(cell, tmp_path):
    assert run_all([cell("after", "nowhere")], jobs=1) == {tmp_path / "after": "nobody makes what it needs"}


@pytest.mark.slow
def test_a_killed_process_is_told_in_one_sentence_and_the_same_again_goes_on(cell, diary, tmp_path):
    with pytest.raises(RepnoiseError, match=r"A process was killed from outside\. The same command goes on"):
        run_all([cell("first"), cell("second", "first", make=killed)], jobs=1)
    assert run_all([cell("first"), cell("second", "first")], jobs=1) == {}
    assert list(entries(diary)) == ["first", "second"]


@pytest.mark.slow
def test_a_bug_is_no_failed_cell(cell):
    with pytest.raises(ZeroDivisionError):
        run_all([cell("bad", make=broken)], jobs=1)
