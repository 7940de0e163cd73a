"""Cells on a Ray cluster: the order is kept, failures are told, and a node that is killed costs nothing."""

import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from repnoise.cells import Cell
from repnoise.errors import RepnoiseError
from repnoise.runs import load_run, open_run, recording
from repnoise.studies.executors import run_on_ray

pytestmark = [
    pytest.mark.slow,
    # Of Ray's own code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def made(diary: Path, path: Path, name: str, seconds: float = 0.0) -> None:
    """A run that writes into a diary where it was made; a finished one is left as it is."""
    import ray

    run = open_run(path, "attack", name, {"name": name}, resume=True)
    if not run.finished:
        with recording(run):
            time.sleep(seconds)
            with diary.open("a") as file:
                file.write(f"{name} {ray.get_runtime_context().get_node_id()}\n")


def failed(path: Path, name: str) -> None:
    raise RepnoiseError("The owl is out: come back at night.")


@pytest.fixture
def ray(monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Else its processes wait for all others of the machine.
    ray = pytest.importorskip("ray")
    # This file is no module that its processes could import.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield ray
    ray.shutdown()


@pytest.fixture
def cell(tmp_path):
    def cell(name, *needs, make=made, seconds=0.0):
        work = partial(made, tmp_path / "diary", seconds=seconds) if make is made else make
        return Cell(tmp_path / name, name, work, tuple(tmp_path / one for one in needs), resumes=True)

    return cell


def told(tmp_path):
    return [line.split() for line in (tmp_path / "diary").read_text().splitlines()]


def test_what_is_needed_comes_first_and_what_needs_a_failure_is_left_out(ray, cell, tmp_path):
    cells = [
        cell("first", seconds=0.5),
        cell("second", "first"),
        cell("bad", make=failed),
        cell("lost", "bad"),
        cell("lost too", "lost"),
    ]
    problems = run_on_ray(cells, 2)
    assert problems == {
        tmp_path / "bad": "The owl is out: come back at night.",
        tmp_path / "lost": "what it needs has failed",
        tmp_path / "lost too": "what it needs has failed",
    }
    assert [name for name, _ in told(tmp_path)] == ["first", "second"]


def test_a_node_that_is_killed_in_mid_study_loses_nothing_and_nothing_is_made_twice(ray, cell, tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        cells = [cell("model", seconds=0.1)] + [cell(f"attack {i}", "model", seconds=1.5) for i in range(8)]
        killer = ray.remote(num_cpus=0)(_told).remote(tmp_path / "diary", second.node_id)

        def kill():
            ray.get(killer)
            cluster.remove_node(second, allow_graceful=False)

        thread = threading.Thread(target=kill)
        thread.start()
        assert run_on_ray(cells) == {}
        thread.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    names = [name for name, *_ in told(tmp_path)]
    nodes = {line[-1] for line in told(tmp_path)}
    assert len(nodes) == 2, "the second node never made anything, so killing it shows nothing"
    assert len(names) == len(told(tmp_path)) == len(cells)
    assert all(load_run(one.path).finished for one in cells)


def _told(diary: Path, node: str) -> None:
    """Returns once a node has made a cell, so that it is in the middle of the next."""
    while not diary.exists() or node not in diary.read_text():
        time.sleep(0.05)
    time.sleep(0.3)
