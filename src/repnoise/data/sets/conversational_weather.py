"""Conversational Weather (TreeNLG): what people ask about the weather, and the tree of what they are to be told."""

from __future__ import annotations

from pathlib import Path

from repnoise.data.records import ExampleSet
from repnoise.data.sets.gem import Task, load_gem, two_columns
from repnoise.data.tables import TableRow, read_table, read_text
from repnoise.errors import RepnoiseError

FIELDS = ("id", "user_query", "tree_str_mr", "response")
"""The four fields of the authors' files, which have no header, as the hub names them."""


def load_conversational_weather(path: str) -> ExampleSet:
    """The folder weather with train.tsv, val.tsv and test.tsv, one file, or the hub id GEM/conversational_weather.

    The text is the query and not the answer, as in the paper: the tree has to be guessed from it, which bounds every
    score. Many queries recur, so that training loses those that are in test. See `gem.load_gem`.
    """
    return load_gem(TASK, path)


def _read(path: str) -> list[TableRow]:
    name = path.lower().removesuffix(".gz")
    if not name.endswith(".tsv") or not Path(path).is_file():
        return read_table(path, FIELDS)
    lines = [line.removesuffix("\r").split("\t") for line in read_text(Path(path)).split("\n")]
    rows = [
        TableRow(f"{path}, line {number}", _named(fields, f"{path}, line {number}"))
        for number, fields in enumerate(lines, 1)
        if fields != [""] and (number > 1 or "user_query" not in fields)
    ]
    if not rows:
        raise RepnoiseError(f"{path} has no rows.")
    return rows


def _named(fields: list[str], where: str) -> dict[str, str]:
    if len(fields) != len(FIELDS):
        raise RepnoiseError(
            f"{where} has {len(fields):,} fields, not {len(FIELDS)} ({', '.join(FIELDS)}): is it a file of TreeNLG?"
        )
    return dict(zip(FIELDS, fields, strict=True))


TASK = Task(
    files={"train": "train", "validation": "val|valid|validation|dev", "test": "test"},
    known_as="train.tsv, val.tsv and test.tsv",
    read=_read,
    items=two_columns((("user_query", "tree_str_mr"),)),
    columns=FIELDS,
    labels=("User Query:", "Tree String:"),
)
