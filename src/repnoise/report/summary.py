"""Finished runs as rows: which defence, which seed, which attack, which number; and the worst case of each defence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from repnoise.metrics import HARM, HEADLINES, recorded, within_bounds
from repnoise.report.lineage import CONTROLS, NO_ATTACK, Lineage, data_of, run_names, setting_of
from repnoise.runs import Run, read_rows
from repnoise.statistics import Interval, independent_runs, pooled_interval, worst_case

Row = dict[str, Any]
"""{"defence", "seed", "attack", "metric", "value", "n", "low", "high", "step", "attack_seed", "base", "run"}.

"attack" is "none" for what was measured before any; "base" names the undefended model to compare with; "run" is where
the run that measured it lies, below the folder that has all of them. A metric that
was measured on another data set than the model's own is called "METRIC on DATA", so that the two are never compared.
"""

MEASURED = ("defence", "initialisation", "attack", "evaluation", "trainability")
"""Kinds of runs that measure a model."""


def summarise(runs: Sequence[Run]) -> list[Row]:
    """One row for each number of each finished run, the controls last, attacks from weak to strong.

    Numbers from before the attack come from the defended model's own run; where that is not among the runs, from the
    start of the attack's curve.
    """
    lineage, names = Lineage(runs), run_names(runs)
    finished = [run for run in runs if run.finished and run.record["kind"] in MEASURED]
    rows: dict[tuple[Any, ...], Row] = {}
    for run in sorted(finished, key=lambda run: run.record["kind"] != "defence"):
        defence, seed, attack, attack_seed = lineage.place(run)
        key: Row = {"defence": defence, "seed": seed, "attack": attack}
        whence = {"base": lineage.base(run), "run": names[run.path.resolve()]}
        curve = curve_of(run)
        other = "" if (data := data_of(run)) in (lineage.data(run), None) else f" on {data}"
        end = curve[-1]["step"] if curve else 0
        _add(rows, key, _renamed(run.record.get("metrics"), other), end, attack_seed, whence)
        if run.record["kind"] == "attack" and curve and curve[0]["step"] == 0 and ", then " not in attack:
            # A model that no run made has no seed: its attacks have.
            start = {"attack": NO_ATTACK, "seed": seed if lineage.parent(run) else None}
            _add(rows, key | start, _renamed(curve[0]["metrics"], other), 0, None, whence)
    attacks = attack_order(runs, lineage)
    defences = defence_order(row["defence"] for row in rows.values())
    order = [*rows.values()]
    order.sort(key=lambda row: (defences.index(row["defence"]), row["seed"] or 0, attacks.index(row["attack"])))
    return order


def _renamed(metrics: Any, other: str) -> dict[str, Any]:
    return {f"{metric}{other}": measured for metric, measured in (metrics or {}).items()}


def _add(
    rows: dict[tuple[Any, ...], Row], key: Row, metrics: Any, step: int, attack_seed: int | None, whence: Row
) -> None:
    """The same measurement is made by several runs (a defence, its evaluation, a curve's start): the first counts."""
    for metric, measured in (metrics or {}).items():
        measured = measured or {}
        low, high = _number(measured.get("low")), _number(measured.get("high"))
        numbers = {"value": _number(measured.get("value")), "n": measured.get("n"), "low": low, "high": high}
        row = key | {"metric": metric} | numbers | {"step": step, "attack_seed": attack_seed} | whence
        rows.setdefault((*key.values(), metric, attack_seed), row)


def curve_of(run: Run) -> list[dict[str, Any]]:
    """The measured steps of an attack, in order; none where the run has no curve."""
    path = run.path / "curve.jsonl"
    return sorted(read_rows(path), key=lambda row: row["step"]) if path.exists() else []


def defence_order(names: Iterable[str]) -> list[str]:
    """Defences in alphabetical order, then the undefended model, then the limit."""
    return sorted(set(names), key=lambda name: (CONTROLS.index(name) + 1 if name in CONTROLS else 0, name))


def attack_order(runs: Sequence[Run], lineage: Lineage) -> list[str]:
    """No attack, then attacks by what they do (see `Setting`), their benign share, learning rate and steps."""
    found = {lineage.place(run)[2]: setting_of(run) for run in runs if run.record["kind"] in ("attack", "trainability")}
    return [NO_ATTACK, *sorted(found, key=lambda name: (found[name], name))]


def attacks_in_order(rows: Sequence[Row]) -> list[str]:
    """The order of attacks that `summarise` gives within one defence, from the defence with most of them."""
    orders = [list(dict.fromkeys(row["attack"] for row in rows if row["defence"] == name)) for name in models(rows)]
    longest = max(orders, key=len, default=[])
    return [*longest, *sorted({row["attack"] for row in rows} - set(longest))]


def models(rows: Sequence[Row]) -> list[str]:
    """Names of the models, in the order of the rows."""
    return list(dict.fromkeys(row["defence"] for row in rows))


def estimate(rows: Iterable[Row], defence: str, attack: str, metric: str) -> tuple[Interval, list[float]]:
    """Mean over seeds with its interval, and the value of each seed (see `independent_runs`)."""
    groups: dict[int | None, list[Interval]] = {}
    for row in rows:
        if (row["defence"], row["attack"], row["metric"]) == (defence, attack, metric):
            groups.setdefault(row["seed"], []).append(recorded(row))
    runs = independent_runs(groups.values())
    return within_bounds(pooled_interval(runs), metric), [run.mean for run in runs if not math.isnan(run.mean)]


def headline_of(rows: Sequence[Row], defence: str) -> str | None:
    """The metric that a defence is judged by: the first of HEADLINES that an attack on it has a number for."""
    attacked = (row for row in rows if row["defence"] == defence and row["attack"] != NO_ATTACK)
    scored = {row["metric"] for row in attacked if row["value"] is not None}
    return next((metric for metric in HEADLINES if metric in scored), None)


def worst_rows(rows: Sequence[Row]) -> list[Row]:
    """For each defence the best attack of its grid, by its headline metric and, apart, by its uncovered half.

    Rows {"defence", "metric", "attack", "attacks", "value", "low", "high", "n", "seeds", "worst_seed", "base"}: the
    attack with the highest mean over seeds, out of so many, and the worst single run of all. A defence's headline comes
    first.
    """
    found: list[Row] = []
    for defence in defence_order(row["defence"] for row in rows):
        headline = headline_of(rows, defence)
        for metric in dict.fromkeys((headline, f"{headline}_uncovered")):
            own = [row for row in rows if (row["defence"], row["metric"]) == (defence, metric)]
            attacked = [row for row in own if row["attack"] != NO_ATTACK]
            attacks = dict.fromkeys(row["attack"] for row in attacked)
            estimates = {attack: estimate(attacked, defence, attack, str(metric)) for attack in attacks}
            best = worst_case({attack: values for attack, (_, values) in estimates.items()}, HARM.get(str(metric), 1.0))
            if metric is None or best is None:
                continue
            interval, values = estimates[best]
            every = [row["value"] for row in attacked if row["value"] is not None]
            found.append(
                {"defence": defence, "metric": metric, "attack": best, "attacks": len(attacks), "value": interval.mean}
                | {"low": interval.low, "high": interval.high, "n": interval.n, "seeds": len(values)}
                | {"worst_seed": max(every, key=lambda value, sign=HARM[metric]: sign * value)}
                | {"base": own[0]["base"]}
            )
    return found


def _number(value: Any) -> float | None:
    """A finite number; NaN has no place in JSON, and means "unscored"."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
