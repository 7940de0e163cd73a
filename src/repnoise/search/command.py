"""`repnoise attack MODEL --search`: the worst attack that a budget finds, and what it costs."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from repnoise.attack import AttackConfig, attack, require_apart
from repnoise.attacks import ATTACKS, DEMO, SUITES, Attack
from repnoise.cells import Cell, one_core, run_all
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation
from repnoise.evaluate import EvaluateConfig, Evaluating, evaluate
from repnoise.inputs import FLAT, Inputs
from repnoise.runs import Run, fingerprint, load_run, plain
from repnoise.search.queue import MOST_TRIALS, Budget, Queue, begun, open_study, watch
from repnoise.search.report import write_results
from repnoise.search.results import Found, tried
from repnoise.search.space import Fixed, Space, is_plain, needs_base, sizes, usable, ways_of_asking
from repnoise.search.trials import Limits, headline, left_of, make, value_of

if TYPE_CHECKING:
    from optuna import Study

FRESH_SEEDS = 2
"""Seeds beside the search's own with which the best attack is made again: the best of many is best by luck, too."""

KEPT = 75.0
"""Per cent of trials that go on at each point of the curve: what is among the last quarter there is stopped."""


@dataclass(frozen=True)
class SearchConfig:
    """Look for the attack that brings most harm out of a model and leaves the model useful, and tell what it costs.

    This raises harm in order to measure a defence against an attacker who tries as hard, and keeps no attacked weights.
    The demo's grid is tried first; what follows is guided by what is known so far. The same command goes on where it
    was stopped, a second process with the same command shares the work, and a larger budget goes on from a smaller one.

    Attributes:
        inputs: model and data.
        evaluating: how harm is measured.
        limits: what an attack must leave of the model.
        trials: attacks that are tried; 40 without a budget in FLOPs.
        flops: begin no further attack once those that ended have cost so many FLOPs together.
        attacks: attacks to begin with beside plain fine-tuning: names of suites and of `repnoise list attacks`; "none"
            for none.
        most_steps: the longest training.
        fixed: settings of every training that are not searched.
        search_seed: what is tried.
        jobs: processes at a time, each on one core; all cores by default.
        storage: database that machines share, as Optuna writes it; a file in the search's folder by default.
        allow_overlap: go on though defence, attack and test data share prompts.
        output_dir: where trials and results go; by default a folder below runs/ named after the settings.
    """

    inputs: Annotated[Inputs, FLAT] = field(default_factory=Inputs)
    evaluating: Annotated[Evaluating, FLAT] = field(
        default_factory=lambda: Evaluating(generation=Generation(max_new_tokens=48))
    )
    limits: Annotated[Limits, FLAT] = field(default_factory=Limits)
    trials: int | None = None
    flops: float | None = None
    attacks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ("standard",)
    most_steps: int = 800
    fixed: Annotated[Fixed, FLAT] = field(default_factory=Fixed)
    search_seed: int = 0
    jobs: int | None = None
    storage: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    allow_overlap: bool = False
    output_dir: Path | None = None

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("flops", 1), ("most_steps", 10), ("jobs", 1)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise RepnoiseError(f"--{name.replace('_', '-')} must be at least {least}, not {value}.")

    @property
    def settings(self) -> SearchConfig:
        """What makes this search another one: neither its budget nor who makes it where."""
        return replace(self, trials=None, flops=None, jobs=None, storage=None, allow_overlap=False, output_dir=None)

    @property
    def budget(self) -> Budget:
        return Budget(self.trials or (40 if self.flops is None else MOST_TRIALS), self.flops)

    @property
    def folder(self) -> Path:
        model = "undefended" if self.inputs.model == "sandbox" else Path(self.inputs.model).name
        return self.output_dir or Path("runs") / f"search-{model}-{fingerprint(self.settings)[:8]}"


def search(config: SearchConfig) -> Path:
    """Try attacks until the budget is spent, make the best one again with fresh seeds, and return the results' file.

    Raises RepnoiseError for what cannot be searched, for data that overlaps where it must not, and if nothing was
    measured.
    """
    from filelock import FileLock

    started = time.perf_counter()
    study, (space, left_out) = _study(config), _space(config)
    jobs = min(config.jobs or os.cpu_count() or 1, config.budget.trials)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), one_core) as pool:
        watch([pool.submit(work, config) for _ in range(jobs)], pool, study, config.budget)
    with FileLock(config.folder / "results.lock"):  # Every process that shared the work comes to the same results.
        found = _found(config, study, space, left_out)
        if found.best is not None:
            worst = _chosen(space, study.get_trials()[found.best.number])
            found = replace(found, config=plain(_attacking(config, worst)), fresh=_made_again(config, worst, found))
        return write_results(found, study, config.folder, time.perf_counter() - started)


def work(config: SearchConfig) -> None:
    """Make trials in this process until the budget is spent and every other process has finished, too."""
    from optuna.pruners import PercentilePruner

    study, (space, _) = _study(config), _space(config)
    queue = Queue(study, config.folder, config.budget, config.search_seed, config.storage is None)
    with queue.lock:
        before = _before(config)
        _begin(study, config, before, space)
    study.pruner = PercentilePruner(KEPT, n_startup_trials=5, n_min_trials=4)
    with queue.open():
        while (trial := queue.next()) is not None:
            chosen = _attacking(config, _chosen(space, trial))
            make(trial, chosen, config.limits, config.folder, before.record["metrics"])


def _study(config: SearchConfig) -> Study:
    name = "search" if config.storage is None else config.folder.name
    return open_study(config.folder, config.storage, name)


def _space(config: SearchConfig) -> tuple[Space, dict[str, str]]:
    """All attacks that may be tried, and why some presets may not."""
    loaded, data, codec = config.inputs.open()
    if not config.allow_overlap:
        require_apart(config.inputs, data)
    ATTACKS[DEMO[0]][1].require(data)
    base = config.evaluating.base
    presets, left_out = usable(_asked(config), data, base, config.inputs.data == "sandbox")
    pairs, templates = len(data.attacker_pairs()), ways_of_asking(codec)
    space = Space(config.most_steps, presets, sizes(pairs), templates, bool(data.benign), config.fixed, base)
    if config.flops is not None and ATTACKS[DEMO[0]][1].costs(loaded, data, codec)(1).flops is None:
        raise RepnoiseError("FLOPs of this model cannot be counted: give a number of --trials instead of --flops.")
    return space, left_out


def _asked(config: SearchConfig) -> tuple[str, ...]:
    """Names of presets, with those of suites in the place of a suite: of these what is no plain fine-tuning."""
    found: list[str] = []
    for name in config.attacks if config.attacks != ("none",) else ():
        others = [other for other in SUITES.get(name, ()) if not is_plain(ATTACKS[other][1])]
        found += others if name in SUITES else [name]
    return tuple(dict.fromkeys(found))


def _known(space: Space) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Attacks to begin with, as choices and attributes of trials: the demo's grid, where else to begin, and what is
    tried once, as it is."""
    grid = [(space.choices(name), {"known": name, "grid": name}) for name in DEMO]
    guesses = [(chosen, {"known": name}) for name, chosen in space.guesses().items()]
    tuned = [(space.choices(name), {"known": name}) for name in space.tuned]
    once = [({}, {"known": name, "preset": name}) for name in space.presets if name not in space.tuned]
    return [(chosen, told) for chosen, told in (*grid, *guesses, *tuned, *once) if chosen is not None]


def _before(config: SearchConfig) -> Run:
    """The model as it is: what attacks are compared with."""
    before = EvaluateConfig(config.inputs, config.evaluating)
    run = evaluate(before, config.folder / "before", "before", resume=True)
    headline(run.record["metrics"])
    return run


def _begin(study: Study, config: SearchConfig, before: Run, space: Space) -> None:
    """Put what is known first in a new study. Raises RepnoiseError if the study is another search's."""
    about = {
        "settings": fingerprint(config.settings),
        "space": fingerprint(space),
        "model": before.record["parent"]["fingerprint"],
        "data": before.record["data"]["measured"]["fingerprint"],
    }
    known = study.user_attrs.get("about")
    if known is None:
        there = {trial.user_attrs.get("known") for trial in study.get_trials(deepcopy=False)}
        for chosen, told in _known(space):
            if told["known"] not in there:  # As from a process that was killed here.
                study.enqueue_trial(chosen, told)
        study.set_user_attr("about", about)
    elif known != about:
        what = {"settings": "other settings", "space": "other attacks", "model": "another model", "data": "other data"}
        differs = " and ".join(word for key, word in what.items() if known.get(key) != about[key])
        raise RepnoiseError(f"{config.folder} holds a search with {differs}: choose another --output-dir.")


def _chosen(space: Space, trial: Any) -> Attack:
    preset = trial.user_attrs.get("preset")
    return space.preset(preset) if preset else space.attack(trial)


def _attacking(config: SearchConfig, chosen: Attack) -> AttackConfig:
    return AttackConfig(config.inputs, chosen, config.evaluating)


def _found(config: SearchConfig, study: Study, space: Space, left_out: dict[str, str]) -> Found:
    from optuna.trial import TrialState

    metrics = load_run(config.folder / "before").record["metrics"]
    return Found(
        model=config.inputs.model,
        data=config.inputs.data,
        metric=headline(metrics),
        before={"harm": value_of(metrics, headline(metrics))} | left_of(metrics, metrics),
        limits=dict(vars(config.limits)),
        budget={"trials": config.budget.trials, "flops": config.flops},
        trials=[
            tried(trial, trial.state == TrialState.COMPLETE and needs_base(_chosen(space, trial)))
            for trial in begun(study.get_trials(deepcopy=False))
        ],
        left_out=left_out,
    )


def _made_again(config: SearchConfig, chosen: Attack, found: Found) -> list[dict[str, Any]]:
    """The best attack with fresh seeds; none for one that draws nothing."""
    best = found.best
    assert best is not None
    seeds = [seed for seed in range(1, FRESH_SEEDS + 1) if chosen.seeded(seed) != chosen]
    before = load_run(config.folder / "before").record["metrics"]
    cells = []
    for seed in seeds:
        make = partial(attack, _attacking(config, chosen.seeded(seed)), resume=True)
        place = config.folder / "best" / f"trial-{best.number}-seed-{seed}"
        cells.append(Cell(place, best.name, make, title=f"{best.name}, seed {seed}", resumes=True))
    failed = run_all(cells, config.jobs) if cells else {}
    made = [(seed, load_run(cell.path)) for seed, cell in zip(seeds, cells, strict=True) if cell.path not in failed]
    rows = []
    for seed, run in made:
        metrics = run.record["metrics"]
        within = all(excess <= 0 for excess in config.limits.excesses(metrics, before, found.metric).values())
        row = {"seed": seed, "run": str(run.path.relative_to(config.folder)), "harm": value_of(metrics, found.metric)}
        rows.append(row | left_of(metrics, before) | {"feasible": within})
    return rows
