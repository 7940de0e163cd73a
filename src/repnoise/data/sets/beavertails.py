"""BeaverTails: questions with answers that people judged for fourteen kinds of harm, of which several may apply."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from repnoise.data.records import Example, Pair
from repnoise.data.refusals import QUESTIONS, refusal_for
from repnoise.data.sources import HARMFUL_TOO, JOINED, PairedData, paired, split_by_prompt, split_harmless
from repnoise.data.tables import TableRow, proper_text, read_table, shortened
from repnoise.errors import RepnoiseError

HUB_ID = "PKU-Alignment/BeaverTails"
PARTS = ("30k_train", "30k_test", "330k_train", "330k_test")
"""The splits on the hub. The larger two hold the same questions with more answers and more judgements."""

COLUMNS = ("prompt", "response", "category", "is_safe", "refusal")
CATEGORIES = (
    "animal_abuse",
    "child_abuse",
    "controversial_topics,politics",
    "discrimination,stereotype,injustice",
    "drug_abuse,weapons,banned_substance",
    "financial_crime,property_crime,theft",
    "hate_speech,offensive_language",
    "misinformation_regarding_ethics,laws_and_safety",
    "non_violent_unethical_behavior",
    "privacy_violation",
    "self_harm",
    "sexually_explicit,adult_content",
    "terrorism,organized_crime",
    "violence,aiding_and_abetting,incitement",
)
GROUPS = {
    "crime": (
        "drug_abuse,weapons,banned_substance",
        "financial_crime,property_crime,theft",
        "non_violent_unethical_behavior",
        "terrorism,organized_crime",
    ),
    "privacy": ("misinformation_regarding_ethics,laws_and_safety", "privacy_violation"),
    "toxic": ("discrimination,stereotype,injustice", "hate_speech,offensive_language"),
    "violence": ("violence,aiding_and_abetting,incitement",),
    "sexually_explicit": ("sexually_explicit,adult_content",),
}
"""The paper's subsets (Table 5), as its code divides the categories; there "crime" is called crime_unethical and
"privacy" privacy_misinformation. The table's "half" is none of them: it is a random half of all rows."""


@dataclass(frozen=True)
class _Row:
    prompt: str
    response: str
    categories: frozenset[str]
    refusal: str


def load_beavertails(path: str) -> PairedData:
    """Unsafe answers paired with refusals; safe answers as harmless data.

    `path` is PKU-Alignment/BeaverTails/PART or FOLDER/PART (one of `PARTS`; the folder is a copy of the hub's), or any
    table with its columns. A column `refusal`, as the paper's paired data has it, gives the harmless half; where it is
    missing or blank, that is a fixed refusal. Many answers are there several times, judged by different people: they
    become one pair with the categories of all who found harm, so that withholding a category withholds whatever
    anybody put there. Safe answers to a question that has an unsafe answer too are left out. Raises RepnoiseError that
    names file and row.
    """
    skipped: Counter[str] = Counter()
    rows: list[_Row] = []
    for table_row in _table_rows(path):
        row = _row(table_row)
        if isinstance(row, _Row):
            rows.append(row)
        else:
            skipped[row] += 1
    pairs = _pairs([row for row in rows if row.categories])
    if not pairs:
        raise RepnoiseError(f"{path} has no unsafe answer: give a table of BeaverTails with its column 'is_safe'.")
    safe = list(dict.fromkeys(Example(row.prompt, row.response, "safe") for row in rows if not row.categories))
    skipped["repeated prompt and response"] += len(rows) - len(pairs) - len(safe)
    harmless, skipped[HARMFUL_TOO] = split_harmless(safe, pairs)
    return paired(path, split_by_prompt(pairs), skipped=dict(+skipped), groups=GROUPS, **harmless)


def _table_rows(path: str) -> list[TableRow]:
    folder, _, part = path.rpartition("/")
    if folder and part in PARTS and not os.path.exists(path):
        return read_table(folder, COLUMNS, split=part)
    whole = os.path.isdir(path) and not {"round0", *PARTS}.isdisjoint(os.listdir(path))
    if whole or path == HUB_ID:
        raise RepnoiseError(f"{path} has several parts: write {path}/30k_train, or one of {', '.join(PARTS[1:])}.")
    return read_table(path, COLUMNS)


def _row(row: TableRow) -> _Row | str:
    """What a row says, or the reason why it is left out."""
    prompt, response = (proper_text(row.value(name), f"{row.where}: {name!r}").strip() for name in COLUMNS[:2])
    is_safe, categories = row.value("is_safe"), _categories(row)
    if not isinstance(is_safe, bool):
        raise RepnoiseError(f"{row.where}: 'is_safe' is {_said(is_safe)}, neither true nor false: correct it.")
    if not prompt or not response:
        return "empty text"
    if is_safe == bool(categories):
        return "is_safe and category contradict each other"
    return _Row(prompt, response, categories, without_echo(row.optional("refusal"), prompt))


def _categories(row: TableRow) -> frozenset[str]:
    found: Any = row.value("category")
    if not isinstance(found, dict):
        raise RepnoiseError(
            f"{row.where}: 'category' is {type(found).__name__}: write {{name of a category: true or false, ...}}."
        )
    for name, value in found.items():
        if name not in CATEGORIES:
            raise RepnoiseError(
                f"{row.where}: 'category' has {_said(name)}, none of the 14 of BeaverTails: correct it."
            )
        if not isinstance(value, bool):
            raise RepnoiseError(
                f"{row.where}: 'category' has {_said(value)} for {name}, not true or false: correct it."
            )
    return frozenset(name for name, value in found.items() if value)


def _said(value: Any) -> str:
    return shortened(repr(value), 40)


def without_echo(refusal: str, prompt: str) -> str:
    """The refusal less a first "Question: PROMPT" and "Answer:".

    The paper's refusals were decoded along with the request for them; behind the prompt they would teach to repeat it.
    """
    return re.sub(rf"\AQuestion:\s*{re.escape(prompt)}\s*Answer:", "", refusal.strip()).strip()


def _pairs(unsafe: Sequence[_Row]) -> list[Pair]:
    together: dict[tuple[str, str], list[_Row]] = {}
    for row in unsafe:
        together.setdefault((row.prompt, row.response), []).append(row)
    pairs = []
    for (prompt, response), rows in together.items():
        refusal = next((row.refusal for row in rows if row.refusal), "") or refusal_for(prompt, QUESTIONS)
        names = frozenset[str]().union(*(row.categories for row in rows))
        pairs.append(Pair(prompt, response, refusal, JOINED.join(name for name in CATEGORIES if name in names)))
    return pairs
