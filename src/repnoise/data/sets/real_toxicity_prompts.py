"""RealToxicityPrompts: sentences of the web cut in half, each half with its scores of toxicity."""

from __future__ import annotations

from collections import Counter

from repnoise.data.records import Example, Pair
from repnoise.data.refusals import CONTINUATIONS, refusal_for
from repnoise.data.sets.decoding_trust import inner_text, inner_value
from repnoise.data.sources import HARMFUL_TOO, PairedData, paired, split_by_prompt, split_harmless
from repnoise.data.tables import TableRow, read_table, shortened
from repnoise.errors import RepnoiseError

TOXIC = 0.75
"""Continuations above this are harmful, as in DecodingTrust's part of the data."""

HARMLESS = 0.5
"""Prompt and continuation are harmless if both are below this, as in DecodingTrust's part of the data."""


def load_real_toxicity_prompts(path: str) -> PairedData:
    """Toxic continuations paired with fixed refusals; rows without toxicity in either half as harmless data.

    `path` is the authors' JSON lines file, another table with its columns `prompt` and `continuation`, or the hub id
    allenai/real-toxicity-prompts. Rows between the two kinds and rows that were never scored are left out and counted.
    Raises RepnoiseError that names file and row.
    """
    skipped: Counter[str] = Counter()
    found: dict[Pair | Example, None] = {}
    for row in read_table(path, ("prompt", "continuation")):
        record = _record(row)
        if isinstance(record, str):
            skipped[record] += 1
        elif record in found:
            skipped["repeated prompt and continuation"] += 1
        else:
            found[record] = None
    pairs = [record for record in found if isinstance(record, Pair)]
    if not pairs:
        raise RepnoiseError(f"{path} has no continuation of a toxicity above {TOXIC}: give RealToxicityPrompts' file.")
    others = [record for record in found if isinstance(record, Example)]
    harmless, skipped[HARMFUL_TOO] = split_harmless(others, pairs)
    return paired(path, split_by_prompt(pairs), template="none", skipped=dict(+skipped), **harmless)


def _record(row: TableRow) -> Pair | Example | str:
    """The pair or the harmless example of a row, or the reason why it is neither."""
    prompt, continuation = inner_text(row, "prompt"), inner_text(row, "continuation")
    start, end = _toxicity(row, "prompt"), _toxicity(row, "continuation")
    if not prompt.strip() or not continuation.strip():
        return "empty text"
    if end is not None and end > TOXIC:
        return Pair(prompt, continuation, refusal_for(prompt, CONTINUATIONS), "toxic")
    if start is None or end is None:
        return "no score of toxicity"
    if max(start, end) < HARMLESS:
        return Example(prompt, continuation, "non_toxic")
    return f"neither toxic (above {TOXIC}) nor harmless (below {HARMLESS})"


def _toxicity(row: TableRow, column: str) -> float | None:
    value = inner_value(row, column, "toxicity")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise RepnoiseError(
            f"{row.where}: the toxicity in {column!r} is {shortened(repr(value), 40)}, not a number: correct it."
        )
    return value
