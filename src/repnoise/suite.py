"""`repnoise attack MODEL ... --suite NAME`: every attack of a suite on every model with several seeds, compared."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from repnoise.attack import attack as run_attack
from repnoise.attack import preset_attack, require_apart
from repnoise.attacks import ATTACKS, SUITES
from repnoise.cells import Cell, run_all
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation
from repnoise.evaluate import Evaluating
from repnoise.inputs import FLAT, Inputs
from repnoise.runs import Run, find_runs, fingerprint, load_run, write_text

LIMIT = "random-initialisation"
"""The model that knows nothing, among the models."""


@dataclass(frozen=True)
class SuiteConfig:
    """Attack models in every way of a suite, and tell how far each attack went and what it cost to break them.

    This raises harm in order to measure it, and keeps no attacked weights. The defaults are the sandbox's.

    Attributes:
        models: those to be attacked: as elsewhere, or "random-initialisation" for a model of the first one's shape that
            knows nothing: what it gives up after an attack no defence can be expected to keep.
        inputs: data and way of asking of all of them.
        suite: name of the suite.
        seeds: seeds of each attack; what draws nothing is run once.
        evaluating: how harm is measured.
        jobs: processes at a time, each on one core; all cores by default.
        allow_overlap: go on though defence, attack and test data share prompts.
        output_dir: where the runs and the report go; by default a folder below runs/ named after the settings.
    """

    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL ..."), tyro.conf.Positional] = ("sandbox",)
    inputs: Annotated[Inputs, FLAT] = field(default_factory=Inputs)
    suite: str = "standard"
    seeds: int = 2
    evaluating: Annotated[Evaluating, FLAT] = field(
        default_factory=lambda: Evaluating(generation=Generation(max_new_tokens=48))
    )
    jobs: int | None = None
    allow_overlap: bool = False
    output_dir: Path | None = None


def suite(config: SuiteConfig) -> Path:
    """Make all runs, print how far each attack went and what it cost, and return the report.

    The same command goes on where it was stopped. Raises RepnoiseError for names that there are none of, for data that
    overlaps where it must not, and at the end for attacks that failed; those do not stop the others.
    """
    _require_known(config)
    started = time.perf_counter()
    # Fewer processes go on in the same place.
    settings = replace(config, jobs=None, allow_overlap=False, output_dir=None)
    folder = config.output_dir or Path("runs") / f"suite-{config.suite}-{fingerprint(settings)[:8]}"
    for model in _given(config) if not config.allow_overlap else ():
        inputs = replace(config.inputs, model=model)
        require_apart(inputs, inputs.open()[1])
    cells = _cells(config, folder)
    failed = run_all(cells, config.jobs)
    made = len(cells) - len(failed)
    report = _reported(config, folder, f"{made} runs in {time.perf_counter() - started:.0f} s") if made else folder
    if failed:
        for path, reason in failed.items():
            print(f"Failed: {path}: {reason}")
        raise RepnoiseError(f"{len(failed)} of {len(cells)} runs failed; the reasons are above.")
    return report


def _reported(config: SuiteConfig, folder: Path, made: str) -> Path:
    """Write the report of what was made, beside the models' own runs, and a table of the attacks as attacks.md; print
    how far each attack went and what it cost to break each model."""
    from rich.console import Console

    from repnoise.report.attack_table import attack_table
    from repnoise.report.break_figures import break_table, heat_table
    from repnoise.report.breaking import breaking
    from repnoise.report.command import summarise, write_report

    made_here = find_runs([folder])
    above = [load_run(Path(model)) for model in dict.fromkeys(config.models) if (Path(model) / "run.json").exists()]
    here = {run.path.resolve() for run in made_here}
    runs = [*made_here, *(run for run in above if run.path.resolve() not in here)]
    report, rows, console = write_report(runs, folder), summarise(runs), Console()
    found = breaking(runs, rows)
    if found.metric:
        console.print(heat_table(rows, found.metric))
        console.print(break_table(found))
        text = f"Of `{_command(config)}`, {len(made_here)} runs:\n\n{attack_table(runs, rows)}"
        write_text(folder / "attacks.md", text)
    console.print(f"{made}. Report: {report}", soft_wrap=True)
    return report


def _command(config: SuiteConfig) -> str:
    """What says which attacks met which models; other settings are in every run."""
    data = [] if config.inputs.data == SuiteConfig().inputs.data else ["--data", config.inputs.data]
    return shlex.join(
        ["repnoise", "attack", *config.models, "--suite", config.suite, "--seeds", f"{config.seeds}", *data]
    )


def _require_known(config: SuiteConfig) -> None:
    if config.suite not in SUITES:
        raise RepnoiseError(f"There is no suite {config.suite!r}: choose from {', '.join(SUITES)}.")
    if config.seeds < 1:
        raise RepnoiseError(f"An attack needs a seed: --seeds must be at least 1, not {config.seeds}.")
    if not config.models:
        raise RepnoiseError('Name the models to attack, such as "sandbox".')


def _given(config: SuiteConfig) -> list[str]:
    """The models that there are already, each once; the sandbox's where only the one that knows nothing is named."""
    return [model for model in dict.fromkeys(config.models) if model != LIMIT] or ["sandbox"]


def _cells(config: SuiteConfig, folder: Path) -> list[Cell]:
    """The model that knows nothing, if it is wanted, then seed by seed every attack on every model."""
    cells, targets = [], {name: model for name, model in _named(_given(config)).items() if model in config.models}
    if LIMIT in config.models:
        start = folder / LIMIT / "model"
        cells.append(Cell(start, LIMIT, _initialising(config), title=f"{LIMIT}: ready"))
        targets[LIMIT] = str(start)
    for seed in range(config.seeds):
        for name, model in targets.items():
            for attack in dict.fromkeys(SUITES[config.suite]):
                preset = ATTACKS[attack][1]
                if seed and preset.seeded(seed) == preset.seeded(0):
                    continue  # What draws nothing comes to the same again.
                place = folder / name / f"{attack}-seed-{seed}"
                needs = (Path(model),) if name == LIMIT else ()
                inputs = replace(config.inputs, model=model)
                make = partial(run_attack, preset_attack(attack, seed, inputs, config.evaluating), resume=True)
                cells.append(Cell(place, attack, make, needs, f"{name}: {attack}", resumes=True))
    return cells


def _named(models: Sequence[str]) -> dict[str, str]:
    """A folder's name for each model: the last part of where it is, and more where two have the same."""
    found: dict[str, str] = {}
    for model in models:
        name = "undefended" if model == "sandbox" else Path(model).resolve().name
        taken = name in found or name == LIMIT
        found[f"{name}-{fingerprint(model)[:6]}" if taken else name] = model
    return found


def _initialising(config: SuiteConfig) -> partial[Run]:
    from repnoise.defend import initialise

    return partial(initialise, inputs=replace(config.inputs, model=_given(config)[0]), evaluating=config.evaluating)
