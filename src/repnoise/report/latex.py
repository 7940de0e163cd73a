"""Tables and figures of a report for papers: LaTeX with booktabs, PDF and SVG."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from repnoise.report.panels import Panel
from repnoise.runs import write_text

LONG = 40
"""Lines; a table of more goes over several pages."""
LINE = 76
"""Characters of \\small in a line of the article class: a table that is wider breaks its cells."""
GAP = 1.4
"""Between two columns of such a table, in characters."""
SIZES = {r"\small": 1.0, r"\footnotesize": 1.1, r"\scriptsize": 1.2}
"""The print of tables that are at most so many lines wide even so; wider ones are shrunk, where they fit on a page."""

_SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"}
_SPECIAL |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_SPECIAL |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}"}
_SPECIAL |= {"–": "--", "—": "---", "…": r"\ldots{}", "“": "``", "”": "''", "²": r"\textsuperscript{2}"}
_SPECIAL |= {"≥": r"$\geq$", "≤": r"$\leq$", "−": "$-$", "≈": r"$\approx$", "∞": r"$\infty$", "→": r"$\rightarrow$"}
_TIE, _HYPHEN, _APART = "\u00a0", "\u2011", "\u200c"
_SPECIAL |= {_TIE: "~", _HYPHEN: r"\mbox{-}", _APART: "{}"}

EXAMPLE = r"""% Every table and figure of this report. To see them: pdflatex example.tex, twice.
\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage{lmodern}
\usepackage{array,booktabs,longtable,graphicx}
\newcommand{\drawn}[1]{\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{\includegraphics{#1}}}
\begin{document}
"""
"""How the document begins that shows everything."""


@dataclass(frozen=True)
class PaperTable:
    """A table to be printed.

    Attributes:
        name: of its file and label.
        columns: heads; the first is the column of names.
        rows: cells as text; a row of one cell is a heading over those that follow.
        spans: what stands above the columns but the first, and over how many each.
    """

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    spans: Sequence[tuple[str, int]] = ()


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is. Letters that its fonts lack stay as they are."""
    return "".join(_SPECIAL.get(character, character) for character in _typeset(text))


def _typeset(text: str) -> str:
    """The text with the quotes of print, and with numbers and intervals that no line breaks."""
    text = re.sub(r'"([^"]*)"', "“\\1”", re.sub(r"\s+", " ", text).strip())
    text = re.sub(r" (?=%)|(?<=,) (?=[\d.,…]+\])|(?<=\(n) (?=\d)", _TIE, text)
    return re.sub(r"(?<=\de)-(?=\d)", _HYPHEN, re.sub(r"-(?=-)", f"-{_APART}", text))


def latex_table(table: PaperTable) -> str:
    """The table as a file to \\input; its first line says which packages it needs."""
    widths = _widths(table)
    lines_wide = sum(widths) / LINE
    size, most = next((one for one in SIZES.items() if lines_wide <= one[1]), list(SIZES.items())[-1])
    columns = _broken(widths) if widths else "l" + "r" * (len(table.columns) - 1)
    head = [*_spanning(table.spans, widths), _line(table.columns), r"\midrule"]
    body = [_row(row, len(table.columns)) for row in table.rows]
    title = rf"\caption{{{escaped(table.caption)}}}\label{{tab:{table.name}}}"
    tight = r"\setlength{\tabcolsep}{3pt}\setlength{\extrarowheight}{2pt}" if widths else ""
    packages = ["array", "booktabs"] if widths else ["booktabs"]
    if sum(_height(row, widths) for row in table.rows) > LONG:
        packages += ["longtable"]
        lines = [rf"\begingroup{size}{tight}\setlength{{\LTcapwidth}}{{\linewidth}}"]
        lines += [rf"\begin{{longtable}}{{{columns}}}", rf"{title}\\"]
        lines += [r"\toprule", *head, r"\endfirsthead", r"\toprule", *head, r"\endhead"]
        lines += [*body, r"\bottomrule", r"\end{longtable}", r"\endgroup"]
    else:
        opening, closing = [], []
        if lines_wide > most:
            packages += ["graphicx"]
            opening = [rf"\resizebox{{\linewidth}}{{!}}{{\begin{{minipage}}{{{lines_wide / most:.2f}\linewidth}}"]
            closing = [r"\end{minipage}}"]
        lines = [r"\begin{table}", rf"\centering{size}{tight}", title, *opening, rf"\begin{{tabular}}{{{columns}}}"]
        lines += [r"\toprule", *head, *body, r"\bottomrule", r"\end{tabular}", *closing, r"\end{table}"]
    return "\n".join([rf"% Needs \usepackage{{{','.join(packages)}}}.", *lines]) + "\n"


def _widths(table: PaperTable) -> list[float]:
    """Of each column in characters, gaps included, where cells must be broken; nothing where all fits in a line.

    No column is narrower than what cannot be broken in it, and none wider than its cells where another could use that.
    """
    heads = list(map(_typeset, table.columns))
    bodies = list(zip(*(map(_typeset, row) for row in table.rows if len(row) > 1), strict=True)) or [()] * len(heads)
    whole = [max(map(len, cells), default=0) for cells in bodies]
    if sum(max(len(head), wide) + 3 for head, wide in zip(heads, whole, strict=True)) <= LINE:
        return []
    least = [max(map(_unbreakable, (head, *cells))) for head, cells in zip(heads, bodies, strict=True)]
    wanted = [max(wide - narrow, 0) for wide, narrow in zip(whole, least, strict=True)]
    given = _shared(max(LINE - sum(least) - GAP * len(heads), 0), wanted)
    return [narrow + GAP + more for narrow, more in zip(least, given, strict=True)]


def _shared(room: float, wanted: Sequence[float]) -> list[float]:
    """The room among those who want it: as much for each, until one has what it wants."""
    given = [0.0] * len(wanted)
    for waiting, index in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        given[index] = min(wanted[index], room / (len(wanted) - waiting))
        room -= given[index]
    return given


def _unbreakable(text: str) -> float:
    """Characters of the longest piece between two places where a line may end, and something for wide ones."""
    return max(map(len, re.split(r" |(?<=-)", text))) + 0.7


def _height(row: Sequence[str], widths: Sequence[float]) -> int:
    """Lines that a row takes, about."""
    return max((math.ceil(len(cell) / width) for cell, width in zip(row, widths, strict=False)), default=1)


def _broken(widths: Sequence[float]) -> str:
    """Columns that share the width of the text and break their cells: names to the left, numbers to the right."""
    sides = ["right", *["left"] * (len(widths) - 1)]
    return "".join(_paragraph(width / sum(widths), f"ragged{side}") for side, width in zip(sides, widths, strict=True))


def _paragraph(share: float, side: str) -> str:
    # Rounded down, lest all of them are wider than the line.
    share = math.floor(1000 * share) / 1000
    return rf">{{\{side}\arraybackslash}}p{{\dimexpr{share:.3f}\linewidth-2\tabcolsep\relax}}"


def _spanning(spans: Sequence[tuple[str, int]], widths: Sequence[float]) -> list[str]:
    """A line above the heads with rules under what belongs together."""
    if not spans:
        return []
    cells, rules, column = [""], [], 2
    for title, wide in spans:
        place = _paragraph(sum(widths[column - 1 : column - 1 + wide]) / sum(widths), "centering") if widths else "c"
        cells.append(rf"\multicolumn{{{wide}}}{{{place}}}{{{escaped(title)}}}" if title else "&" * (wide - 1))
        rules += [rf"\cmidrule(lr){{{column}-{column + wide - 1}}}"] if title else []
        column += wide
    return [" & ".join(cells) + r" \\", "".join(rules)]


def _row(row: Sequence[str], wide: int) -> str:
    if len(row) == 1:
        return rf"\addlinespace \multicolumn{{{wide}}}{{l}}{{\textit{{{escaped(row[0])}}}}} \\*"
    return _line(row)


def _line(cells: Iterable[str]) -> str:
    text = " & ".join(map(escaped, cells)) + r" \\"
    # After the end of a line, LaTeX takes a bracket or a star for an option of that.
    return f"{{}}{text}" if text.startswith(("[", "*")) else text


def write_paper(folder: Path, tables: Sequence[PaperTable], figures: Sequence[tuple[str, Panel]]) -> None:
    """Write NAME.tex for each table, NAME.svg and NAME.pdf for each figure, of one name with a number, and example.tex,
    which shows them all."""
    for table in tables:
        write_text(folder / f"{table.name}.tex", latex_table(table))
    taken: dict[str, int] = {}
    names = []
    for subject, panel in figures:
        name = f"{subject}-{slug(panel.title)}"
        taken[name] = taken.get(name, 0) + 1
        name += f"-{taken[name]}" if taken[name] > 1 else ""
        write_text(folder / f"{name}.svg", panel.standalone())
        (folder / f"{name}.pdf").write_bytes(panel.pdf())
        names.append(name)
    lines = [rf"\input{{{table.name}}}" for table in tables] + [r"\clearpage"]
    lines += [rf"\begin{{center}}\drawn{{{name}}}\\{name}\end{{center}}" for name in names]
    write_text(folder / "example.tex", EXAMPLE + "\n".join(lines) + "\n\\end{document}\n")


def slug(text: str) -> str:
    """A name for a file or an anchor: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "figure"
