"""HH-RLHF, harmless-base: two endings of one dialogue, of which people found one less harmful."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from repnoise.data.overlap import same_key
from repnoise.data.records import Pair
from repnoise.data.sources import PairedData, paired, split_by_prompt
from repnoise.data.tables import TableRow, read_table
from repnoise.errors import RepnoiseError

HUB_ID = "Anthropic/hh-rlhf"
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def load_hh_rlhf(path: str) -> PairedData:
    """Pairs of a harmless-base file (.jsonl or .jsonl.gz), a folder of them, or the hub id Anthropic/hh-rlhf.

    The prompt is the dialogue up to the last "Assistant:" that both share, `harmful` the rejected answer and `harmless`
    the chosen one. Dialogues that begin with the same words of the human are in one split, for some go on from one
    another. Rows that are no such pair are left out and counted by reason.
    """
    skipped: Counter[str] = Counter()
    pairs: dict[tuple[str, str], Pair] = {}
    for row in _rows(path):
        pair = _pair(row)
        if isinstance(pair, str):
            skipped[pair] += 1
        elif pairs.setdefault((pair.prompt, pair.harmful), pair) is not pair:
            skipped["repeated prompt and harmful answer"] += 1
    if not pairs:
        raise RepnoiseError(f"{path} has no row whose two dialogues share a turn and differ in the answer.")
    return paired(path, split_by_prompt(list(pairs.values()), by=_opening), template="none", skipped=dict(skipped))


def _rows(path: str) -> list[TableRow]:
    columns = ("chosen", "rejected")
    if os.path.isdir(path):
        found = sorted(file for ending in ("*.jsonl", "*.jsonl.gz") for file in Path(path).glob(ending))
        if not found:
            raise RepnoiseError(
                f"{path} has no .jsonl or .jsonl.gz file: give the folder harmless-base or a file in it."
            )
        return [row for file in found for row in read_table(str(file), columns)]
    # Without the folder the hub mixes in dialogues about helpfulness and red teaming.
    return read_table(path, columns, data_dir="harmless-base") if path == HUB_ID else read_table(path, columns)


def _pair(row: TableRow) -> Pair | str:
    """The pair of a row, or the reason why it has none."""
    chosen, rejected = row.text("chosen"), row.text("rejected")
    start = _shared_start(chosen, rejected).rfind(ASSISTANT)
    if start < 0:
        return "no shared turn of the assistant"
    start += len(ASSISTANT)
    harmless, harmful = chosen[start:].strip(), rejected[start:].strip()
    if harmless == harmful:
        return "chosen and rejected are the same"
    if not harmless or not harmful:
        return "empty answer"
    if any(turn in answer for turn in (HUMAN, ASSISTANT) for answer in (chosen[start:], rejected[start:])):
        return "the dialogues part before the last answer"
    return Pair(chosen[:start], harmful, harmless)


def _opening(pair: Pair) -> str:
    """What the human said first."""
    return same_key(pair.prompt.partition(ASSISTANT)[0].removeprefix(HUMAN))


def _shared_start(first: str, second: str) -> str:
    length = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    return first[:length]
