"""Where the cells of a study are made: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from repnoise.cells import Cell, made, one_core, progress_bar, run_all
from repnoise.errors import RepnoiseError
from repnoise.studies.graph import Execute

RETRIES = 3
"""How often a cell is begun again whose node or process was lost; it goes on from what it had finished."""

ExecutorName = Literal["local", "ray"]


def run_on_ray(cells: Sequence[Cell], jobs: int | None = None) -> dict[Path, str]:
    """Make every cell on a Ray cluster; returns the reasons of those that failed, as `cells.run_all` does.

    The cluster is that of RAY_ADDRESS, whose size decides how many are made at a time, or one on this machine with
    `jobs` cores. Every cell takes one core, and a GPU
    where the cluster has any. All nodes have to see the same files under the same path. Ray itself keeps the order:
    each cell is a task that takes the outcomes of those it needs. Raises RepnoiseError if Ray is missing.
    """
    try:
        import ray
    except ImportError:
        raise RepnoiseError("The executor ray needs the package ray: pip install 'repnoise[ray]'.") from None

    own = not ray.is_initialized()
    if own:
        size: dict[str, Any] = {"address": os.environ.get("RAY_ADDRESS") or "local"}
        if size["address"] == "local":
            size |= {"num_cpus": jobs or os.cpu_count(), "include_dashboard": False}
        ray.init(**size, log_to_driver=False)
    try:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        make: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_made_there)
        outcomes: dict[Path, Any] = {}
        for cell in cells:
            needs = [outcomes[path] for path in cell.needs if path in outcomes]
            outcomes[cell.path] = make.remote(cell, os.getcwd(), *needs)
        return _collected({outcome: cell for cell, outcome in zip(cells, outcomes.values(), strict=True)}, ray)
    finally:
        if own:
            ray.shutdown()


def _collected(running: dict[Any, Cell], ray: Any) -> dict[Path, str]:
    failed: dict[Path, str] = {}
    with progress_bar(len(running)) as done:
        while running:
            ended, _ = ray.wait(list(running), num_returns=1)
            for outcome in ended:
                cell = running.pop(outcome)
                try:
                    problem = ray.get(outcome)
                except _losses(ray) as error:
                    problem = f"Its node or process was lost {RETRIES + 1} times ({type(error).__name__})."
                if not problem and not cell.path.exists():
                    problem = "It was made where this machine does not see it: all nodes need the same folder."
                failed |= {cell.path: problem} if problem else {}
                done(cell)
    return failed


def _losses(ray: Any) -> tuple[type[Exception], ...]:
    """What Ray raises once it has given up beginning a task again; what a task itself raises is a bug."""
    errors = ray.exceptions
    return errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError, errors.ObjectLostError


def _made_there(cell: Cell, folder: str, *problems: str) -> str:
    """What a task does: paths are relative to where the study was started."""
    if any(problems):
        return "what it needs has failed"
    try:
        os.chdir(folder)
    except OSError:
        return f"There is no {folder} on its node: all nodes need the same folder."
    _ready()
    return made(cell)


@lru_cache  # Ray's processes make many cells.
def _ready() -> None:
    one_core()


EXECUTORS: dict[str, Execute] = {"local": run_all, "ray": run_on_ray}
