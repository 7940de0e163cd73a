"""Finished runs as rows: which defence, which seed, which attack, which number; and the worst case of each defence."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, takewhile
from pathlib import Path
from typing import Any

from repnoise.metrics import HARM, HEADLINES, within_bounds
from repnoise.runs import Run, fingerprint, load_run, read_rows
from repnoise.statistics import Interval, independent_runs, pooled_interval, worst_case

Row = dict[str, Any]
"""{"defence", "seed", "attack", "metric", "value", "n", "low", "high", "step", "attack_seed", "base"}.

"attack" is "none" for what was measured before any; "base" names the undefended model to compare with. A metric that
was measured on another data set than the model's own is called "METRIC on DATA", so that the two are never compared.
"""

NO_ATTACK = "none"
MEASURED = ("defence", "initialisation", "attack", "evaluation", "trainability")
"""Kinds of runs that measure a model."""

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


def seed_of(run: Run) -> int | None:
    """The seed of a run, wherever its config keeps it."""
    config = run.record.get("config") or {}
    attack = config.get("attack") or {}
    parts = [part for part in attack.values() if isinstance(part, dict)]
    for holder in (config.get("training"), attack.get("training"), attack, *parts, config, run.record):
        if isinstance(holder, dict) and isinstance(holder.get("seed"), int):
            return holder["seed"]
    return None


def summarise(runs: Sequence[Run]) -> list[Row]:
    """One row for each number of each finished run, the controls last, attacks from weak to strong.

    Numbers from before the attack come from the defended model's own run; where that is not among the runs, from the
    start of the attack's curve.
    """
    lineage = Lineage(runs)
    finished = [run for run in runs if run.finished and run.record["kind"] in MEASURED]
    rows: dict[tuple[Any, ...], Row] = {}
    for run in sorted(finished, key=lambda run: run.record["kind"] != "defence"):
        defence, seed, attack, attack_seed = lineage.place(run)
        key: Row = {"defence": defence, "seed": seed, "attack": attack}
        base = lineage.base(run)
        curve = curve_of(run)
        other = "" if (data := data_of(run)) in (lineage.data(run), None) else f" on {data}"
        end = curve[-1]["step"] if curve else 0
        _add(rows, key, _renamed(run.record.get("metrics"), other), end, attack_seed, base)
        if run.record["kind"] == "attack" and curve and curve[0]["step"] == 0 and ", then " not in attack:
            # A model that no run made has no seed: its attacks have.
            start = {"attack": NO_ATTACK, "seed": seed if lineage.parent(run) else None}
            _add(rows, key | start, _renamed(curve[0]["metrics"], other), 0, None, base)
    attacks = attack_order(runs, lineage)
    defences = defence_order(row["defence"] for row in rows.values())
    order = [*rows.values()]
    order.sort(key=lambda row: (defences.index(row["defence"]), row["seed"] or 0, attacks.index(row["attack"])))
    return order


def data_of(run: Run) -> str | None:
    """The data set that a run was measured on."""
    return ((run.record.get("config") or {}).get("inputs") or {}).get("data")


def _renamed(metrics: Any, other: str) -> dict[str, Any]:
    return {f"{metric}{other}": measured for metric, measured in (metrics or {}).items()}


def _add(
    rows: dict[tuple[Any, ...], Row], key: Row, metrics: Any, step: int, attack_seed: int | None, base: str
) -> None:
    """The same measurement is made by several runs (a defence, its evaluation, a curve's start): the first counts."""
    for metric, measured in (metrics or {}).items():
        measured = measured or {}
        low, high = _number(measured.get("low")), _number(measured.get("high"))
        numbers = {"value": _number(measured.get("value")), "n": measured.get("n"), "low": low, "high": high}
        row = key | {"metric": metric} | numbers | {"step": step, "attack_seed": attack_seed, "base": base}
        rows.setdefault((*key.values(), metric, attack_seed), row)


def curve_of(run: Run) -> list[dict[str, Any]]:
    """The measured steps of an attack, in order; none where the run has no curve."""
    path = run.path / "curve.jsonl"
    return sorted(read_rows(path), key=lambda row: row["step"]) if path.exists() else []


def defence_order(names: Iterable[str]) -> list[str]:
    """Defences in alphabetical order, then the undefended model, then the limit."""
    return sorted(set(names), key=lambda name: (CONTROLS.index(name) + 1 if name in CONTROLS else 0, name))


def attack_order(runs: Sequence[Run], lineage: Lineage) -> list[str]:
    """No attack, then attacks by what they do (see `Setting`), their benign share, learning rate and steps."""
    found = {lineage.place(run)[2]: setting_of(run) for run in runs if run.record["kind"] in ("attack", "trainability")}
    return [NO_ATTACK, *sorted(found, key=lambda name: (found[name], name))]


def attacks_in_order(rows: Sequence[Row]) -> list[str]:
    """The order of attacks that `summarise` gives within one defence, from the defence with most of them."""
    orders = [list(dict.fromkeys(row["attack"] for row in rows if row["defence"] == name)) for name in models(rows)]
    longest = max(orders, key=len, default=[])
    return [*longest, *sorted({row["attack"] for row in rows} - set(longest))]


def models(rows: Sequence[Row]) -> list[str]:
    """Names of the models, in the order of the rows."""
    return list(dict.fromkeys(row["defence"] for row in rows))


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
    # One class has many mechanisms where one of its parts is the mechanism: the part says what is done.
    name = str((config.get("edit") or config).get("class") or "").removesuffix("Attack")
    kind = " ".join(re.findall("[A-Z][a-z]*", name)).lower()
    tuning = kind == "fine tuning" or run.record["kind"] != "attack"
    trains = 1 if tuning else 2 if training else 0
    rate, steps = training.get("learning_rate") or 0.0, training.get("steps") or steps
    return Setting(trains, "" if tuning else kind, config.get("benign_share") or 0.0, rate, steps)


def estimate(rows: Iterable[Row], defence: str, attack: str, metric: str) -> tuple[Interval, list[float]]:
    """Mean over seeds with its interval, and the value of each seed (see `independent_runs`)."""
    groups: dict[int | None, list[Interval]] = {}
    for row in rows:
        if (row["defence"], row["attack"], row["metric"]) == (defence, attack, metric):
            measured = Interval(_float(row["value"]), row["low"], row["high"], row["n"] or 0)
            groups.setdefault(row["seed"], []).append(measured)
    runs = independent_runs(groups.values())
    return within_bounds(pooled_interval(runs), metric), [run.mean for run in runs if not math.isnan(run.mean)]


def headline_of(rows: Sequence[Row], defence: str) -> str | None:
    """The metric that a defence is judged by: the first of HEADLINES that an attack on it has a number for."""
    attacked = (row for row in rows if row["defence"] == defence and row["attack"] != NO_ATTACK)
    scored = {row["metric"] for row in attacked if row["value"] is not None}
    return next((metric for metric in HEADLINES if metric in scored), None)


def worst_rows(rows: Sequence[Row]) -> list[Row]:
    """For each defence the best attack of its grid, by its headline metric and, apart, by its uncovered half.

    Rows {"defence", "metric", "attack", "attacks", "value", "low", "high", "n", "seeds", "worst_seed", "base"}: the
    attack with the highest mean over seeds, out of so many, and the worst single run of all. A defence's headline comes
    first.
    """
    found: list[Row] = []
    for defence in defence_order(row["defence"] for row in rows):
        headline = headline_of(rows, defence)
        for metric in dict.fromkeys((headline, f"{headline}_uncovered")):
            own = [row for row in rows if (row["defence"], row["metric"]) == (defence, metric)]
            attacked = [row for row in own if row["attack"] != NO_ATTACK]
            attacks = dict.fromkeys(row["attack"] for row in attacked)
            estimates = {attack: estimate(attacked, defence, attack, str(metric)) for attack in attacks}
            best = worst_case({attack: values for attack, (_, values) in estimates.items()}, HARM.get(str(metric), 1.0))
            if metric is None or best is None:
                continue
            interval, values = estimates[best]
            every = [row["value"] for row in attacked if row["value"] is not None]
            found.append(
                {"defence": defence, "metric": metric, "attack": best, "attacks": len(attacks), "value": interval.mean}
                | {"low": interval.low, "high": interval.high, "n": interval.n, "seeds": len(values)}
                | {"worst_seed": max(every, key=lambda value, sign=HARM[metric]: sign * value)}
                | {"base": own[0]["base"]}
            )
    return found


def interval_of(worst: Row) -> Interval:
    """The numbers of a row as an interval."""
    return Interval(_float(worst["value"]), worst["low"], worst["high"], worst["n"] or 0)


def _float(value: float | None) -> float:
    return math.nan if value is None else value


def _number(value: Any) -> float | None:
    """A finite number; NaN has no place in JSON, and means "unscored"."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


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
