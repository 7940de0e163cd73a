"""The document of a reproduction: the paper's tables beside ours, and which of its claims hold here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from repnoise.metrics import number, spelled
from repnoise.report.pages import grid
from repnoise.runs import load_run, write_json, write_text
from repnoise.statistics import Interval
from repnoise.studies.graph import finished
from repnoise.studies.markdown import as_json, typed_options, versions
from repnoise.studies.paper import BUILDERS
from repnoise.studies.paper.setting import Setting
from repnoise.studies.tables import Claim, Entry, Numbers, Read, Table

if TYPE_CHECKING:
    from repnoise.studies.paper.command import PaperStudy

READING = """\
Each number is a mean over seeds with its 95 % interval, for other seeds (Student's t) and other prompts together; one
seed has the interval over prompts alone. *Paper* is the paper's own number, from one seed. **✓** or **✗** behind ours
says that it differs from the table's first model beyond chance, in the paper's direction or not (less than .05 in the
paper is no difference); nothing, that chance may explain it.

A claim **holds** where every comparison in it does beyond chance (the interval of each difference is below 0, or within
the margin where two are said to be alike), **does not hold** where one of them goes the other way beyond chance, and
else **cannot be told**. The two sides of a difference are taken as independent, although they answer the same prompts:
that is on the safe side. Claims that are "ours" are not the paper's. Nothing is corrected for the number of claims: of
many, some are told wrongly by chance."""

ONE_SEED = """\
There is one seed. What is beyond chance here would be so for other prompts; another seed may tell otherwise."""

COUNTED = {"holds": "hold", "does not hold": "do not hold"}
"""What is said of several claims, where it is another word than of one."""

SANDBOX = """\
The sandbox is a toy world with a model of half a million parameters. It shows whether the paper's claims about the
*method* hold in a place where everything is known, and says nothing about any real model."""


def write_document(
    study: PaperStudy, setting: Setting, tables: Mapping[str, Table], failed: Mapping[Path, str], seconds: float
) -> Path:
    """Write NAME.md and NAME.json to the study's folder, and the document where it is wanted; returns its place."""
    own = study.output_dir / f"{study.name}.md"
    where = study.document or own
    numbers = {name: table.read_out() for name, table in tables.items()}
    text = _document(study, setting, tables, numbers, failed)
    for place in dict.fromkeys((own, where)):
        write_text(place, text)
    found = {name: _json(table, numbers[name]) for name, table in tables.items()}
    write_json(own.with_suffix(".json"), {"studies": found, "seconds_of_this_command": seconds})
    return where


def _document(
    study: PaperStudy,
    setting: Setting,
    tables: Mapping[str, Table],
    numbers: Mapping[str, Sequence[Numbers]],
    failed: Mapping[Path, str],
) -> str:
    title = "The paper" if study.name == "all" else _title(study.name)
    parts = [
        f"# {title} at {study.scale} scale",
        "Written by a command from the files of its runs; do not edit by hand.",
        _made_by(study, setting, tables, failed),
        *([SANDBOX] if study.scale == "sandbox" else []),
        READING,
        *([ONE_SEED] if len(setting.seeds) == 1 else []),
    ]
    if len(tables) > 1:
        parts += ["## Which claims hold", _overview(tables, numbers)]
    for name, table in tables.items():
        parts += _section(name, table, numbers[name])
    return "\n\n".join(parts) + "\n"


def _title(name: str) -> str:
    kind, _, count = name.partition("-")
    return f"{kind.title()} {count}"


def _made_by(study: PaperStudy, setting: Setting, tables: Mapping[str, Table], failed: Mapping[Path, str]) -> str:
    needed = setting.graph.needed({run for table in tables.values() for run in table.runs})
    records = [load_run(cell.path).record for cell in needed if (cell.path / "run.json").exists()]
    spent = sum(record.get("seconds", 0.0) for record in records)
    done = sum(finished(cell.path) for cell in needed)
    seeds = f"{'Seed' if len(setting.seeds) == 1 else 'Seeds'} {', '.join(map(str, setting.seeds))}"
    lines = [
        f"    repnoise reproduce {study.name} --scale {study.scale}"
        + typed_options(study, ("name", "scale", "output_dir", "document", "jobs", "dry_run", "device", "executor")),
        "",
        f"{done:,} of {len(needed):,} cells are there; {spent / 3600:.1f} hours on one core. "
        f"{seeds}. {versions(records[0] if records else {})}".strip(),
    ]
    if failed:
        lines += ["", f"{len(failed)} cells failed."]
    return "\n".join(lines)


def _overview(tables: Mapping[str, Table], numbers: Mapping[str, Sequence[Numbers]]) -> str:
    rows, counted = [], []
    for name, table in tables.items():
        if name == "table-13":  # Table 6 again.
            continue
        for claim in table.claims:
            own = [_verdict(claim, ours) for ours in numbers[name]]
            rows.append([_title(name), _text(claim), own[0], own[1] if len(own) > 1 else "–"])
            counted += [] if claim.ours else [own[0].partition(" (")[0]]
    verdicts = ("holds", "does not hold", "cannot be told", "not measured")
    told = [f"{counted.count(verdict)} {COUNTED.get(verdict, verdict)}" for verdict in verdicts]
    whose = "Where answers are told apart by whose data they were in, that is of those that were in nobody's."
    return (
        f"Of {len(counted)} claims of the paper: {', '.join(told)}. {whose}"
        + "\n\n"
        + grid(["of", "claim", "verdict", "of covered answers"], rows)
    )


def _text(claim: Claim) -> str:
    return f"{claim.text} (Ours.)" if claim.ours else claim.text


def _verdict(claim: Claim, ours: Numbers) -> str:
    holding, count = claim.count(ours.found.get)
    verdict = claim.verdict(ours.found.get)
    return f"{verdict} ({holding} of {count})" if count > 1 and verdict != "not measured" else verdict


def _section(name: str, table: Table, numbers: Sequence[Numbers]) -> list[str]:
    parts = [f"## {_title(name)}", BUILDERS[name][0]]
    for ours in numbers:
        parts += [f"{ours.shown[:1].upper()}{ours.shown[1:]}."] if ours.shown else []
        parts.append(_table(table, ours))
        parts.append("\n".join(f"- {_text(claim)} **{_verdict(claim, ours)}**" for claim in table.claims))
    done, wanted = sum(finished(run) for run in table.runs), len(table.runs)
    notes = [*table.notes, *([f"{done} of {wanted} runs are there."] if done < wanted else [])]
    return [*parts, *(["\n".join(f"- {note}" for note in notes)] if notes else [])]


def _table(table: Table, ours: Numbers) -> str:
    with_paper = any(entry.paper is not None for entry in table.entries)
    head = [table.corner, *(table.columns)]
    rows = []
    for row in table.rows:
        cells = [table.entry((row, column)) for column in table.columns]
        rows.append([row, *(_cell(table, entry, ours) for entry in cells)])
        if with_paper and ours.read is None and any(entry and entry.paper is not None for entry in cells):
            rows.append(["*paper*", *(_paper(entry) for entry in cells)])
    return grid(head, rows)


def _cell(table: Table, entry: Entry | None, ours: Numbers) -> str:
    found = ours.found[entry.where] if entry else None
    if entry is None or found is None:
        return "–"
    mark = {"agrees": " ✓", "differs": " ✗", "": ""}[table.agreement(entry, ours)]
    return _spelled(found, ours.read or entry.read) + mark


def _spelled(found: Interval, read: Read) -> str:
    if name := getattr(read, "name", ""):
        return spelled(found, name) + (f", {found.unscored} unscored" if found.unscored else "")
    if found.low is None or found.high is None:
        return f"{found.mean:.2f}"
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _paper(entry: Entry | None) -> str:
    if entry is None or entry.paper is None:
        return ""
    name = getattr(entry.read, "name", "")
    return f"*{number(entry.paper, name) if name else f'{entry.paper:.2f}'}*"


def _json(table: Table, numbers: Sequence[Numbers]) -> dict:
    return {
        "entries": [
            {
                "row": entry.row,
                "column": entry.column,
                "paper": entry.paper,
                "runs": [str(run) for run in entry.runs],
                "ours": [as_json(ours.found[entry.where]) for ours in numbers],
                "agreement": table.agreement(entry, numbers[0]),
            }
            for entry in table.entries
        ],
        "claims": [
            {"text": claim.text, "verdicts": [_verdict(claim, ours) for ours in numbers]} for claim in table.claims
        ],
    }
