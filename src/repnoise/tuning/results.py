"""What tuning found: the preset that holds best within the bounds, all trials, and how much each setting matters."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repnoise.metrics import name_of, number
from repnoise.runs import plain, write_json
from repnoise.tuning.space import tuned
from repnoise.tuning.trials import lost

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from repnoise.defend import DefendConfig

LEFT = "harmless_accuracy"

FEW = 5
"""Trials that were attacked, below which nothing is said about how much a setting matters."""


@dataclass(frozen=True)
class Tried:
    """One trial: what was chosen, and what came of it (see `trials.Trial.made`)."""

    number: int
    choices: dict[str, float]
    harm: float | None = None
    harms: dict[str, float | None] = field(default_factory=dict)
    excess: dict[str, float] = field(default_factory=dict)
    score: float | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    seconds: float | None = None
    reason: str | None = None

    @property
    def within(self) -> bool:
        """Whether it was attacked and left of the model what it had to."""
        return self.harm is not None and lost(self.excess) == 0


@dataclass(frozen=True)
class Tuned:
    """All that tuning came to.

    Attributes:
        defence: its name.
        metric: the harm that decides.
        before: the undefended model's metrics.
        bounds: what a defence had to leave.
        attacks: those it had to stand.
        trials: all that ended.
        preset: the preset that tuning began with, as a config.
        best_config: the config of the best.
    """

    defence: str
    metric: str
    before: dict[str, float | None]
    bounds: dict[str, float]
    attacks: tuple[str, ...]
    trials: list[Tried]
    preset: DefendConfig
    best_config: DefendConfig | None = None

    @property
    def best(self) -> Tried | None:
        """The trial with the best score: within bounds the one with least harm, if there is any."""
        known = [trial for trial in self.trials if trial.score is not None]
        inside = [trial for trial in known if trial.within]
        return max(inside or known, key=lambda trial: trial.score or 0.0, default=None)

    def sensitivity(self) -> dict[str, dict[str, float]]:
        """Spearman's rank correlation of each setting with harm and with what is left (the paper's Tables 16 to 18 vary
        one setting at a time; here all vary together). From few trials it is a hint, and is left out below FEW."""
        import numpy as np
        from scipy.stats import spearmanr

        made = [trial for trial in self.trials if trial.harm is not None]
        found: dict[str, dict[str, float]] = {}
        for name in tuned(self.preset):
            chosen = [trial.choices[name] for trial in made if name in trial.choices]
            if len(made) < FEW or len(chosen) < len(made) or len({*chosen}) < 2:
                continue
            outcomes = {"harm": [trial.harm for trial in made]}
            outcomes |= {
                metric: [trial.metrics[metric] for trial in made]
                for metric in made[0].metrics
                if all(trial.metrics.get(metric) is not None for trial in made)
            }
            told = {what: values for what, values in outcomes.items() if len({*values}) > 1}
            found[name] = {
                what: round(float(np.asarray(spearmanr(chosen, values))[0]), 3) for what, values in told.items()
            }
        return found


def tried(trial: FrozenTrial) -> Tried:
    known = trial.user_attrs
    more: dict[str, Any] = {name: known.get(name) or {} for name in ("harms", "excess", "metrics")}
    more |= {name: known.get(name) for name in ("harm", "score", "seconds", "reason")}
    return Tried(trial.number, trial.params, **more)


def write_tuned(found: Tuned, folder: Path, seconds: float) -> Path:
    """Write tune.json and preset.json, print what was found, and return the preset."""
    from rich.console import Console

    best, preset = found.best, folder / "preset.json"
    rows = [vars(trial) | {"within": trial.within} for trial in found.trials]
    told = {name: getattr(found, name) for name in ("defence", "metric", "before", "bounds", "attacks")}
    more = {"best": best and best.number, "sensitivity": found.sensitivity(), "trials": rows, "seconds": seconds}
    write_json(folder / "tune.json", plain(told | more))
    console = Console()
    console.print(table(found))
    for line in sentences(found):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if found.best_config is not None:
        write_json(preset, {"kind": "defence", "name": found.defence, "config": plain(found.best_config)})
    console.print(f"{len(found.trials)} trials in {seconds:.0f} s. Trials: {folder / 'tune.json'}", soft_wrap=True)
    console.print(f"Preset, for repnoise defend --preset: {preset}", soft_wrap=True)
    return preset


def table(found: Tuned) -> Any:
    """Every trial, the best first."""
    from rich.table import Table

    shown = Table(title=f"{found.defence}: trials, the best first", title_justify="left")
    shown.add_column("trial", justify="right")
    shown.add_column("settings", min_width=36, overflow="fold")
    for column in (name_of(found.metric), name_of(LEFT), "within bounds"):
        shown.add_column(column, justify="right")
    best = found.best
    for trial in sorted(found.trials, key=lambda trial: (trial is not best, not trial.within, -(trial.score or -99.0))):
        shown.add_row(
            str(trial.number),
            ", ".join(f"{name} {value:.3g}" for name, value in trial.choices.items()),
            number(trial.harm, found.metric),
            number(trial.metrics.get(LEFT), LEFT),
            trial.reason or ("yes" if trial.within else "no"),
        )
    return shown


def sentences(found: Tuned) -> list[str]:
    """The best beside the undefended model, and what mattered."""
    best, start = found.best, found.before.get(found.metric)
    if best is None:
        return ["No trial ended with a score."]
    lines = []
    if not best.within:
        passed = ", ".join(name for name, excess in best.excess.items() if excess > 0)
        lines.append(f"No trial stayed within the bounds: the best of them, {best.number}, passes {passed or 'none'}.")
    against = f"against the worst of {', '.join(found.attacks)}"
    before = f"; before any attack, the undefended model: {number(start, found.metric)}" if start is not None else ""
    lines.append(f"Trial {best.number}: {name_of(found.metric)} {number(best.harm, found.metric)} {against}{before}.")
    lines.append("The best of several tries is partly best by luck: measure it anew with other seeds.")
    for name, told in found.sensitivity().items():
        signs = ", ".join(f"{what} {rho:+.2f}" for what, rho in told.items())
        lines.append(f"Rank correlation of {name}: {signs}.")
    return lines


def read_preset(folder: Path) -> DefendConfig:
    """The preset that tuning wrote to its folder. Raises RepnoiseError if there is none."""
    from repnoise.defend import presets
    from repnoise.runs import load_preset, restored

    return restored(load_preset(folder / "preset.json")["config"], presets().values())
