"""Many runs at a time: a graph of cells over a pool of processes, each on one core. What is finished is not redone."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repnoise.errors import RepnoiseError
from repnoise.runs import load_run

KILLED = "A process was killed from outside. The same command goes on; if memory is short, with fewer --jobs."
"""What a user is told who loses a process of a pool."""


@dataclass(frozen=True)
class Cell:
    """One run to be made.

    Attributes:
        path: the run's directory.
        name: what the run is called.
        make: makes it: called with path and name, in another process, so it has to be picklable (a partial of a
            function is).
        needs: directories of the runs that have to be finished before.
        title: what the progress bar says when it is done.
        resumes: whether `make` goes on with what an interruption left half-done. Else that is deleted and made anew.
    """

    path: Path
    name: str
    make: Callable[[Path, str], Any]
    needs: tuple[Path, ...] = ()
    title: str = ""
    resumes: bool = False


def run_all(cells: Sequence[Cell], jobs: int | None = None) -> dict[Path, str]:
    """Make every cell, `jobs` at a time (all cores by default), those first in the list first.

    A cell that cannot be made does not stop the others; those that need it are left out. Returns the reasons by path:
    empty if all is well. Anything but a RepnoiseError is a bug, and is raised.
    """
    failed: dict[Path, str] = {}
    made_here = {cell.path for cell in cells}
    done = {path for cell in cells for path in cell.needs if path not in made_here and finished(path)}
    waiting = list(cells)
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork.
    size = min(jobs or os.cpu_count() or 1, len(cells)) or 1
    with progress_bar(len(cells)) as tell, ProcessPoolExecutor(size, context, one_core) as pool:
        running: dict[Any, Cell] = {}
        try:
            while waiting or running:
                free = size - len(running)  # No more than that, so that what comes first in the list is made first.
                ready = [cell for cell in waiting if all(path in done for path in cell.needs)][:free]
                lost = [cell for cell in waiting if any(path in failed for path in cell.needs)]
                failed |= {cell.path: "what it needs has failed" for cell in lost}
                if not (ready or lost or running):  # Else they would wait for ever.
                    failed |= {cell.path: "nobody makes what it needs" for cell in waiting}
                    lost = waiting
                waiting = [cell for cell in waiting if cell not in ready and cell not in lost]
                running |= {pool.submit(made, cell): cell for cell in ready}
                for cell in lost:
                    tell(cell)
                for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                    cell = running.pop(future)
                    problem = future.result()
                    done |= set() if problem else {cell.path}
                    failed |= {cell.path: problem} if problem else {}
                    tell(cell)
        except BrokenProcessPool:
            raise RepnoiseError(KILLED) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def raise_failed(failed: Mapping[str, str]) -> None:
    """Print what failed with the reasons and raise RepnoiseError, if anything did."""
    for what, reason in failed.items():
        print(f"Failed: {what}: {reason}")
    if failed:
        raise RepnoiseError(f"{len(failed)} cells failed; the reasons are above.", exit_code=1)


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[Cell], None]]:
    """A bar of cells; what it yields is called with each that is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("starting", total=total)

        def tell(cell: Cell) -> None:
            progress.update(task, advance=1, description=cell.title or cell.name)

        yield tell


def made(cell: Cell) -> str:
    """Do one cell, unless it was finished before; the reason if it cannot be done.

    What an interruption left half-done is done anew, unless the cell goes on with it.
    """
    try:
        if not cell.resumes and (cell.path / "run.json").exists() and not finished(cell.path):
            shutil.rmtree(cell.path)
        cell.make(cell.path, cell.name)
    except RepnoiseError as error:
        return str(error)
    return ""


def finished(path: Path) -> bool:
    """Whether a directory holds a finished run."""
    return (path / "run.json").exists() and load_run(path).finished


def one_core() -> None:
    """What each process of the pool does first: use one core, be quiet, and end when its parent is killed."""
    import torch
    import transformers

    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.freeze()  # Trainer collects garbage at every start, and all that was just imported is none.
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
