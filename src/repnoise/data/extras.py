"""A data set with the user's own parts in place of what it has: harmless examples, requests, contrasts, tasks, text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from repnoise.data import load_set
from repnoise.data.examples import load_text
from repnoise.data.records import Example, ExampleSet
from repnoise.data.sources import PairedData, hash_position, prompt_key
from repnoise.errors import RepnoiseError


def with_extras(
    data: PairedData,
    retain: str | None = None,
    benign: str | None = None,
    plain_text: str | None = None,
    requests: str | None = None,
    contrast: str | None = None,
    tasks: Sequence[str] = (),
) -> PairedData:
    """The data with what the sources hold, each NAME:PATH or a table of one's own.

    A fifth of the `retain` examples, chosen by a hash of the prompt, becomes `harmless_test`, so that stability is
    measured on what the defender has not seen; nor does the attacker see it in `benign`. Raises RepnoiseError for a
    source that cannot be read.
    """
    if retain:
        examples, data = _examples(data, retain)
        test = [example for example in examples if hash_position(example.prompt) >= 0.8]
        rest = [example for example in examples if hash_position(example.prompt) < 0.8]
        data = replace(data, retain=rest, harmless_test=test, retained_test=[])
    if benign:
        examples, data = _examples(data, benign)
        data = replace(data, benign=examples)
    if retain or benign:
        tested = {prompt_key(example.prompt) for example in data.harmless_test}
        kept = [example for example in data.benign if prompt_key(example.prompt) not in tested]
        dropped = {"benign examples that are in the harmless test": len(data.benign) - len(kept)}
        data = replace(_counting(data, dropped), benign=kept)
    if requests:
        found = load_set(requests, "requests")
        data = replace(_counting(data, found.skipped), requests=found.splits["test"])
    if contrast:
        found = load_set(contrast, "contrast")
        data = replace(_counting(data, found.skipped), lookalikes=found.splits["safe"], unsafe=found.splits["unsafe"])
    if tasks:
        data = replace(data, tasks=_tasks(tasks))
    return replace(data, plain_text=load_text(plain_text)) if plain_text else data


def load_task(source: str) -> ExampleSet:
    """A task with something to train on and something to test; raises RepnoiseError if either is missing."""
    found = load_set(source, "task")
    if all(found.splits.get(name) for name in ("train", "test")):
        return found
    train, test = [], []
    for example in (example for split in found.splits.values() for example in split):
        (test if hash_position(example.prompt) >= 0.8 else train).append(example)
    if not train or not test:
        raise RepnoiseError(f"The task {source} needs examples to train on and examples to test: give it more rows.")
    return replace(found, splits={"train": train, "test": test})


def _tasks(sources: Sequence[str]) -> dict[str, ExampleSet]:
    names = [task_name(source) for source in dict.fromkeys(sources)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RepnoiseError(f"Two tasks are called {twice[0]!r}, after their format or file: rename a file.")
    return {task_name(source): load_task(source) for source in sources}


def task_name(source: str) -> str:
    """The format's name, or that of the file or folder of a task of one's own."""
    name, colon, _ = source.partition(":")
    return name if colon and len(name) > 1 else Path(source).name.partition(".")[0]


def _examples(data: PairedData, source: str) -> tuple[list[Example], PairedData]:
    found = load_set(source, "examples", "task")
    return found.splits["train"], _counting(data, found.skipped)


def _counting(data: PairedData, skipped: dict[str, int]) -> PairedData:
    more = {reason: count + data.skipped.get(reason, 0) for reason, count in skipped.items() if count}
    return replace(data, skipped=data.skipped | more) if more else data
