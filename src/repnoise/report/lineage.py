"""Which defence, seed and attack a run stands for, and how two of one name are told apart."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, takewhile
from pathlib import Path
from typing import Any

from repnoise.runs import Run, fingerprint, load_run

NO_ATTACK = "none"

TRAINED = "trained on "
"""Begins the name of what was done to a model that was trained on a harmless task: no attack by itself, though one may
follow."""
CONTROLS = ("undefended", "random-initialisation")


class Lineage:
    """Which defence, seed and attack each run stands for.

    Two runs of one name and different settings or data (seed and place aside) are two defences, or two attacks: what
    differs is added to the name, so that they are never averaged.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = {run.path.resolve(): run for run in runs}
        self._parents: dict[Path, Run | None] = {}
        for run in runs:
            self._add_parents(run)
        self._variants: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        for run in self.runs.values():
            settings = self._settings(run)
            self._variants.setdefault(self._kind(run), {})[fingerprint(settings)] = settings
        self._bases = self._undefended()

    def place(self, run: Run) -> tuple[str, int | None, str, int | None]:
        """Defence, seed, attack and the attack's own seed."""
        kind, seed, parent = run.record["kind"], seed_of(run), self.parent(run)
        if kind == "initialisation" and run.record["name"] == "undefended":
            return self._bases.get(self._root(run), self.label(run)), seed, NO_ATTACK, None
        if kind in ("defence", "initialisation"):
            return self.label(run), seed, NO_ATTACK, None
        if parent is None:
            name = self._bases.get(self._root(run), _model_name(run))
            above = (name, seed if kind == "attack" else None, NO_ATTACK, None)
        else:
            above = self.place(parent)
        if kind not in ("attack", "trainability"):
            return above
        name = self.label(run) if kind == "attack" else f"{TRAINED}{self.label(run)}"
        return above[0], above[1], name if above[2] == NO_ATTACK else f"{above[2]}, then {name}", seed

    def base(self, run: Run) -> str:
        """Name of the undefended model that a run's weights come from, or the only one that there is."""
        return self._bases.get(self._root(run), "undefended")

    def data(self, run: Run) -> str | None:
        """The data set that a run's model is at home in: that of the run that made it, else of most runs on it."""
        parent = self.parent(run)
        if run.record["kind"] in ("defence", "initialisation"):
            return data_of(run)
        if parent is not None:
            return self.data(parent)
        alike = [other for other in self.runs.values() if self._root(other) == self._root(run)]
        found = Counter(data_of(other) for other in alike if other.record["kind"] in ("attack", "evaluation"))
        return max(found, key=found.__getitem__, default=None)

    def is_plain_attack(self, run: Run) -> bool:
        """A finished attack on the model itself, measured on the model's own data: not on one trained on a task."""
        if not run.finished or run.record["kind"] != "attack" or data_of(run) not in (self.data(run), None):
            return False
        return ", then " not in self.place(run)[2]

    def parent(self, run: Run) -> Run | None:
        """The run whose model a run started from. A directory that was moved since is found by the model's weights."""
        if run.path not in self._parents:
            self._parents[run.path] = self._find_parent(run)
        return self._parents[run.path]

    def _find_parent(self, run: Run) -> Run | None:
        path = _parent_path(run)
        if path is None or path in self.runs:
            return self.runs.get(path)  # type: ignore[arg-type]
        weights = run.record["parent"].get("fingerprint")
        alike = [other for other in self.runs.values() if other is not run and other.record.get("weights") == weights]
        nearest = sorted(alike, key=lambda other: _shared_ending(other.path, path))
        return nearest[-1] if nearest and weights else None

    def _add_parents(self, run: Run) -> None:
        """A report on attacks alone still has to know whom they attacked, and of which seed that was."""
        path = _parent_path(run)
        if path and path not in self.runs and (path / "run.json").exists():
            self.runs[path] = load_run(path)
            self._add_parents(self.runs[path])

    def _undefended(self) -> dict[str, str]:
        """Names of the models that the defences started from, by fingerprint: "undefended" if there is only one."""
        defences = [run for run in self.runs.values() if run.record["kind"] == "defence"]
        names = {self._root(run): _model_name(self._first(run)) for run in defences}
        return dict.fromkeys(names, "undefended") if len(names) == 1 else names

    def _first(self, run: Run) -> Run:
        parent = self.parent(run)
        return run if parent is None else self._first(parent)

    def _root(self, run: Run) -> str:
        return str((self._first(run).record.get("parent") or {}).get("fingerprint"))

    def label(self, run: Run) -> str:
        """The run's name, with the settings that tell it from others of that name."""
        name, variants = str(run.record["name"]), self._variants[self._kind(run)]
        return name if len(variants) < 2 else f"{name} ({_told_apart(variants)[fingerprint(self._settings(run))]})"

    @staticmethod
    def _kind(run: Run) -> tuple[str, str]:
        return run.record["kind"], run.record["name"]

    def _settings(self, run: Run) -> dict[str, Any]:
        """The flat config and the data's fingerprints, without what may differ between seeds of one thing."""
        aside = r"(^|\.)(seed|save_every|report_to|keep_model|measure_at)$"
        aside += r"|^evaluating\.(class|evaluations|likelihood|base|generation\.batch_size)$|^inputs\.tasks"
        # What an attack or an evaluation starts from is another run, and has a name of its own.
        aside += "" if run.record["kind"] in ("defence", "initialisation") else r"|^inputs\.model$"
        flat = _flat(run.record.get("config") or {})
        found = {key: value for key, value in flat.items() if not re.search(aside, key)}
        if "inputs.model" in found and (parent := self.parent(run)):
            found["inputs.model"] = f"{parent.record['name']} {fingerprint(self._settings(parent))[:6]}"
        for part, facts in (run.record.get("data") or {}).items():
            if isinstance(facts, dict) and facts.get("fingerprint"):
                found[f"data.{part}"] = str(facts["fingerprint"])[:6]
        return found


def _told_apart(variants: dict[str, dict[str, Any]]) -> dict[str, str]:
    """For each variant what differs: all of it if that is little, else the fewest settings that are enough, and "…"."""
    keys = dict.fromkeys(key for settings in variants.values() for key in settings)
    differing = [key for key in keys if len({repr(settings.get(key)) for settings in variants.values()}) > 1]
    # Other settings often mean other data, whose fingerprints are shown only where nothing else tells two runs apart.
    settings = [key for key in differing if not key.startswith("data.")]
    few = [tuple(keys) for keys in (settings, differing) if 0 < len(keys) < 4]
    fewer = [chosen for size in (1, 2, 3) for chosen in combinations(settings[:20], size)]
    for chosen in (*few, *fewer):
        more = ", …" if len(chosen) < len(settings) else ""
        for short in (True, False):
            shown = {own: _described(found, chosen, short) + more for own, found in variants.items()}
            if len({*shown.values()}) == len(variants):
                return shown
    return {own: own[:6] for own in variants}


def _described(settings: dict[str, Any], keys: Iterable[str], short: bool) -> str:
    """Settings in words; `short` leaves out the folders of paths."""
    values = {key: str(settings.get(key)) for key in keys}
    return ", ".join(
        f"{key.rpartition('.')[2]} {value.rpartition('/')[2] if short else value}" for key, value in values.items()
    )


def run_names(runs: Sequence[Run]) -> dict[Path, str]:
    """By their paths, what runs are called in rows: where they lie below the folder that has all of them."""
    paths = [run.path.resolve() for run in runs]
    try:
        top = os.path.commonpath([path.parent for path in paths])
    except ValueError:  # Two drives, on Windows; or no runs.
        return {path: path.as_posix() for path in paths}
    return {path: path.relative_to(top).as_posix() for path in paths}


def seed_of(run: Run) -> int | None:
    """The seed of a run, wherever its config keeps it."""
    config = run.record.get("config") or {}
    attack = config.get("attack") or {}
    parts = [part for part in attack.values() if isinstance(part, dict)]
    for holder in (config.get("training"), attack.get("training"), attack, *parts, config, run.record):
        if isinstance(holder, dict) and isinstance(holder.get("seed"), int):
            return holder["seed"]
    return None


def data_of(run: Run) -> str | None:
    """The data set that a run was measured on."""
    return ((run.record.get("config") or {}).get("inputs") or {}).get("data")


@dataclass(frozen=True, order=True)
class Setting:
    """Where an attack stands among the others.

    Attributes:
        trains: 0 for what trains nothing, 1 for fine-tuning and for training on a task, 2 for other trainings.
        kind: what it is, in words; "" for fine-tuning.
        benign: share of benign examples; 0 where it has none, as with what follows.
        rate: learning rate.
        steps: of the optimiser.
    """

    trains: int
    kind: str
    benign: float
    rate: float
    steps: int


def setting_of(run: Run) -> Setting:
    """The setting of an attack, from its config."""
    config = (run.record.get("config") or {}).get("attack") or run.record.get("config") or {}
    training, steps = config.get("training") or {}, config.get("steps") or 0
    kind = kind_of(config)
    tuning = kind == "fine tuning" or run.record["kind"] != "attack"
    trains = 1 if tuning else 2 if training else 0
    rate, steps = training.get("learning_rate") or 0.0, training.get("steps") or steps
    return Setting(trains, "" if tuning else kind, config.get("benign_share") or 0.0, rate, steps)


def kind_of(attack: dict[str, Any]) -> str:
    """What an attack's config does, in words: the name of its class.

    One class has many mechanisms where one of its parts is the mechanism: the part says what is done.
    """
    name = str((attack.get("edit") or attack).get("class") or "").removesuffix("Attack")
    return " ".join(re.findall("[A-Z][a-z]*", name)).lower()


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{name}.{key}" if name else key)
    return flat


def _parent_path(run: Run) -> Path | None:
    path = (run.record.get("parent") or {}).get("path")
    return Path(path).resolve() if path and Path(path).resolve() != run.path.resolve() else None


def _shared_ending(path: Path, other: Path) -> int:
    """How many parts two paths have in common, from the last one on."""
    pairs = zip(reversed(path.resolve().parts), reversed(other.parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _model_name(run: Run) -> str:
    """A model that no run made is known by its name, or by the last part of its path."""
    name = str((run.record.get("parent") or {}).get("name") or "model")
    return name if name in CONTROLS else Path(name).name or name
