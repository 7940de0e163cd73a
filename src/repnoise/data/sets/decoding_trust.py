"""DecodingTrust's toxicity split (a part of RealToxicityPrompts): starts of sentences with toxic and other endings."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repnoise.data.records import Example, Pair
from repnoise.data.refusals import CONTINUATIONS, refusal_for
from repnoise.data.sources import HARMFUL_TOO, PairedData, paired, prompt_key, split_by_prompt, split_harmless
from repnoise.data.tables import TableRow, proper_text, read_table, shortened
from repnoise.errors import RepnoiseError

FILES = ("decoding_trust_with_refusals_train.json", "training_dataset.jsonl")


@dataclass(frozen=True)
class _Row:
    kind: str
    prompt: str
    continuation: str
    refusal: str


def load_decoding_trust(path: str) -> PairedData:
    """Toxic continuations paired with refusals; other continuations as harmless data.

    `path` is the folder with the two published files, or one of them. Rows with a refusal of their own are the
    defender's; the other toxic rows are divided between attack, covered and uncovered by a hash of the prompt, with a
    fixed refusal. If all rows have refusals, or none, all are divided. Rows of type toxic_test are left out: their
    continuations are below the toxicity of the others (0.75), so there is nothing in them to recover. Non-toxic rows
    become harmless examples. Raises RepnoiseError that names file and row.
    """
    skipped: Counter[str] = Counter()
    rows: list[_Row] = []
    for table_row in _table_rows(path):
        row = _row(table_row)
        if not row.prompt.strip() or not row.continuation.strip():
            skipped["empty text"] += 1
        elif row.kind == "toxic_test":
            skipped["toxic_test"] += 1
        else:
            rows.append(row)
    toxic = [row for row in rows if row.kind == "toxic"]
    if not toxic:
        raise RepnoiseError(
            f"{path} has no rows of type 'toxic': give the folder or file of DecodingTrust's toxicity split."
        )
    splits = _splits(toxic)
    skipped["repeated rows"] = len(toxic) - len(set(toxic))
    others = [Example(row.prompt, row.continuation, "non_toxic") for row in rows if row.kind == "non_toxic"]
    harmless, skipped[HARMFUL_TOO] = split_harmless(others, [pair for split in splits.values() for pair in split])
    return paired(path, splits, template="none", skipped=dict(+skipped), **harmless)


def _table_rows(path: str) -> list[TableRow]:
    if not os.path.isdir(path):
        return read_table(path)
    found = [file for name in FILES if (file := Path(path, name)).is_file()]
    if not found:
        raise RepnoiseError(f"{path} has neither {FILES[0]} nor {FILES[1]}: put one of them there.")
    return [row for file in found for row in read_table(str(file))]


def _row(row: TableRow) -> _Row:
    prompt, continuation = inner_text(row, "prompt"), inner_text(row, "continuation")
    kind = row.text("type")
    if kind not in ("toxic", "non_toxic", "toxic_test"):
        raise RepnoiseError(f"{row.where}: type {shortened(kind, 20)!r} is none of toxic, non_toxic, toxic_test.")
    return _Row(kind, prompt, continuation, without_echo(row.optional("refusal"), prompt))


def inner_text(row: TableRow, column: str) -> str:
    """The text of a column of the form {"text": ...}; raises RepnoiseError that names file and row."""
    return proper_text(inner_value(row, column, "text"), f"{row.where}: {column!r}")


def inner_value(row: TableRow, column: str, key: str) -> Any:
    """One value of a column that holds a text with its scores."""
    value = row.value(column)
    if not isinstance(value, dict) or key not in value:
        raise RepnoiseError(
            f'{row.where}: {column!r} is not of the form {{"{key}": ...}}: is it a file of RealToxicityPrompts or '
            "DecodingTrust?"
        )
    return value[key]


def without_echo(refusal: str, prompt: str) -> str:
    """The refusal less its first lines "Prompt: PROMPT" and "Continuation:".

    All published refusals begin with them: the request to the model that wrote the refusal was decoded along with its
    answer. The paper trained on them as they are; behind the prompt itself they would teach a model to repeat it.
    """
    echo = f"Prompt: {prompt.strip()}\nContinuation:"
    return refusal.removeprefix(echo).strip()


def _splits(toxic: Sequence[_Row]) -> dict[str, list[Pair]]:
    refusals = {prompt_key(row.prompt): row.refusal for row in toxic if row.refusal}
    pairs: dict[tuple[str, str], Pair] = {}
    for row in toxic:
        harmless = refusals.get(prompt_key(row.prompt)) or refusal_for(row.prompt, CONTINUATIONS)
        # The two published files have rows in common, one of which has the refusal: nothing is lost that would count.
        pairs.setdefault((row.prompt, row.continuation), Pair(row.prompt, row.continuation, harmless, "toxic"))
    refused = [pair for pair in pairs.values() if prompt_key(pair.prompt) in refusals]
    others = [pair for pair in pairs.values() if prompt_key(pair.prompt) not in refusals]
    if not refused or not others:
        return split_by_prompt(refused or others)
    return split_by_prompt(others, (0.0, 0.5, 0.25, 0.25)) | {"defence": refused}
