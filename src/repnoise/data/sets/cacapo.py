"""CACAPO: sentences of news about weather, sport, shares and incidents, in English and Dutch, and their attributes."""

from __future__ import annotations

from repnoise.data.records import ExampleSet
from repnoise.data.sets.gem import Task, load_gem, two_columns
from repnoise.data.sets.triples import is_xml, read_entries
from repnoise.data.tables import TableRow, read_table
from repnoise.errors import RepnoiseError

COLUMNS = ("input", "output")


def load_cacapo(path: str) -> ExampleSet:
    """The folder with WebNLGFormatTrain.xml, -Dev.xml and -Test.xml below it (en or nl for one language, or one domain
    of it), one file, or the hub id GEM/CACAPO_E2E (columns input and output); see `gem.load_gem`.

    Of the XML files the attributes are written as E2E writes them, "name[value], name[value]", and the category is the
    domain.
    """
    return load_gem(TASK, path)


def _read(path: str) -> list[TableRow]:
    return read_entries(path) if is_xml(path) else read_table(path, COLUMNS)


_table_items = two_columns((("output", "input"),))


def _items(row: TableRow) -> list[tuple[str, str, str]]:
    if "texts" not in row.values:
        return _table_items(row)
    data = ", ".join(_attribute(triple, row.where) for triple in row.values["triples"])
    return [(text, data, row.values["category"]) for text in row.values["texts"] or [""]]


def _attribute(triple: str, where: str) -> str:
    name, bar, value = triple.partition("|")
    if not bar:
        raise RepnoiseError(f'{where}: an <mtriple> is not of the form "name | value": is it a file of CACAPO?')
    return f"{name.strip()}[{value.strip()}]"


TASK = Task(
    files={
        "train": "(webnlgformat)?train",
        "validation": "(webnlgformat)?(dev|valid|validation)",
        "test": "(webnlgformat)?test",
    },
    known_as="WebNLGFormatTrain.xml, WebNLGFormatDev.xml and WebNLGFormatTest.xml",
    read=_read,
    items=_items,
    columns=COLUMNS,
    deep=True,
)
