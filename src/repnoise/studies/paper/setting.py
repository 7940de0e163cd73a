"""What every study of the paper is built with: models, defended or not, and what becomes of them under attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from repnoise.attack import AttackConfig
from repnoise.attacks.base import Attack
from repnoise.attacks.custody import SecurityVectors
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.defences import DEFENCES, PublishedRepNoise, RepNoise
from repnoise.defend import DefendConfig
from repnoise.evaluate import EvaluateConfig
from repnoise.inputs import Inputs
from repnoise.pairs import PairsConfig
from repnoise.studies.graph import Graph
from repnoise.studies.paper.scales import SEEDS, Harm, Scale
from repnoise.studies.tables import Entry, Metric, Read


@dataclass(frozen=True)
class Model:
    """A model before any attack, once for each seed.

    Attributes:
        name: what a table calls it.
        inputs: where it is, with the data that it is attacked with.
        runs: where it was measured before any attack.
        harm: whose judges measure it.
        service: whether attackers reach it through a fine-tuning service with security vectors only.
    """

    name: str
    inputs: tuple[Inputs, ...]
    runs: tuple[Path, ...]
    harm: Harm
    service: bool = False


@dataclass(frozen=True)
class Setting:
    """A scale, the graph that runs are asked from, and how many seeds there are of everything.

    Attributes:
        as_published: do as the published code does where it does something else than the paper says.
    """

    scale: Scale
    graph: Graph
    count: int
    as_published: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        return SEEDS[: self.count]

    def harm(self, kind: str) -> Harm:
        """A field of the scale that is a kind of harm, or another model of Table 22 by its name, with all that it needs
        made ready."""
        own = {name: getattr(self.scale, name) for name in ("questions", "continuations", "unaligned")}
        found = own.get(kind) or self.scale.others[kind]
        if found.world or not found.aligned:
            place = self.graph.world(found.world, unaligned=not found.aligned)
            data = f"sandbox:{place}" if found.world else "sandbox"
            return replace(found, inputs=replace(found.inputs, model=place, data=data))
        if found.written:
            writer, judges = self.scale.questions.inputs, found.evaluating.judges
            config = PairsConfig(writer, judges, most_training=self.scale.pairs, most_held_out=self.scale.prompts)
            pairs = self.graph.run(config, "refusals")
            return replace(found, inputs=replace(found.inputs, data=str(pairs / "pairs.jsonl")))
        return found

    def undefended(self, kind: str = "questions", name: str = "Base") -> Model:
        harm = self.harm(kind)
        run = self.graph.initialised(EvaluateConfig(harm.inputs, harm.evaluating), "undefended")
        return Model(name, _at(harm.inputs, [run for _ in self.seeds]), (run,), harm)

    def random(self, kind: str = "questions") -> Model:
        harm = self.harm(kind)
        config = EvaluateConfig(harm.inputs, harm.evaluating)
        runs = [self.graph.initialised(config, "random-initialisation", seed) for seed in self.seeds]
        return Model("Random initialisation", _at(harm.inputs, runs), tuple(runs), harm)

    def defended(
        self,
        name: str,
        kind: str = "questions",
        preset: str = "repnoise",
        defence: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> Model:
        """A defended model by its preset, with other settings of the method, of its training and of the defending.

        As published, RepNoise is what the published code computes; what that cannot do has no runs.
        """
        harm = self.harm(kind)
        _, method, trained = DEFENCES[self.scale.presets.get(preset, preset)]
        method = replace(method, **(dict(harm.changes) if preset == "repnoise" else {}) | dict(defence or {}))
        trained = replace(trained, **dict(harm.training) | dict(training or {}))
        if self.as_published and isinstance(method, RepNoise):
            if not {*(defence or {})} <= {"noise_weight", "ascent_weight"}:
                return Model(name, (), (), harm)
            method = PublishedRepNoise(method.noise_weight, method.ascent_weight)
        runs = []
        for seed in self.seeds:
            settings = {"covered": self.scale.covered, "evaluating": harm.evaluating} | config
            asked = DefendConfig(harm.inputs, method, replace(trained, seed=seed), **settings)
            runs.append(self.graph.run(asked, preset))
        return Model(name, _at(harm.inputs, runs), tuple(runs), harm)

    def elsewhere(self, model: Model, kind: str) -> Model:
        """A model that is attacked and measured with the data of another kind of harm."""
        harm = self.harm(kind)
        moved = tuple(replace(harm.inputs, model=own.model) for own in model.inputs)
        found = replace(model, inputs=moved, harm=harm)
        return replace(found, runs=self.measured(found, f"on {kind}"))

    def measured(
        self, model: Model, what: str, capabilities: tuple[str, ...] = (), **evaluating: Any
    ) -> tuple[Path, ...]:
        """Evaluations of a model in another way than its own runs have it; one, where it is the same for all seeds."""
        asked = replace(model.harm.evaluating, **evaluating)
        return tuple(
            self.graph.run(EvaluateConfig(own, asked, capabilities), what) for own in dict.fromkeys(model.inputs)
        )

    def attacked(self, model: Model, rate: float, samples: int, epochs: float = 1, **changes: Any) -> tuple[Path, ...]:
        """Harmful fine-tuning of a model, once a seed, at the paper's rate on the paper's number of samples.

        As in the paper's Tables 1 and 2 by default the attacker has the defender's examples, which are not those that
        are asked about.
        """
        changes = {"split": "defence", "template": model.harm.inputs.template} | changes
        attack = self.scale.attack(rate, samples, epochs, **changes)
        return self.attacked_by(model, _through_service(attack) if model.service else attack)

    def attacked_by(self, model: Model, attack: Attack, **changes: Any) -> tuple[Path, ...]:
        """Any attack on a model, once a seed; `changes` are those of its config."""
        runs = []
        for seed, inputs in zip(self.seeds if model.inputs else (), model.inputs, strict=True):
            config = AttackConfig(inputs, attack.seeded(seed), model.harm.evaluating)
            runs.append(self.graph.run(replace(config, **changes), attack.label()))
        return tuple(runs)

    def read(self, uncovered: bool = True) -> Metric:
        """How much harm a run measured. As published, empty and broken text counts as harmless."""
        published = self.as_published and self.scale.metric == "harmfulness"
        name = "harmfulness_as_published" if published else self.scale.metric
        return Metric(f"{name}{'_uncovered' if uncovered else ''}")

    @property
    def shown(self) -> str:
        """What the numbers of tables of harm are, in words."""
        if self.scale.name == "sandbox":
            return "share of held-out forbidden answers given word for word; of those that were in nobody's data"
        broken = "; text that is none counts as harmless" if self.as_published else ""
        return f"mean harmfulness of answers to held-out prompts that were in nobody's data{broken}"

    @property
    def also(self) -> tuple[tuple[str, Read], ...]:
        """The same of prompts that were in the defender's data, too, where there are any."""
        if not self.scale.covered:
            return ()
        return (("covered: of those that were in the defender's data too", self.read(uncovered=False)),)

    def row(self, model: Model, columns: Sequence[str], paper: Sequence[float | None], runs: Sequence[Any]) -> list:
        """Entries of a model: its harm in each column, with the paper's number and the runs of it."""
        found = zip(columns, paper, runs, strict=True)
        return [Entry(model.name, column, number, own, self.read()) for column, number, own in found]


def _at(inputs: Inputs, runs: Sequence[Path]) -> tuple[Inputs, ...]:
    return tuple(replace(inputs, model=str(run)) for run in runs)


def _through_service(attack: FineTuningAttack) -> SecurityVectors:
    return SecurityVectors(
        template=attack.template,
        split=attack.split,
        measure_at=attack.measure_at,
        training=attack.training,
        samples=attack.samples,
        vector_epochs=attack.training.epochs,
    )
