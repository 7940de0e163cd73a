"""What it costs to break each model, as figures, as a table of the page, and as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from repnoise.cost import Event, Survival
from repnoise.metrics import HARM, NAMES, is_share, name_of, number
from repnoise.report.break_drawing import cost_panel, survival_panel
from repnoise.report.breaking import COSTS, Breaking, Heat, breaking, heat_of, median_limits
from repnoise.report.curves import Curve
from repnoise.report.drawing import Style, wrapped
from repnoise.report.heat_drawing import Cell, heat_panel
from repnoise.report.panels import Panel
from repnoise.report.summary import Row
from repnoise.runs import Run
from repnoise.statistics import seed_interval

if TYPE_CHECKING:
    from rich.table import Table

AXES = {"flops": "FLOPs of the attack", "samples": "examples trained on", "steps": "attack steps"}
ENOUGH_SEEDS = 3
"""Fewer have no survival curve worth drawing."""
WORST = "worst of all attacks"


def break_section(runs: Sequence[Run], rows: Sequence[Row], look: dict[str, Style]) -> dict[str, Any]:
    """What the page shows of costs: figures, the table, and the threshold in words; no models, no section."""
    found = breaking(runs, rows)
    if not found.seeds:
        return {"lines": [], "panels": [], "heat": []}
    heat, survival = heat_of(rows, found.metric), _survival_panels(found, look)
    return {
        "why": found.why,
        "reference": found.reference,
        "axis": COSTS[found.axis],
        "costs": list(COSTS.values()),
        "lines": [_line(found, model) for model in found.seeds] if found.why else [],
        "panels": [*_harm_panels(found, look), *survival],
        "survival": bool(survival),
        "heat": _heat_panels(heat) if heat.attacks else [],
    }


def _line(found: Breaking, model: str) -> dict[str, Any]:
    survivals = {cost: found.survival(model, cost) for cost in COSTS}
    times = found.ratio(model, found.axis)
    shown = "1" if model == found.reference else times.spelled().removesuffix(" times") if times else "–"
    return {"model": model, "cells": [_spelled(own) for own in survivals.values()], "ratio": shown}


def _spelled(own: Survival | None) -> dict[str, str]:
    """The median over seeds, its limits, and how many seeds were broken at all."""
    if own is None:
        return {"value": "–", "limits": "", "note": ""}
    low, high = median_limits(own)
    limits = f"[{_figure(low)}, {_figure(high)}]" if own.n > 1 and (low, high) != (None, None) else ""
    seeds = "one seed" if own.n == 1 else f"broken in {own.broken} of {own.n}"
    return {"value": own.typical().spelled(), "limits": limits, "note": seeds}


def _figure(cost: float | None) -> str:
    return "…" if cost is None else Event(cost, False).spelled().removeprefix("at most ")


def _harm_panels(found: Breaking, look: dict[str, Style]) -> list[Panel]:
    """The most harm that each model gave up at a cost of at most x, covered and uncovered."""
    panels = []
    for metric in dict.fromkeys((found.metric, f"{found.metric.removesuffix('_uncovered')}_uncovered")):
        curves = [curve for model in found.seeds if (curve := _envelope(found, model, metric))]
        if metric in HARM and curves:
            ends = {curve.name: _ends(found, curve.name, metric) for curve in curves}
            told = (f"{c.name} {number(c.means[-1], metric)} at up to {_figure(c.steps[-1])}" for c in curves)
            description = f"The most of any attack at a cost of at most so many {COSTS[found.axis]}: {'; '.join(told)}"
            title, axis = NAMES[metric], AXES[found.axis]
            threshold = found.threshold if metric == found.metric else math.nan
            panels.append(cost_panel(title, curves, ends, look, description, is_share(metric), axis, threshold))
    return panels


def _envelope(found: Breaking, model: str, metric: str) -> Curve | None:
    """Mean, least and most over seeds of the most harm so far, wherever every seed has been measured and went on."""
    seeds = [sorted(_scored(points)) for points in found.points(model, found.axis, metric)]
    seeds = [points for points in seeds if points]
    if not seeds:
        return None
    first, last = max(points[0][0] for points in seeds), min(points[-1][0] for points in seeds)
    costs = sorted({cost for points in seeds for cost, _ in points if first <= cost <= last} | {first, last})
    most = max if HARM.get(metric, 1.0) > 0 else min
    so_far = [[most(value for price, value in points if price <= cost) for points in seeds] for cost in costs]
    means = [seed_interval(values).mean for values in so_far]
    return Curve(model, costs, means, [min(values) for values in so_far], [max(values) for values in so_far])


def _scored(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(cost, value) for cost, value in points if not math.isnan(value)]


def _ends(found: Breaking, model: str, metric: str) -> list[tuple[str, float, float]]:
    """Where each attack ended: its name, cost and harm, means over seeds."""
    ends: dict[str, list[tuple[float, float]]] = {}
    for seed in found.seeds[model]:
        for point in seed:
            cost, value = point.cost.get(found.axis), point.value(metric)
            if point.last and cost is not None and not math.isnan(value):
                ends.setdefault(point.attack, []).append((cost, value))
    return [
        (attack, seed_interval([c for c, _ in own]).mean, seed_interval([v for _, v in own]).mean)
        for attack, own in ends.items()
    ]


def _survival_panels(found: Breaking, look: dict[str, Style]) -> list[Panel]:
    """Share of seeds that are not broken; nothing where there are too few."""
    survivals = {model: found.survival(model, found.axis) for model in found.seeds}
    curves = [_surviving(model, own) for model, own in survivals.items() if own and own.n >= ENOUGH_SEEDS]
    if not curves:
        return []
    told = "; ".join(f"{curve.name} {100 * curve.means[-1]:.0f} % at {_figure(curve.steps[-1])}" for curve in curves)
    return [survival_panel("share of seeds not broken", curves, look, f"At the end: {told}", AXES[found.axis])]


def _surviving(model: str, own: Survival) -> Curve:
    """From all at no cost; where there are no limits, the curve itself."""
    shares = [1.0, *own.share]
    lows = [share if low is None else low for share, low in zip(shares, [None, *own.low], strict=True)]
    highs = [share if high is None else high for share, high in zip(shares, [None, *own.high], strict=True)]
    return Curve(model, [0.0, *own.costs], shares, lows, highs)


def _heat_panels(heat: Heat) -> list[Panel]:
    """Worst harm, and what was left of the model in that run: attacks from the strongest to the weakest."""
    best = {model: _most(heat, model) for model in heat.models}
    columns = [model for model in heat.models if best[model] is not None]
    lines = [*([WORST] if len(heat.attacks) > 1 else []), *heat.attacks]
    panels = []
    sides = ((heat.metric, "harm", heat.worst, "worst seed"), (heat.utility, "left", heat.left, "in that run"))
    for metric, ramp, values, which in sides if heat.utility else sides[:1]:
        shown = values | {(WORST, model): values[best[model], model] for model in columns}  # type: ignore[index]
        levels = _levels(shown, metric)
        cells = {
            cell: Cell(text := number(value, metric), levels[cell], f"{', '.join(cell)}: {name_of(metric)} {text}")
            for cell, value in shown.items()
        }
        told = "; ".join(f"{model} {cells[WORST, model].text} with {best[model]}" for model in columns)
        title = f"{name_of(metric)}, {which}"
        panels.append(heat_panel(title, lines, columns, cells, ramp, f"At the worst: {told}"))
    return panels


def _most(heat: Heat, model: str) -> str | None:
    """The attack with the worst run on a model, the first of equals."""
    own = [attack for attack in heat.attacks if (attack, model) in heat.worst]
    return max(own, key=lambda attack: HARM[heat.metric] * heat.worst[attack, model], default=None)


def _levels(values: dict[tuple[str, str], float], metric: str) -> dict[tuple[str, str], float]:
    """How dark each value is: a share as it is, others between the least and the most; more is more of what the panel
    shows, harm or what is left of the model."""
    falls = HARM.get(metric, 1.0) < 0 or metric == "perplexity"
    if is_share(metric):
        return {cell: 1 - value if falls else value for cell, value in values.items()}
    # Perplexities differ by factors.
    scaled = {cell: math.log(value) if metric == "perplexity" else value for cell, value in values.items()}
    known = [value for value in scaled.values() if not math.isnan(value)]
    low, wide = min(known, default=0.0), (max(known, default=1.0) - min(known, default=0.0)) or 1.0
    return {cell: 1 - (v - low) / wide if falls else (v - low) / wide for cell, v in scaled.items()}


def heat_table(rows: Sequence[Row], metric: str) -> Table:
    """The heat map in numbers for the terminal: means over seeds, and what is left of the model beside."""
    from rich.markup import escape
    from rich.table import Table

    heat = heat_of(rows, metric)
    beside = f", and {name_of(heat.utility)} after it" if heat.utility else ""
    title = f"{name_of(metric)}: mean over seeds{beside}"
    table = Table(title=escape(title[0].upper() + title[1:]), title_justify="left")
    table.add_column("attack")
    for model in heat.models:
        table.add_column(escape(model), justify="right")
    for attack in heat.attacks:
        cells = []
        for model in heat.models:
            value = number(heat.mean.get((attack, model)), metric)
            left = number(heat.mean_left.get((attack, model)), heat.utility) if heat.utility else "–"
            cells.append(value if left == "–" else f"{value} / {left}")
        table.add_row(escape(attack), *cells)
    return table


def break_table(found: Breaking) -> Table:
    """The costs to break each model, for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    caption = f"Broken {found.why}. Median over seeds with its 95 % limits; of how many seeds." if found.why else ""
    table = Table(title="What it costs to break", title_justify="left", caption_justify="left", caption=escape(caption))
    table.add_column("model", min_width=15, overflow="fold")
    for words in (*COSTS.values(), "seeds"):
        table.add_column(words, justify="right")
    if found.reference:
        table.add_column(escape(f"times\n{wrapped(found.reference, 11)}\n({COSTS[found.axis]})"), justify="right")
    for model in found.seeds:
        line = _line(found, model)
        cells = [f"{cell['value']}\n{cell['limits']}".strip() for cell in line["cells"]]
        cells = [cell.replace("at most", "<=").replace("more than", ">") for cell in cells]  # There is little room.
        seeds = next((cell["note"] for cell in line["cells"] if cell["note"]), "–").removeprefix("broken in ")
        ratio = [line["ratio"]] if found.reference else []
        table.add_row(*map(escape, (wrapped(model), *cells, seeds, *ratio)))
    return table
