"""Where a number comes from: the run that measured it, its code and weights, and the command that repeats it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from repnoise.report.lineage import run_names
from repnoise.report.summary import Row
from repnoise.runs import Run

COMMANDS = {
    "defence": "defend",
    "attack": "attack",
    "evaluation": "evaluate",
    "trainability": "trainability",
    "analysis": "analyze",
    "pairs": "pairs",
    "judge": "judge train",
}
"""What makes a run of each kind, and repeats one with --preset; the controls are made by the demo and the studies."""


def provenance(runs: Sequence[Run], folder: Path) -> list[dict[str, str]]:
    """A line for each run: an anchor for the page, what it is, what it started from and what it made."""
    return [{"id": f"run-{number}", "number": str(number)} | _line(run, folder) for number, run in enumerate(runs, 1)]


def run_links(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """By the name that rows have for it, the number of each run and its anchor."""
    names = run_names(runs)
    return {
        names[run.path.resolve()]: {"number": str(number), "anchor": f"#run-{number}"}
        for number, run in enumerate(runs, 1)
    }


def sources(rows: Iterable[Row], links: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    """Links to the runs that rows come from, each once, in their order."""
    found = {row["run"]: links[row["run"]] for row in rows if row["run"] in links}
    return sorted(found.values(), key=lambda link: int(link["number"]))


def _line(run: Run, folder: Path) -> dict[str, str]:
    record: dict[str, Any] = run.record
    code = record.get("code") or {}
    commit = f" {code['commit'][:8]}{' (changed)' if code.get('changed') else ''}" if code.get("commit") else ""
    seconds = record.get("seconds")
    try:
        path = Path(os.path.relpath(run.path, folder)).as_posix()
    except ValueError:  # Another drive, on Windows.
        path = run.path.as_posix()
    command = COMMANDS.get(record["kind"])
    return {
        "path": path,
        "kind": f"{record['kind']} {record['name']}",
        "status": str(record.get("status")),
        "error": str(record.get("error") or "").rstrip("."),
        "seconds": "–" if seconds is None else f"{seconds:,.0f}",
        "code": f"{code.get('version', 'unknown')}{commit}",
        "fingerprint": str((record.get("parent") or {}).get("fingerprint") or "–"),
        "weights": str(record.get("weights") or "–"),
        "command": f"repnoise {command} --preset {shlex.quote(path)}" if command else "–",
    }
