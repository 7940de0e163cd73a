"""Figures of what happens inside the model: 2 (weights), 3 and 7 (lens), 4 and 8 (components), 5 and 6 (probes), 9.

Each is a table of the numbers that its claims need, from `repnoise analyze`, whose pages have the pictures themselves.
The paper has one seed and draws; here every number is over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from repnoise.analysis.command import AnalyzeConfig
from repnoise.runs import Run
from repnoise.statistics import Interval
from repnoise.studies.paper.setting import Model, Setting
from repnoise.studies.tables import Claim, Entry, Read, Table, alike_everywhere, below_everywhere

MODELS = ("RepNoise", "Base", "Adversarial loss", "Base, attacked", "RepNoise, attacked", "Adversarial, attacked")
"""The models of an analysis in the order in which its files have them."""

PLACES = ("early", "middle", "late")
LINEAR = ("linear, early", "linear, middle", "linear, late")
HARMFUL, HARMLESS = "harmful, uncovered", "harmless"
LOOK = "The pictures are in `analysis.html` of each analysis; the numbers here are read from the files beside it."


@dataclass(frozen=True)
class OfAnalysis:
    """Reads one number of one model from a file of an analysis.

    Attributes:
        file: its name without ".json".
        model: place among the analysis' models.
        pick: from what the file has of the model to a value, or to an interval as it is written.
    """

    file: str
    model: int
    pick: Callable[[Any], Any]

    def __call__(self, run: Run) -> Interval | None:
        found = list(json.loads((run.path / f"{self.file}.json").read_text(encoding="utf-8")).values())
        value = self.pick(found[self.model]) if self.model < len(found) and found[self.model] else None
        if value is None:
            return None
        if isinstance(value, dict):
            if value["mean"] is None:
                return None
            return Interval(value["mean"], value["low"], value["high"], value["n"], value["unscored"])
        return Interval(float(value), None, None, 1)


def _third(layers: Sequence[Any], where: str) -> Sequence[Any]:
    size = max(1, len(layers) // 3)
    return {"early": layers[:size], "middle": layers[size : len(layers) - size], "late": layers[-size:]}[where]


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one of them is no number."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _distance(where: str) -> Callable[[Any], Any]:
    """Relative change of the weights in a third of the layers."""

    def pick(found: Any) -> float | None:
        layers = [one["relative"] for one in found["layers"] if one["layer"] is not None]
        return _mean(_third(layers, where))

    return pick


def _log_probability(group: str, layer: Callable[[int], int], lens: str = "raw") -> Callable[[Any], Any]:
    """Log-probability of a token of a group after a layer, which is chosen by how many there are."""

    def pick(found: Any) -> Any:
        reading = next((one for one in found if one["lens"] == lens and one["group"] == group), None)
        return reading and reading["log_probability"][layer(len(reading["layers"]))]

    return pick


def _spread(group: str, layer: Callable[[int], int]) -> Callable[[Any], Any]:
    return lambda found: found[layer(len(found))]["spread"].get(group)


def _probe(kind: str, where: str) -> Callable[[Any], Any]:
    """Accuracy of probes on held-out prompts, averaged over a third of the layers."""

    def pick(found: Any) -> float | None:
        return _mean(_third([one["accuracy"]["mean"] for one in found if one["kind"] == kind], where))

    return pick


def _bits(found: Any) -> Any:
    """Bits about which answer it is, after the layer that has most."""
    own = next((one for one in found if one["group"] == HARMFUL), None)
    return own and max(own["bits"], key=lambda bits: bits["mean"])


def _last(count: int) -> int:
    return count - 1


def _middle(count: int) -> int:
    return count // 2


def _analyses(setting: Setting, noise_weight: float | None = None) -> tuple[Path, ...]:
    """One analysis a seed, of the models in `MODELS`."""
    other = {} if noise_weight is None else {"noise_weight": noise_weight}
    base, adversarial = _compared(setting)
    defended = setting.defended("RepNoise", defence=other)
    # The paper's RepNoise is analysed after an attack that breaks it.
    rates = ((base, 8e-5), (defended, 3e-4), (adversarial, 8e-5))
    attacked = [_kept(setting, setting.attacked(model, rate, 10_000)) for model, rate in rates]
    return tuple(
        _analysis(
            setting, defended, i, base.inputs[i].model, (adversarial.inputs[i].model, *(str(r[i]) for r in attacked))
        )
        for i in range(len(setting.seeds))
    )


def _compared(setting: Setting) -> tuple[Model, Model]:
    """What RepNoise is compared with inside: the undefended model, and the adversarial loss."""
    return setting.undefended(), setting.defended("Adversarial loss", preset="adversarial-loss")


def _kept(setting: Setting, runs: Sequence[Path]) -> tuple[Path, ...]:
    """The same attacks with their weights kept; they are dropped once they are analysed."""
    graph = setting.graph
    return tuple(graph.run(replace(graph.configs[run], keep_model=True), graph.cells[run].name) for run in runs)


def _analysis(setting: Setting, model: Model, seed: int, base: str, attacked: Sequence[str], **effort: Any) -> Path:
    paper = {"examples": 100, "seeds": 10, "reader_steps": 200, "spectrum": False}
    small = {"examples": 80, "seeds": 5, "reader_steps": 100, "spectrum": False}
    settings = (paper if setting.scale.name == "paper" else small) | effort
    config = AnalyzeConfig(model.inputs[seed], base, tuple(attacked), **settings)
    return setting.graph.run(config, f"inside {model.name}")


def _entries(rows: Sequence[str], columns: dict[str, tuple[str, Callable]], runs: tuple[Path, ...]) -> list[Entry]:
    def read(file: str, row: str, pick: Callable) -> Read:
        return OfAnalysis(file, MODELS.index(row), pick)

    return [
        Entry(row, column, None, runs, read(file, row, pick))
        for row in rows
        for column, (file, pick) in columns.items()
    ]


def figure_2(setting: Setting) -> Table:
    """How far weights are from those of the undefended model after the strongest attack."""
    (base, adversarial), defended = _compared(setting), setting.defended("RepNoise")
    attacked = _kept(setting, setting.attacked(base, 8e-5, 10_000))
    little = {"examples": 5, "answers": 2, "seeds": 1, "reader_steps": 0}
    runs = tuple(
        _analysis(setting, defended, i, str(attacked[i]), (adversarial.inputs[i].model, base.inputs[i].model), **little)
        for i in range(len(setting.seeds))
    )
    # Beside the model itself: its base, which is the attacked one and has no distance; then the two others.
    places = {"RepNoise": 0, "Adversarial loss": 2, "Base": 3}
    entries = [
        Entry(row, f"{where} layers", None, runs, OfAnalysis("weights", place, _distance(where)))
        for row, place in places.items()
        for where in PLACES
    ]
    late, early = "late layers", "early layers"
    text = "With the adversarial loss late layers are furthest from the attacked model."
    claims = (
        Claim(text, ((("Adversarial loss", early), ("Adversarial loss", late)),)),
        below_everywhere("RepNoise's early layers are further from it.", "Adversarial loss", "RepNoise", (early,)),
    )
    return Table("model", tuple(entries), claims, "Base", "distance over the norm of the weights", notes=(LOOK,))


def _lens(setting: Setting, rows: Sequence[str], claims: Sequence[Claim]) -> Table:
    columns = {
        "harmful, middle layer": ("lens", _log_probability(HARMFUL, _middle)),
        "harmful, last layer": ("lens", _log_probability(HARMFUL, _last)),
        "harmful, middle layer, attacker's lens": ("lens", _log_probability(HARMFUL, _middle, "attacker's")),
        "harmless, last layer": ("lens", _log_probability(HARMLESS, _last)),
    }
    notes = (
        LOOK,
        "RepNoise is trained on what the raw lens reads, so a low value there is its objective and no evidence. The "
        "attacker's lens is trained on the attacker's answers and shows what can be read all the same.",
    )
    entries = _entries(rows, columns, _analyses(setting))
    return Table("model", tuple(entries), tuple(claims), rows[0], "log-probability of a token, in nats", notes=notes)


def figure_3(setting: Setting) -> Table:
    """The lens before any attack."""
    middle, last, own = "harmful, middle layer", "harmful, last layer", "harmful, middle layer, attacker's lens"
    text = "After the middle layer harmful answers are less likely in RepNoise than in the undefended model."
    more = "RepNoise lowers them more after the middle layer."
    claims = (
        below_everywhere(text, "RepNoise", "Base", (middle,)),
        below_everywhere("The adversarial loss lowers them after the last layer.", "Adversarial loss", "Base", (last,)),
        below_everywhere(more, "RepNoise", "Adversarial loss", (middle,)),
        below_everywhere("So it does for an attacker's own lens.", "RepNoise", "Base", (own,), ours=True),
    )
    return _lens(setting, ("Base", "Adversarial loss", "RepNoise"), claims)


def figure_7(setting: Setting) -> Table:
    """The lens after the strongest attack."""
    last, base = ("harmful, last layer",), "Base, attacked"
    text = "Attacked, the adversarial loss is like the undefended model."
    claims = (
        alike_everywhere(text, "Adversarial, attacked", base, last, 0.5),
        alike_everywhere("Attacked at 3e-4, RepNoise is like it, too.", "RepNoise, attacked", base, last, 0.5),
    )
    return _lens(setting, MODELS[3:], claims)


def _components(setting: Setting, rows: Sequence[str], claims: Sequence[Claim]) -> Table:
    columns = {
        "spread of harmful": ("components", _spread(HARMFUL, _last)),
        "spread of harmless": ("components", _spread(HARMLESS, _last)),
    }
    entries = _entries(rows, columns, _analyses(setting))
    shown = "distance of a group's examples from their mean, over that of all examples from theirs; last layer"
    return Table("model", tuple(entries), tuple(claims), rows[0], shown, notes=(LOOK,))


def figure_4(setting: Setting) -> Table:
    """Principal components before any attack."""
    text = "RepNoise draws harmful examples together into a point."
    rows = ("Base", "Adversarial loss", "RepNoise")
    return _components(setting, rows, (below_everywhere(text, "RepNoise", "Base", ("spread of harmful",)),))


def figure_8(setting: Setting) -> Table:
    """Principal components after the strongest attack."""
    text = "Attacked, harmful examples of RepNoise are spread out as those of the undefended model are."
    claim = alike_everywhere(text, "RepNoise, attacked", "Base, attacked", ("spread of harmful",), 0.1)
    return _components(setting, MODELS[3:], (claim,))


def _probes(setting: Setting, noise_weight: float | None, which: str) -> Table:
    rows = ("Base", "Base, attacked", "Adversarial loss", "RepNoise", "RepNoise, attacked")
    columns = {name: ("probes", _probe("linear", where)) for name, where in zip(LINEAR, PLACES, strict=True)}
    columns |= {"small network, middle": ("probes", _probe("mlp", "middle")), "bits of the answer": ("answers", _bits)}
    entries = _entries(rows, columns, _analyses(setting, noise_weight))
    less = "Of which harmful answer it is, less is known."
    alike = "Attacked and not, the undefended model is alike to a linear probe."
    claims = (
        _probe_claim(noise_weight, setting),
        below_everywhere(less, "RepNoise", "Base", ("bits of the answer",), ours=True),
        alike_everywhere(alike, "Base, attacked", "Base", LINEAR, 0.03),
    )
    notes = (
        LOOK,
        f"RepNoise with {which}.",
        "What a probe tells apart may be words and not harm: the analysis has shuffled labels and a probe of words "
        "beside it. Bits: mutual information between what the attacker's lens reads and which of 32 answers it is.",
    )
    return Table("model", tuple(entries), claims, "Base", "accuracy on held-out prompts, or bits", notes=notes)


def _probe_claim(noise_weight: float | None, setting: Setting) -> Claim:
    """What the paper says of much noise, and of its main model's little."""
    much = noise_weight == 4.0 if setting.scale.name == "paper" else noise_weight is None
    if much:
        text = "A linear probe tells harmful from harmless less well in RepNoise, in the middle layers."
        return below_everywhere(text, "RepNoise", "Base", LINEAR[1:2])
    text = "A linear probe tells harmful from harmless as well in RepNoise."
    return alike_everywhere(text, "RepNoise", "Base", LINEAR, 0.03)


def figure_5(setting: Setting) -> Table:
    """Probes with much noise, as in the paper's figure."""
    if setting.scale.name == "paper":
        return _probes(setting, 4.0, "a noise weight of 4")
    return _probes(setting, None, "the noise weight of the sandbox's preset, 4")


def figure_6(setting: Setting) -> Table:
    """Probes of the paper's main model, whose noise weighs 0.001."""
    return _probes(setting, None if setting.scale.name == "paper" else 0.001, "a noise weight of 0.001")


def figure_9(setting: Setting) -> Table:
    """Log-probabilities after the last layer."""
    columns = {
        "harmful": ("lens", _log_probability(HARMFUL, _last)),
        "harmless": ("lens", _log_probability(HARMLESS, _last)),
    }
    rows = ("Base", "Adversarial loss", "RepNoise", *MODELS[3:])
    entries = _entries(rows, columns, _analyses(setting))
    claims = tuple(
        below_everywhere(f"{row} makes harmful answers less likely than they were.", row, "Base", ("harmful",))
        for row in ("Adversarial loss", "RepNoise")
    )
    return Table("model", tuple(entries), claims, "Base", "log-probability of a token, in nats", notes=(LOOK,))
