"""Figures as inline SVG: transparent, drawn in the page's own ink and font, so one file suits light, dark and print.

matplotlib draws with stand-in colours; they become CSS variables (with the light theme's value to fall back on, so that
a figure also stands alone). Each panel is its own SVG: the page places them side by side or, on a phone, one below the
other, and text keeps its size.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from repnoise.runs import Run, read_rows
from repnoise.statistics import Interval, pooled_interval
from repnoise.summary import (
    HARM,
    NAMES,
    RATES,
    Lineage,
    Row,
    curve_of,
    number,
    setting_of,
    within_bounds,
    worst_rows,
)

if TYPE_CHECKING:  # matplotlib takes half a second: only who draws pays for it.
    from matplotlib.axes import Axes

INK, MUTED, GRID = "#1f1f1e", "#6e6e69", "#dddcd6"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#a8538b", "#8a6d00", "#3b8fc4")
"""Blue, vermilion, green, purple first, after Okabe and Ito's colour-blind-safe palette (2008), darkened for text."""
CONTROL_COLOURS = {"undefended": "#555550", "random-initialisation": "#8f8f88"}
MARKERS = "osDv^P"
TERMS = {"stability": "cross-entropy, nats", "noise": "MMD²", "ascent": "cross-entropy, nats"}
STEP_TICKS = (0, 10, 30, 100, 300, 1000, 3000, 10000, 30000)

_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--rule"}
_VARIABLES |= {colour: f"--series-{number}" for number, colour in enumerate(SERIES)}
_VARIABLES |= {colour: f"--{name}" for name, colour in CONTROL_COLOURS.items()}


@dataclass(frozen=True)
class Style:
    """How one defence is drawn, everywhere in a report; never told apart by its colour alone."""

    colour: str
    marker: str
    dashes: str = "-"

    @property
    def variable(self) -> str:
        """The colour as CSS."""
        return f"var({_VARIABLES[self.colour]}, {self.colour})"


@dataclass(frozen=True)
class Curve:
    """A metric against steps: mean over seeds, band where it is known. `worst` marks its end as the worst case."""

    name: str
    steps: Sequence[float]
    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]
    worst: bool = False


@dataclass(frozen=True)
class Figure:
    """Panels that belong together: of one metric, or of one defence's training."""

    subject: str
    panels: tuple[str, ...]


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A style for each defence: controls in greys, the defences in colour."""
    coloured = [name for name in names if name not in CONTROL_COLOURS]
    found = {name: Style(SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(coloured)}
    found["undefended"] = Style(CONTROL_COLOURS["undefended"], "X")
    found["random-initialisation"] = Style(CONTROL_COLOURS["random-initialisation"], "d", "--")
    return found


def curve_figures(runs: Sequence[Run], rows: Sequence[Row], look: dict[str, Style]) -> list[Figure]:
    """Harm, then what is left of the model, against attack steps: a panel for each setting of the attacks."""
    lineage = Lineage(runs)
    worst = {(row["defence"], row["metric"]): row["attack"] for row in worst_rows(rows)}
    measured = {row["metric"] for row in rows}
    harm = next((metric for metric in HARM if metric in measured), None)
    uncovered = "recovered_uncovered" if "recovered_uncovered" in measured else None
    kept = next((metric for metric in ("harmless_accuracy", "perplexity") if metric in measured), None)
    settings: dict[tuple[float, float], list[Run]] = {}
    for run in sorted((run for run in runs if run.finished and run.record["kind"] == "attack"), key=setting_of):
        settings.setdefault(setting_of(run)[:2], []).append(run)
    figures = []
    for metric in filter(None, (harm, uncovered, kept)):
        panels = []
        for setting, chosen in settings.items():
            curves = _curves(metric, chosen, lineage, worst if metric in HARM else {})
            if curves:
                ends = (f"{c.name} {number(c.means[-1], metric)} after {c.steps[-1]} steps" for c in curves)
                description = f"{NAMES[metric]}: {'; '.join(ends)}"
                panels.append(curve_panel(_title(*setting), curves, look, description, metric in RATES))
        if panels:
            figures.append(Figure(metric, tuple(panels)))
    return figures


def _title(benign: float, rate: float) -> str:
    shown = f"learning rate {rate:.0e}".replace("e-0", "e-") if rate else "attack"
    return shown + (f", {100 * benign:.0f} % benign" if benign else "")


def _curves(metric: str, runs: Sequence[Run], lineage: Lineage, worst: dict[tuple[str, str], str]) -> list[Curve]:
    grouped: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        defence, _, attack, _ = lineage.place(run)
        grouped.setdefault((defence, attack), []).append(run)
    found = [
        _curve(defence, same, metric, worst.get((defence, metric)) == attack)
        for (defence, attack), same in sorted(grouped.items())
    ]
    return [curve for curve in found if curve]


def _curve(defence: str, runs: Sequence[Run], metric: str, worst: bool) -> Curve | None:
    """Mean over the runs of one attack with its interval, at the steps that all of them measured."""
    points: dict[int, list[Interval]] = {}
    for run in runs:
        for row in curve_of(run):
            found = row["metrics"].get(metric) or {}
            if found.get("value") is not None and math.isfinite(found["value"]):
                point = Interval(found["value"], found.get("low"), found.get("high"), found.get("n") or 0)
                points.setdefault(row["step"], []).append(point)
    whole = {step: found for step, found in sorted(points.items()) if len(found) == len(runs)}
    if not whole:
        return None
    pooled = [within_bounds(pooled_interval(found), metric) for found in whole.values()]
    lows = [point.mean if point.low is None else point.low for point in pooled]
    highs = [point.mean if point.high is None else point.high for point in pooled]
    return Curve(defence, list(whole), [point.mean for point in pooled], lows, highs, worst)


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


def curve_panel(title: str, curves: Sequence[Curve], style: dict[str, Style], description: str, share: bool) -> str:
    """One metric against attack steps, a line for each curve, each defence named where its longest line ends.

    `share`: the metric is one, drawn in per cent from 0 to 100. `description` is what a screen reader says.
    """
    figure, axes = _panel((3.75, 2.55), title)
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
        axes.set_ylim(0, 100)
        axes.set_yticks(range(0, 101, 25), [f"{tick} %" if tick == 100 else str(tick) for tick in range(0, 101, 25)])
    _end_labels(axes, curves, style, scale)
    return _svg(figure, title, description)


def training_panel(
    title: str, runs: Sequence[Sequence[tuple[float, float]]], colour: str, description: str, floor: float | None = None
) -> str:
    """One term of the loss against training steps: a thin line for each seed, the noise floor dashed where given."""
    figure, axes = _panel((3.75, 1.75), title)
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
        place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "right", "color": MUTED, "fontsize": 9}
        axes.annotate("floor", (1, floor), xycoords=("axes fraction", "data"), **place)
    axes.set_xlim(0, max(step for points in runs for step, _ in points))
    _plain_ticks(axes)
    axes.set_xlabel("training steps", color=MUTED, labelpad=2, fontsize=9)
    return _svg(figure, title, description)


def _panel(size: tuple[float, float], title: str) -> tuple[Any, Axes]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=size)
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    axes.text(0, 1.06, title, transform=axes.transAxes, color=INK, fontsize=10.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set(color=MUTED, linewidth=0.6)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", length=0, colors=MUTED, pad=4, labelsize=9)
    axes.tick_params(axis="x", length=3, width=0.6)
    return figure, axes


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
    axes.yaxis.set_major_locator(LogLocator(numticks=4) if logarithmic else MaxNLocator(3))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _end_labels(axes: Axes, curves: Sequence[Curve], style: dict[str, Style], scale: float) -> None:
    """Each defence's name beside the end of its longest line, moved apart where they would touch."""
    longest: dict[str, Curve] = {}
    for curve in curves:
        if curve.name not in longest or curve.steps[-1] > longest[curve.name].steps[-1]:
            longest[curve.name] = curve
    low, high = axes.get_ylim()
    names = {name: _wrapped(name) for name in longest}
    heights = [0.085 * (1 + label.count("\n")) for label in names.values()]
    wanted = [(scale * curve.means[-1] - low) / (high - low) for curve in longest.values()]
    for (name, label), y in zip(names.items(), spread(wanted, heights), strict=True):
        text = {"color": style[name].colour, "va": "center", "linespacing": 1.0, "fontsize": 9}
        axes.text(1.035, y, label, transform=axes.transAxes, **text)


def spread(wanted: Sequence[float], heights: Sequence[float], top: float = 1.05) -> list[float]:
    """Centres of labels as near to the wanted ones as they can be without touching, none above `top`."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = list(wanted)
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + (heights[below] + heights[above]) / 2)
    ceiling = top
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling - heights[i] / 2)
        ceiling = placed[i] - heights[i] / 2
    return placed


def _wrapped(name: str, width: int = 15) -> str:
    """A name on lines of at most about `width` characters, broken at its hyphens and spaces."""
    lines = [""]
    for part in re.findall(r"[^-\s]+[-\s]?", name) or [name]:
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.strip() for line in lines[:3])


def _svg(figure: Any, title: str, description: str) -> str:
    """The figure as an SVG element for HTML: page font, CSS variables, no ids but those it refers to, no addresses."""
    import matplotlib as mpl

    out = io.StringIO()
    # Ids must differ between the figures of one page, and not between two runs of the same report.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title + description}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", out.getvalue(), flags=re.DOTALL)
    text = text[text.index("<svg") :].replace("xlink:href", "href")
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    used = set(re.findall(r"#([\w.-]+)[\")]", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable}, {colour})")
    name = re.sub(r"[<>&\"]", " ", f"{title}. {description}")
    text = re.sub(r'(<svg) [^>]*?(viewBox="[^"]*")[^>]*>', rf'\1 \2 role="img" aria-label="{name}">', text, count=1)
    return re.sub(r"\n\s*", "\n", text).strip()
