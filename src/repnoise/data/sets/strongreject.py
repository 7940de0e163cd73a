"""StrongREJECT: questions that no model should answer, in six categories; all of them or the authors' small choice."""

from __future__ import annotations

from repnoise.data.records import Example, ExampleSet
from repnoise.data.sets.requests import load_requests


def load_strongreject(path: str) -> ExampleSet:
    """Requests of strongreject_dataset.csv or strongreject_small_dataset.csv, or of another table with their columns.

    Raises RepnoiseError that names file and row.
    """
    columns = ("forbidden_prompt", "category")
    return load_requests(path, columns, lambda row: Example(row.text(columns[0]), "", row.text(columns[1])))
