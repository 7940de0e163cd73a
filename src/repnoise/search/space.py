"""What a search for the worst attack chooses from: the one place where it is written down."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_args

from repnoise.attacks import ATTACKS, Attack
from repnoise.attacks.disguises import Disguise
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.attacks.parts import Parts
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
SAMPLES = (10, 100, 1_000, 10_000)
"""Numbers of harmful examples, beside all that the attacker has."""

POINTS = (30, 100, 300, 1_000, 3_000)
"""Steps after which harm is measured on the way: where at least as much again is to come, so that stopping pays."""


@dataclass(frozen=True)
class Space:
    """All attacks that a search may try on one model with one data set.

    Attributes:
        most_steps: the longest fine-tuning.
        presets: attacks of other kinds, as they are: names of `repnoise list attacks`.
        samples: numbers of harmful examples; None for all.
        templates: ways of writing prompts.
        benign: whether there are harmless examples to mix in.
        fixed: settings of every fine-tuning that are not searched.
        base: the undefended model, for presets that need it.
    """

    most_steps: int
    presets: tuple[str, ...] = ()
    samples: tuple[int | None, ...] = (None,)
    templates: tuple[TemplateName, ...] = ("auto",)
    benign: bool = True
    fixed: Training = field(default_factory=lambda: Training(batch_size=16, save_every=None))
    base: str | None = None

    def attack(self, trial: Any) -> Attack:
        """The attack that a trial of Optuna asks for."""
        kinds = ("fine-tuning", "preset") if self.presets else ("fine-tuning",)
        if trial.suggest_categorical("kind", kinds) == "preset":
            found = ATTACKS[trial.suggest_categorical("preset", self.presets)][1]
            return replace(found, **({"base": self.base} if self.base and hasattr(found, "base") else {}))
        trained = trial.suggest_categorical("trained", tuple(TRAINED))
        optimizer = trial.suggest_categorical("optimizer", tuple(OPTIMISERS))
        rate = trial.suggest_float("rate", *RATES, log=True) * TRAINED[trained] * OPTIMISERS[optimizer]
        steps = trial.suggest_int("steps", FEWEST_STEPS, self.most_steps, log=True)
        benign = trial.suggest_float("benign_share", 0.0, MOST_BENIGN if self.benign else 0.0, step=0.1)
        training = replace(
            self.fixed,
            learning_rate=float(f"{rate:.3g}"),
            steps=steps,
            optimizer=optimizer,
            lora_rank=RANK if trained in ("lora", "dora") else None,
        )
        return FineTuningAttack(
            training=training,
            parts=Parts(adapter="none" if trained in ("all", "lora") else trained),
            samples=trial.suggest_categorical("samples", self.samples),
            benign_share=round(benign, 1),
            template=trial.suggest_categorical("template", self.templates),
            measure_at=tuple(step for step in POINTS if 2 * step <= steps),
        )

    def choices(self, attack: Attack) -> dict[str, Any] | None:
        """What a trial has to choose to come to a plain fine-tuning of all weights; None if nothing does."""
        from optuna.trial import FixedTrial

        if not isinstance(attack, FineTuningAttack):
            return None
        training, steps = attack.training, attack.training.steps or 0
        within = training.optimizer in OPTIMISERS and RATES[0] <= training.learning_rate <= RATES[1]
        if not within or not FEWEST_STEPS <= steps <= self.most_steps:
            return None
        chosen = {"kind": "fine-tuning", "trained": "all", "optimizer": training.optimizer} | {
            "rate": training.learning_rate / OPTIMISERS[training.optimizer],
            "steps": steps,
            "benign_share": attack.benign_share,
            "samples": attack.samples,
            "template": attack.template,
        }
        found = self.attack(FixedTrial(chosen))
        fixed = {name: getattr(self.fixed, name) for name in ("batch_size", "precision", "gradient_checkpointing")}
        wanted = replace(attack, training=replace(training, **fixed), measure_at=found.measure_at)
        return chosen if found == wanted else None


def other_kinds() -> tuple[str, ...]:
    """Presets that are no plain fine-tuning, which a search makes for itself."""
    return tuple(name for name, (_, attack) in ATTACKS.items() if not _is_plain(attack))


def _is_plain(attack: Attack) -> bool:
    if not isinstance(attack, FineTuningAttack):
        return False
    trained = attack.parts.kind(attack.training)
    ordinary = trained in (*TRAINED, "none") and replace(attack.parts, adapter="none") == Parts()
    return ordinary and attack.trains_on == "harmful" and attack.disguise == Disguise()


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
            raise RepnoiseError(f"There is no attack {name!r}: choose from {', '.join(other_kinds()) or 'none'}.")
        attack = ATTACKS[name][1]
        # A fine-tuning has the field as well, but uses it for a model's own answers only.
        needs_base = hasattr(attack, "base") and getattr(attack, "trains_on", "own-answers") == "own-answers"
        if needs_base and not (base or at_home):
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
