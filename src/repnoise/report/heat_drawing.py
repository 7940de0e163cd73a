"""How the heat map of attacks is drawn: as plain SVG in the colours of a page, and by matplotlib for papers."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from repnoise.report.drawing import wrapped
from repnoise.report.panels import DPI, INK, MUTED, Panel, Table

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


WIDTH, LABELS, SLOPE, ROW, GAP = 560, 196, 70, 21, 7
"""Of a heat map, in pixels: the whole, the names of the attacks, what a sloping name needs on the right, a line, and
the space below the first line."""


def heat_panel(
    title: str, lines: Sequence[str], columns: Sequence[str], cells: dict[tuple[str, str], Cell], ramp: str, told: str
) -> Panel:
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
    shown = {place: cell.text for place, cell in cells.items()}
    rows = tuple((line, *(shown.get((line, name), "–") for name in columns)) for line in lines)
    draw = partial(_paper, title, lines, columns, cells, ramp)
    svg = "\n".join([opening, *parts, "</svg>"])
    return Panel(title, svg, f"{title}. {told}", Table(("attack", *columns), rows), draw)


def _paper(
    title: str, lines: Sequence[str], columns: Sequence[str], cells: dict[tuple[str, str], Cell], ramp: str
) -> Any:
    """The same by matplotlib, in the colours of a light page."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    tall = 1.1 + 0.2 * len(lines)
    figure = Figure(figsize=(1.9 + max(0.75 * len(columns), 2.2), tall), dpi=DPI)
    axes = figure.add_axes((1.9 / figure.get_figwidth(), 0.02, 1 - 2.0 / figure.get_figwidth(), 1 - 1.0 / tall))
    axes.set(xlim=(0, len(columns)), ylim=(len(lines), 0))
    for i, line in enumerate(lines):
        for j, name in enumerate(columns):
            cell, text, colour, ink = cells.get((line, name)), "–", "none", MUTED
            if cell is not None and not math.isnan(cell.level):
                step, text = _step(cell, ramp), cell.text
                colour, ink = (heat_styles()["light"][f"--{part}{ramp}-{step}"] for part in ("", "on-"))
            axes.add_patch(Rectangle((j + 0.02, i + 0.04), 0.96, 0.92, color=colour, linewidth=0))
            axes.text(j + 0.5, i + 0.5, text, color=ink, ha="center", va="center", fontsize=8, parse_math=False)
    label = {"fontsize": 8, "color": INK, "parse_math": False}
    axes.set_yticks([i + 0.5 for i in range(len(lines))], [_cut(line, 29) for line in lines], **label)
    axes.set_xticks([j + 0.5 for j in range(len(columns))], [wrapped(name, 14) for name in columns], **label)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.text(0.02, 1 - 0.2 / tall, title, color=INK, fontsize=10, parse_math=False)
    return figure


def _step(cell: Cell, ramp: str) -> int:
    """Which colour of its ramp a field has."""
    return round((len(RAMPS[ramp]["light"].split()) - 1) * min(1.0, max(0.0, cell.level)))


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
    step = _step(cell, ramp)
    colour, ink = (heat_styles()["light"][f"--{part}{ramp}-{step}"] for part in ("", "on-"))
    field = f'x="{x + 0.75:.2f}" y="{y + 0.75}" width="{width - 1.5:.2f}" height="{ROW - 1.5}"'
    return (
        f'<g><rect {field} style="fill: var(--{ramp}-{step}, {colour})"/>'
        f'<text {middle} style="fill: var(--on-{ramp}-{step}, {ink})">{html.escape(cell.text)}</text>'
        f"<title>{html.escape(cell.told)}</title></g>"
    )
