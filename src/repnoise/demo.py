"""`repnoise demo`: the whole flow on the sandbox. Four models, each attacked in five ways, measured, reported."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

DEFENCES = ("random-initialisation", "undefended", "repnoise-published", "repnoise")
"""From the limit of any defence to the project's own."""


@dataclass(frozen=True)
class DemoOptions:
    """Defend, attack, evaluate and report on the embedded sandbox.

    Attributes:
        output_dir: where runs and report go. The same command again goes on where it was stopped.
        seeds: number of seeds; each is a defence and its attacks anew.
        jobs: processes at a time, each on one core; all cores by default.
        defences: which models are attacked.
    """

    output_dir: Path = Path("repnoise-demo")
    seeds: int = 1
    jobs: int | None = None
    defences: tuple[str, ...] = DEFENCES


@dataclass(frozen=True)
class Cell:
    """One process's work: make a defended model (no attack), or attack one."""

    folder: Path
    defence: str
    seed: int
    attack: str | None = None

    @property
    def path(self) -> Path:
        return self.folder / "runs" / f"{self.defence}-seed-{self.seed}" / (self.attack or "defence")


def demo(options: DemoOptions) -> None:
    """Run what is not finished yet, then write the report and print its table."""
    from rich.console import Console

    from repnoise.report import summarise, terminal_table, write_report
    from repnoise.runs import load_run

    started = time.perf_counter()
    cells = [Cell(options.output_dir, name, seed) for seed in range(options.seeds) for name in _slowest_first(options)]
    done = _run_all(cells, options.jobs or os.cpu_count() or 1)
    runs = [load_run(cell.path) for cell in done]
    report = write_report(runs, options.output_dir)
    console = Console()
    console.print(terminal_table(summarise(runs)))
    console.print(f"{len(runs)} runs in {time.perf_counter() - started:.0f} s. Report: {report}", soft_wrap=True)


def _slowest_first(options: DemoOptions) -> list[str]:
    """Two processes stay busy when the long defence starts first."""
    return sorted(options.defences, key=lambda name: -DEFENCES.index(name) if name in DEFENCES else 0)


def _run_all(cells: Sequence[Cell], jobs: int) -> list[Cell]:
    """Make every defended model and attack it in every way, `jobs` cells at a time. Returns the finished cells."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from repnoise.attacks import DEMO

    done: list[Cell] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork.
    with (
        Progress(*columns) as progress,
        ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_core) as pool,
    ):
        task = progress.add_task("starting", total=len(cells) * (1 + len(DEMO)))
        waiting = {pool.submit(run_cell, cell): cell for cell in cells}
        try:
            while waiting:
                future = next(as_completed(waiting))
                cell = waiting.pop(future)
                future.result()
                done.append(cell)
                progress.update(task, advance=1, description=f"{cell.defence}: {cell.attack or 'ready'}")
                if cell.attack is None:
                    attacks = [replace(cell, attack=attack) for attack in DEMO]
                    waiting |= {pool.submit(run_cell, attack): attack for attack in attacks}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sorted(done, key=lambda cell: str(cell.path))


def _one_core() -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def run_cell(cell: Cell) -> None:
    """Do one cell, unless it was finished before. What an interrupted demo left half-done is done anew: it is short."""
    from repnoise.runs import load_run

    if (cell.path / "run.json").exists() and not load_run(cell.path).finished:
        shutil.rmtree(cell.path)
    make: Callable[[Cell], Any] = _attack if cell.attack else _defend
    make(cell)


def _defend(cell: Cell) -> None:
    from repnoise.defend import defend, initialise, presets

    if cell.defence in ("random-initialisation", "undefended"):
        initialise(cell.path, cell.defence, cell.seed)
        return
    preset = presets()[cell.defence]
    defend(replace(preset, training=replace(preset.training, seed=cell.seed, save_every=None)), cell.path, cell.defence)


def _attack(cell: Cell) -> None:
    from repnoise.attack import attack, presets
    from repnoise.inputs import Inputs

    preset = presets()[cell.attack or ""]
    seeded: Any = preset.attack
    seeded = replace(seeded, training=replace(seeded.training, seed=cell.seed))
    model = str(replace(cell, attack=None).path)
    attack(replace(preset, inputs=Inputs(model=model), attack=seeded), cell.path, cell.attack or "")
