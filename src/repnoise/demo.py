"""`repnoise demo`: the whole flow on the sandbox. Four models, each attacked in five ways, measured, reported."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from repnoise.attack import attack as run_attack
from repnoise.attack import preset_attack
from repnoise.attacks import ATTACKS, DEMO
from repnoise.cells import Cell, run_all
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation
from repnoise.evaluate import Evaluating
from repnoise.inputs import Inputs
from repnoise.report.summary import CONTROLS

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


def demo(options: DemoOptions) -> None:
    """Run what is not finished yet, then write the report and print its table."""
    from rich.console import Console

    from repnoise.report.command import summarise, terminal_table, write_report
    from repnoise.runs import load_run

    _check(options)
    started = time.perf_counter()
    cells = _cells(options)
    failed = run_all(cells, options.jobs)
    if failed:
        path, reason = next(iter(failed.items()))
        raise RepnoiseError(f"{len(failed)} of {len(cells)} runs failed, the first of them {path}: {reason}")
    runs = [load_run(cell.path) for cell in sorted(cells, key=lambda cell: str(cell.path))]
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


def _cells(options: DemoOptions) -> list[Cell]:
    """Every defended model, then every attack on each."""
    data = "sandbox" if options.sandbox == "sandbox" else f"sandbox:{options.sandbox}"
    models, attacks = [], []
    for seed in range(options.seeds):
        for name in _slowest_first(options.defences):
            folder = options.output_dir / "runs" / f"{name}-seed-{seed}"
            model = folder / "defence"
            make = _defending(name, seed, Inputs(model=options.sandbox, data=data))
            models.append(Cell(model, name, make, title=f"{name}: ready"))
            for attack in options.attacks:
                config = preset_attack(attack, seed, Inputs(model=str(model), data=data), EVALUATING)
                make = partial(run_attack, config)
                attacks.append(Cell(folder / attack, attack, make, (model,), f"{name}: {attack}"))
    return models + attacks


def _defending(name: str, seed: int, inputs: Inputs) -> Any:
    from repnoise.defend import defend, initialise, presets

    if name in CONTROLS:
        return partial(initialise, seed=seed, inputs=inputs, evaluating=EVALUATING)
    preset = presets()[name]
    training = replace(preset.training, seed=seed, save_every=None)
    return partial(defend, replace(preset, inputs=inputs, training=training, evaluating=EVALUATING))
