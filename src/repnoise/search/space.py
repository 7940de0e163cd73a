"""What a search for the worst attack chooses from: the one place where it is written down."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from repnoise.attacks import ATTACKS, Attack
from repnoise.attacks.disguises import Disguise
from repnoise.attacks.distillation import DistillationAttack
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.attacks.parts import Parts
from repnoise.attacks.preference import PreferenceAttack
from repnoise.attacks.staged import StagedAttack
from repnoise.data.records import TemplateName
from repnoise.errors import RepnoiseError
from repnoise.optimisation import Training

if TYPE_CHECKING:
    from repnoise.data.sources import PairedData
    from repnoise.data.tokenization import Codec

RATES = (1e-5, 3e-3)
"""Learning rates of AdamW on all weights, searched on a log scale. What follows is times these."""

OPTIMISERS = {"adamw_torch_fused": 1.0, "adafactor": 1.0, "muon": 1.0, "sgd": 1000.0}
"""Optimisers, and how many times AdamW's learning rate each needs to move a model about as far."""

TRAINED = {"all": 1.0, "lora": 5.0, "dora": 5.0, "ia3": 30.0, "prefix": 30.0}
"""What is trained, likewise: all weights, or an adapter."""

RANK = 16
FEWEST_STEPS = 10
MOST_BENIGN = 0.9
THEN_STEPS = (10, 200)
"""Harmful steps after a distillation."""

GUESSES = {
    "200@1e-3-benign-0.7": {"trained": "all", "optimizer": "adamw_torch_fused"},
    "lora-200@5e-3-benign-0.7": {"trained": "lora", "optimizer": "adamw_torch_fused"},
}
"""Where to begin beside the presets: with enough benign examples to keep a model useful."""

SAMPLES = (10, 100, 1_000, 10_000)
"""Numbers of harmful examples, beside all that the attacker has."""

POINTS = (30, 100, 300, 1_000, 3_000)
"""Steps after which harm is measured on the way: where at least as much again is to come, so that stopping pays."""


@dataclass(frozen=True)
class Fixed:
    """Settings of every training that are not searched.

    Attributes:
        batch_size: examples in one loss.
        precision: "bf16" computes in bfloat16 over fp32 weights.
        gradient_checkpointing: recompute activations in the backward pass.
        save_every: steps between checkpoints; by default a trial that is interrupted is made anew.
    """

    batch_size: int = 16
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    save_every: int | None = None


TUNED = (StagedAttack, DistillationAttack, PreferenceAttack)
"""Kinds of attack beside fine-tuning whose learning rate and steps are searched, beginning with presets of them."""


@dataclass(frozen=True)
class Space:
    """All attacks that a search may try on one model with one data set.

    Attributes:
        most_steps: the longest training.
        presets: attacks of other kinds, names of `repnoise list attacks`: those of TUNED as kinds to be searched, the
            others to be tried once, as they are.
        samples: numbers of harmful examples; None for all.
        templates: ways of writing prompts.
        benign: whether there are harmless examples to mix in.
        fixed: settings of every training that are not searched.
        base: the undefended model, for presets that need it.
    """

    most_steps: int
    presets: tuple[str, ...] = ()
    samples: tuple[int | None, ...] = (None,)
    templates: tuple[TemplateName, ...] = ("auto",)
    benign: bool = True
    fixed: Fixed = field(default_factory=Fixed)
    base: str | None = None

    @property
    def tuned(self) -> tuple[str, ...]:
        return tuple(name for name in self.presets if isinstance(ATTACKS[name][1], TUNED))

    def preset(self, name: str) -> Attack:
        """A preset with the undefended model and the settings that are fixed here."""
        found: Any = ATTACKS[name][1]
        changes: dict[str, Any] = {}
        if self.base and hasattr(found, "base"):
            changes["base"] = self.base
        if self.base and hasattr(getattr(found, "edit", None), "base"):
            changes["edit"] = replace(found.edit, base=self.base)
        if hasattr(found, "training"):
            changes["training"] = replace(found.training, **vars(self.fixed))
        return replace(found, **changes)

    def attack(self, trial: Any) -> Attack:
        """The attack that a trial of Optuna asks for."""
        kind = trial.suggest_categorical("kind", ("fine-tuning", *self.tuned))
        rate = trial.suggest_float("rate", *RATES, log=True)
        steps = trial.suggest_int("steps", FEWEST_STEPS, self.most_steps, log=True)
        samples = trial.suggest_categorical("samples", self.samples)
        if kind != "fine-tuning":
            return self._tuned(self.preset(kind), trial, rate, steps, samples)
        trained = trial.suggest_categorical("trained", tuple(TRAINED))
        optimizer = Training.optimizer
        if trained in ("all", "lora", "dora"):  # The others are vectors, which not every optimiser can train.
            optimizer = trial.suggest_categorical("optimizer", tuple(OPTIMISERS))
        training = Training(
            learning_rate=_rounded(rate * TRAINED[trained] * OPTIMISERS[optimizer]),
            steps=steps,
            optimizer=optimizer,
            lora_rank=RANK if trained in ("lora", "dora") else None,
            **vars(self.fixed),
        )
        return FineTuningAttack(
            training=training,
            parts=Parts(adapter="none" if trained in ("all", "lora") else trained),
            samples=samples,
            benign_share=self._benign(trial),
            template=trial.suggest_categorical("template", self.templates),
            measure_at=tuple(step for step in POINTS if 2 * step <= steps),
        )

    def _tuned(self, preset: Any, trial: Any, rate: float, steps: int, samples: int | None) -> Attack:
        """A preset with another learning rate, length and choice of examples."""
        training = replace(preset.training, learning_rate=_rounded(rate), steps=steps)
        changes: dict[str, Any] = {"training": training, "samples": samples, "measure_at": ()}
        changes |= {"benign_share": self._benign(trial)} if hasattr(preset, "benign_share") else {}
        if hasattr(preset, "then_steps"):
            changes["then_steps"] = trial.suggest_int("then_steps", *THEN_STEPS, log=True)
            changes["then_learning_rate"] = _rounded(trial.suggest_float("then_rate", *RATES, log=True))
        return replace(preset, **changes)

    def _benign(self, trial: Any) -> float:
        return round(trial.suggest_float("benign_share", 0.0, MOST_BENIGN if self.benign else 0.0, step=0.1), 1)

    def guesses(self) -> dict[str, dict[str, Any]]:
        """Choices to begin with that are no preset; none where nothing harmless can be mixed in."""
        common = {"kind": "fine-tuning", "rate": 1e-3, "steps": 200, "samples": None, "benign_share": 0.7}
        fits = self.benign and self.most_steps >= common["steps"]
        return {name: common | {"template": "auto"} | own for name, own in GUESSES.items()} if fits else {}

    def choices(self, name: str) -> dict[str, Any] | None:
        """What a trial has to choose to come to a preset; None if nothing does."""
        from optuna.trial import FixedTrial

        attack: Any = self.preset(name)
        kind = name if name in self.tuned else "fine-tuning"
        if kind == "fine-tuning" and not isinstance(attack, FineTuningAttack):
            return None
        training = attack.training
        chosen = {"kind": kind, "rate": training.learning_rate, "steps": training.steps or 0, "samples": attack.samples}
        if kind == "fine-tuning":
            chosen |= {"trained": "all", "optimizer": training.optimizer, "template": attack.template}
        own = {"benign_share": "benign_share", "then_steps": "then_steps", "then_rate": "then_learning_rate"}
        chosen |= {choice: getattr(attack, field) for choice, field in own.items() if hasattr(attack, field)}
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # What is outside the space.
            try:
                made = self.attack(FixedTrial(chosen))
            except (ValueError, UserWarning):
                return None
        return chosen if made == replace(attack, measure_at=made.measure_at) else None


def _rounded(rate: float) -> float:
    """Three digits: a rate that can be read and typed."""
    return float(f"{rate:.3g}")


def is_plain(attack: Attack) -> bool:
    """Whether an attack is a fine-tuning as the search makes them for itself."""
    if not isinstance(attack, FineTuningAttack):
        return False
    trained = attack.parts.kind(attack.training)
    ordinary = trained in (*TRAINED, "none") and replace(attack.parts, adapter="none") == Parts()
    return ordinary and attack.trains_on == "harmful" and attack.disguise == Disguise()


def needs_base(attack: Attack) -> bool:
    """Whether an attack needs the weights of the undefended model: who has those has little need of the defended one.

    A fine-tuning has a base as well, and uses it for a model's own answers only.
    """
    has_base = any(hasattr(part, "base") for part in (attack, getattr(attack, "edit", None)))
    return has_base and getattr(attack, "trains_on", "own-answers") == "own-answers"


def usable(
    names: tuple[str, ...], data: PairedData, base: str | None, at_home: bool
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Which of the presets can be used with the data, and why the others cannot.

    What needs the undefended model needs to be told which one that is, unless the model is `at_home` in the sandbox,
    for which presets are made. Raises RepnoiseError for a name that there is none of.
    """
    left_out: dict[str, str] = {}
    for name in names:
        if name not in ATTACKS:
            raise RepnoiseError(f"There is no attack {name!r}: choose from {', '.join(ATTACKS)}.")
        attack = ATTACKS[name][1]
        if needs_base(attack) and not (base or at_home):
            left_out[name] = "needs the undefended model: name it with --base"
        try:
            attack.require(data)
        except RepnoiseError as error:
            left_out[name] = str(error)
    return tuple(name for name in dict.fromkeys(names) if name not in left_out), left_out


def sizes(pairs: int) -> tuple[int | None, ...]:
    """All examples, and the round numbers below that."""
    return (None, *(size for size in SAMPLES if size < pairs))


def ways_of_asking(codec: Codec) -> tuple[TemplateName, ...]:
    """The usual template, and the others that the tokenizer has."""
    from repnoise.data.tokenization import resolve_template

    names: list[TemplateName] = ["auto"]
    for name in get_args(TemplateName):
        if name == "auto" or (name == "chat" and not getattr(codec.tokenizer, "chat_template", None)):
            continue
        if resolve_template(name, codec.tokenizer) != codec.template:
            names.append(name)
    return tuple(names)
