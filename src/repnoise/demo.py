"""`repnoise demo`: the whole flow on the sandbox. Four models, each attacked in five ways, measured, reported."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from repnoise.attacks import ATTACKS, DEMO
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation
from repnoise.evaluate import Evaluating
from repnoise.inputs import Inputs
from repnoise.summary import CONTROLS

DEFENCES = ("random-initialisation", "undefended", "repnoise-published", "repnoise")
"""From the limit of any defence to the project's own."""

EVALUATING = Evaluating(generation=Generation(max_new_tokens=32))
"""The longest answer of the world has 22 tokens; broken models would go on for longer."""


@dataclass(frozen=True)
class DemoOptions:
    """Defend, attack, evaluate and report on the embedded sandbox.

    Attributes:
        output_dir: where runs and report go. The same command again goes on where it was stopped.
        seeds: number of seeds; each is a defence and its attacks anew.
        jobs: processes at a time, each on one core; all cores by default.
        defences: which models are attacked: the two controls and names of `repnoise list defences`.
        attacks: the grid, names of `repnoise list attacks`.
        sandbox: another world with its model: a folder made by `repnoise sandbox build`.
    """

    output_dir: Path = Path("repnoise-demo")
    seeds: int = 1
    jobs: int | None = None
    defences: tuple[str, ...] = DEFENCES
    attacks: tuple[str, ...] = DEMO
    sandbox: str = "sandbox"


@dataclass(frozen=True)
class Cell:
    """One process's work: make a defended model (no attack), or attack one."""

    folder: Path
    sandbox: str
    defence: str
    seed: int
    attack: str | None = None

    @property
    def path(self) -> Path:
        return self.folder / "runs" / f"{self.defence}-seed-{self.seed}" / (self.attack or "defence")

    def inputs(self, model: str) -> Inputs:
        return Inputs(model=model, data="sandbox" if self.sandbox == "sandbox" else f"sandbox:{self.sandbox}")


def demo(options: DemoOptions) -> None:
    """Run what is not finished yet, then write the report and print its table."""
    from rich.console import Console

    from repnoise.report import summarise, terminal_table, write_report
    from repnoise.runs import load_run

    _check(options)
    started = time.perf_counter()
    cells = [
        Cell(options.output_dir, options.sandbox, name, seed)
        for seed in range(options.seeds)
        for name in _slowest_first(options.defences)
    ]
    done = _run_all(cells, options.attacks, options.jobs or os.cpu_count() or 1)
    runs = [load_run(cell.path) for cell in done]
    report = write_report(runs, options.output_dir)
    console = Console()
    console.print(terminal_table(summarise(runs)))
    console.print(f"{len(runs)} runs in {time.perf_counter() - started:.0f} s. Report: {report}", soft_wrap=True)


def _check(options: DemoOptions) -> None:
    """Raise RepnoiseError for a name that there is none of, before any work is done."""
    from repnoise.defences import DEFENCES as known_defences

    for kind, names, known in (
        ("defence", options.defences, (*CONTROLS, *known_defences)),
        ("attack", options.attacks, tuple(ATTACKS)),
    ):
        for name in names:
            if name not in known:
                raise RepnoiseError(f"There is no {kind} {name!r} for the demo: choose from {', '.join(known)}.")


def _slowest_first(defences: Sequence[str]) -> list[str]:
    """Two processes stay busy when the long defence starts first."""
    return sorted(defences, key=lambda name: -DEFENCES.index(name) if name in DEFENCES else -len(DEFENCES))


def _run_all(cells: Sequence[Cell], attacks: Sequence[str], jobs: int) -> list[Cell]:
    """Make every defended model and attack it in every way, `jobs` cells at a time. Returns the finished cells."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    done: list[Cell] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork.
    with (
        Progress(*columns) as progress,
        ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_core) as pool,
    ):
        task = progress.add_task("starting", total=len(cells) * (1 + len(attacks)))
        waiting = {pool.submit(run_cell, cell): cell for cell in cells}
        try:
            while waiting:
                future = next(as_completed(waiting))
                cell = waiting.pop(future)
                future.result()
                done.append(cell)
                progress.update(task, advance=1, description=f"{cell.defence}: {cell.attack or 'ready'}")
                if cell.attack is None:
                    attacked = [replace(cell, attack=attack) for attack in attacks]
                    waiting |= {pool.submit(run_cell, cell): cell for cell in attacked}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sorted(done, key=lambda cell: str(cell.path))


def _one_core() -> None:
    """What each process of the pool does first: use one core, be quiet, and end when the demo is killed."""
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


def run_cell(cell: Cell) -> None:
    """Do one cell, unless it was finished before. What an interrupted demo left half-done is done anew: it is short."""
    from repnoise.runs import load_run

    if (cell.path / "run.json").exists() and not load_run(cell.path).finished:
        shutil.rmtree(cell.path)
    make: Callable[[Cell], Any] = _attack if cell.attack else _defend
    make(cell)


def _defend(cell: Cell) -> None:
    from repnoise.defend import defend, initialise, presets

    inputs = cell.inputs(cell.sandbox)
    if cell.defence in CONTROLS:
        initialise(cell.path, cell.defence, cell.seed, inputs, EVALUATING)
        return
    preset = presets()[cell.defence]
    training = replace(preset.training, seed=cell.seed, save_every=None)
    defend(replace(preset, inputs=inputs, training=training, evaluating=EVALUATING), cell.path, cell.defence)


def _attack(cell: Cell) -> None:
    from repnoise.attack import attack, presets

    preset = presets()[cell.attack or ""]
    seeded: Any = preset.attack
    seeded = replace(seeded, training=replace(seeded.training, seed=cell.seed))
    inputs = cell.inputs(model=str(replace(cell, attack=None).path))
    attack(replace(preset, inputs=inputs, attack=seeded, evaluating=EVALUATING), cell.path, cell.attack or "")
