"""How figures are drawn: by matplotlib, one panel each.

A figure for the page is transparent and drawn in the page's own ink and font. Each panel is its own SVG: the page
places them side by side or, on a phone, one below the other, and text keeps its size. See `panels` for what becomes of
them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from repnoise.report.curves import Curve, curve_marks, curve_table, thinned
from repnoise.report.panels import (
    CONTROL_COLOURS,
    DPI,
    GRID,
    INK,
    MUTED,
    SERIES,
    VARIABLES,
    Panel,
    panel,
)

if TYPE_CHECKING:  # matplotlib takes half a second: only who draws pays for it.
    from matplotlib.axes import Axes

MARKERS, DASHES = "osDv^P", ("-", ":", "-.")
STEP_TICKS = (0, 10, 30, 100, 300, 1000, 3000, 10000, 30000)


@dataclass(frozen=True)
class Style:
    """How one defence is drawn, everywhere in a report; never told apart by its colour alone."""

    colour: str
    marker: str
    dashes: str = "-"

    @property
    def variable(self) -> str:
        """The colour as CSS."""
        return f"var({VARIABLES[self.colour]}, {self.colour})"


@dataclass(frozen=True)
class Figure:
    """Panels that belong together: of one metric, or of one defence's training, or of costs."""

    subject: str
    panels: tuple[Panel, ...]


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A style for each defence: controls in greys, the defences in colour."""
    coloured = [name for name in names if name not in CONTROL_COLOURS]
    count = len(SERIES)
    found = {
        # Once all colours are used, they come again with other markers and dashes.
        name: Style(SERIES[i % count], MARKERS[(i + i // count) % count], DASHES[i // count % len(DASHES)])
        for i, name in enumerate(coloured)
    }
    found["undefended"] = Style(CONTROL_COLOURS["undefended"], "X")
    found["random-initialisation"] = Style(CONTROL_COLOURS["random-initialisation"], "d", "--")
    return found


def curve_panel(title: str, curves: Sequence[Curve], style: dict[str, Style], description: str, share: bool) -> Panel:
    """One metric against attack steps, a line for each curve, each defence named where its longest line ends.

    `share`: the metric is one, drawn in per cent from 0 to 100. `description` is what a screen reader says.
    """
    figure, axes = panel_axes((3.75, 2.55), title)
    figure.subplots_adjust(left=0.115, right=0.735, top=0.875, bottom=0.15)
    scale = 100.0 if share else 1.0
    for curve in curves:
        look = style[curve.name]
        values = [scale * value for value in curve.means]
        band = ([scale * v for v in curve.lows], [scale * v for v in curve.highs])
        axes.fill_between(curve.steps, *band, color=look.colour, alpha=0.13, linewidth=0, clip_on=False)
        line = {"color": look.colour, "linestyle": look.dashes, "linewidth": 1.5, "clip_on": False, "zorder": 3}
        axes.plot(curve.steps, values, marker=look.marker, markersize=3.6, markeredgewidth=0, **line)
        if curve.worst:
            ring = {"markersize": 10, "markerfacecolor": "none", "markeredgecolor": look.colour, "clip_on": False}
            axes.plot(curve.steps[-1:], values[-1:], marker="o", markeredgewidth=1.3, zorder=4, **ring)
    _step_axis(axes, max((curve.steps[-1] for curve in curves), default=1))
    if share:
        per_cent(axes)
    end_labels(axes, curves, style, scale)
    return panel(figure, title, description, curve_marks(curves, "step", share), curve_table("step", curves, share))


def training_panel(
    title: str, runs: Sequence[Sequence[tuple[float, float]]], colour: str, description: str, floor: float | None = None
) -> Panel:
    """One term of the loss against training steps: a thin line for each seed, the noise floor dashed where given."""
    figure, axes = panel_axes((3.75, 1.75), title)
    figure.subplots_adjust(left=0.13, right=0.965, top=0.83, bottom=0.2)
    for points in runs:
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.1, alpha=0.85)
    values = [value for points in runs for _, value in points]
    low, high = min(values if floor is None else [*values, floor]), max(values)
    if low > 0 and high > 20 * low:
        axes.set_yscale("log")
    else:
        axes.set_ylim(min(0.0, 1.05 * low), 1.08 * high if high > 0 else None)
    if floor is not None:
        axes.axhline(floor, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        # On the left, where a term that falls is far above.
        place = {"xytext": (3, 3), "textcoords": "offset points", "color": MUTED, "fontsize": 9}
        axes.annotate("floor", (0, floor), xycoords=("axes fraction", "data"), **place)
    axes.set_xlim(0, max(step for points in runs for step, _ in points))
    _plain_ticks(axes)
    axes.set_xlabel("training steps", color=MUTED, labelpad=2, fontsize=9)
    curves = [thinned(f"training {i + 1}" if len(runs) > 1 else "value", points) for i, points in enumerate(runs)]
    return panel(figure, title, description, curve_marks(curves, "step"), curve_table("step", curves))


def panel_axes(size: tuple[float, float], title: str) -> tuple[Any, Axes]:
    """A figure with one transparent panel of so many inches, its title above it."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=size, dpi=DPI)
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    axes.text(0, 1.06, title, transform=axes.transAxes, color=INK, fontsize=10.5, parse_math=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set(color=MUTED, linewidth=0.6)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", length=0, colors=MUTED, pad=4, labelsize=9)
    axes.tick_params(axis="x", length=3, width=0.6)
    return figure, axes


def per_cent(axes: Axes) -> None:
    """A share's axis, from 0 to 100 %."""
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 25), [f"{tick} %" if tick == 100 else str(tick) for tick in range(0, 101, 25)])


def _step_axis(axes: Axes, last: float) -> None:
    """Square roots keep step 0 and give the first steps, where the harm happens, room."""
    axes.set_xscale("function", functions=(lambda x: abs(x) ** 0.5, lambda x: x**2))
    axes.set_xlim(0, last)
    far_enough = [tick for tick in STEP_TICKS if tick <= 0.62 * last and (tick == 0 or tick >= last / 50)]
    ticks = sorted({*far_enough, round(last)})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("attack steps", color=MUTED, labelpad=2, fontsize=9)


def _plain_ticks(axes: Axes) -> None:
    """Few ticks, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    logarithmic = axes.get_yscale() == "log"
    low, high = axes.get_ylim()
    within = (1.0,) if logarithmic and high > 200 * low else (1.0, 3.0)
    axes.yaxis.set_major_locator(LogLocator(subs=within, numticks=4) if logarithmic else MaxNLocator(3))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def end_labels(axes: Axes, curves: Sequence[Curve], style: dict[str, Style], scale: float) -> None:
    """Each defence's name beside the end of its longest line, moved apart where they would touch."""
    longest: dict[str, Curve] = {}
    for curve in curves:
        if curve.name not in longest or curve.steps[-1] > longest[curve.name].steps[-1]:
            longest[curve.name] = curve
    low, high = axes.get_ylim()
    names = {name: wrapped(name) for name in longest}
    heights = [0.085 * (1 + label.count("\n")) for label in names.values()]
    wanted = [(scale * curve.means[-1] - low) / (high - low) for curve in longest.values()]
    for (name, label), y in zip(names.items(), spread(wanted, heights), strict=True):
        text = {"color": style[name].colour, "va": "center", "linespacing": 1.0, "fontsize": 9}
        axes.text(1.05, y, label, transform=axes.transAxes, parse_math=False, **text)


def spread(wanted: Sequence[float], heights: Sequence[float], bottom: float = -0.01, top: float = 1.05) -> list[float]:
    """Centres of labels as near to the wanted ones as they can be without touching, all between `bottom` and `top`
    (or below it, where they are too many)."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed, floor = list(wanted), bottom
    for i in order:
        placed[i] = max(placed[i], floor + heights[i] / 2)
        floor = placed[i] + heights[i] / 2
    ceiling = top
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling - heights[i] / 2)
        ceiling = placed[i] - heights[i] / 2
    return placed


def wrapped(name: str, width: int = 15) -> str:
    """A name on at most three lines of at most `width` characters or so, broken at its hyphens and spaces."""
    lines = [""]
    for part in re.findall(r"[^-\s]+[-\s]?", name) or [name]:
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    shown = [line.strip() for line in lines[:3]]
    if len(lines) > 3:
        shown[-1] += "…"
    return "\n".join(line if len(line) <= width + 3 else f"{line[: width + 2]}…" for line in shown)
