"""The user's own harmless data: question and answer files, and plain text for perplexity."""

from __future__ import annotations

import re
from pathlib import Path

from repnoise.data.records import Example
from repnoise.data.tables import read_table, read_text
from repnoise.errors import RepnoiseError


def load_examples(path: str) -> list[Example]:
    """Rows with `prompt`, `completion` and perhaps `category`, in any format of `tables.read_table`.

    Raises RepnoiseError with file and row for anything that is missing or blank. Repeated rows count once.
    """
    rows = read_table(path, ("prompt", "completion", "category"))
    examples = [Example(row.text("prompt"), row.text("completion"), row.optional("category")) for row in rows]
    return list(dict.fromkeys(examples))


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
