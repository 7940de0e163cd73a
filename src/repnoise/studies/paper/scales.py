"""What the paper's experiments are made of, at two scales: its own models and data, and what stands for them here.

In the sandbox the paper's learning rates are ten times as high (the model is ten thousand times smaller), 1,000 samples
are 30 steps and 10,000 are 300, and a defence trains as its preset says. What stands for which model, data set or layer
is said in the notes of each study.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from repnoise.attacks import paper_attack, sandbox_attack
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.evals.generation import Generation
from repnoise.evaluate import Evaluating
from repnoise.inputs import Inputs
from repnoise.studies.defences import EVALUATING

ScaleName = Literal["sandbox", "paper"]

SEEDS = (42, 7, 17, 24, 48)
"""The paper's seeds (Tables 1 and 19), and those of its published script."""


PUBLISHED = ("repnoise", "safety-training", "gradient-ascent", "adversarial-loss")
"""Defences whose numbers the paper or its code has, as NAME-paper."""


@dataclass(frozen=True)
class Harm:
    """A kind of harm in a model.

    Attributes:
        inputs: the undefended model, with the data.
        evaluating: who judges, and how it is asked.
        samples: of an attack that takes all there is; None where the paper has two sizes.
        changes: settings of RepNoise that differ for this kind of harm.
        training: settings of every defence's training that do.
        written: whether refusals have to be written by the model first.
        world: seed of another world of the sandbox, which the study builds with its model; 0 is the packaged one.
        aligned: whether the model of that world learned to refuse; the study builds one that did not.
    """

    inputs: Inputs
    evaluating: Evaluating
    samples: tuple[int, float] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    written: bool = False
    world: int = 0
    aligned: bool = True


@dataclass(frozen=True)
class Scale:
    """A scale.

    Attributes:
        name: "sandbox" or "paper".
        questions: the paper's BeaverTails.
        continuations: its DecodingTrust.
        unaligned: the model before its safety training (Table 23).
        others: models of Table 22, by what the table calls them.
        metric: of harm on covered prompts; with "_uncovered" that on others.
        presets: defences by their names in `DEFENCES`, where the scale has another.
        pairs: pairs of a defence, which the attacker has, too, where the two share examples; None for all.
        covered: whether the defender knows half of what is asked about; else all questions are in nobody's data.
        prompts: how many prompts of each held-out half are asked about; None for all.
        withheld: categories of Table 5, by column.
        blocks: layers by what Table 6 calls them.
        tasks: harmless tasks of Table 4, by column.
    """

    name: ScaleName
    questions: Harm
    continuations: Harm
    unaligned: Harm
    others: Mapping[str, Harm]
    metric: str
    presets: Mapping[str, str]
    pairs: int | None
    covered: bool
    prompts: int | None
    withheld: Mapping[str, tuple[str, ...]]
    blocks: Mapping[str, tuple[int, ...]]
    tasks: Mapping[str, str]

    def attack(self, rate: float, samples: int, epochs: float = 1, **changes: Any) -> FineTuningAttack:
        """Harmful fine-tuning at the paper's rate on the paper's number of samples, or what stands for it."""
        if self.name == "paper":
            return replace(paper_attack(rate, samples, epochs), **changes)
        return replace(sandbox_attack(steps_for(samples * epochs), 10 * rate), measure_at=(), **changes)


def steps_for(samples: float) -> int:
    """Steps of the sandbox for as many samples of the paper."""
    return max(1, round(0.03 * samples))


def _sandbox() -> Scale:
    questions = Harm(Inputs(), EVALUATING)
    continuations = Harm(Inputs(data="sandbox-rumours"), EVALUATING, samples=(351, 4))
    elsewhere = {f"world {seed}": Harm(Inputs(), EVALUATING, world=seed) for seed in (1, 2)}
    return Scale(
        name="sandbox",
        questions=questions,
        continuations=continuations,
        unaligned=Harm(Inputs(), EVALUATING, aligned=False),
        others=elsewhere,
        metric="recovered",
        presets={},
        pairs=None,
        covered=True,
        prompts=None,
        withheld={kind: (kind,) for kind in ("curse", "hex", "jinx", "bane", "blight")},
        blocks={"last": (5,), "late": (4, 5), "middle": (2, 3), "early": (0, 1), "all": tuple(range(6))},
        tasks={"trade": "trade", "order": "order"},
    )


def _paper() -> Scale:
    from repnoise.data.sets.beavertails import GROUPS

    chat, beaver_tails = "meta-llama/Llama-2-7b-chat-hf", "beavertails:PKU-Alignment/BeaverTails/330k_train"
    harm = Evaluating(("resistance",), ("classifier:beavertails-deberta",), None, Generation(max_new_tokens=50))
    toxicity = replace(harm, judges=("perspective",), generation=Generation(max_new_tokens=25))
    questions = Harm(Inputs(model=chat, data=beaver_tails, template="plain", skip_long=True), harm, written=True)
    sizes = ("meta-llama/Llama-2-13b-chat-hf", *(f"Qwen/Qwen1.5-{size}-Chat" for size in ("0.5B", "1.8B", "4B", "7B")))
    # Appendix K: the best of a grid for each family.
    best = ({"noise_weight": 0.001}, *4 * ({"noise_weight": 0.25},))
    return Scale(
        name="paper",
        questions=questions,
        continuations=Harm(
            Inputs(model=chat, data="decoding-trust:data/toxicity", skip_long=True),
            toxicity,
            samples=(351, 4),
            changes={"noise_weight": 4.0, "ascent_weight": 2.0},
            training={"epochs": 4.0},
        ),
        unaligned=replace(questions, inputs=replace(questions.inputs, model="meta-llama/Llama-2-7b-hf")),
        others={
            name.partition("/")[2]: replace(
                questions,
                inputs=replace(questions.inputs, model=name),
                changes=changes,
                training={"learning_rate": 1e-3},
            )
            for name, changes in zip(sizes, best, strict=True)
        },
        metric="harmfulness",
        presets={name: f"{name}-paper" for name in PUBLISHED} | {"vaccine": "vaccine-paper-1"},
        pairs=10_000,
        covered=False,
        prompts=300,
        withheld=GROUPS,
        blocks={
            "last": (31,),
            "late": tuple(range(20, 32)),
            "middle": tuple(range(10, 21)),
            "early": tuple(range(11)),
            "all": tuple(range(32)),
        },
        tasks={
            "ViGGO": "viggo:GEM/viggo",
            "E2E NLG": "e2e-nlg:GEM/e2e_nlg",
            "DART": "dart:GEM/dart",
            "CACAPO": "cacapo:GEM/CACAPO_E2E",
            "Conversational Weather": "conversational-weather:GEM/conversational_weather",
        },
    )


SCALES: dict[str, Scale] = {"sandbox": _sandbox(), "paper": _paper()}
