"""The picture of a search: harm against cost of everything that was tried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from repnoise.metrics import is_share, name_of, number
from repnoise.report.drawing import per_cent
from repnoise.report.panels import GRID, INK, MUTED, SERIES, drawn, standalone
from repnoise.search.results import Found, Tried

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORDS = {"flops": "FLOPs", "steps": "steps"}
KINDS = (
    ("left no useful model", {"marker": "x", "color": MUTED, "markersize": 6, "markeredgewidth": 1.2}),
    ("pruned on its way", {"marker": "|", "color": MUTED, "markersize": 7, "markeredgewidth": 1.2}),
    ("left a useful model", {"marker": "o", "color": SERIES[0], "markersize": 6, "markeredgewidth": 0}),
)
"""How a trial looks, by what became of it."""


def picture(found: Found) -> str:
    """A standalone SVG: a mark for each trial, a line through those that no cheaper one beat, the best one named."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(860 / 72, 430 / 72), facecolor="white")
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0.075, 0.17, 0.9, 0.66))
    share = is_share(found.metric)
    scale = 100.0 if share else 1.0
    _marks(axes, found, scale)
    _front(axes, found, scale)
    _dress(axes, found)
    if share:
        per_cent(axes)
    harm = name_of(found.metric)
    figure.text(0.012, 0.945, f"{harm[0].upper()}{harm[1:]} against cost", color=INK, fontsize=14, parse_math=False)
    note = _told(found)
    figure.text(0.012, 0.03, note, color=MUTED, fontsize=11, parse_math=False)
    return standalone(drawn(figure, note), f"{harm} against {WORDS[found.axis]}. {note}")


def _kind(trial: Tried) -> int:
    return 1 if trial.state == "pruned" else 2 if trial.feasible else 0


def _marks(axes: Axes, found: Found, scale: float) -> None:
    """Pruned trials stand at what they had done and cost when they were stopped."""
    for kind, (label, look) in enumerate(KINDS):
        shown = [trial for trial in found.trials if trial.harm is not None and trial.cost and _kind(trial) == kind]
        costs = [found.price(trial, found.axis) for trial in shown]
        harms = [scale * (trial.harm or 0.0) for trial in shown]
        axes.plot(costs, harms, linestyle="none", label=label, clip_on=False, zorder=3, **look)
    grid = [trial for trial in found.trials if trial.grid and trial.harm is not None]
    ring = {"markersize": 12, "markerfacecolor": "none", "markeredgecolor": MUTED, "markeredgewidth": 1}
    costs, harms = [found.price(t, found.axis) for t in grid], [scale * (t.harm or 0.0) for t in grid]
    axes.plot(costs, harms, marker="o", linestyle="none", label="of the demo's grid", clip_on=False, **ring)


def _front(axes: Axes, found: Found, scale: float) -> None:
    front = found.front(found.axis)
    costs = [found.price(trial, found.axis) for trial in front]
    harms = [scale * (trial.harm or 0.0) for trial in front]
    axes.plot(costs, harms, drawstyle="steps-post", color=SERIES[0], linewidth=1.5, alpha=0.6, zorder=2)
    if found.best is not None:
        best: dict[str, Any] = {"markersize": 16, "markerfacecolor": "none", "markeredgecolor": SERIES[1]}
        label = f"the worst: {number(found.best.harm, found.metric)}"
        axes.plot(costs[-1:], harms[-1:], marker="o", linestyle="none", markeredgewidth=1.6, label=label, **best)


def _dress(axes: Axes, found: Found) -> None:
    costs = [found.price(trial, found.axis) for trial in found.trials if trial.cost]
    # A logarithmic axis that has room for what costs nothing.
    axes.set_xscale("symlog", linthresh=min((cost for cost in costs if cost > 0), default=1.0), linscale=0.3)
    axes.set_xlim(0, 2 * max(costs, default=1.0) or 1)
    axes.set_xlabel(WORDS[found.axis], color=MUTED, fontsize=11)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set(color=MUTED, linewidth=0.6)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", which="both", length=0, colors=MUTED, labelsize=11)
    legend = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "ncols": 5, "frameon": False, "fontsize": 10}
    axes.legend(labelcolor=INK, handletextpad=0.2, columnspacing=1.2, **legend)


def _told(found: Found) -> str:
    counts = found.counts
    worst = f" The worst: {_cut(found.best.name)}." if found.best else ""
    return (
        f"{counts['begun']} trials: {counts['finished']} finished, {counts['pruned']} pruned, {counts['failed']} "
        f"failed. The line joins what no cheaper attack beat.{worst}"
    )


def _cut(name: str, most: int = 44) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
