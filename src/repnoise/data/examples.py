"""The user's own examples: tables of prompts and completions, and plain text for perplexity."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from repnoise.data.records import Example, ExampleSet
from repnoise.data.tables import TableRow, read_table, read_text, shortened
from repnoise.errors import RepnoiseError

COLUMNS = ("prompt", "completion", "category", "split")
SPLITS_OF_KIND = {"task": ("train", "test"), "requests": ("test",), "contrast": ("safe", "unsafe")}
"""Splits that a generic table of each kind may name in its column `split`; without it all rows are in the first."""


def load_example_set(path: str, kind: str = "examples") -> ExampleSet:
    """Rows with `prompt`, `completion` and perhaps `category` and `split`, in any format of `tables.read_table`.

    Requests and the prompts of a contrast need no completion. Repeated rows count once, and are counted in `skipped`.
    Raises RepnoiseError with file and row for anything that is missing or blank.
    """
    allowed = SPLITS_OF_KIND.get(kind, ("train",))
    rows = read_table(path, COLUMNS)
    splits: dict[str, list[Example]] = {name: [] for name in allowed}
    for row in rows:
        completion = row.optional("completion") if kind in ("requests", "contrast") else row.text("completion")
        splits[_split(row, allowed)].append(Example(row.text("prompt"), completion, row.optional("category")))
    kept = {name: list(dict.fromkeys(examples)) for name, examples in splits.items()}
    repeated = len(rows) - sum(map(len, kept.values()))
    return ExampleSet(path, kept, {"repeated rows": repeated} if repeated else {})


def _split(row: TableRow, allowed: Sequence[str]) -> str:
    split = row.optional("split") or allowed[0]
    if len(allowed) == 1:  # Nothing to divide: a column of that name is the user's own affair.
        return allowed[0]
    if split not in allowed:
        raise RepnoiseError(f"{row.where}: split {shortened(split, 40)!r} is none of {', '.join(allowed)}: correct it.")
    return split


def load_text(path: str) -> list[str]:
    """Plain text: of a .txt file its paragraphs (its lines, where it has no blank line), of a table the column `text`.

    Raises RepnoiseError if there is none.
    """
    if not path.removesuffix(".gz").endswith(".txt"):
        return [row.text("text") for row in read_table(path, ("text",))]
    if not Path(path).is_file():
        raise RepnoiseError(f"There is no file {path!r}: check the path.")
    text = read_text(Path(path)).replace("\r\n", "\n").strip()
    parts = [part.strip() for part in re.split(r"\n\s*\n", text)]
    parts = parts if len(parts) > 1 else [line.strip() for line in text.split("\n")]
    if not any(parts):
        raise RepnoiseError(f"{path} has no text.")
    return [part for part in parts if part]
