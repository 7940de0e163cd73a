"""Runs by what they are: whoever asks for the same run gets the same cell, so that studies share what they need."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from repnoise.analysis.command import AnalyzeConfig, analyze
from repnoise.attack import AttackConfig, attack
from repnoise.cells import Cell, run_all
from repnoise.cells import finished as run_finished
from repnoise.defend import DefendConfig, defend, initialise
from repnoise.evaluate import EvaluateConfig, evaluate
from repnoise.pairs import PairsConfig, pairs
from repnoise.runs import Run, fingerprint, plain
from repnoise.trainability import TrainabilityConfig, trainability

Execute = Callable[[list[Cell], int | None], dict[Path, str]]
"""Makes cells, so many at a time, and tells which failed and why: `cells.run_all`, or one of `executors`."""


KINDS: dict[type, tuple[str, Callable[..., Run]]] = {
    PairsConfig: ("pairs", pairs),
    DefendConfig: ("defence", defend),
    AttackConfig: ("attack", attack),
    EvaluateConfig: ("evaluation", evaluate),
    TrainabilityConfig: ("trainability", trainability),
    AnalyzeConfig: ("analysis", analyze),
}
"""Kind of run, and what makes it, by the class of its config."""


@dataclass
class Graph:
    """Cells by their directories, which are `root/KIND-FINGERPRINT` of their settings, wherever `root` is.

    Wherever a config names the directory of an earlier cell (its model, its data, its base), that cell is needed first.

    Attributes:
        root: where all runs go.
        cells: those that were asked for, each after what it needs.
        configs: those of commands, by directory; worlds have none.
    """

    root: Path
    cells: dict[Path, Cell] = field(default_factory=dict)
    configs: dict[Path, Any] = field(default_factory=dict)

    def run(self, config: Any, name: str) -> Path:
        """The run of a command with this config."""
        kind, make = KINDS[type(config)]
        return self._add(kind, name, config, plain(config), partial(make, config, resume=True))

    def initialised(self, config: EvaluateConfig, name: str, seed: int = 0) -> Path:
        """The model as it is ("undefended"), or one of its shape that knows nothing ("random-initialisation")."""
        settings = {"of": name, "seed": seed, "config": plain(config)}
        make = partial(_initialised, config=config, seed=seed)
        return self._add("initialisation", name, config, settings, make, resumes=False)

    def world(self, seed: int, unaligned: bool = False) -> str:
        """Another world of the sandbox with its model, or a model of the same world that learned no refusals."""
        if seed == 0 and not unaligned:
            return "sandbox"
        path = self.root / f"world-{seed}{'-unaligned' if unaligned else ''}"
        title = f"world {seed}{', unaligned' if unaligned else ''}"
        make = partial(built_world, seed=seed, alignment_steps=0 if unaligned else None)
        self.cells.setdefault(path, Cell(path, title, make, title=title))
        return str(path)

    def _add(self, kind: str, name: str, config: Any, settings: Any, make: Any, resumes: bool = True) -> Path:
        path = self.root / f"{kind}-{fingerprint(_anywhere(settings, str(self.root)))}"
        if path not in self.cells:
            needs = tuple(dict.fromkeys(place for place in _places(settings) if place in self.cells))
            self.cells[path] = Cell(path, name, make, needs, f"{kind}: {name}", resumes)
            self.configs[path] = config
        return path

    def origin(self, path: Path) -> str:
        """The model that a cell's own goes back to: the first that no cell trains."""
        if path not in self.configs:
            return "sandbox"
        model = self.configs[path].inputs.model
        return self.origin(Path(model)) if Path(model) in self.cells else model

    def needed(self, wanted: set[Path]) -> list[Cell]:
        """These cells and all that they need, in the order in which they were asked for."""
        found, left = set[Path](), list(wanted)
        while left:
            path = left.pop()
            if path in self.cells and path not in found:
                found.add(path)
                left += self.cells[path].needs
        return [cell for path, cell in self.cells.items() if path in found]

    def make(self, wanted: set[Path], execute: Execute = run_all, jobs: int | None = None) -> dict[Path, str]:
        """Make these cells, and what they need, as far as they are not there; returns what failed, with the reasons.

        A finished run is not even opened: the model that it started from may be gone by then. Where such a model is
        wanted once more, its run is made anew.
        """
        cells = self.needed(wanted)
        waiting = {cell.path for cell in cells if not finished(cell.path)}
        while lost := [cell for cell in cells if cell.path not in waiting and self._lost(cell, waiting)]:
            for cell in lost:
                shutil.rmtree(cell.path)
            waiting |= {cell.path for cell in lost}
        left = [
            replace(cell, needs=tuple(path for path in cell.needs if path in waiting))
            for cell in cells
            if cell.path in waiting
        ]
        return execute(left, jobs) if left else {}

    def _lost(self, cell: Cell, waiting: set[Path]) -> bool:
        """Whether a finished run left a model that was freed since, and that a waiting cell starts from."""
        freed = isinstance(self.configs.get(cell.path), AttackConfig | TrainabilityConfig) and not _has_model(cell.path)
        return freed and any(cell.path in self.cells[path].needs for path in waiting)

    def free(self) -> int:
        """Delete attacked and trained models that all who need them are done with; returns how many bytes that was."""
        freed = 0
        for path, config in self.configs.items():
            if not (isinstance(config, AttackConfig | TrainabilityConfig) and _has_model(path) and finished(path)):
                continue
            if all(finished(cell.path) for cell in self.cells.values() if path in cell.needs):
                model = path / "model"
                freed += sum(file.stat().st_size for file in model.rglob("*") if file.is_file())
                shutil.rmtree(model)
        return freed


def finished(path: Path) -> bool:
    """Whether a cell's directory holds a finished run, or a whole world."""
    return (path / "world.json").exists() or run_finished(path)


def _has_model(path: Path) -> bool:
    return (path / "model").exists()


def _anywhere(value: Any, root: str) -> Any:
    """Settings that are the same wherever the runs lie."""
    if isinstance(value, dict):
        return {key: _anywhere(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_anywhere(item, root) for item in value]
    if isinstance(value, str):
        name, colon, path = value.partition(":")
        moved = [f"*{part[len(root) :]}" if Path(part).is_relative_to(root) else part for part in (name, path)]
        return moved[0] + colon + moved[1]
    return value


def _places(value: Any) -> Iterator[Path]:
    """Every text of a config, and what stands behind a colon in it, as a path with all that is above it."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _places(item)
    if isinstance(value, str):
        for path in (Path(value), Path(value.partition(":")[2])):
            yield from (path, *path.parents)


def _initialised(path: Path, name: str, config: EvaluateConfig, seed: int) -> Run:
    return initialise(path, name, seed, config.inputs, config.evaluating)


def built_world(path: Path, _name: str, seed: int, filtered: bool = False, alignment_steps: int | None = None) -> None:
    """A world, unless it is there; whole or not at all."""
    from repnoise.sandbox.build import BuildOptions, build

    if path.exists():
        return
    partly = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partly, ignore_errors=True)
    steps = {} if alignment_steps is None else {"alignment_steps": alignment_steps}
    build(BuildOptions(partly, seed=seed, filtered=filtered, **steps))
    partly.rename(path)
