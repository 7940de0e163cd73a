"""`repnoise report`: runs -> report.html, report.md, figure.svg and summary.json."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from repnoise.break_drawing import heat_styles
from repnoise.break_figures import break_section
from repnoise.cards import caption, difference, scorecard
from repnoise.drawing import Style, styles, wrapped
from repnoise.errors import RepnoiseError
from repnoise.figures import curve_figures, summary_picture, training_figures
from repnoise.metrics import HEADLINES, NAMES, limits, name_of, number
from repnoise.runs import Run, write_json, write_text
from repnoise.statistics import Interval
from repnoise.summary import (
    NO_ATTACK,
    Lineage,
    Row,
    attacks_in_order,
    defence_order,
    estimate,
    interval_of,
    models,
    summarise,
    worst_rows,
)
from repnoise.verdicts import counts, notes, questions, reading, verdicts

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["ReportOptions", "metrics_table", "summarise", "terminal_table", "verdicts", "worst_rows", "write_report"]

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
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUNS"), tyro.conf.Positional] = (Path("runs"),)
    output_dir: Path = Path("report")


def write_report(runs: Sequence[Run], folder: Path) -> Path:
    """Write the files of a report into `folder`; returns the path of report.html.

    summary.json is the rows of all finished runs, report.md and report.html say what they mean, and figure.svg is the
    picture of it for a README. Raises RepnoiseError where no run is finished or nothing was measured.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    rows = summarise(runs)
    if not rows:
        raise RepnoiseError(_nothing(runs))
    folder.mkdir(parents=True, exist_ok=True)
    lineage = Lineage(runs)
    look = styles(defence_order(lineage.place(run)[0] for run in runs))
    options: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    contents = _contents(runs, rows, look, folder)
    write_json(folder / "summary.json", rows)
    write_text(folder / "figure.svg", summary_picture(rows, look))
    for name, escape in (("report.md", False), ("report.html", True)):
        pages = Environment(loader=PackageLoader("repnoise"), autoescape=escape, **options)
        pages.filters |= {"inline": _inline, "unbroken": _unbroken}
        write_text(folder / name, pages.get_template(f"{name}.j2").render(contents))
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


def _inline(text: object) -> str:
    """Text that Markdown shows as it is, in a line and in a cell of a table: no tags, links, emphasis or columns."""
    return re.sub(r"([\\|`*]|<(?=[A-Za-z/!?])|(?<=\])\()", r"\\\1", " ".join(str(text).split()))


def _unbroken(text: str) -> str:
    """A number stays in one line with its per cent sign and its interval."""
    return re.sub(r" (?=%)|(?<=%) (?=\[)|(?<=,) (?=[\d.,]+\])", "\u00a0", text)


def _contents(runs: Sequence[Run], rows: Sequence[Row], look: dict[str, Style], folder: Path) -> dict[str, Any]:
    """All that the two templates show."""
    return {
        "verdicts": verdicts(rows),
        "table": _overview(rows),
        "broken": break_section(runs, rows, look),
        "ramps": heat_styles(),
        "figures": curve_figures(runs, rows, look),
        "training": training_figures(runs, look),
        "card": _card(runs, rows),
        "full": _full_table(rows),
        "colours": {name: style.variable for name, style in look.items()},
        "provenance": [_provenance(run, folder) for run in runs],
        "left_out": [_provenance(run, folder) for run in runs if not run.finished],
        "captions": CAPTIONS,
        "cost_captions": COST_CAPTIONS,
        "questions": questions(rows),
        "reading": reading(rows),
        "notes": notes(runs, rows),
        "counts": counts(runs, rows),
    }


def _card(runs: Sequence[Run], rows: Sequence[Row]) -> dict[str, Any]:
    """The scorecard by condition, with its tests in words; nothing where no card was asked for."""
    if not any(run.finished and run.record["kind"] == "trainability" for run in runs):
        return {"groups": []}
    card = scorecard(runs, rows)
    groups: dict[str, list[Any]] = {}
    for line in card.lines:
        cells = [
            {"value": line.cells.get(model, "–"), "test": difference(line.comparisons.get(model), line.share)}
            for model in card.models
        ]
        groups.setdefault(line.condition, []).append({"label": line.label, "cells": cells})
    named = [{"condition": condition, "lines": lines} for condition, lines in groups.items()]
    return {"models": card.models, "groups": named, "caption": caption(card)}


def _cell(interval: Interval, metric: str, **more: Any) -> dict[str, Any]:
    return {"value": number(interval.mean, metric), "limits": limits(interval, metric), "note": "", **more}


def _overview(rows: Sequence[Row]) -> dict[str, Any]:
    """A line a defence: before the attack, then under the best attack of the grid."""
    worst = worst_rows(rows)
    before = _shown(rows, "harmless_accuracy", "harmless_accuracy_unretained", "refusal_rate")
    if "harmless_accuracy" not in before:
        before = [*before, *_shown(rows, "harmless_ce", "perplexity")]
    harms = [metric for metric in HEADLINES if any(row["metric"] == metric for row in worst)]
    after = _shown(rows, "harmless_accuracy", "incoherent_rate") if worst else []
    if "harmless_accuracy" not in after and worst:
        after = [m for m in _shown(rows, "refusal_rate", "incoherent_rate", "perplexity") if m not in harms]
    lines = []
    for defence in models(rows):
        own = {row["metric"]: row for row in worst if row["defence"] == defence}
        main = next(iter(own.values()), None)
        attack = main["attack"] if main else "–"
        cells = [_cell(estimate(rows, defence, NO_ATTACK, metric)[0], metric) for metric in before]
        for metric in harms:
            found = own.get(metric)
            other = found["attack"] if found and found["attack"] != attack else ""
            cells.append(_cell(interval_of(found) if found else Interval(math.nan, None, None, 0), metric, note=other))
        if harms:
            value = number(main["worst_seed"], main["metric"]) if main else "–"
            cells.append({"value": value, "limits": "", "note": ""})
        cells += [_cell(estimate(rows, defence, attack, metric)[0], metric) for metric in after]
        lines.append({"defence": defence, "attack": attack, "cells": cells})
    heads = [
        {"title": "before the attack", "columns": [NAMES[metric] for metric in before]},
        {
            "title": "best attack of the grid",
            "columns": [*(_short(metric) for metric in harms), "worst run"] if harms else [],
        },
        {"title": "after it", "columns": [NAMES[metric] for metric in after]},
    ]
    heads = [head for head in heads if head["columns"]]
    names = [_qualified(head, column) for head in heads for column in head["columns"]]
    return {"heads": heads, "names": names, "lines": lines, "attacked": bool(worst)}


def _qualified(head: dict[str, Any], column: str) -> str:
    """A column's name where its heading is not seen."""
    time = {"before the attack": ", before", "after it": ", after"}.get(head["title"], "")
    return f"{column}{time}" if time else f"recovered, {column}" if column.endswith("covered") else column


def _shown(rows: Sequence[Row], *metrics: str) -> list[str]:
    return [metric for metric in metrics if any(row["metric"] == metric for row in rows)]


def _short(metric: str) -> str:
    return NAMES[metric].replace("recovered, ", "")


def _full_table(rows: Sequence[Row]) -> dict[str, Any]:
    """Every metric of every attack on every defence, grouped by attack so that defences stand side by side."""
    metrics = [metric for metric in NAMES if any(row["metric"] == metric for row in rows)]
    present = {(row["attack"], row["defence"]) for row in rows}
    groups = []
    for attack in attacks_in_order(rows):
        lines = [
            {"defence": name, "cells": [_cell(estimate(rows, name, attack, metric)[0], metric) for metric in metrics]}
            for name in models(rows)
            if (attack, name) in present
        ]
        groups.append({"attack": "before any attack" if attack == NO_ATTACK else attack, "lines": lines})
    return {"columns": [NAMES[metric] for metric in metrics], "groups": groups}


def _provenance(run: Run, folder: Path) -> dict[str, str]:
    """Where a number comes from: the run, its code, and the model that it started from."""
    record = run.record
    code = record.get("code") or {}
    commit = f" {code['commit'][:8]}{' (changed)' if code.get('changed') else ''}" if code.get("commit") else ""
    seconds = record.get("seconds")
    try:
        path = os.path.relpath(run.path, folder)
    except ValueError:  # Another drive, on Windows.
        path = str(run.path)
    return {
        "path": Path(path).as_posix(),
        "kind": f"{record['kind']} {record['name']}",
        "status": str(record.get("status")),
        "error": str(record.get("error") or "").rstrip("."),
        "seconds": "–" if seconds is None else f"{seconds:,.0f}",
        "code": f"{code.get('version', 'unknown')}{commit}",
        "fingerprint": str((record.get("parent") or {}).get("fingerprint") or "–"),
    }


def terminal_table(rows: Sequence[Row]) -> Table:
    """A column for each model, for the terminal: before the attack, under the best attack of the grid, after it."""
    from rich.markup import escape
    from rich.table import Table

    overview = _overview(rows)
    table = Table(title="Each model under the best attack of its grid", title_justify="left", caption_justify="left")
    table.add_column("", max_width=22)
    for line in overview["lines"]:
        table.add_column(escape(wrapped(line["defence"], 13)), justify="right", overflow="fold")
    for i, name in enumerate(overview["names"]):
        cells = (line["cells"][i] for line in overview["lines"])
        # An interval stays in one line.
        table.add_row(name, *(escape(f"{cell['value']} {cell['limits'].replace(' ', '')}".strip()) for cell in cells))
    table.add_row("best attack", *(escape(wrapped(line["attack"], 13)) for line in overview["lines"]))
    table.caption = "95 % intervals. covered: the defender had seen these answers; uncovered: nobody had."
    return table


def metrics_table(run: Run) -> Table:
    """All metrics of one run, for the terminal."""
    return metric_lines(f"{run.record['kind']} {run.record['name']}", run.record.get("metrics") or {})


def metric_lines(title: str, metrics: dict[str, Any]) -> Table:
    """Metrics with their intervals, for the terminal; those of single categories are in the run and the report."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for column in ("metric", "value", "95 % interval", "n"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for metric, found in metrics.items():
        if "@" in metric:
            continue
        value = math.nan if found.get("value") is None else found["value"]
        interval = Interval(value, found.get("low"), found.get("high"), found.get("n") or 0)
        unscored = f" ({found['unscored']} unscored)" if found.get("unscored") else ""
        count = f"{interval.n}{unscored}"
        table.add_row(escape(name_of(metric)), number(value, metric), limits(interval, metric), count)
    return table
