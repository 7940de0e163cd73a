"""Completions that are known to be harmful or safe: what a judge is trained on, and what it is measured on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from repnoise.data.records import TemplateName
from repnoise.data.sources import PairedData, hash_position, prompt_key
from repnoise.data.tables import TableRow, read_table
from repnoise.errors import RepnoiseError

TEST_SHARE = 0.2
"""Share of the prompts of a labelled table that are kept for the test."""

LABELS = {
    **dict.fromkeys(("harmful", "unsafe", "toxic", "true", "yes", "1", "1.0"), True),
    **dict.fromkeys(("safe", "harmless", "non_toxic", "false", "no", "0", "0.0"), False),
}


@dataclass(frozen=True)
class Labelled:
    """A completion, whether it is harmful, and where it is from: a "pair", an "example" or a "table"."""

    prompt: str
    completion: str
    harmful: bool
    origin: str


@dataclass(frozen=True)
class LabelledData:
    """Completions for training and, on other prompts, for the test; what was left out, by reason."""

    train: list[Labelled]
    test: list[Labelled]
    template: TemplateName = "auto"
    skipped: dict[str, int] = field(default_factory=dict)


def load_labelled(source: str) -> LabelledData:
    """The completions of a table with prompt, completion and label, or of a data set of pairs.

    A table is divided by a hash of the prompt, a fifth for the test. Of pairs, the test is what the data set holds out
    anyway ("covered", "uncovered", `harmless_test`): a judge that is later asked about answers to those prompts has not
    been trained on them. Harmful completions are harmful; those paired with them, and the harmless examples, are safe.
    Raises RepnoiseError for data that cannot be read, or that lacks one of the two kinds in one of the two parts.
    """
    from repnoise.data import DATASETS, load_data

    name = source.partition(":")[0]
    rows = read_table(source, ("prompt", "completion", "label")) if _may_be_table(source, name in DATASETS) else []
    if rows and "label" in rows[0].values:
        found = _divided([_from_row(row) for row in rows])
        template, skipped = "auto", Counter()
    else:
        data = load_data(source)
        found, template, skipped = _from_pairs(data), data.template, Counter(data.skipped)
    train, test = _checked(*found, skipped)
    for part, kept in (("training", train), ("test", test)):
        if len({row.harmful for row in kept}) < 2:
            lacking = "harmful" if not any(row.harmful for row in kept) else "safe"
            raise RepnoiseError(f"{source} has no {lacking} completions for the judge's {part}: give more data.")
    return LabelledData(train, test, template, dict(skipped))


def _may_be_table(source: str, is_named: bool) -> bool:
    return os.path.exists(source) or not is_named


def _from_row(row: TableRow) -> Labelled:
    label = row.values.get("label")
    known = LABELS.get(str(label).strip().lower())
    if known is None:
        raise RepnoiseError(f"{row.where}: label {label!r} is neither harmful (1) nor safe (0): correct it.")
    return Labelled(row.text("prompt"), row.text("completion"), known, "table")


def _divided(rows: Sequence[Labelled]) -> tuple[list[Labelled], list[Labelled]]:
    limit = 1 - TEST_SHARE
    return (
        [row for row in rows if hash_position(row.prompt) < limit],
        [row for row in rows if hash_position(row.prompt) >= limit],
    )


def _from_pairs(data: PairedData) -> tuple[list[Labelled], list[Labelled]]:
    def labelled(splits: Sequence[str], *examples: Sequence) -> list[Labelled]:
        pairs = [pair for split in splits for pair in data.pairs[split]]
        harmful = [Labelled(pair.prompt, pair.harmful, True, "pair") for pair in pairs]
        paired = [Labelled(pair.prompt, pair.harmless, False, "pair") for pair in pairs]
        others = [Labelled(e.prompt, e.completion, False, "example") for part in examples for e in part]
        return harmful + paired + others

    train = labelled(("defence", "attack"), data.retain, data.benign)
    return train, labelled(("covered", "uncovered"), data.harmless_test)


def _checked(
    train: list[Labelled], test: list[Labelled], skipped: Counter[str]
) -> tuple[list[Labelled], list[Labelled]]:
    """Both without repeated rows and without texts that are called both harmful and safe, and without prompts of the
    test in the training; what is dropped is counted."""
    labels: dict[tuple[str, str], set[bool]] = {}
    for row in (*train, *test):
        labels.setdefault((prompt_key(row.prompt), row.completion), set()).add(row.harmful)

    def kept(rows: list[Labelled]) -> list[Labelled]:
        clear = [row for row in rows if len(labels[prompt_key(row.prompt), row.completion]) == 1]
        unique = list({(prompt_key(row.prompt), row.completion): row for row in reversed(clear)}.values())[::-1]
        skipped["both harmful and safe"] += len(rows) - len(clear)
        skipped["repeated completions"] += len(clear) - len(unique)
        return unique

    test = kept(test)
    tested = {prompt_key(row.prompt) for row in test}
    unique = kept(train)
    apart = [row for row in unique if prompt_key(row.prompt) not in tested]
    skipped["training prompts that are in the test"] += len(unique) - len(apart)
    for reason in [reason for reason, count in skipped.items() if not count]:
        del skipped[reason]
    return apart, test
