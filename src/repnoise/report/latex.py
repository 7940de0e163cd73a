"""Tables and figures of a report for papers: LaTeX with booktabs, PDF and SVG."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from repnoise.report.panels import Panel
from repnoise.runs import write_text

LONG = 40
"""Rows; a table of more goes over several pages."""

_SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"}
_SPECIAL |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_SPECIAL |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_SPECIAL |= {"–": "--", "…": r"\ldots{}", "\u00a0": "~", "²": r"\textsuperscript{2}", "≥": r"$\geq$", "≤": r"$\leq$"}


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
    """Text that LaTeX prints as it is."""
    return "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))


def latex_table(table: PaperTable) -> str:
    """The table as a file to \\input; its first line says which packages it needs."""
    columns = "l" + "r" * (len(table.columns) - 1)
    head = [*_spanning(table.spans), _line(table.columns), r"\midrule"]
    body = [_row(row, len(table.columns)) for row in table.rows]
    title = rf"\caption{{{escaped(table.caption)}}}\label{{tab:{table.name}}}"
    if len(table.rows) > LONG:
        lines = [
            r"% Needs \usepackage{booktabs,longtable}.",
            r"\begingroup\small",
            rf"\begin{{longtable}}{{{columns}}}",
        ]
        lines += [rf"{title}\\", r"\toprule", *head, r"\endfirsthead", r"\toprule", *head, r"\endhead"]
        lines += [*body, r"\bottomrule", r"\end{longtable}", r"\endgroup"]
    else:
        lines = [r"% Needs \usepackage{booktabs}.", r"\begin{table}", r"\centering\small", title]
        lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *head, *body, r"\bottomrule"]
        lines += [r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _spanning(spans: Sequence[tuple[str, int]]) -> list[str]:
    """A line above the heads with rules under what belongs together."""
    if not spans:
        return []
    cells, rules, column = [""], [], 2
    for title, wide in spans:
        cells.append(rf"\multicolumn{{{wide}}}{{c}}{{{escaped(title)}}}" if title else "&" * (wide - 1))
        rules += [rf"\cmidrule(lr){{{column}-{column + wide - 1}}}"] if title else []
        column += wide
    return [" & ".join(cells) + r" \\", "".join(rules)]


def _row(row: Sequence[str], wide: int) -> str:
    if len(row) == 1:
        return rf"\addlinespace \multicolumn{{{wide}}}{{l}}{{\textit{{{escaped(row[0])}}}}} \\"
    return _line(row)


def _line(cells: Iterable[str]) -> str:
    text = " & ".join(map(escaped, cells)) + r" \\"
    # After the end of a line, LaTeX takes a bracket or a star for an option of that.
    return f"{{}}{text}" if text.startswith(("[", "*")) else text


def write_paper(folder: Path, tables: Sequence[PaperTable], figures: Sequence[tuple[str, Panel]]) -> None:
    """Write NAME.tex for each table, and NAME.svg and NAME.pdf for each figure, of one name with a number."""
    for table in tables:
        write_text(folder / f"{table.name}.tex", latex_table(table))
    taken: dict[str, int] = {}
    for subject, panel in figures:
        name = f"{subject}-{slug(panel.title)}"
        taken[name] = taken.get(name, 0) + 1
        name += f"-{taken[name]}" if taken[name] > 1 else ""
        write_text(folder / f"{name}.svg", panel.standalone())
        (folder / f"{name}.pdf").write_bytes(panel.pdf())


def slug(text: str) -> str:
    """A name for a file or an anchor: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "figure"
