"""What the sets of harmful requests have in common: a table, one column of which is the request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from repnoise.data.records import Example, ExampleSet
from repnoise.data.sources import prompt_key
from repnoise.data.tables import TableRow, read_table


def load_requests(
    path: str, columns: Sequence[str], request: Callable[[TableRow], Example], **hub_options: str
) -> ExampleSet:
    """The request of each row of a file, a folder or a data set of the hub; see `read_table` for what it raises."""
    return once_each(path, {"test": [request(row) for row in read_table(path, columns, **hub_options)]})


def once_each(path: str, splits: Mapping[str, Sequence[Example]]) -> ExampleSet:
    """The examples by split, the first of each prompt; the others are counted, for asking twice measures nothing."""
    kept = {name: _firsts(examples) for name, examples in splits.items()}
    repeated = sum(map(len, splits.values())) - sum(map(len, kept.values()))
    return ExampleSet(path, kept, {"repeated prompt": repeated} if repeated else {})


def _firsts(examples: Sequence[Example]) -> list[Example]:
    found: dict[str, Example] = {}
    for example in examples:
        found.setdefault(prompt_key(example.prompt), example)
    return list(found.values())
