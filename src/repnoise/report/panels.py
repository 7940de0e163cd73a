"""What a figure is to its readers: SVG with values to point at, a table of its numbers, and a PDF for papers.

matplotlib draws with stand-in colours, which become CSS variables in a page, so that one figure suits light, dark and
print (each variable has the light theme's value to fall back on).
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

INK, MUTED, GRID = "#1f1f1e", "#6e6e69", "#dddcd6"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#a8538b", "#8a6d00", "#3b8fc4")
"""Blue, vermilion, green, purple first, after Okabe and Ito's colour-blind-safe palette (2008), darkened for text."""
CONTROL_COLOURS = {"undefended": "#555550", "random-initialisation": "#8f8f88"}
FONTS = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif"
SVG = "http://www.w3.org/2000/svg"
DPI = 72
"""Of figures: an SVG's user unit is then a point."""
WHOLE: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.04}
"""For files: a page shows what goes beyond a figure's edge, paper does not."""
REACH = 7
"""Radius around a value, in points, within which a pointer finds it."""

VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--rule"}
VARIABLES |= {colour: f"--series-{number}" for number, colour in enumerate(SERIES)}
VARIABLES |= {colour: f"--{name}" for name, colour in CONTROL_COLOURS.items()}


@dataclass(frozen=True)
class Table:
    """The numbers behind a figure, as text: what the first column is called, the other heads, and rows."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Mark:
    """A value that a figure shows at (x, y) of its axes, and how it is told."""

    x: float
    y: float
    told: str


@dataclass(frozen=True)
class Panel:
    """A figure of one pair of axes.

    Attributes:
        svg: for a page.
        told: what a screen reader says of it.
        table: its numbers.
        draw: the matplotlib figure, for the files of `standalone` and `pdf`.
    """

    title: str
    svg: str
    told: str
    table: Table
    draw: Callable[[], Any]

    def standalone(self) -> str:
        """The figure as an SVG file of its own."""
        text = drawn(self.draw(), self.title + self.told, **WHOLE)
        box = re.search(r'viewBox="\S+ \S+ ([\d.]+)', text)
        return standalone(text, self.told, round(float(box[1])) if box else 270)

    def pdf(self) -> bytes:
        """The figure as a PDF with fonts that printers take, the same in every run."""
        import matplotlib as mpl

        out = io.BytesIO()
        with mpl.rc_context({"pdf.fonttype": 42}):
            self.draw().savefig(out, format="pdf", metadata={"CreationDate": None}, **WHOLE)
        return out.getvalue()


def panel(figure: Any, title: str, description: str, marks: Sequence[Mark], table: Table) -> Panel:
    """What was drawn, with its values where they can be pointed at."""
    text = drawn(figure, title + description)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable}, {colour})")
    told = f"{title}. {description}"
    text = opened(text, r'role="img" aria-label="{}"', told).strip()
    text = text.removesuffix("</svg>") + _targets(figure, marks) + "</svg>"
    return Panel(title, text, told, table, lambda: figure)


def _targets(figure: Any, marks: Sequence[Mark]) -> str:
    """A circle that is not seen around each value; its title is what is told of it."""
    if not marks:
        return ""
    places = figure.axes[0].transData.transform([(mark.x, mark.y) for mark in marks])
    height = figure.bbox.height
    circles = (
        f'<circle cx="{x:.1f}" cy="{height - y:.1f}" r="{REACH}"><title>{html.escape(mark.told)}</title></circle>'
        for mark, (x, y) in zip(marks, places, strict=True)
    )
    return '<g class="marks" fill="none" pointer-events="all">\n' + "\n".join(circles) + "\n</g>\n"


def drawn(figure: Any, salt: str, **more: Any) -> str:
    """The figure as an SVG element without metadata and without ids but those it refers to: the same in every run.

    `more` is for matplotlib's `savefig`.
    """
    import matplotlib as mpl

    out = io.StringIO()
    # Ids must differ between the figures of one page, and not between two runs of the same report.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(out, format="svg", metadata={"Date": None}, **more)
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", out.getvalue(), flags=re.DOTALL)
    text = text[text.index("<svg") :].replace("xlink:href", "href")
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    used = set(re.findall(r"#([\w.-]+)[\")]", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    return re.sub(r"\n\s*", "\n", text).strip() + "\n"


def standalone(text: str, description: str, width: int = 860) -> str:
    """The figure as a file of its own, so many pixels wide."""
    return opened(
        text, f'xmlns="{SVG}" width="{width}" font-family="{FONTS}" role="img" aria-label="{{}}"', f"{description}"
    )


def opened(text: str, attributes: str, label: str) -> str:
    """The SVG with its view box and these attributes, in which {} is the label."""
    box = re.search(r'viewBox="[^"]*"', text)
    opening = f"<svg {box[0] if box else ''} {attributes.format(html.escape(' '.join(label.split())))}>"
    return opening + text[text.index(">") + 1 :]
