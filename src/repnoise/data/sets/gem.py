"""What the text-to-structure tasks of GEM share: files, splits, the paper's prompts, and no text on two sides."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from repnoise.data.records import Example, ExampleSet
from repnoise.data.sources import hash_position, prompt_key
from repnoise.data.tables import TableRow, is_hub_id, read_splits
from repnoise.errors import RepnoiseError

NAMES = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}
"""What splits are called on the hub and in saved data sets. Others, such as GEM's challenge sets, are not read."""

ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".xml", ".parquet", ".arrow")
SHARD = r"(-\d{5}-of-\d{5})?"
EMPTY = "empty text or data"
NO_TRAIN = "validation rows that serve as train, which has no file"


@dataclass(frozen=True)
class Task:
    """How one task is published, and how the published code of the paper asks for it.

    Attributes:
        files: by split ("train", "validation", "test") a pattern of its files' names without their ending, lower case.
        known_as: those names in words, for messages.
        read: the rows of one file.
        items: (text, data, category) of a row; either of the first two may be blank.
        columns: what is read of a data set of the hub.
        labels: what stands before the text, and between the text and its data.
        deep: whether the files are in folders below the one that is given.
    """

    files: dict[str, str]
    known_as: str
    read: Callable[[str], list[TableRow]]
    items: Callable[[TableRow], Iterable[tuple[str, str, str]]]
    columns: Sequence[str]
    labels: tuple[str, str] = ("Description:", "Meaning Representation:")
    deep: bool = False


def load_gem(task: Task, path: str) -> ExampleSet:
    """A task of a folder with its authors' files, of one file, or of the hub, from text to structure as in the paper.

    Every text is a row. Rows that repeat text and data, rows without either, and training rows whose text is held out
    as well are left out and counted. Without a training file the validation file is trained on, and is counted as left
    out of validation. One file, or one split alone, is divided by a hash of the text: four fifths train, the rest test.
    Raises RepnoiseError that names file, row and fix.
    """
    skipped: Counter[str] = Counter()
    splits = {name: _examples(task, rows, skipped) for name, rows in _rows(task, path).items()}
    if len(splits) == 1:
        splits = _divided(*splits.values())
    elif "train" not in splits:
        splits["train"] = splits.pop("validation")
        skipped[NO_TRAIN] += len(splits["train"])
    elif "test" not in splits:
        raise RepnoiseError(f"{path} has no test file: put it beside the others ({task.known_as}), or give one file.")
    splits = _disjoint(splits, skipped)
    for name in ("train", "test"):
        if not splits[name]:
            raise RepnoiseError(f"{path} leaves no row for the {name} split: give more rows, or the whole folder.")
    return ExampleSet(path, splits, dict(skipped))


def two_columns(pairs: Sequence[tuple[str, str]]) -> Callable[[TableRow], list[tuple[str, str, str]]]:
    """Items of a table with a column of texts and one of data; of several pairs of names, the one that the row has."""

    def items(row: TableRow) -> list[tuple[str, str, str]]:
        text, data = max(pairs, key=lambda pair: sum(name in row.values for name in pair))
        return [(row.maybe_blank(text), row.maybe_blank(data), "")]

    return items


def _rows(task: Task, path: str) -> dict[str, list[TableRow]]:
    """Rows by split; of one file, all under "train"."""
    if is_hub_id(path) or (os.path.isdir(path) and _is_saved(Path(path))):
        found = {NAMES[name]: rows for name, rows in read_splits(path, task.columns).items() if name in NAMES}
        if not any(found.values()):
            raise RepnoiseError(f"{path} has no rows in a split of the name {', '.join(NAMES)}: give another.")
        return found
    if not os.path.isdir(path):
        return {"train": task.read(path)}
    files = _files(task, Path(path))
    if not files:
        raise RepnoiseError(
            f"{path} has none of the files {task.known_as}: give the folder that has them, or one file."
        )
    return {name: [row for file in found for row in task.read(str(file))] for name, found in files.items()}


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def _files(task: Task, folder: Path) -> dict[str, list[Path]]:
    """The files of each split, all of one ending: the same rows may stand there as JSON and XML."""
    everything = sorted(file for file in folder.glob("**/*" if task.deep else "*") if file.is_file())
    for ending in ENDINGS:
        found: dict[str, list[Path]] = {}
        for file in everything:
            name = file.name.lower().removesuffix(".gz")
            for split, pattern in task.files.items():
                if name.endswith(ending) and re.fullmatch(pattern + SHARD, name.removesuffix(ending)):
                    found.setdefault(split, []).append(file)
        if found:
            return found
    return {}


def _examples(task: Task, rows: Sequence[TableRow], skipped: Counter[str]) -> list[Example]:
    start, middle = task.labels
    kept: dict[Example, None] = {}
    for row in rows:
        for text, data, category in task.items(row):
            example = Example(f"{start} {text}\n{middle}", data, category)
            if not text or not data:
                skipped[EMPTY] += 1
            elif example in kept:
                skipped["repeated rows"] += 1
            else:
                kept[example] = None
    return list(kept)


def _divided(examples: Sequence[Example]) -> dict[str, list[Example]]:
    splits: dict[str, list[Example]] = {"train": [], "test": []}
    for example in examples:
        splits["train" if hash_position(example.prompt) < 0.8 else "test"].append(example)
    return splits


def _disjoint(splits: dict[str, list[Example]], skipped: Counter[str]) -> dict[str, list[Example]]:
    """The splits in order, without rows of train and validation whose text is in a later one."""
    held_out: set[str] = set()
    found: dict[str, list[Example]] = {}
    for name in ("test", "validation", "train"):
        examples = splits.get(name)
        if examples is None:
            continue
        found[name] = [example for example in examples if prompt_key(example.prompt) not in held_out]
        if dropped := len(examples) - len(found[name]):
            skipped[f"{name} rows whose text is held out as well"] += dropped
        held_out.update(prompt_key(example.prompt) for example in examples)
    return dict(reversed(found.items()))
