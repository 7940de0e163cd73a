"""ViGGO: what is said about video games, and the meaning representation of it."""

from __future__ import annotations

from repnoise.data.records import ExampleSet
from repnoise.data.sets.gem import Task, load_gem, two_columns
from repnoise.data.tables import read_table

COLUMNS = ("ref", "mr", "target", "meaning_representation")
TASK = Task(
    files={
        "train": r"(viggo-)?train",
        "validation": r"(viggo-)?(valid|validation|dev)",
        "test": r"(viggo-)?test",
    },
    known_as="train.csv, valid.csv and test.csv",
    read=lambda path: read_table(path, COLUMNS),
    items=two_columns((("ref", "mr"), ("target", "meaning_representation"))),
    columns=COLUMNS,
)


def load_viggo(path: str) -> ExampleSet:
    """The folder with train.csv, valid.csv and test.csv (columns mr and ref), one file, or the hub id GEM/viggo.

    The hub's columns are meaning_representation and target. See `gem.load_gem`.
    """
    return load_gem(TASK, path)
