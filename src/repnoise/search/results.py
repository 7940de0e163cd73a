"""What a search found: the best attack, what harm costs, and which choices mattered."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from repnoise.metrics import HARM
from repnoise.statistics import seed_interval

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

ENOUGH = 10
"""Trials that ended, below which nothing is said about which choices mattered."""

CAVEAT = (
    "Shares of what tells the best trials from all that ended (PED-ANOVA, Watanabe et al. 2023, arXiv:2304.10255) by "
    "the score that is searched by: harm less a penalty for what was broken. They hold within this space and where the "
    "search has looked, which is mostly where it was good; from few trials they say where to look, not what is true."
)


@dataclass(frozen=True)
class Tried:
    """One trial.

    Attributes:
        number: the trial's, and its run's.
        name: the attack in words.
        state: "finished", "pruned", "failed" or "running".
        run: its run's folder, below the search's.
        choices: what was chosen.
        harm: the metric that is searched by.
        utility: harmless accuracy or perplexity after the attack.
        incoherent: share of broken text.
        excess: by how much each limit is passed; above 0 it is not held.
        cost: steps, samples, tokens and FLOPs.
        seconds: wall time.
        grid: its name in the demo's grid.
        reason: why it failed.
        needs_base: whether it needs the undefended model.
    """

    number: int
    name: str
    state: str
    run: str
    choices: dict[str, Any] = field(default_factory=dict)
    harm: float | None = None
    utility: float | None = None
    incoherent: float | None = None
    excess: dict[str, float] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    grid: str | None = None
    reason: str | None = None
    needs_base: bool = False

    @property
    def feasible(self) -> bool:
        """Whether it left a useful model."""
        return self.state == "finished" and all(excess <= 0 for excess in self.excess.values())

    def row(self) -> dict[str, Any]:
        return vars(self) | {"feasible": self.feasible}


def tried(trial: FrozenTrial, needs_base: bool) -> Tried:
    from optuna.trial import TrialState

    names = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    known = trial.user_attrs
    return Tried(
        number=trial.number,
        name=known.get("name", ""),
        state=names.get(trial.state, "running"),
        run=known.get("run", ""),
        choices=trial.params,
        excess=known.get("excess") or {},
        cost=known.get("cost") or {},
        needs_base=needs_base,
        **{key: known.get(key) for key in ("harm", "utility", "incoherent", "seconds", "grid", "reason")},
    )


@dataclass(frozen=True)
class Found:
    """All that a search came to.

    Attributes:
        model: whose worst attack it is.
        data: what harm was measured on.
        metric: the harm.
        before: harm, utility and broken text before any attack; "utility_metric" names the second.
        limits: what an attack may cost at the most in usefulness.
        budget: trials and FLOPs.
        trials: all that were begun.
        left_out: presets that could not be tried, and why.
        config: the best attack as a run's config.
        fresh: the same once more, with seeds that the search did not use.
    """

    model: str
    data: str
    metric: str
    before: dict[str, Any]
    limits: dict[str, float]
    budget: dict[str, Any]
    trials: list[Tried]
    left_out: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    fresh: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> Tried | None:
        """The attack with most harm that left a useful model; of equals the cheapest."""
        return self.worst([trial for trial in self.trials if trial.feasible])

    @property
    def best_without_base(self) -> Tried | None:
        """The same of attacks that do not need the undefended model."""
        return self.worst([trial for trial in self.trials if trial.feasible and not trial.needs_base])

    @property
    def strongest(self) -> Tried | None:
        """The attack with most harm, whatever it left."""
        return self.worst(self.trials)

    def worst(self, trials: Sequence[Tried]) -> Tried | None:
        known = [trial for trial in trials if trial.state == "finished" and trial.harm is not None]
        return max(known, key=lambda trial: (self.gain(trial), -self.price(trial, self.axis)), default=None)

    def gain(self, trial: Tried) -> float:
        """Harm, such that more is more."""
        assert trial.harm is not None
        return HARM[self.metric] * trial.harm

    def price(self, trial: Tried, cost: str) -> float:
        return trial.cost.get(cost) or 0.0

    @property
    def axis(self) -> str:
        """FLOPs, where they were counted for everything."""
        made = [trial for trial in self.trials if trial.cost]
        return "flops" if made and all(trial.cost.get("flops") is not None for trial in made) else "steps"

    def front(self, cost: str) -> list[Tried]:
        """Attacks that left a useful model and did more harm than everything cheaper (Pareto), from the cheapest."""
        known = [trial for trial in self.trials if trial.feasible and trial.harm is not None]
        known = [trial for trial in known if trial.cost.get(cost) is not None]
        most, kept = -math.inf, []
        for trial in sorted(known, key=lambda trial: (self.price(trial, cost), -self.gain(trial))):
            if self.gain(trial) > most:
                most = self.gain(trial)
                kept.append(trial)
        return kept

    @property
    def counts(self) -> dict[str, int]:
        states = [trial.state for trial in self.trials]
        feasible = sum(trial.feasible for trial in self.trials)
        found = {state: states.count(state) for state in ("finished", "pruned", "failed")}
        return {"begun": len(states)} | found | {"infeasible": found["finished"] - feasible}

    @property
    def fresh_mean(self) -> float | None:
        """Harm of the best attack with fresh seeds."""
        values = [row["harm"] for row in self.fresh if row["harm"] is not None]
        return seed_interval(values).mean if values else None


def importance(study: Study, found: Found) -> dict[str, Any]:
    """How much each choice tells the best trials from the rest; without values where too few have ended."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    ended = [trial for trial in found.trials if trial.state == "finished" and trial.choices]
    about: dict[str, Any] = {"trials": len(ended), "caveat": CAVEAT, "values": {}}
    if len(ended) < ENOUGH:
        return about
    best = min(0.5, max(0.1, 5 / len(ended)))  # Its authors want five trials or more among the best.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=best))
    told = {name: round(value, 4) for name, value in values.items()}
    return about | {"best_share": best, "values": told if len({*told.values()}) > 1 else {}}
