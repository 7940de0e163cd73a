"""HEx-PHI: harmful instructions by the categories of two model makers' policies, one file a category."""

from __future__ import annotations

import csv
import io
import os
import re
from dataclasses import replace
from pathlib import Path

from repnoise.data.records import Example, ExampleSet
from repnoise.data.sets.requests import once_each
from repnoise.data.tables import first_sentence, read_text
from repnoise.errors import RepnoiseError

HUB_ID = "LLM-Tuning-Safety/HEx-PHI"
CATEGORIES = (
    "Illegal Activity",
    "Child Abuse Content",
    "Hate/Harass/Violence",
    "Malware",
    "Physical Harm",
    "Economic Harm",
    "Fraud/Deception",
    "Adult Content",
    "Political Campaigning",
    "Privacy Violation Activity",
    "Tailored Financial Advice",
)
"""By number of the file, from 1. The authors no longer give out the second."""


def load_hex_phi(path: str) -> ExampleSet:
    """Requests of a file category_NUMBER.csv, of a folder of them, or of the hub id LLM-Tuning-Safety/HEx-PHI.

    The files have no header and one instruction a row, in quotes where it has a comma. Raises RepnoiseError that names
    the file, also where the hub wants a token: access has to be asked for.
    """
    if path == HUB_ID and not os.path.exists(path):
        path = _downloaded()
    if not os.path.exists(path):
        raise RepnoiseError(f"There is no file {path!r}: check the path (on the hub it is {HUB_ID}).")
    files = [Path(path)] if os.path.isfile(path) else list(Path(path).glob("category_*.csv"))
    if not files:
        raise RepnoiseError(f"{path} has no file category_1.csv to category_{len(CATEGORIES)}.csv: put them there.")
    numbered = sorted((_number(file), file) for file in files)
    found = [example for number, file in numbered for example in _requests(file, number)]
    data = once_each(path, {"test": [example for example in found if example.prompt]})
    blank = sum(not example.prompt for example in found)
    return replace(data, skipped=data.skipped | {"blank request": blank}) if blank else data


def _downloaded() -> str:
    """A folder with the files of the hub; `datasets` would take the first instruction of each for its header."""
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(HUB_ID, repo_type="dataset", allow_patterns="category_*.csv")
    except Exception as error:  # The hub's errors, those of the connection and those of the disk have no common kind.
        raise RepnoiseError(
            f"{HUB_ID} cannot be downloaded ({first_sentence(error)}): ask for access on its page and log in, or give "
            "a folder with its files."
        ) from None


def _number(file: Path) -> int:
    found = re.match(r"category_(\d+)(?!\d).*\.csv\Z", file.name)
    if not found or not 1 <= int(found[1]) <= len(CATEGORIES):
        raise RepnoiseError(
            f"{file} is not named category_1.csv to category_{len(CATEGORIES)}.csv, which says the category: rename it."
        )
    return int(found[1])


def _requests(file: Path, number: int) -> list[Example]:
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    try:
        # A comma outside quotes is one of the sentence's own.
        prompts = [",".join(fields).strip() for fields in reader if fields]
    except csv.Error as error:
        raise RepnoiseError(f"{file}, line {reader.line_num} is not valid CSV ({error}): correct its quotes.") from None
    examples = [Example(prompt, "", CATEGORIES[number - 1]) for prompt in prompts]
    if not any(prompts):
        raise RepnoiseError(f"{file} has no request: download it again.")
    return examples
