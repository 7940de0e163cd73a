"""Damaged files of every data set and format: a sentence that names the file, or every row kept or counted."""

import gzip
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from whole_tables import BASES, ROWS, Base, Row, written

from repnoise.data import DATASETS, EMBEDDED, load_data, load_set
from repnoise.data.sources import PairedData
from repnoise.errors import RepnoiseError

LONGEST = 300
"""Characters of a message beyond the folder of its file."""


def nested(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value]
    return value


VALUES: dict[str, Any] = {
    "null": None,
    "number": 7,
    "not a number": float("nan"),
    "truth": True,
    "list": ["a"],
    "object": {"a": "b"},
    "empty list": [],
    "empty": "",
    "blank": " \t ",
    "huge": "x" * 200_000,
    "lone surrogate": "half \ud83d",
    "control": "a\x00b\x1b[31m\x85\u2028c",
    "nested": nested(50),
}
"""What one cell holds instead of what it should."""


def in_cell(value: Any) -> Callable[[list[Row], random.Random], list[Row]]:
    def change(rows: list[Row], rng: random.Random) -> list[Row]:
        place, column = rng.randrange(len(rows)), rng.choice(list(rows[0]))
        return [row | {column: value} if number == place else row for number, row in enumerate(rows)]

    return change


def in_column(value: Any) -> Callable[[list[Row], random.Random], list[Row]]:
    def change(rows: list[Row], rng: random.Random) -> list[Row]:
        column = rng.choice(list(rows[0]))
        return [row | {column: value} for row in rows]

    return change


def without_column(rows: list[Row], rng: random.Random) -> list[Row]:
    column = rng.choice(list(rows[0]))
    return [{name: value for name, value in row.items() if name != column} for row in rows]


def renamed(rows: list[Row], rng: random.Random) -> list[Row]:
    return [{name.upper() + "x" * 400: value for name, value in row.items()} for row in rows]


ROW_CHANGES: dict[str, Callable[[list[Row], random.Random], list[Row]]] = {
    **{f"cell {name}": in_cell(value) for name, value in VALUES.items()},
    **{f"column {name}": in_column(VALUES[name]) for name in ("null", "number", "empty")},
    "column long": in_column("x" * 1000),
    "column missing": without_column,
    "columns renamed": renamed,
    "500 more columns": lambda rows, _rng: [row | {f"more {n}": "x" for n in range(500)} for row in rows],
    "row twice": lambda rows, rng: [*rows, rng.choice(rows)],
    "table twice": lambda rows, _rng: rows * 2,
    "no rows": lambda _rows, _rng: [],
}


def somewhere(data: bytes, rng: random.Random) -> int:
    return rng.randrange(len(data) + 1)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: somewhere(data, rng)]


def flipped(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(5):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    return bytes(damaged)


def inserted(what: bytes) -> Callable[[bytes, random.Random], bytes]:
    return lambda data, rng: data[: (place := somewhere(data, rng))] + what + data[place:]


BYTE_CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": cut,
    "cut again": cut,
    "cut near the end": lambda data, rng: data[: -rng.randrange(1, 9)],
    "empty": lambda _data, _rng: b"",
    "zeros in the middle": lambda data, _rng: data[: len(data) // 3] + bytes(40) + data[len(data) // 3 + 40 :],
    "bytes flipped": flipped,
    "bytes flipped again": flipped,
    "NUL bytes": inserted(bytes(3)),
    "no UTF-8": inserted(b"\xff\xfe\xe9"),
    "quote": inserted(b'"'),
    "rubbish before": lambda data, _rng: b"<html>404</html>\n" + data,
    "rubbish behind": lambda data, _rng: data + b"\n<html>404</html>",
    "packed twice": lambda data, _rng: gzip.compress(data, mtime=0),
    "deep": lambda _data, _rng: b'{"a":' * 100_000,
}
"""What may happen to any file."""

TEXT_CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "BOM": lambda data, _rng: b"\xef\xbb\xbf" + data,
    "BOM alone": lambda _data, _rng: b"\xef\xbb\xbf",
    "UTF-16": lambda data, _rng: data.decode().encode("utf-16"),
    "CRLF": lambda data, _rng: data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"),
    "CR": lambda data, _rng: data.replace(b"\r\n", b"\n").replace(b"\n", b"\r"),
    "mixed line ends": lambda data, _rng: data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n", 5),
    "blank lines": lambda data, _rng: b"\n\n".join(data.split(b"\n")),
    "blank alone": lambda _data, _rng: b" \n\n\t\n",
}
"""What may happen to a file that is text and not packed."""


def rows_in(data: bytes, kind: str) -> int | None:
    """How many rows damaged text has, where its lines can be counted; None where they cannot."""
    if kind not in ("jsonl", "csv", "tsv", "bare.csv", "bare.tsv"):
        return None
    lines = data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    if "csv" in kind or kind == "tsv":
        lines = [part for line in lines for part in line.split("\r")]
    full = [line for line in lines if (line if kind.endswith(("csv", "tsv")) else line.strip())]
    return len(full) - (kind in ("csv", "tsv"))


@dataclass(frozen=True)
class Case:
    """A damaged file: its base, format and damage, its bytes, and how many rows it has, where that is known."""

    base: Base
    kind: str
    damage: str
    content: bytes
    rows: int | None


def row_cases(base: Base, kind: str) -> list[Case]:
    cases = []
    for damage, change in ROW_CHANGES.items():
        rows = change([base.row(i) for i in range(ROWS)], random.Random(f"{base.name} {kind} {damage}"))
        try:
            content = written(rows, kind)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
            continue  # This format cannot hold it.
        except Exception as error:
            if type(error).__module__ != "pyarrow.lib":
                raise
            continue
        cases.append(Case(base, kind, damage, content, len(rows)))
    return cases


def byte_cases(base: Base, kind: str) -> list[Case]:
    whole = written([base.row(i) for i in range(ROWS)], kind)
    is_text = not kind.endswith((".gz", ".xz", "parquet", "arrow"))
    cases = []
    for damage, change in (BYTE_CHANGES | (TEXT_CHANGES if is_text else {})).items():
        content = change(whole, random.Random(f"{base.name} {kind} {damage}"))
        try:
            rows = rows_in(content, kind) if damage not in ("quote", "bytes flipped", "bytes flipped again") else None
        except UnicodeDecodeError:
            rows = None
        cases.append(Case(base, kind, damage, content, rows))
    return cases


CASES = [
    case for base in BASES for kind in base.formats for make in (row_cases, byte_cases) for case in make(base, kind)
]


def loaded(base: Base, path: Path) -> Any:
    if not base.name:
        return load_set(str(path), "examples")
    kind = DATASETS[base.name][1]
    source = f"{base.name}:{path}"
    return load_data(source) if kind == "pairs" else load_set(source, kind)


def accounted(data: Any) -> int:
    """Rows that were kept, wherever they went, and rows that were counted as left out."""
    skipped = sum(data.skipped.values())
    if isinstance(data, PairedData):
        kept = [*data.pairs.values(), data.retain, data.benign, data.harmless_test]
    else:
        kept = list(data.splits.values())
    return sum(map(len, kept)) + skipped


def path_of(base: Base, kind: str, folder: Path) -> Path:
    return folder / f"{base.file}.{kind.removeprefix('bare.')}"


def wrong_with(case: Case, path: Path) -> str:
    """What happened that must not happen; "" where the damage was told well, or every row is accounted for."""
    try:
        data = loaded(case.base, path)
    except RepnoiseError as error:
        told = str(error).replace(f"{path.parent}/", "")
        good = path.name in told and "\n" not in told and len(told) <= LONGEST
        return "" if good else f"says {told[:500]!r}, {len(told)} characters"
    except Exception as error:
        return f"raises {error!r}"
    found = accounted(data)
    return "" if case.rows in (None, found) else f"accounts for {found} of {case.rows} rows, {data.skipped}"


@pytest.mark.parametrize("base", BASES, ids=Base.label)
def test_damage_is_told_or_every_row_is_accounted_for(base, tmp_path):
    wrong = []
    for case in CASES:
        if case.base is base:
            path = path_of(base, case.kind, tmp_path)
            path.write_bytes(case.content)
            wrong += [f"{case.kind}, {case.damage}: {what}" for what in [wrong_with(case, path)] if what]
    assert not wrong, "\n".join(wrong)


def test_there_are_at_least_300_cases_and_every_data_set_is_among_them():
    assert len(CASES) >= 300
    assert {case.base.name for case in CASES} == {"", *DATASETS} - set(EMBEDDED)


@pytest.mark.parametrize("base", BASES, ids=Base.label)
def test_whole_files_load_with_every_row(base, tmp_path):
    for kind in base.formats:
        path = path_of(base, kind, tmp_path)
        path.write_bytes(written([base.row(i) for i in range(ROWS)], kind))
        data = loaded(base, path)
        assert accounted(data) == ROWS and not data.skipped, kind


@pytest.mark.parametrize("base", BASES, ids=Base.label)
def test_what_stands_in_place_of_a_file_is_told(base, tmp_path):
    for number, kind in enumerate(base.formats):
        for place in ("folder", "link", "nothing"):
            folder = tmp_path / f"{number} {place}"
            folder.mkdir()
            path = path_of(base, kind, folder)
            if place == "folder":
                path.mkdir()
            elif place == "link":
                path.symlink_to(folder / "gone")
            with pytest.raises(RepnoiseError) as caught:
                loaded(base, path)
            told = str(caught.value).replace(f"{folder}/", "")
            assert path.name in told and "\n" not in told and len(told) <= LONGEST, told
