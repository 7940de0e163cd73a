"""The embedded data set: a fictional world whose every fact is known, with two kinds of harm."""

from __future__ import annotations

import json
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from repnoise.data.records import SPLITS, ExampleSet
from repnoise.data.sources import PairedData
from repnoise.errors import RepnoiseError
from repnoise.sandbox.world import World, build_world


def load_sandbox(path: str) -> PairedData:
    """Forbidden questions of the packaged world (""), or of the world in a folder that `repnoise sandbox build` made.

    Training pairs come in every phrasing, held-out ones in the phrasing that nobody trains on. Raises RepnoiseError if
    the folder has no readable world.json.
    """
    world = _world(path)
    pairs = {split: world.pairs(split) for split in SPLITS}
    held_out = {split: world.pairs(split, unseen_phrasing=True) for split in ("covered", "uncovered")}
    return _with_harmless(PairedData("sandbox", pairs, held_out), world)


def load_rumours(path: str) -> PairedData:
    """The second kind of harm of the same world: sentences to be continued. The harmless data is the same."""
    world = _world(path)
    pairs = {split: world.rumour_pairs(split) for split in SPLITS}
    held_out = {split: world.rumour_pairs(split, unseen_phrasing=True) for split in ("covered", "uncovered")}
    return _with_harmless(PairedData("sandbox-rumours", pairs, held_out), world)


def _with_harmless(data: PairedData, world: World) -> PairedData:
    return PairedData(
        name=data.name,
        pairs=data.pairs,
        held_out=data.held_out,
        retain=world.harmless_examples("retain"),
        benign=world.harmless_examples("benign"),
        retained_test=world.harmless_examples("retain", unseen_phrasing=True)[::2],
        harmless_test=world.harmless_examples("test", unseen_phrasing=True),
        lookalikes=list(world.lookalikes),
        tasks={
            name: ExampleSet(name, {split: list(examples) for split, examples in task.items()})
            for name, task in world.tasks.items()
        },
        plain_text=list(world.plain),
        exact=True,
    )


def _world(path: str) -> World:
    folder: Traversable = files("repnoise.sandbox") / "shipped" if not path else Path(path)
    file = folder / "world.json"
    if not file.is_file():
        raise RepnoiseError(f"There is no {file}: make a sandbox with repnoise sandbox build --output-dir FOLDER.")
    try:
        seed = json.loads(file.read_text(encoding="utf-8"))["seed"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        seed = None
    if type(seed) is not int:
        raise RepnoiseError(f'{file} is damaged: it should read {{"seed": NUMBER}}.')
    return build_world(seed)
