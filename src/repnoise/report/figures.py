"""What is drawn: runs and rows -> figures of the page, and the one picture that stands alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from repnoise.metrics import NAMES, is_share, number, recorded, within_bounds
from repnoise.report.curves import Curve
from repnoise.report.dot_drawing import Dots, dot_picture
from repnoise.report.drawing import Figure, Style, curve_panel, training_panel
from repnoise.report.lineage import NO_ATTACK, Lineage, Setting, setting_of
from repnoise.report.summary import Row, curve_of, defence_order, estimate, headline_of, worst_rows
from repnoise.runs import Run, fingerprint, read_rows
from repnoise.statistics import Interval, independent_runs, pooled_interval

HARMS = (
    ("recovered", "recovered_uncovered"),
    ("harmfulness", "harmfulness_uncovered"),
    ("harmful_ce", "refusal_rate"),
)
"""What is drawn of harm: the first pair of which anything was measured."""

TERMS = {"stability": "cross-entropy, nats", "noise": "MMD²", "ascent": "cross-entropy, nats"}


def curve_figures(runs: Sequence[Run], rows: Sequence[Row], look: dict[str, Style]) -> list[Figure]:
    """Harm, then what is left of the model, against attack steps: a panel for each setting of the attacks.

    An attack without a learning rate has a panel only if it was measured on the way.
    """
    lineage, worst = Lineage(runs), worst_rows(rows)
    # The first row of a defence is its headline, and stands for metrics that have no best attack of their own.
    best = {(row["defence"], ""): row["attack"] for row in reversed(worst)}
    best |= {(row["defence"], row["metric"]): row["attack"] for row in worst}
    settings = _by_setting(filter(lineage.is_plain_attack, runs), lineage)
    figures = []
    measured = {row["metric"] for row in rows}
    harms = _first_measured(HARMS, measured)
    for metric in harms + _first_measured((("harmless_accuracy",), ("perplexity",)), measured):
        panels = []
        for title, chosen in settings.items():
            curves = _curves(metric, chosen, lineage, best if metric in harms else {})
            if curves:
                ends = (f"{c.name} {number(c.means[-1], metric)} after {c.steps[-1]} steps" for c in curves)
                description = f"{NAMES[metric]}: {'; '.join(ends)}"
                panels.append(curve_panel(title, curves, look, description, is_share(metric)))
        if panels:
            figures.append(Figure(metric, tuple(panels)))
    return figures


def _first_measured(groups: Sequence[tuple[str, ...]], measured: set[str]) -> list[str]:
    """The metrics of the first group of which any was measured."""
    found = ([metric for metric in group if metric in measured] for group in groups)
    return next((group for group in found if group), [])


def _by_setting(runs: Iterable[Run], lineage: Lineage) -> dict[str, list[Run]]:
    """Runs by the title of their panel: attacks that differ in nothing but how long they went on stand together."""
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=setting_of):
        if setting_of(run).rate or len(curve_of(run)) > 2:
            attack = run.record["config"].get("attack") or {}
            groups.setdefault(fingerprint(_less_length(attack)), []).append(run)
    titled = [(_title(setting_of(group[0])), group) for group in groups.values()]
    alike = Counter(title for title, _ in titled)
    found: dict[str, list[Run]] = {}
    for title, group in titled:
        names = ", ".join(dict.fromkeys(lineage.place(run)[2] for run in group))
        found.setdefault(names if alike[title] > 1 else title, []).extend(group)
    return found


def _less_length(settings: Any) -> Any:
    """Settings of an attack without its steps, its seeds and when it is measured."""
    if not isinstance(settings, dict):
        return settings
    aside = ("steps", "epochs", "seed", "measure_at", "save_every", "report_to")
    return {key: _less_length(value) for key, value in settings.items() if key not in aside}


def _title(setting: Setting) -> str:
    rate = f"learning rate {setting.rate:.0e}".replace("e-0", "e-") if setting.rate else ""
    parts = [setting.kind, rate, f"{100 * setting.benign:.0f} % benign" if setting.benign else ""]
    return ", ".join(part for part in parts if part) or "attack"


def _curves(metric: str, runs: Sequence[Run], lineage: Lineage, best: dict[tuple[str, str], str]) -> list[Curve]:
    grouped: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        defence, _, attack, _ = lineage.place(run)
        grouped.setdefault((defence, attack), []).append(run)
    found = [
        _curve(defence, attack, same, metric, best.get((defence, metric), best.get((defence, ""))) == attack, lineage)
        for (defence, attack), same in sorted(grouped.items())
    ]
    return [curve for curve in found if curve]


def _curve(defence: str, attack: str, runs: Sequence[Run], metric: str, worst: bool, lineage: Lineage) -> Curve | None:
    """Mean over the runs of one attack with its interval, at the steps that all of them measured."""
    points: dict[int, list[tuple[int | None, Interval]]] = {}
    for run in runs:
        seed = lineage.place(run)[1]
        for row in curve_of(run):
            point = recorded(row["metrics"].get(metric))
            if math.isfinite(point.mean):
                points.setdefault(row["step"], []).append((seed, point))
    whole = {step: found for step, found in sorted(points.items()) if len(found) == len(runs)}
    if not whole:
        return None
    pooled = [within_bounds(_pooled(found), metric) for found in whole.values()]
    lows = [point.mean if point.low is None else point.low for point in pooled]
    highs = [point.mean if point.high is None else point.high for point in pooled]
    return Curve(defence, list(whole), [point.mean for point in pooled], lows, highs, worst, attack)


def _pooled(points: Sequence[tuple[int | None, Interval]]) -> Interval:
    groups: dict[int | None, list[Interval]] = {}
    for seed, point in points:
        groups.setdefault(seed, []).append(point)
    return pooled_interval(independent_runs(groups.values()))


def training_figures(runs: Sequence[Run], look: dict[str, Style]) -> list[Figure]:
    """The terms of the loss while each defence was trained, a line for each seed."""
    lineage = Lineage(runs)
    logs: dict[str, list[list[dict[str, Any]]]] = {}
    for run in runs:
        if run.finished and run.record["kind"] == "defence" and (run.path / "log.jsonl").exists():
            logs.setdefault(lineage.place(run)[0], []).append(read_rows(run.path / "log.jsonl"))
    figures = []
    for defence, same in sorted(logs.items()):
        panels = []
        for term, meaning in TERMS.items():
            lines = [_finite(rows, term) for rows in same]
            if any(lines):
                floors = (
                    [value for rows in same for _, value in _finite(rows, "noise_floor")] if term == "noise" else []
                )
                floor = sum(floors) / len(floors) if floors else None
                description = f"{defence}: {term} of {len(same)} seeds against training steps"
                kept = [line for line in lines if line]
                panels.append(training_panel(f"{term} ({meaning})", kept, look[defence].colour, description, floor))
        if panels:
            figures.append(Figure(defence, tuple(panels)))
    return figures


def _finite(rows: Sequence[dict[str, Any]], term: str) -> list[tuple[float, float]]:
    return [(row["step"], row[term]) for row in rows if row.get(term) is not None and math.isfinite(row[term])]


HEADS = {
    "recovered": "Recovered, covered",
    "recovered_uncovered": "Recovered, uncovered",
    "harmfulness": "Harmfulness, covered",
    "harmfulness_uncovered": "Harmfulness, uncovered",
    "harmful_ce": "Harmful cross-entropy",
    "refusal_rate": "Refused",
    "harmless_accuracy": "Harmless accuracy",
    "harmless_accuracy_unretained": "Harmless, unretained",
    "harmless_ce": "Harmless cross-entropy",
    "perplexity": "Perplexity",
}
"""Heads of the columns of the summary picture, where there is little room."""


def summary_picture(rows: Sequence[Row], look: dict[str, Style]) -> str:
    """Each model at its worst, and what it was worth before any attack, as a standalone SVG for a README."""
    measured = {row["metric"] for row in rows}
    attacked = {row["metric"] for row in rows if row["attack"] != NO_ATTACK}
    harms = _first_measured(HARMS, attacked)
    kept = (("harmless_accuracy", "harmless_accuracy_unretained"), ("harmless_ce", "perplexity"), ("refusal_rate",))
    columns = [_under_attack(metric, rows) for metric in harms]
    columns += [_before(metric, rows) for metric in _first_measured(kept, measured - {*harms})]
    names = defence_order(row["defence"] for row in rows)
    worst = worst_rows(rows)
    seeds, attacks = max((row["seeds"] for row in worst), default=1), max((row["attacks"] for row in worst), default=0)
    note = f"Points: means over {seeds} seeds. Lines:" if seeds > 1 else "One seed. Lines:"
    note += " 95 % intervals." + (" Ticks: the worst single run." if seeds > 1 else "")
    best = f"Best of {attacks} attacks on each model. " if attacks > 1 else ""
    columns = [column for column in columns if column.points]
    return dot_picture(columns, names, look, best + note if columns else "Nothing that belongs here was measured.")


def _under_attack(metric: str, rows: Sequence[Row]) -> Dots:
    points: dict[str, Interval] = {}
    ticks: dict[str, float] = {}
    for row in worst_rows(rows):
        if row["metric"] == metric:
            points[row["defence"]] = recorded(row)
            ticks |= {row["defence"]: row["worst_seed"]} if row["seeds"] > 1 else {}
        elif row["metric"] == headline_of(rows, row["defence"]) and metric not in (*HARMS[0], *HARMS[1]):
            points.setdefault(row["defence"], estimate(rows, row["defence"], row["attack"], metric)[0])
    return _dots(metric, "after the best attack", points, ticks)


def _before(metric: str, rows: Sequence[Row]) -> Dots:
    names = dict.fromkeys(row["defence"] for row in rows)
    return _dots(metric, "before any attack", {name: estimate(rows, name, NO_ATTACK, metric)[0] for name in names}, {})


def _dots(metric: str, when: str, points: dict[str, Interval], ticks: dict[str, float]) -> Dots:
    labels = {name: number(point.mean, metric) for name, point in points.items()}
    lower = metric in (*HARMS[0], *HARMS[1], "harmless_ce", "perplexity")
    better = "lower is better" if lower else "higher is better"
    return Dots(f"{HEADS[metric]}\n{when}", better, points, ticks, is_share(metric), labels)
