"""How the picture of a summary is drawn: models by metrics, with their intervals, to stand alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from repnoise.report.drawing import Style, wrapped
from repnoise.report.panels import GRID, INK, MUTED, drawn, standalone
from repnoise.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Dots:
    """A column of the summary picture: one metric, a point for each model, with the worst single run where it differs.

    `share`: the metric is one, drawn in per cent from 0 to 100. `better`: which way is good, in words.
    """

    title: str
    better: str
    points: dict[str, Interval]
    worst: dict[str, float]
    share: bool
    labels: dict[str, str]


def dot_picture(columns: Sequence[Dots], names: Sequence[str], style: dict[str, Style], note: str) -> str:
    """A standalone SVG 860 pixels wide: a line for each model, a column for each metric, for a README or a slide."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    width, row, top, bottom, left = 860, 46, 74, 60, 158
    height = top + row * len(names) + bottom
    figure = Figure(figsize=(width / 72, height / 72), facecolor="white")
    FigureCanvasSVG(figure)
    panel = (width - left) / max(len(columns), 1)
    for number, column in enumerate(columns):
        place = ((left + number * panel) / width, bottom / height, (panel - 44) / width, row * len(names) / height)
        _dots(figure.add_axes(place), column, names, style)
    for line, name in enumerate(names):
        y = (bottom + row * (len(names) - line - 0.5)) / height
        text = {"color": style[name].colour, "va": "center", "fontsize": 13, "linespacing": 1.05}
        figure.text(8 / width, y, wrapped(name, 17), parse_math=False, **text)
        rule = (bottom + row * (len(names) - line)) / height
        figure.add_artist(Line2D([8 / width, 1 - 8 / width], [rule, rule], color=GRID, linewidth=0.8))
    figure.text(8 / width, 14 / height, note, color=MUTED, fontsize=11.5, parse_math=False)
    return standalone(drawn(figure, note), note)


def _dots(axes: Axes, column: Dots, names: Sequence[str], style: dict[str, Style]) -> None:
    scale = 100.0 if column.share else 1.0
    for line, name in enumerate(names):
        y, look, point = len(names) - line - 0.5, style[name], column.points.get(name)
        if point is None or math.isnan(point.mean):
            axes.text(0, y, "–", color=MUTED, va="center", fontsize=12)
            continue
        if point.low is not None and point.high is not None:
            limits = [scale * point.low, scale * point.high]
            axes.plot(limits, [y, y], color=look.colour, linewidth=2, alpha=0.45, clip_on=False, solid_capstyle="butt")
        mark = {"marker": look.marker, "markersize": 8, "color": look.colour, "markeredgewidth": 0, "clip_on": False}
        axes.plot([scale * point.mean], [y], **mark)
        if name in column.worst:
            tick = {"marker": "|", "markersize": 13, "markeredgewidth": 1.5, "color": look.colour, "clip_on": False}
            axes.plot([scale * column.worst[name]], [y], **tick)
        axes.text(scale * point.mean, y + 0.2, column.labels[name], color=INK, ha="center", va="bottom", fontsize=11.5)
    ends = [p.mean if p.high is None else p.high for p in column.points.values() if not math.isnan(p.mean)]
    axes.set_ylim(0, len(names))
    axes.set_xlim(0, 100 if column.share else 1.1 * max(ends, default=1) or 1)
    axes.text(0, len(names) + 0.58, column.title, color=INK, fontsize=12.5, va="bottom", linespacing=1.15)
    axes.text(0, len(names) + 0.2, column.better, color=MUTED, fontsize=11.5, va="bottom")
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0, colors=MUTED, labelsize=11)
    if column.share:
        axes.set_xticks([0, 50, 100], ["0", "50", "100 %"])
    else:
        axes.locator_params(axis="x", nbins=3)
