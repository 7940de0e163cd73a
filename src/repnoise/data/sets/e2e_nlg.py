"""E2E NLG: descriptions of restaurants, and the meaning representation of each."""

from __future__ import annotations

from repnoise.data.records import ExampleSet
from repnoise.data.sets.gem import Task, load_gem, two_columns
from repnoise.data.tables import read_table

COLUMNS = ("ref", "mr", "target", "meaning_representation")
TASK = Task(
    files={
        "train": r"trainset|train|train-fixed(\.no-ol)?",
        "validation": r"devset|dev|valid|validation|devel-fixed(\.no-ol)?",
        "test": r"testset_w_refs|test|test-fixed",
    },
    known_as="trainset.csv, devset.csv and testset_w_refs.csv",
    read=lambda path: read_table(path, COLUMNS),
    items=two_columns((("ref", "mr"), ("target", "meaning_representation"))),
    columns=COLUMNS,
)


def load_e2e_nlg(path: str) -> ExampleSet:
    """The folder with trainset.csv, devset.csv and testset_w_refs.csv (columns mr and ref), one file, or the hub id
    GEM/e2e_nlg (columns meaning_representation and target); see `gem.load_gem`.

    A meaning has several texts. Here the text is the question, so that each of them is a row, in the test set as well;
    of the hub's test set, as in the paper, only the one in `target` is. Without trainset.csv the devset is trained on.
    """
    return load_gem(TASK, path)
