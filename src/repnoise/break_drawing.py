"""How the figures of costs are drawn: harm against a logarithmic cost, survival, and the heat map of attacks."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from repnoise.drawing import MUTED, Curve, Style, end_labels, inline, panel_axes, per_cent, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RAMPS = {
    "harm": {
        "light": "#fff8f1 #feebd7 #fddbb4 #fdbe85 #fd9e54 #f27a24 #d95508 #a63b04 #7a2804",
        "dark": "#24201d #3b2617 #572f10 #78390a #9c4708 #c65b10 #ec7d2b #fba968 #fdd5ae",
    },
    "left": {
        "light": "#f7fbff #e3eef9 #cbdff1 #a6cde4 #77b5d9 #4b98ca #2778b8 #0d559f #08336f",
        "dark": "#1d2124 #1b2d3d #183b58 #174c77 #1a6299 #307dbb #579fd8 #8cc0ea #c2def5",
    },
}
"""Colours of a heat map from little to much, on a light page and on a dark one: after ColorBrewer's Oranges and Blues
(Harrower and Brewer, The Cartographic Journal 40, 2003), with more steps at the ends that are near the page's own."""


@dataclass(frozen=True)
class Cell:
    """A field of a heat map: what is printed, how much of its ramp it has from 0 to 1, and what is said of it."""

    text: str
    level: float
    told: str


def heat_styles() -> dict[str, dict[str, str]]:
    """CSS variables of the ramps for a light and a dark page: "--harm-3" is a colour, "--on-harm-3" what is read on it,
    black or white."""
    found: dict[str, dict[str, str]] = {"light": {}, "dark": {}}
    for ramp, themes in RAMPS.items():
        for theme, colours in themes.items():
            for level, colour in enumerate(colours.split()):
                found[theme] |= {f"--{ramp}-{level}": colour, f"--on-{ramp}-{level}": _readable_on(colour)}
    return found


def luminance(colour: str) -> float:
    """Relative luminance of a colour such as "#fd9e54" (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _readable_on(colour: str) -> str:
    """Black or white, whichever has more contrast: that is 4.5 at the least."""
    return "#000000" if (luminance(colour) + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"


def cost_panel(
    title: str,
    curves: Sequence[Curve],
    ends: Mapping[str, Sequence[tuple[float, float]]],
    style: dict[str, Style],
    description: str,
    share: bool,
    axis: str,
    threshold: float = math.nan,
) -> str:
    """The most harm at a cost of at most x, a line for each model that ends where its attacks did; a dot for the end of
    each attack; dashed, where a model counts as broken. `axis` is what the cost is; cost 0 stands at its left end."""
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
        dots = [(max(cost, left), scale * value) for cost, value in ends.get(curve.name, ())]
        mark = {"marker": look.marker, "markersize": 3.6, "markeredgewidth": 0, "linestyle": "none", "clip_on": False}
        axes.plot(*(zip(*dots, strict=True) if dots else ((), ())), color=look.colour, alpha=0.6, zorder=4, **mark)
    if share:
        per_cent(axes)
    end_labels(axes, curves, style, scale)
    return inline(figure, title, description)


def survival_panel(title: str, curves: Sequence[Curve], style: dict[str, Style], description: str, axis: str) -> str:
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
    return inline(figure, title, description)


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


WIDTH, LABELS, SLOPE, ROW, GAP = 560, 196, 70, 21, 7
"""Of a heat map, in pixels: the whole, the names of the attacks, what a sloping name needs on the right, a line, and
the space below the first line."""


def heat_panel(
    title: str, lines: Sequence[str], columns: Sequence[str], cells: dict[tuple[str, str], Cell], ramp: str, told: str
) -> str:
    """A heat map of lines by columns, the first line apart from the others. What has no cell was not measured.

    It is plain SVG: each field has its colour and what is read on it from the page (see `heat_styles`), and says what
    it is to a mouse that rests on it. `told` is what a screen reader says.
    """
    level = len(columns) <= 4
    width = (WIDTH - LABELS) / 4 if level else (WIDTH - LABELS - SLOPE) / len(columns)
    heads = [wrapped(name, 14) if level else _cut(name, 22) for name in columns]
    top = 34 + (14 * max((head.count("\n") for head in heads), default=0) if level else 88)
    parts = [f'<text x="0" y="14" font-size="14.5" style="fill: var(--ink, #1f1f1e)">{html.escape(title)}</text>']
    parts += [_head(head, LABELS + width * (i + 0.5), top - 6, level) for i, head in enumerate(heads)]
    for number, line in enumerate(lines):
        y = top + ROW * number + (GAP if number else 0)
        parts.append(_name(line, y))
        parts += [_field(cells.get((line, name)), LABELS + width * i, y, width, ramp) for i, name in enumerate(columns)]
    height = top + ROW * len(lines) + GAP + 4
    label = html.escape(" ".join(f"{title}. {told}".split()))
    opening = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}" font-size="12">'
    return "\n".join([opening, *parts, "</svg>"])


def _head(text: str, x: float, bottom: float, level: bool) -> str:
    """The name of a column: level where there is room, else on a slope."""
    if not level:
        place = f'x="{x - 4:.1f}" y="{bottom}" transform="rotate(-38 {x:.1f} {bottom})"'
        return f'<text {place} style="fill: var(--ink, #1f1f1e)">{html.escape(text)}</text>'
    lines = text.split("\n")
    spans = "".join(
        f'<tspan x="{x:.1f}" y="{bottom - 14 * (len(lines) - 1 - i)}">{html.escape(line)}</tspan>'
        for i, line in enumerate(lines)
    )
    return f'<text text-anchor="middle" style="fill: var(--ink, #1f1f1e)">{spans}</text>'


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _name(line: str, y: float) -> str:
    style = 'style="fill: var(--ink, #1f1f1e)"'
    return f'<text x="0" y="{y + 14.5}" {style}>{html.escape(_cut(line, 29))}<title>{html.escape(line)}</title></text>'


def _field(cell: Cell | None, x: float, y: float, width: float, ramp: str) -> str:
    """A coloured field with its number, or a dash."""
    middle: Any = f'x="{x + width / 2:.1f}" y="{y + 14.5}" text-anchor="middle"'
    if cell is None or math.isnan(cell.level):
        return f'<text {middle} style="fill: var(--muted, {MUTED})">–</text>'
    step = round((len(RAMPS[ramp]["light"].split()) - 1) * min(1.0, max(0.0, cell.level)))
    colour, ink = (heat_styles()["light"][f"--{part}{ramp}-{step}"] for part in ("", "on-"))
    field = f'x="{x + 0.75:.2f}" y="{y + 0.75}" width="{width - 1.5:.2f}" height="{ROW - 1.5}"'
    return (
        f'<g><rect {field} style="fill: var(--{ramp}-{step}, {colour})"/>'
        f'<text {middle} style="fill: var(--on-{ramp}-{step}, {ink})">{html.escape(cell.text)}</text>'
        f"<title>{html.escape(cell.told)}</title></g>"
    )
