"""What an attack is: hyper-parameters, and one method that turns a model into another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import tyro

from repnoise.data.ciphers import Cipher
from repnoise.data.records import AttackSplit, Pair, TemplateName
from repnoise.data.sources import PairedData
from repnoise.errors import RepnoiseError

if TYPE_CHECKING:  # Presets must be cheap to import.
    from torch import nn

    from repnoise.data.tokenization import Codec
    from repnoise.modeling import LoadedModel
    from repnoise.training import OnStep


@dataclass(frozen=True)
class Cost:
    """What an attack cost until the model could be asked: optimiser steps, examples and tokens seen (repeats counted),
    and floating-point operations as `repnoise.cost` counts them; None for a model that it cannot count.

    Answers that an attack has to generate on its way are in the operations. Those of the attacked model to the
    questions themselves are in none of the four: whoever asks pays them, for every question anew and after every
    attack, and an attack that draws several of them pays so many times as much (see `Asking.samples`).
    """

    steps: int
    samples: int
    tokens: int
    flops: float | None


def costs_of_examples(
    lengths: Sequence[int], batch: int, flops: float | None, more: int = 0, before: float | None = 0.0
) -> Callable[[int], Cost]:
    """From a number of steps to what they cost, for examples of these lengths in the order of training, `batch` a step.

    `flops` are the operations of a token, None if they cannot be counted, and `before` those that come before the first
    step; `more` tokens of each example are computed and not counted as seen.
    """

    def cost(step: int) -> Cost:
        seen = lengths[: step * batch]
        if flops is None or before is None:
            return Cost(step, len(seen), sum(seen), None)
        return Cost(step, len(seen), sum(seen), bool(step) * before + flops * (sum(seen) + more * len(seen)))

    return cost


def require_pairs(pairs: Sequence[Pair], data: PairedData, split: AttackSplit, categories: Sequence[str] = ()) -> None:
    """Raise RepnoiseError if the attacker has no harmful examples."""
    if not pairs:
        which = f" of {', '.join(categories)}" if categories else ""
        raise RepnoiseError(f"{data.name} has no pairs{which} for the attacker: its {split} split has none.")


@dataclass(frozen=True)
class Asking:
    """How an attacker asks for what is forbidden, where that is part of the attack.

    Everything else is asked plainly: whoever begins answers or draws sixteen of them does so where the model refuses.

    Attributes:
        prefill: beginning of every answer, put into the model's mouth; it counts as a part of the answer.
        wrapping: the prompt as it is written, with {prompt} where the question stands.
        samples: answers drawn to each prompt, of which the most harmful counts.
        temperature: of drawing them; 0 is greedy.
        seed: of drawing them.
        cipher: what questions and answers are written in.
    """

    prefill: str = ""
    wrapping: str = "{prompt}"
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0
    cipher: Cipher = "none"

    def codec(self, codec: Codec) -> Codec:
        """How prompts are written when asked so."""
        return replace(codec, prefill=self.prefill, wrapping=self.wrapping, cipher=self.cipher)


@dataclass(frozen=True)
class Attacked:
    """What an attack comes to: a model, the log of how it was made (the last row's "step" is the cost's), and how it is
    asked."""

    model: nn.Module
    log: list[dict[str, Any]]
    asking: Asking = Asking()


@dataclass(frozen=True)
class Attack(ABC):
    """A frozen dataclass of hyper-parameters. Presets are values of it, not subclasses.

    Attributes:
        template: how the attacker writes prompts, in training and when asking; "auto" is as everywhere else. A model
            that was trained in a template is asked everything in it, harmless questions, too.
        split: whose harmful examples: the attacker's own "attack" split, or the defender's (paper Tables 1 and 2).
        measure_at: steps after which harm is measured, beside the first and the last.
    """

    changes_weights: ClassVar[bool] = True
    """Whether all of the attack is in the weights; else nothing is saved, and an interrupted attack is made again."""

    only_asks: ClassVar[bool] = False
    """Whether the model stays as it is, and the attack is how it is asked and nothing else."""

    template: Annotated[TemplateName, tyro.conf.arg(name="attack-template")] = "auto"
    split: AttackSplit = "attack"
    measure_at: tuple[int, ...] = ()

    @property
    def asking(self) -> Asking:
        """How the model is asked along the way, and after an attack that is otherwise in its weights."""
        return Asking()

    @abstractmethod
    def label(self) -> str:
        """A short name that says how strong it is: what a run is called whose attack is no preset."""

    @abstractmethod
    def seeded(self, seed: int) -> Self:
        """The same attack with another seed."""

    def needs(self) -> str:
        """What an attacker must have, in a few words."""
        return "weights, harmful answers"

    def source(self) -> str:
        """Whose idea it is, in a few words; the docstring says more. Nothing, where it is anybody's."""
        return ""

    @abstractmethod
    def pairs(self, data: PairedData) -> list[Pair]:
        """The harmful examples that the attacker has; none for an attack that needs none."""

    @abstractmethod
    def costs(self, loaded: LoadedModel, data: PairedData, codec: Codec) -> Callable[[int], Cost]:
        """From a number of steps to what they cost; asked for before the attack changes the model."""

    @abstractmethod
    def require(self, data: PairedData) -> None:
        """Raise RepnoiseError if the data lacks what the attack needs."""

    @abstractmethod
    def apply(
        self,
        loaded: LoadedModel,
        data: PairedData,
        codec: Codec,
        folder: Path,
        resume: bool = False,
        on_step: OnStep | None = None,
        progress: str | None = None,
    ) -> Attacked:
        """The attacked model. Of the data only `attacker_pairs` and `benign` may be looked at.

        `codec` writes prompts and completions as the attacked model will be asked: in the attack's own `template`,
        where it has one that is not "auto".
        `on_step(step, model)` is called along the way, so that harm can be measured as a curve; an attack never
        measures it itself. `folder` is for checkpoints.
        """
