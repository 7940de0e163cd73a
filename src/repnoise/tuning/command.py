"""`repnoise tune DEFENCE`: as many tries for each defence, against the same attacks, within the same bounds."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from repnoise.attacks import ATTACKS
from repnoise.cells import one_core
from repnoise.defences import DEFENCES
from repnoise.defend import DefendConfig, presets
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation
from repnoise.evaluate import EvaluateConfig, Evaluating, evaluate
from repnoise.inputs import FLAT, Inputs
from repnoise.runs import Run, fingerprint, load_run
from repnoise.search.command import watch
from repnoise.search.queue import Budget, Queue, begun, open_study
from repnoise.search.trials import headline, value_of
from repnoise.trainability import TrainabilityConfig, trainability
from repnoise.tuning.results import Tuned, tried, write_tuned
from repnoise.tuning.space import chosen, spread
from repnoise.tuning.trials import Bounds, Trial, shown

if TYPE_CHECKING:
    from optuna import Study


SPREAD = 8
"""Trials whose settings are spread over the space; what follows is guided by what is known by then."""


@dataclass(frozen=True)
class TuneConfig:
    """Find settings of a defence that hold best against a few attacks and leave the model useful.

    Every defence is given as many trials, the same attacks and the same bounds, and one rule says what is tuned: the
    learning rate and every number of the defence, over and under the preset's. The preset itself is the first trial,
    the next ones are spread evenly, and then the search goes where it was good. Seeds are none that a report should
    use: the defence and its attacks of trial i have the seed `first_seed` + i.

    Attributes:
        defence: name of a preset, see `repnoise list defences`.
        inputs: model and data.
        evaluating: how harm is measured.
        attacks: what the defence has to stand; the worst of them counts.
        task: harmless task that the defended model must still learn; by default the first that the data has, "none"
            for no task.
        bounds: what the defence must leave of the model.
        trials: settings that are tried.
        span: a setting is searched from its preset's value divided by this to the value times this.
        steps: training steps of the defence; by default the preset's.
        first_seed: seed of the first trial.
        jobs: processes at a time, each on one core; all cores by default.
        output_dir: where trials and the preset go; by default a folder below runs/ named after the settings.
    """

    defence: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DEFENCE")] = "repnoise"
    inputs: Annotated[Inputs, FLAT] = field(default_factory=Inputs)
    evaluating: Annotated[Evaluating, FLAT] = field(
        default_factory=lambda: Evaluating(generation=Generation(max_new_tokens=32))
    )
    attacks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ("100@1e-3", "100@1e-3-half-benign")
    task: str | None = None
    bounds: Annotated[Bounds, FLAT] = field(default_factory=Bounds)
    trials: int = 16
    span: float = 4.0
    steps: int | None = None
    first_seed: int = 1000
    jobs: int | None = None
    output_dir: Path | None = None

    def __post_init__(self) -> None:
        for kind, names, known in (("defence", (self.defence,), DEFENCES), ("attack", self.attacks, ATTACKS)):
            for name in names:
                if name not in known:
                    raise RepnoiseError(f"There is no {kind} {name!r}: choose from {', '.join(known)}.")
        for name, least in (("trials", 1), ("jobs", 1), ("steps", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RepnoiseError(f"--{name} must be at least {least}, not {value}.")
        if not self.attacks or not self.span > 1:
            raise RepnoiseError("Tuning needs an attack (--attacks) and a --span above 1.")

    @property
    def settings(self) -> TuneConfig:
        """What makes this tuning another one: neither its budget nor who makes it where."""
        return replace(self, trials=1, jobs=None, output_dir=None)

    @property
    def folder(self) -> Path:
        return self.output_dir or Path("runs") / f"tune-{self.defence}-{fingerprint(self.settings)[:8]}"

    @property
    def preset(self) -> DefendConfig:
        """Where tuning begins: the preset on this model and data."""
        found = presets()[self.defence]
        steps = {} if self.steps is None else {"steps": self.steps, "epochs": 1.0}
        training = replace(found.training, save_every=None, **steps)
        return replace(found, inputs=self.inputs, training=training, evaluating=self.evaluating)


def tune(config: TuneConfig) -> Path:
    """Try until the budget is spent, and return the preset's file. The same command goes on where it was stopped, and
    with more trials from fewer.

    Raises RepnoiseError for data that cannot be used, and for a folder with another tuning.
    """
    from filelock import FileLock

    started = time.perf_counter()
    study = open_study(config.folder, None, "tune")
    jobs = min(config.jobs or os.cpu_count() or 1, config.trials)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), one_core) as pool:
        watch([pool.submit(work, config) for _ in range(jobs)], pool, study, Budget(config.trials), config.defence)
    with FileLock(config.folder / "results.lock"):
        return write_tuned(_found(config, study), config.folder, time.perf_counter() - started)


def work(config: TuneConfig) -> None:
    """Make trials in this process until the budget is spent and every other process has finished, too."""
    study = open_study(config.folder, None, "tune")
    queue = Queue(study, config.folder, Budget(config.trials), config.first_seed)
    with queue.lock:
        before = _before(config)
        _begin(study, config)
    with queue.open():
        while (trial := queue.next()) is not None:
            _made(trial, config, before)


def _before(config: TuneConfig) -> dict[str, Any]:
    """The undefended model's metrics, ROUGE after the task among them."""
    run = evaluate(EvaluateConfig(config.inputs, config.evaluating), config.folder / "undefended", resume=True)
    headline(run.record["metrics"])
    if "stability" not in config.bounds.excesses(run.record["metrics"], run.record["metrics"]):
        raise RepnoiseError(
            "Tuning has to see what a defence costs, or it would find one that ruins the model: give the data plain "
            "text to measure perplexity on (--plain-text FILE)."
        )
    metrics, learning = dict(run.record["metrics"]), _learning(config)
    if learning is not None:
        learned = trainability(learning, config.folder / "undefended-task", resume=True)
        metrics["rouge1"] = learned.record["metrics"]["rouge1"]
    return metrics


def _learning(config: TuneConfig) -> TrainabilityConfig | None:
    from repnoise.data import load_data

    name = config.task or next(iter(load_data(config.inputs.data).tasks), "none")
    if name == "none":
        return None
    training = replace(TrainabilityConfig().training, seed=config.first_seed)
    generation = config.evaluating.generation
    return TrainabilityConfig(config.inputs, name, training, generation, measure_at=())


def _begin(study: Study, config: TuneConfig) -> None:
    """Put the preset and points all over the space first in a new study, before the sampler learns from what they
    gave. Raises RepnoiseError if the study is another one's."""
    about = fingerprint(config.settings)
    known = study.user_attrs.get("about")
    if known is None:
        there = len(study.get_trials(deepcopy=False))  # As from a process that was killed here.
        for settings in spread(config.preset, config.span, SPREAD)[there:]:
            study.enqueue_trial(settings)
        study.set_user_attr("about", about)
    elif known != about:
        raise RepnoiseError(f"{config.folder} holds a tuning with other settings: choose another --output-dir.")


def _made(trial: Any, config: TuneConfig, before: dict[str, Any]) -> None:
    from optuna.trial import TrialState

    from repnoise.search.queue import beating

    trial.set_user_attr("name", f"{config.defence}, trial {trial.number}")
    try:
        with beating(trial):
            made = _trial(config, trial, before).made()
    except RepnoiseError as error:
        trial.set_user_attr("reason", str(error))
        trial.study.tell(trial, state=TrialState.FAIL)
        return
    for key, value in made.items():
        trial.set_user_attr(key, value)
    trial.study.tell(trial, made["score"])


def _trial(config: TuneConfig, trial: Any, before: dict[str, Any]) -> Trial:
    seed, learning = config.first_seed + trial.number, _learning(config)
    if learning is not None:
        learning = replace(learning, training=replace(learning.training, seed=seed))
    folder = config.folder / "trials" / str(trial.number)
    return Trial(folder, _defending(config, trial), config.attacks, learning, before, config.bounds, seed)


def _defending(config: TuneConfig, trial: Any) -> DefendConfig:
    found = chosen(trial, config.preset, config.span)
    return replace(found, training=replace(found.training, seed=config.first_seed + trial.number))


def _found(config: TuneConfig, study: Study) -> Tuned:
    metrics: dict[str, Any] = load_run(config.folder / "undefended").record["metrics"]
    task: Run | None = None
    if (config.folder / "undefended-task" / "run.json").exists():
        task = load_run(config.folder / "undefended-task")
        metrics = metrics | {"rouge1": task.record["metrics"]["rouge1"]}
    metric = headline(metrics)
    trials = [trial for trial in begun(study.get_trials(deepcopy=False)) if trial.state.is_finished()]
    found = Tuned(
        defence=config.defence,
        metric=metric,
        before={name: value_of(metrics, name) for name in (metric, *shown(metrics))},
        bounds=vars(config.bounds),
        attacks=config.attacks,
        trials=[tried(trial) for trial in trials],
        preset=config.preset,
    )
    best = found.best
    if best is None:
        return found
    return replace(found, best_config=chosen(study.get_trials()[best.number], config.preset, config.span))
