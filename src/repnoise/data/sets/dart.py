"""DART: sentences about table cells, and the triples that each was written from."""

from __future__ import annotations

from typing import Any

from repnoise.data.records import ExampleSet
from repnoise.data.sets.gem import Task, load_gem
from repnoise.data.sets.triples import is_xml, read_entries
from repnoise.data.tables import TableRow, proper_text, read_table
from repnoise.errors import RepnoiseError

COLUMNS = ("tripleset", "annotations", "target")


def load_dart(path: str) -> ExampleSet:
    """The folder with dart-v1.1.1-full-train, -dev and -test (.json, or else .xml), one file, or the hub id GEM/dart.

    Data are the triples as a list in brackets, as the published code writes them, from whichever form. Of the hub's
    rows only the text in `target` is read, as in the paper; the authors' files have more texts a row. See
    `gem.load_gem`.
    """
    return load_gem(TASK, path)


def _read(path: str) -> list[TableRow]:
    return read_entries(path) if is_xml(path) else read_table(path, COLUMNS)


def _items(row: TableRow) -> list[tuple[str, str, str]]:
    if "texts" in row.values:
        # Where the last part is blank, the bar before it is the end of the text.
        triples = [f"{triple} ".split(" | ", 2) for triple in row.values["triples"]]
        texts = row.values["texts"]
    else:
        triples = row.value("tripleset")
        texts = _annotations(row) if "annotations" in row.values else [row.maybe_blank("target")]
    data = str(_checked(triples, row.where)) if triples else ""
    return [(text, data, "") for text in texts] or [("", data, "")]


def _annotations(row: TableRow) -> list[str]:
    notes = row.values["annotations"]
    if not isinstance(notes, list) or not all(isinstance(note, dict) and "text" in note for note in notes):
        raise RepnoiseError(f"{row.where}: 'annotations' is not a list of {{\"text\": ...}}: is it a file of DART?")
    return [proper_text(note["text"], f"{row.where}: 'text' in 'annotations'").strip() for note in notes]


def _checked(triples: Any, where: str) -> list[list[str]]:
    good = isinstance(triples, list) and all(isinstance(triple, list) and len(triple) == 3 for triple in triples)
    if not good:
        raise RepnoiseError(f"{where}: the triples are not a list of [subject, relation, object]: correct the row.")
    return [[proper_text(part, f"{where}: a part of a triple").strip() for part in triple] for triple in triples]


TASK = Task(
    files={
        name: rf"(dart-v[\w.]+-full-)?({pattern})"
        for name, pattern in (("train", "train"), ("validation", "dev|valid|validation"), ("test", "test"))
    },
    known_as="dart-v1.1.1-full-train.json, -dev.json and -test.json",
    read=_read,
    items=_items,
    columns=COLUMNS,
)
