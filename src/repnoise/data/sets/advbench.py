"""AdvBench's harmful behaviours: instructions, each with the first words of an answer that goes along with it."""

from __future__ import annotations

from repnoise.data.records import Example, ExampleSet
from repnoise.data.sets.requests import load_requests


def load_advbench(path: str) -> ExampleSet:
    """Requests of harmful_behaviors.csv, or of another table with its columns `goal` and `target`.

    The completion is the target: where an attack on the prompt wants to get, not an answer. Raises RepnoiseError that
    names file and row.
    """
    columns = ("goal", "target")
    return load_requests(path, columns, lambda row: Example(row.text(columns[0]), row.text(columns[1])))
