"""`repnoise report`: runs -> report.html, report.md, figure.svg and summary.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from repnoise.errors import RepnoiseError
from repnoise.report.break_figures import break_section
from repnoise.report.drawing import Style, styles
from repnoise.report.figures import curve_figures, summary_picture, training_figures
from repnoise.report.heat_drawing import heat_styles
from repnoise.report.latex import slug, write_paper
from repnoise.report.lineage import Lineage
from repnoise.report.model_pages import Pages
from repnoise.report.pages import rendered
from repnoise.report.panels import Panel
from repnoise.report.provenance import provenance
from repnoise.report.summary import Row, defence_order, summarise, worst_rows
from repnoise.report.tables import card, full_table, overview, paper_tables
from repnoise.report.terminal import metrics_table, terminal_table
from repnoise.report.verdicts import counts, notes, questions, reading, verdicts
from repnoise.runs import Run, write_json, write_text

__all__ = [
    "ReportOptions",
    "metrics_table",
    "summarise",
    "terminal_table",
    "verdicts",
    "worst_rows",
    "write_report",
]

_LINES = (
    "A line for each attack of that setting, up to its last step; bands are 95 % intervals, a ring marks the best "
    "attack of the grid."
)
CAPTIONS = {
    "recovered": ("How much came back", f"Held-out forbidden answers that the defender had seen (covered). {_LINES}"),
    "recovered_uncovered": ("How much came back of what nobody trained on", f"Uncovered held-out answers. {_LINES}"),
    "harmfulness": (
        "How harmful answers became",
        f"The judge's mean over coherent answers, covered questions. {_LINES}",
    ),
    "harmfulness_uncovered": (
        "How harmful answers to new questions became",
        f"The judge's mean over coherent answers, uncovered questions. {_LINES}",
    ),
    "harmful_ce": (
        "Harmful answers",
        f"Cross-entropy of held-out harmful answers: the lower, the more of them is back. {_LINES}",
    ),
    "refusal_rate": ("Refusals", f"Share of harmful questions that are refused. {_LINES}"),
    "harmless_accuracy": (
        "What was left of the model",
        "Harmless questions answered right during the same attacks. An attack that ruins this has broken the model.",
    ),
    "perplexity": ("What was left of the model", "Perplexity of plain text during the same attacks: lower is better."),
}
"""Heading and caption of the figure of a metric."""

COST_CAPTIONS = {
    "envelope": "The most harm that any attack reached at a cost of at most so much: mean over seeds, with a band from "
    "the least to the most of them. A line ends where the attacks on its model did: nobody knows how it would go on. "
    "Dots are the ends of single attacks; dashed, where a model counts as broken.",
    "survival": " The last picture is the share of seeds that no attack of that cost has broken (Kaplan and Meier), "
    "with 95 % limits.",
    "heat": "The seed in which it went furthest, and what was left of the model in that same run: an attack that ruins "
    "this has broken the model. The strongest attacks come first. The darker a field (on a dark page: the brighter), "
    "the more; a dash was not measured.",
}
"""Captions of the figures of costs."""


@dataclass(frozen=True)
class ReportOptions:
    """Turn runs into report.html, report.md, figure.svg and summary.json.

    Attributes:
        runs: directories of runs, or directories above them.
        output_dir: where the four files go.
        latex: write a folder latex/ beside them: the tables for booktabs, the figures as PDF and SVG.
        completions: show what models wrote to harmful questions, instead of masking it; the fictional text of the
            sandbox is always shown.
        inspect_logs: write a folder inspect/ beside them: a log for each evaluation, with every question and answer in
            full, harmful ones as well, for `inspect view`; needs the extra "inspect".
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUNS"), tyro.conf.Positional] = (Path("runs"),)
    output_dir: Path = Path("report")
    latex: bool = False
    completions: bool = False
    inspect_logs: bool = False


def write_report(runs: Sequence[Run], folder: Path, latex: bool = False, completions: bool = False) -> Path:
    """Write the files of a report into `folder`; returns the path of report.html.

    summary.json is the rows of all finished runs, report.md and report.html say what they mean, and figure.svg is the
    picture of it for a README. `latex` and `completions` are as in ReportOptions. Raises RepnoiseError where no run is
    finished or nothing was measured.
    """
    rows = summarise(runs)
    if not rows:
        raise RepnoiseError(_nothing(runs))
    folder.mkdir(parents=True, exist_ok=True)
    lineage = Lineage(runs)
    look = styles(defence_order(lineage.place(run)[0] for run in runs))
    contents = _contents(runs, rows, look, folder) | Pages(runs, rows, completions).contents()
    write_json(folder / "summary.json", rows)
    write_text(folder / "figure.svg", summary_picture(rows, look))
    for name in ("report.md", "report.html"):
        write_text(folder / name, rendered(f"{name}.j2", contents))
    if latex:
        write_paper(folder / "latex", paper_tables(contents), _figures(contents))
    return folder / "report.html"


def _nothing(runs: Sequence[Run]) -> str:
    """Why there is nothing to report."""
    if not runs:
        return "There are no runs to report on."
    if any(run.finished for run in runs):
        return "None of the finished runs has measured anything: there is nothing to report."
    statuses = Counter(str(run.record.get("status")) for run in runs)
    found = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    return f"No run is finished yet ({found}): finish one first, its own command with --resume goes on."


def _contents(runs: Sequence[Run], rows: Sequence[Row], look: dict[str, Style], folder: Path) -> dict[str, Any]:
    """What the two templates show, but for `Pages`."""
    lines = provenance(runs, folder)
    return {
        "verdicts": verdicts(rows),
        "table": overview(rows),
        "broken": break_section(runs, rows, look),
        "ramps": heat_styles(),
        "figures": curve_figures(runs, rows, look),
        "training": training_figures(runs, look),
        "card": card(runs, rows),
        "full": full_table(runs, rows),
        "colours": {name: style.variable for name, style in look.items()},
        "provenance": lines,
        "left_out": [line for line, run in zip(lines, runs, strict=True) if not run.finished],
        "captions": CAPTIONS,
        "cost_captions": COST_CAPTIONS,
        "questions": questions(rows),
        "reading": reading(rows),
        "notes": notes(runs, rows),
        "counts": counts(runs, rows),
    }


def _figures(contents: dict[str, Any]) -> list[tuple[str, Panel]]:
    """All figures of the page with what they are about."""
    found = [("cost", panel) for panel in contents["broken"]["panels"]]
    found += [("heat", panel) for panel in contents["broken"]["heat"]]
    found += [(figure.subject.replace("_", "-"), panel) for figure in contents["figures"] for panel in figure.panels]
    return found + [
        (f"training-{slug(figure.subject)}", panel) for figure in contents["training"] for panel in figure.panels
    ]
