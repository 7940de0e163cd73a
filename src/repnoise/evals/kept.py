"""What an evaluation has made is kept: whole files told by the fingerprint of their inputs, verdicts one by one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from repnoise.judges import Completion, Judge, Score
from repnoise.runs import fingerprint, read_rows, write_rows


def kept_rows(
    path: Path | None, made_from: Any, keys: tuple[str, ...], make: Callable[[], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The rows of a whole file whose first line says that it was made from the same inputs; else make and write them.

    Each row has the given keys.
    """
    wanted = fingerprint(made_from)
    head, kept = _read(path) if path else ({}, [])
    whole = head.get("rows") == len(kept) and all({*row} == {*keys} for row in kept)
    if whole and head.get("fingerprint") == wanted:
        return kept
    rows = make()
    if path:
        write_rows(path, [{"fingerprint": wanted, "rows": len(rows)}, *rows])
    return rows


def asked_once(judge: Judge, answers: Sequence[Completion], path: Path | None = None) -> list[Score]:
    """A score for each completion, in their order; equal ones are judged once.

    Verdicts are appended to the file as they come and are not asked for again by the next call, whatever happened to
    this one: judges can cost money. The caller deletes the file once the scores are kept elsewhere.
    """
    unique = list(dict.fromkeys(answers))
    keys = {answer: fingerprint([judge.name, judge.version, answer]) for answer in unique}
    found = _verdicts(path) if path else {}
    missing = [answer for answer in unique if keys[answer] not in found]
    if path and missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(b"\n")  # A line that a killed process left unfinished ends here.
            for index, score in judge.verdicts(missing):
                key = keys[missing[index]]
                file.write((json.dumps({"key": key} | as_row(score), ensure_ascii=False) + "\n").encode())
                file.flush()
                found[key] = score
    elif missing:
        found |= {keys[answer]: score for answer, score in zip(missing, judge.score(missing), strict=True)}
    return [found[keys[answer]] for answer in answers]


def as_row(score: Score) -> dict[str, Any]:
    """A score as JSON has it: NaN has no place there."""
    return vars(score) | {"value": None if math.isnan(score.value) else score.value}


def as_score(row: dict[str, Any]) -> Score:
    return Score(math.nan if row["value"] is None else row["value"], row["label"], row["explanation"])


def _verdicts(path: Path) -> dict[str, Score]:
    """Verdicts by key; lines that are not whole are as good as not there."""
    found: dict[str, Score] = {}
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            row = json.loads(line)
            found[row["key"]] = as_score(row)
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """First line and the others; nothing of a file that is missing or damaged, which is then made anew."""
    try:
        head, *rows = read_rows(path)
    except (FileNotFoundError, ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors.
        return {}, []
    return (head, rows) if all(isinstance(row, dict) for row in (head, *rows)) else ({}, [])
