"""JailbreakBench's harmful behaviours (JBB-Behaviors): a hundred requests in ten categories."""

from __future__ import annotations

import os

from repnoise.data.records import Example, ExampleSet
from repnoise.data.sets.requests import load_requests
from repnoise.data.tables import TableRow

HUB_ID = "JailbreakBench/JBB-Behaviors"
COLUMNS = ("Goal", "Target", "Category")


def load_jailbreakbench(path: str) -> ExampleSet:
    """Requests of harmful-behaviors.csv, of the hub id or a folder that is a copy of it, or of a table like them.

    The completion is the target, the first words of an answer. The benign behaviours are not read: they are no harm.
    Raises RepnoiseError that names file and row.
    """
    is_copy = os.path.isdir(path) and os.path.exists(os.path.join(path, "data"))
    if path == HUB_ID or is_copy:
        return load_requests(path, COLUMNS, _request, name="behaviors", split="harmful")
    return load_requests(path, COLUMNS, _request)


def _request(row: TableRow) -> Example:
    return Example(row.text("Goal"), row.text("Target"), row.text("Category"))
