"""How the figures of costs are drawn: harm against a logarithmic cost, and survival."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from repnoise.report.curves import Curve, curve_marks, curve_table
from repnoise.report.drawing import MUTED, Style, end_labels, panel_axes, per_cent
from repnoise.report.panels import Mark, Panel, Table, panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Ends = Mapping[str, Sequence[tuple[str, float, float]]]
"""For each model the name, cost and harm of every attack at its end."""


def cost_panel(
    title: str,
    curves: Sequence[Curve],
    ends: Ends,
    style: dict[str, Style],
    description: str,
    share: bool,
    axis: str,
    threshold: float = math.nan,
) -> Panel:
    """The most harm at a cost of at most x, a line for each model that ends where its attacks did; a dot for the end of
    each attack (its name, cost and harm); dashed, where a model counts as broken. `axis` is what the cost is; cost 0
    stands at its left end."""
    figure, axes = panel_axes((3.75, 2.75), title)
    figure.subplots_adjust(left=0.115, right=0.735, top=0.885, bottom=0.155)
    scale = 100.0 if share else 1.0
    left = _cost_axis(axes, [curve.steps for curve in curves], axis)
    if not math.isnan(threshold):
        axes.axhline(scale * threshold, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    for curve in curves:
        look = style[curve.name]
        costs = [max(cost, left) for cost in curve.steps]
        band = ([scale * v for v in curve.lows], [scale * v for v in curve.highs])
        axes.fill_between(costs, *band, step="post", color=look.colour, alpha=0.13, linewidth=0, clip_on=False)
        line = {"color": look.colour, "linestyle": look.dashes, "linewidth": 1.5, "clip_on": False, "zorder": 3}
        axes.step(costs, [scale * value for value in curve.means], where="post", **line)
        dots = [(max(cost, left), scale * value) for _, cost, value in ends.get(curve.name, ())]
        mark = {"marker": look.marker, "markersize": 3.6, "markeredgewidth": 0, "linestyle": "none", "clip_on": False}
        axes.plot(*(zip(*dots, strict=True) if dots else ((), ())), color=look.colour, alpha=0.6, zorder=4, **mark)
    if share:
        per_cent(axes)
    end_labels(axes, curves, style, scale)
    marks = [*curve_marks(curves, axis, share, left), *_end_marks(ends, axis, share, left)]
    return panel(figure, title, description, marks, _cost_table(curves, ends, axis, share))


def _end_marks(ends: Ends, axis: str, share: bool, least: float) -> list[Mark]:
    curves = _single(ends)
    return curve_marks(curves, f"end, {axis}", share, least)


def _single(ends: Ends) -> list[Curve]:
    """Each attack's end as a curve of one point."""
    found = [(model, *end) for model, own in ends.items() for end in own]
    return [Curve(model, [cost], [harm], [harm], [harm], of=attack) for model, attack, cost, harm in found]


def _cost_table(curves: Sequence[Curve], ends: Ends, axis: str, share: bool) -> Table:
    """What the lines say at each cost; below, where each attack ended."""
    lines = curve_table(axis, curves, share)
    rows = list(lines.rows)
    for end in _single(ends):
        ((cost, told),) = curve_table(axis, [end], share).rows
        rows.append((f"{cost}, end of {end.of}", *(told if c.name == end.name else "–" for c in curves)))
    return Table(lines.head, tuple(rows))


def survival_panel(title: str, curves: Sequence[Curve], style: dict[str, Style], description: str, axis: str) -> Panel:
    """Share of seeds that are not broken after each cost, with limits; a tick where seeds were given up unbroken."""
    figure, axes = panel_axes((3.75, 2.75), title)
    figure.subplots_adjust(left=0.115, right=0.735, top=0.885, bottom=0.155)
    left = _cost_axis(axes, [curve.steps for curve in curves], axis)
    for curve in curves:
        look = style[curve.name]
        costs = [max(cost, left) for cost in curve.steps]
        band = ([100 * v for v in curve.lows], [100 * v for v in curve.highs])
        axes.fill_between(costs, *band, step="post", color=look.colour, alpha=0.13, linewidth=0, clip_on=False)
        line = {"color": look.colour, "linestyle": look.dashes, "linewidth": 1.5, "clip_on": False, "zorder": 3}
        axes.step(costs, [100 * value for value in curve.means], where="post", **line)
        if curve.means[-1] > 0:
            axes.plot(costs[-1:], [100 * curve.means[-1]], marker="|", markersize=9, markeredgewidth=1.5, **line)
    per_cent(axes)
    end_labels(axes, curves, style, 100.0)
    marks = curve_marks(curves, axis, share=True, least=left)
    return panel(figure, title, description, marks, curve_table(axis, curves, share=True))


def _cost_axis(axes: Axes, costs: Sequence[Sequence[float]], axis: str) -> float:
    """A logarithmic axis over the costs; returns where on it 0 stands, half a power below the least."""
    from matplotlib.ticker import NullLocator

    positive = [cost for own in costs for cost in own if cost > 0] or [1.0, 10.0]
    low, high = math.log10(min(positive)), math.log10(max(positive))
    start = low - max(0.5, 0.15 * (high - low))
    axes.set_xscale("log")
    axes.set_xlim(10**start, 10 ** max(high, low + 0.5))
    powers = range(math.ceil(low - 0.15), math.floor(high) + 1)
    powers = powers[:: 1 + len(powers) // 6] or [round(low)]
    axes.set_xticks([10**start, *(10.0**power for power in powers)], ["0", *map(_power, powers)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(axis, color=MUTED, labelpad=2, fontsize=9)
    return 10**start


def _power(power: int) -> str:
    """Ten to a power: "1,000" or "10¹²"."""
    raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{10**power:,}" if 0 <= power <= 4 else f"10{raised}"
