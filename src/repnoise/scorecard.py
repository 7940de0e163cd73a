"""`repnoise evaluate MODEL --scorecard`: all five conditions of one model, each part a run, several at a time."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from repnoise.attack import attack, preset_attack, require_apart
from repnoise.attacks import ATTACKS
from repnoise.cells import Cell, run_all
from repnoise.data.records import TemplateName
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation
from repnoise.evaluate import EvaluateConfig, Evaluating
from repnoise.inputs import FLAT, Inputs
from repnoise.runs import Run, find_runs, fingerprint, load_run, plain

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class ScorecardConfig:
    """Measure a model by all conditions: resistance, stability, generalization, trainability, over-refusal.

    The defaults are the sandbox's. What the data does not allow for is left out: no tasks, no trainability. Give two
    models a scorecard each, and `repnoise report` compares them.

    Attributes:
        evaluation: model, data, judges, and what else is measured before any attack.
        attacks: names of `repnoise list attacks`; the first is also the one for the parts below.
        attack_seeds: seeds of each attack.
        transfer: other data sets of harm, to attack with and be asked about (generalization); by default the sandbox's
            second kind of harm for its first.
        foreign_template: the template of an attacker who writes prompts in another way than everybody else.
        training: name of a preset of `repnoise trainability`: what a user spends on each task.
        train_on: tasks of the data, by name; all of them by default.
        jobs: processes at a time, each on one core; all cores by default.
        allow_overlap: go on though defence, attack and test data share prompts.
        output_dir: where the runs and the report go; by default a folder below runs/ named after the settings.
    """

    evaluation: Annotated[EvaluateConfig, FLAT] = field(
        default_factory=lambda: EvaluateConfig(evaluating=Evaluating(generation=Generation(max_new_tokens=48)))
    )
    attacks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = (
        "100@1e-3",
        "100@3e-4",
        "400@1e-3",
        "100@1e-3-half-benign",
    )
    attack_seeds: int = 1
    transfer: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="DATA ...")] = None
    foreign_template: TemplateName = "plain"
    training: str = "sandbox"
    train_on: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="TASK ...")] = None
    jobs: int | None = None
    allow_overlap: bool = False
    output_dir: Path | None = None


def scorecard(config: ScorecardConfig) -> Path:
    """Make all runs, print the card, and return the report.

    The same command goes on where it was stopped. Raises RepnoiseError for names that there are none of, for data that
    overlaps where it must not, and at the end for parts that failed.
    """
    from rich.console import Console

    from repnoise.report.cards import card_table
    from repnoise.report.command import summarise, write_report

    started = time.perf_counter()
    inputs = config.evaluation.inputs
    name = "undefended" if inputs.model == "sandbox" else Path(inputs.model).name
    # Fewer processes go on in the same place.
    settings = replace(config, jobs=None, allow_overlap=False, output_dir=None)
    folder = config.output_dir or Path("runs") / f"scorecard-{name}-{fingerprint(settings)[:8]}"
    cells = _cells(config, folder)
    failed = run_all(cells, config.jobs)
    runs = find_runs([folder]) if len(failed) < len(cells) else []
    report = write_report(runs, folder) if runs else folder
    if runs:
        console = Console()
        console.print(card_table(runs, summarise(runs)))
        console.print(f"{len(cells)} runs in {time.perf_counter() - started:.0f} s. Report: {report}", soft_wrap=True)
    if failed:
        path, reason = next(iter(failed.items()))
        raise RepnoiseError(f"{len(failed)} of {len(cells)} parts failed, the first of them {path}: {reason}")
    return report


def _cells(config: ScorecardConfig, folder: Path) -> list[Cell]:
    """What is measured before any attack, the attacks, the tasks, and an attack on each model that learned a task."""
    from repnoise.data.tokenization import resolve_template
    from repnoise.evaluate import evaluate

    inputs, evaluating = config.evaluation.inputs, config.evaluation.evaluating
    loaded, data, codec = inputs.open()
    _require_known(config, tuple(data.tasks))
    if not config.allow_overlap:
        require_apart(inputs, data)
    main, seeds = config.attacks[0], range(config.attack_seeds)
    cells = [Cell(folder / "evaluation", "evaluation", partial(evaluate, config.evaluation, resume=True), resumes=True)]
    for seed in seeds:
        for name in dict.fromkeys(config.attacks):
            place = folder / f"{name}-seed-{seed}"
            cells.append(Cell(place, name, _attacking(name, seed, inputs, evaluating), resumes=True))
        if resolve_template(config.foreign_template, loaded.tokenizer) != codec.template:
            place, called = folder / f"foreign-template-seed-{seed}", f"{main} in another template"
            make = _attacking(main, seed, inputs, evaluating, template=config.foreign_template)
            cells.append(Cell(place, called, make, resumes=True))
        for other in dict.fromkeys(_transfer(config)):
            place = folder / f"{_slug(other)}-seed-{seed}"
            moved = replace(inputs, data=other, requests=None)
            make = _attacking(main, seed, moved, evaluating)
            cells.append(Cell(place, f"{main} with {other}", make, resumes=True))
    for task in dict.fromkeys(config.train_on if config.train_on is not None else data.tasks):
        place = folder / f"task-{_slug(task)}"
        cells.append(Cell(place, task, _training(config, task), resumes=True))
        make = partial(_attack_tuned, _attacking(main, 0, replace(inputs, model=str(place)), evaluating))
        cells.append(Cell(folder / f"{place.name}-then-attack", main, make, (place,), resumes=True))
    return cells


def _attack_tuned(make: partial[Run], path: Path, name: str) -> None:
    """Attack a model that has learned a task, and delete its weights, which nothing else needs.

    A finished attack is left as it is without opening that model, for it is gone by then.
    """
    config = make.args[0]
    if (path / "run.json").exists() and (run := load_run(path)).finished and run.record["config"] == plain(config):
        return
    make(path, name)
    shutil.rmtree(load_run(Path(config.inputs.model)).model, ignore_errors=True)


def _transfer(config: ScorecardConfig) -> tuple[str, ...]:
    if config.transfer is not None:
        return config.transfer
    name, colon, folder = config.evaluation.inputs.data.partition(":")
    return (f"sandbox-rumours{colon}{folder}",) if name == "sandbox" else ()


def _require_known(config: ScorecardConfig, tasks: tuple[str, ...]) -> None:
    from repnoise.trainability import presets

    asked = (("attack", config.attacks, tuple(ATTACKS)), ("task", config.train_on or (), tasks))
    for kind, names, known in (*asked, ("preset of trainability", (config.training,), tuple(presets()))):
        for name in names:
            if name not in known:
                raise RepnoiseError(f"There is no {kind} {name!r}: choose from {', '.join(known) or 'none'}.")
    if not config.attacks or config.attack_seeds < 1:
        raise RepnoiseError("A scorecard needs an attack with a seed: name some with --attacks and --attack-seeds.")


def _attacking(name: str, seed: int, inputs: Inputs, evaluating: Evaluating, **changes: Any) -> partial[Run]:
    return partial(attack, preset_attack(name, seed, inputs, evaluating, **changes), resume=True)


def _training(config: ScorecardConfig, task: str) -> partial[Run]:
    from repnoise.trainability import presets, trainability

    inputs, generation = config.evaluation.inputs, config.evaluation.evaluating.generation
    preset = presets()[config.training]
    settings = replace(preset, inputs=inputs, task=task, generation=generation, keep_model=True)
    return partial(trainability, settings, resume=True)


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in name)
