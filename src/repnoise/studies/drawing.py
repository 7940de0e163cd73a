"""The figure of the comparison: resistance against what is kept, with the front that no defence beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from repnoise.report.panels import CONTROL_COLOURS, GRID, INK, MUTED, SERIES, drawn, standalone
from repnoise.studies.comparison import UNRETAINED, Standing, front, of_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTE = "Bars: 95 % intervals. Grey: controls and services. The line joins defences that no other beats in both."


def picture(found: Sequence[Standing]) -> str:
    """A standalone SVG: a numbered mark for each defence, its name beside the panel in the same order."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(860 / 72, 520 / 72), facecolor="white")
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0.075, 0.16, 0.6, 0.72))
    defences = of_weights(found)
    best = front(defences)
    axes.plot(
        [100 * one.kept for one in best],
        [100 * (1 - one.covered[0].mean) for one in best],
        *("-",),
        color=SERIES[0],
        linewidth=1.4,
        alpha=0.5,
        zorder=1,
    )
    for number, one in enumerate(found, 1):
        control = one not in defences
        colour = CONTROL_COLOURS["undefended"] if control else SERIES[0] if one in best else SERIES[1]
        _mark(axes, one, number, colour)
        told = f"{number}  {one.name}"
        figure.text(0.7, 0.89 - 0.034 * number, told, color=colour, fontsize=11, parse_math=False)
    _dress(axes)
    figure.text(0.012, 0.95, "Resistance against what is kept", color=INK, fontsize=14, parse_math=False)
    figure.text(0.012, 0.03, NOTE, color=MUTED, fontsize=11, parse_math=False)
    told = "; ".join(
        f"{one.name}: resists {100 * (1 - one.covered[0].mean):.0f} %, keeps {100 * one.kept:.0f} %" for one in found
    )
    return standalone(drawn(figure, NOTE), f"Resistance against what is kept. {told}.")


def _mark(axes: Axes, one: Standing, number: int, colour: str) -> None:
    x, y = 100 * one.kept, 100 * (1 - one.covered[0].mean)
    own, harm = one.before[UNRETAINED], one.covered[0]
    bar = {"color": colour, "linewidth": 1, "alpha": 0.45, "zorder": 2, "clip_on": False}
    if own.low is not None and own.high is not None:
        axes.plot([100 * own.low, 100 * own.high], [y, y], **bar)
    if harm.low is not None and harm.high is not None:
        axes.plot([x, x], [100 * (1 - harm.high), 100 * (1 - harm.low)], **bar)
    dot = {"marker": "o", "markersize": 15, "markeredgewidth": 0, "color": colour, "clip_on": False, "zorder": 3}
    axes.plot([x], [y], linestyle="none", **dot)
    place = {"color": "white", "fontsize": 9, "ha": "center", "va": "center", "zorder": 4, "clip_on": False}
    axes.text(x, y, str(number), **place)


def _dress(axes: Axes) -> None:
    axes.set_xlim(-2, 102)
    axes.set_ylim(-2, 102)
    axes.set_xlabel("accuracy on harmless facts that nobody retained, before any attack, %", color=MUTED, fontsize=11)
    axes.set_ylabel("covered answers kept from the worst attack, %", color=MUTED, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set(color=MUTED, linewidth=0.6)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", length=0, colors=MUTED, labelsize=11)
