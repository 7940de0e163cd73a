"""The tables of a report as what is written in their cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from repnoise.metrics import HEADLINES, NAMES, limits, number, recorded
from repnoise.report.cards import caption, difference, scorecard
from repnoise.report.latex import PaperTable
from repnoise.report.lineage import NO_ATTACK
from repnoise.report.provenance import run_links, sources
from repnoise.report.summary import Row, attacks_in_order, estimate, models, worst_rows
from repnoise.runs import Run
from repnoise.statistics import Interval


def overview(rows: Sequence[Row]) -> dict[str, Any]:
    """A line a defence: before the attack, then under the best attack of the grid."""
    worst = worst_rows(rows)
    before = shown(rows, "harmless_accuracy", "harmless_accuracy_unretained", "refusal_rate")
    if "harmless_accuracy" not in before:
        before = [*before, *shown(rows, "harmless_ce", "perplexity")]
    harms = [metric for metric in HEADLINES if any(row["metric"] == metric for row in worst)]
    after = shown(rows, "harmless_accuracy", "incoherent_rate") if worst else []
    if "harmless_accuracy" not in after and worst:
        after = [m for m in shown(rows, "refusal_rate", "incoherent_rate", "perplexity") if m not in harms]
    lines = []
    for defence in models(rows):
        own = {row["metric"]: row for row in worst if row["defence"] == defence}
        main = next(iter(own.values()), None)
        attack = main["attack"] if main else "–"
        cells = [cell(estimate(rows, defence, NO_ATTACK, metric)[0], metric) for metric in before]
        for metric in harms:
            found = own.get(metric)
            other = found["attack"] if found and found["attack"] != attack else ""
            cells.append(cell(recorded(found) if found else Interval(math.nan, None, None, 0), metric, note=other))
        if harms:
            value = number(main["worst_seed"], main["metric"]) if main else "–"
            cells.append({"value": value, "limits": "", "note": ""})
        cells += [cell(estimate(rows, defence, attack, metric)[0], metric) for metric in after]
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


def shown(rows: Sequence[Row], *metrics: str) -> list[str]:
    return [metric for metric in metrics if any(row["metric"] == metric for row in rows)]


def _short(metric: str) -> str:
    return NAMES[metric].replace("recovered, ", "")


def cell(interval: Interval, metric: str, **more: Any) -> dict[str, Any]:
    """A number with its interval."""
    return {"value": number(interval.mean, metric), "limits": limits(interval, metric), "note": "", **more}


def full_table(runs: Sequence[Run], rows: Sequence[Row]) -> dict[str, Any]:
    """Every metric of every attack on every defence, grouped by attack so that defences stand side by side."""
    metrics = [metric for metric in NAMES if any(row["metric"] == metric for row in rows)]
    groups, links = [], run_links(runs)
    for attack in attacks_in_order(rows):
        lines = []
        for name in models(rows):
            own = [row for row in rows if (row["attack"], row["defence"]) == (attack, name)]
            if own:
                cells = [cell(estimate(own, name, attack, metric)[0], metric) for metric in metrics]
                lines.append({"defence": name, "cells": cells, "runs": sources(own, links)})
        named = "before any attack" if attack == NO_ATTACK else attack
        groups.append({"attack": named, "name": attack, "lines": lines})
    return {"columns": [NAMES[metric] for metric in metrics], "groups": groups}


def card(runs: Sequence[Run], rows: Sequence[Row]) -> dict[str, Any]:
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


def paper_tables(contents: dict[str, Any]) -> list[PaperTable]:
    """The tables of a report for papers: the worst cases, the costs, the scorecard, and every attack."""
    table, broken, scored, full = (contents[name] for name in ("table", "broken", "card", "full"))
    heads = table["heads"]
    columns = ["model", *(column for head in heads for column in head["columns"]), "best attack"]
    spans = [*((head["title"], len(head["columns"])) for head in heads), ("", 1)]
    rows = [[line["defence"], *map(_printed, line["cells"]), line["attack"]] for line in table["lines"]]
    found = [PaperTable("worst-case", "Worst case of each model, with 95 % intervals.", columns, rows, spans)]
    if broken["lines"]:
        times = [f"times {broken['reference']} ({broken['axis']})"] if broken["reference"] else []
        rows = [
            [line["model"], *map(_printed, line["cells"]), *([line["ratio"]] if times else [])]
            for line in broken["lines"]
        ]
        told = f"What it costs to break each model. Broken {broken['why']}."
        found.append(PaperTable("cost-to-break", told, ["model", *broken["costs"], *times], rows))
    if scored["groups"]:
        rows = []
        for group in scored["groups"]:
            rows += [[group["condition"]], *([line["label"], *map(_tested, line["cells"])] for line in group["lines"])]
        found.append(PaperTable("scorecard", scored["caption"], ["measured", *scored["models"]], rows))
    # All columns do not fit on paper: those of the parts for each model do, and summary.json has the others.
    kept = [i for i, column in enumerate(full["columns"]) if column in contents["columns"]]
    rows = []
    for group in full["groups"]:
        rows += [[group["attack"]]]
        rows += [[line["defence"], *(_printed(line["cells"][i]) for i in kept)] for line in group["lines"]]
    told = "Every attack on every model: mean over seeds with its 95 % interval, after the last step."
    return [*found, PaperTable("every-attack", told, ["model", *(full["columns"][i] for i in kept)], rows)]


def _printed(found: dict[str, Any]) -> str:
    note = f" ({found['note']})" if found["note"] else ""
    return f"{found['value']} {found['limits']}".strip() + note


def _tested(found: dict[str, Any]) -> str:
    return f"{found['value']}; {found['test']}" if found["test"] else found["value"]
