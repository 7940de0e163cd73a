"""XML in the form of WebNLG, in which DART and CACAPO are published: entries of triples, with texts for each."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from repnoise.data.tables import TableRow, first_sentence, read_text
from repnoise.errors import RepnoiseError


def is_xml(path: str) -> bool:
    """Whether a path is a file that is read as XML."""
    return path.lower().removesuffix(".gz").endswith(".xml") and Path(path).is_file()


def read_entries(path: str) -> list[TableRow]:
    """One row an entry: `triples` as they are written, "name | value" or with three parts, `texts` and `category`.

    A text is that of <lex>, or of its <text>, where other things stand beside it. An entry may lack either. Raises
    RepnoiseError for a file that is no XML, has no entries, or lacks one of the two throughout.
    """
    try:
        root = ElementTree.fromstring(read_text(Path(path)))
    except (ElementTree.ParseError, ValueError) as error:
        raise RepnoiseError(f"{path} is not valid XML ({first_sentence(error)}): download it again.") from None
    rows = [_row(entry, f"{path}, entry {number}") for number, entry in enumerate(root.iter("entry"), 1)]
    for element, column in (("mtriple", "triples"), ("lex", "texts")):
        if not any(row.values[column] for row in rows):
            raise RepnoiseError(f"{path} has no <entry> with an <{element}>: give an XML file in the form of WebNLG.")
    return rows


def _row(entry: ElementTree.Element, where: str) -> TableRow:
    texts = [lex if (inner := lex.find("text")) is None else inner for lex in entry.findall("lex")]
    values = {
        "triples": [_text(triple) for triple in entry.findall("modifiedtripleset/mtriple")],
        "texts": [_text(text) for text in texts],
        "category": entry.get("category", ""),
    }
    return TableRow(where, values)


def _text(element: ElementTree.Element) -> str:
    return "".join(element.itertext()).strip()
