"""Any table of text (JSON lines, CSV, parquet, Arrow, a data set of the hub) as rows that know where they stand."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repnoise.errors import RepnoiseError

JSON, CSV, BINARY = (".jsonl", ".json"), (".csv", ".tsv"), (".parquet", ".arrow")
PACKED = (".gz", ".xz")


@dataclass(frozen=True)
class TableRow:
    """One row: `where` is file and line for messages, `values` are its columns."""

    where: str
    values: dict[str, Any]

    def text(self, column: str) -> str:
        """A column that has to hold text; raises RepnoiseError if it is missing, null, no text, or blank."""
        text = proper_text(self.value(column), f"{self.where}: {column!r}")
        if not text.strip():
            raise RepnoiseError(f"{self.where}: {column!r} is empty: fill it in or delete the row.")
        return text

    def value(self, column: str) -> Any:
        """A column that has to be there, whatever it holds; raises RepnoiseError if it is missing."""
        if column not in self.values:
            raise RepnoiseError(
                f"{self.where} has no column {column!r} (it has: {_names(self.values)}): add or rename it."
            )
        return self.values[column]

    def maybe_blank(self, column: str) -> str:
        """A column that has to hold text, which may be blank and then is ""; raises RepnoiseError if it holds none."""
        return proper_text(self.value(column), f"{self.where}: {column!r}").strip()

    def optional(self, column: str) -> str:
        """A column that may be missing, null or blank, all of which come back as ""."""
        value = self.values.get(column)
        return "" if value is None else proper_text(value, f"{self.where}: {column!r}").strip()


def proper_text(value: Any, what: str) -> str:
    """`value`, if it is text that can be encoded; raises RepnoiseError that begins with `what`."""
    if not isinstance(value, str):
        kind = "null" if value is None else f"{type(value).__name__}, not text"
        raise RepnoiseError(f"{what} is {kind}: write it as text or delete the row.")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a character ("\ud800"), which no tokenizer takes.
        raise RepnoiseError(f"{what} holds half a character (a lone surrogate): correct or delete the row.") from None
    return value


def read_table(source: str, columns: Sequence[str] | None = None, **hub_options: Any) -> list[TableRow]:
    """Rows of a file (told by its ending), of a folder made by `datasets.save_to_disk`, or of a data set of the hub.

    `columns` keeps the reading of big tables to what is needed; rows may still lack some of them. `hub_options` are for
    `datasets.load_dataset`, which then reads a folder too: a copy of a data set of the hub. Raises RepnoiseError for
    whatever is missing, unreadable, or has no rows.
    """
    if os.path.isdir(source):
        rows = _data_set_rows(source, columns, hub_options or None)
    elif os.path.exists(source):
        rows = _file_rows(Path(source), columns)
    elif is_hub_id(source):
        rows = _data_set_rows(source, columns, hub_options)
    else:
        raise RepnoiseError(f"There is no file {source!r}: check the path (a data set of the hub is OWNER/NAME).")
    found = list(rows)
    if not found:
        raise RepnoiseError(f"{source} has no rows.")
    return found


def read_splits(source: str, columns: Sequence[str] | None = None) -> dict[str, list[TableRow]]:
    """Rows of every split of a data set of the hub or a folder of `datasets.save_to_disk`, by the split's name.

    Where it has no splits, its rows are those of "train". Raises RepnoiseError as `read_table` does.
    """
    found = _data_set(source, None if os.path.isdir(source) else {})
    splits = found if isinstance(found, dict) else {"train": found}
    return {name: list(_rows_of(split, f"{source}, split {name},", columns)) for name, split in splits.items()}


def is_hub_id(source: str) -> bool:
    """Whether a name that is no path may be one of the hub: OWNER/NAME, without a file's ending.

    The hub's few names without an owner are left out: a single word is a mistyped name far more often.
    """
    ending = _ending(source)
    return (
        bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source))
        and ending not in (*JSON, *CSV, *BINARY, ".txt", ".xml")
        and not os.path.exists(source)
    )


def read_text(path: Path) -> str:
    """A UTF-8 file, unpacked if it ends with .gz or .xz; raises RepnoiseError with the line of the first bad byte."""
    unpack = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(path.suffix, bytes)
    try:
        data = unpack(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError):
        kind = "gzip" if path.suffix == ".gz" else "xz"
        raise RepnoiseError(f"{path} is not a whole {kind} file: download or pack it again.") from None
    except OSError as error:
        raise RepnoiseError(f"{path} cannot be read ({error.strerror}).") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RepnoiseError(f"{path}, line {line} is not UTF-8: save the file as UTF-8.") from None


def _file_rows(path: Path, columns: Sequence[str] | None) -> Iterable[TableRow]:
    ending = _ending(path.name)
    if ending in JSON:
        return _json_rows(path, read_text(path))
    if ending in CSV:
        return _csv_rows(path, read_text(path), "\t" if ending == ".tsv" else ",")
    if ending in BINARY and not path.name.endswith(PACKED):
        return _arrow_rows(path, columns)
    known = ", ".join(JSON + CSV + BINARY)
    ending = shortened(ending, 20) or "nothing"
    raise RepnoiseError(f"{path} ends with {ending!r}, which repnoise cannot read; it reads: {known}.")


def _json_rows(path: Path, text: str) -> Iterator[TableRow]:
    """One object a line, or one list of objects, whichever of the two endings the file has."""
    if _is_json_list(text):
        places = ((f"{path}, row {number}", value) for number, value in enumerate(_parsed(text, str(path)), 1))
    else:
        # Not splitlines(): it also splits at characters that JSON allows inside a string, such as U+2028.
        lines = enumerate(text.split("\n"), 1)
        places = ((f"{path}, line {n}", _parsed(line, f"{path}, line {n}")) for n, line in lines if line.strip())
    for where, value in places:
        if not isinstance(value, dict):
            raise RepnoiseError(f"{where} is not a JSON object: write {{column: value, ...}}.")
        yield TableRow(where, value)


def _is_json_list(text: str) -> bool:
    return text.lstrip()[:1] == "["


def _parsed(text: str, where: str) -> Any:
    def whole(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):  # Python would keep the last of them without a word.
            raise RepnoiseError(f"{where} has an object with two values of one name ({_names(found)}): delete one.")
        return found

    try:
        return json.loads(text, object_pairs_hook=whole)
    except json.JSONDecodeError as error:
        place = f"{where}, line {error.lineno}" if error.lineno > 1 else where
        raise RepnoiseError(f"{place} is not valid JSON ({error.msg} at column {error.colno}).") from None
    except (ValueError, RecursionError):  # A number of thousands of digits; thousands of brackets.
        raise RepnoiseError(
            f"{where} is not JSON that can be read: a number is too long or it is nested too deep."
        ) from None


def _csv_rows(path: Path, text: str, delimiter: str) -> Iterator[TableRow]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = reader.fieldnames or []
        if len(set(names)) < len(names):
            raise RepnoiseError(f"{path} has two columns of one name ({_names(names)}): rename one.")
        for values in reader:
            where = f"{path}, line {reader.line_num}"
            if None in values:
                raise RepnoiseError(
                    f"{where} has more fields than the header: put fields with commas in double quotes."
                )
            yield TableRow(where, values)
    except csv.Error as error:
        hint = "look for a double quote that is never closed"
        raise RepnoiseError(f"{path}, line {reader.reader.line_num} is not valid CSV ({error}): {hint}.") from None


def _arrow_rows(path: Path, columns: Sequence[str] | None) -> Iterator[TableRow]:
    import pyarrow as pa
    from pyarrow import ipc, parquet

    try:
        if path.suffix.lower() == ".parquet":
            table = parquet.read_table(path)
        else:
            with pa.OSFile(str(path)) as file:
                # `datasets` writes streams, other programs write files with an index.
                is_file = file.read(6) == b"ARROW1"
                file.seek(0)
                table = (ipc.open_file if is_file else ipc.open_stream)(file).read_all()
        table.validate(full=True)  # Damaged lengths and bytes, which would end in errors of Python itself, or worse.
        rows = table.select([name for name in table.column_names if columns is None or name in columns]).to_pylist()
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise RepnoiseError(f"{path} is not a readable {path.suffix[1:]} file ({first_sentence(error)}).") from None
    # Names of columns that were not read are still worth naming when one is missing.
    others = dict.fromkeys(set(table.column_names) - set(columns or table.column_names))
    return (TableRow(f"{path}, row {number}", others | values) for number, values in enumerate(rows, 1))


def _data_set_rows(source: str, columns: Sequence[str] | None, hub_options: dict | None = None) -> Iterator[TableRow]:
    """Rows of a saved data set or one of the hub; of several splits "train" is read, or else the first."""
    found = _data_set(source, hub_options)
    if isinstance(found, dict):
        found = found["train"] if "train" in found else next(iter(found.values()))
    return _rows_of(found, f"{source},", columns)


def _data_set(source: str, hub_options: dict | None) -> Any:
    """A saved data set, or with options one of the hub; a dict where it has splits."""
    import datasets

    try:
        return datasets.load_from_disk(source) if hub_options is None else _from_hub(source, hub_options)
    except Exception as error:  # These two raise their own errors, the hub's, Arrow's and Python's.
        fix = "give a file in it" if hub_options is None else "check its name and the connection, or give a file"
        what = (
            "is not a folder of datasets.save_to_disk"
            if hub_options is None
            else "is no file, and no data set of the hub"
        )
        raise RepnoiseError(f"{source} {what} that can be loaded ({first_sentence(error)}): {fix}.") from None


def _from_hub(source: str, options: dict[str, Any]) -> Any:
    """A data set of the hub; where it is a script, which `datasets` no longer runs, the hub's own copy as parquet."""
    import datasets

    try:
        return datasets.load_dataset(source, **options)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        options["revision"] = "refs/convert/parquet"
        return datasets.load_dataset(source, **options)


def _rows_of(data_set: Any, where: str, columns: Sequence[str] | None) -> Iterator[TableRow]:
    others = dict.fromkeys(set(data_set.column_names) - set(columns or data_set.column_names))
    kept = data_set.select_columns([name for name in data_set.column_names if name not in others])
    try:
        rows = list(kept)
    except Exception as error:  # Its files are read only now, and may be damaged.
        raise RepnoiseError(f"{where} cannot be read ({first_sentence(error)}): download or save it again.") from None
    return (TableRow(f"{where} row {number}", others | row) for number, row in enumerate(rows, 1))


def _ending(name: str) -> str:
    """The ending of a file's name that tells its format, whether it is packed or not."""
    return Path(next((name.removesuffix(end) for end in PACKED if name.endswith(end)), name)).suffix.lower()


def first_sentence(error: Exception) -> str:
    """The start of another library's message, without its full stop: enough to search for, short enough to read."""
    return (str(error) or type(error).__name__).strip().split("\n")[0][:200].rstrip(". ")


def _names(values: Iterable[Any]) -> str:
    """Names of columns, few and short enough for one sentence."""
    names = [shortened(" ".join(name.split()), 20) for name in sorted(map(str, values))]
    more = f" and {len(names) - 8:,} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more or "none"


def shortened(text: str, length: int) -> str:
    """The start of a text from a file, for a message: a name may be as long as a file."""
    return text if len(text) <= length else f"{text[: length - 3]}..."
