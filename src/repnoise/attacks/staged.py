"""Benign fine-tuning first, then harmful: a defended model that is put to use before it is attacked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from repnoise.attacks.base import Attack, Attacked, Cost
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.data.records import Pair
from repnoise.data.sources import PairedData
from repnoise.errors import RepnoiseError
from repnoise.optimisation import Training

if TYPE_CHECKING:  # Presets must be cheap to import.
    from torch import nn

    from repnoise.data.tokenization import Codec
    from repnoise.modeling import LoadedModel
    from repnoise.training import OnStep

Stage = Callable[[Any, Path, bool, "OnStep | None"], tuple["nn.Module", list[dict[str, Any]]]]
"""(model, folder, resume, on_step) to the trained model and its log, as `training.train` gives them."""


@dataclass(frozen=True)
class StagedAttack(Attack):
    """Fine-tuning on the attacker's benign examples, then on its harmful ones.

    The paper's defence held less well once the model had been trained on a harmless task (Rosati et al. 2024,
    arXiv:2405.14577, Table 4: attacked after CACAPO, harmfulness 0.27, and 0.08 without it, Table 1). Ordinary training
    may undo a part of a defence, and whoever does it need not mean to. Give the task as --benign.

    Needs the weights, harmless examples of any kind, some harmful answers, and the compute of two fine-tunings. What it
    raises is harm: it is here to measure defences. Fails where the harmful stage alone does for want of steps or rate,
    and a long benign stage may cost knowledge that no later one brings back.

    Attributes:
        training: optimiser, learning rate, steps, batch, LoRA, seed of the harmful stage; but for the first two, of the
            benign one, too. With LoRA, each stage has adapters of its own.
        first_steps: optimiser steps of the benign stage.
        first_learning_rate: peak learning rate of the benign stage.
        samples: harmful examples used at the most, drawn with the seed; None for all.
    """

    training: Training = field(default_factory=Training)
    first_steps: int = 100
    first_learning_rate: float = 2e-5
    samples: int | None = None

    def __post_init__(self) -> None:
        if self.first_steps < 1:
            raise RepnoiseError(f"first_steps must be at least 1, not {self.first_steps}.")
        if self.first_learning_rate <= 0:
            raise RepnoiseError(f"first_learning_rate must be above 0, not {self.first_learning_rate}.")
        self._harmful()  # Tells what is wrong with `samples`.

    def label(self) -> str:
        """Such as "100@1e-3-benign-then-30@3e-4"."""
        return f"{self._benign().label()}-then-{self._harmful().label()}"

    def seeded(self, seed: int) -> Self:
        return replace(self, training=replace(self.training, seed=seed))

    def needs(self) -> str:
        return "weights, harmless and harmful answers"

    def source(self) -> str:
        return "Rosati et al. 2024"

    def pairs(self, data: PairedData) -> list[Pair]:
        return self._harmful().pairs(data)

    def require(self, data: PairedData) -> None:
        self._harmful().require(data)
        self._benign().require(data)

    def costs(self, loaded: LoadedModel, data: PairedData, codec: Codec) -> Callable[[int], Cost]:
        """Steps, samples, tokens and FLOPs of both stages together, each counted as for fine-tuning."""
        first, then = (stage.costs(loaded, data, codec) for stage in (self._benign(), self._harmful()))
        return lambda step: added(first(min(step, self.first_steps)), then(max(step - self.first_steps, 0)))

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
        benign = stage_of(self._benign(), loaded, data, codec, progress and f"{progress} (benign)")
        harmful = stage_of(self._harmful(), loaded, data, codec, progress)
        return Attacked(*in_stages([(self.first_steps, benign)], harmful, loaded.model, folder, resume, on_step))

    def _benign(self) -> FineTuningAttack:
        changes: dict[str, Any] = {"steps": self.first_steps, "learning_rate": self.first_learning_rate}
        return FineTuningAttack(training=replace(self.training, **changes, report_to=()), trains_on="benign")

    def _harmful(self) -> FineTuningAttack:
        return FineTuningAttack(training=self.training, samples=self.samples, split=self.split)


def added(first: Cost, then: Cost) -> Cost:
    """What two trainings cost together."""
    flops = None if first.flops is None or then.flops is None else first.flops + then.flops
    return Cost(first.steps + then.steps, first.samples + then.samples, first.tokens + then.tokens, flops)


def stage_of(attack: Attack, loaded: LoadedModel, data: PairedData, codec: Codec, progress: str | None = None) -> Stage:
    """An attack as a stage of another."""

    def stage(model: Any, folder: Path, resume: bool, on_step: OnStep | None) -> tuple[nn.Module, list[dict[str, Any]]]:
        found = attack.apply(replace(loaded, model=model), data, codec, folder, resume, on_step, progress)
        return found.model, found.log

    return stage


def in_stages(
    first: Sequence[tuple[int, Stage]], last: Stage, model: Any, folder: Path, resume: bool, on_step: OnStep | None
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Some stages, each with its number of steps, and a last one, as if they were one training: steps count on.

    Adapters of one stage are merged before the next. The last stage's checkpoints are in `folder` and those of the
    others in folders in it, so that an interrupted training goes on in the stage where it was.
    """
    from repnoise.modeling import merged

    done, log = 0, []
    for number, (steps, stage) in enumerate(first):
        model, rows = stage(model, folder / f"stage-{number}", resume, _counting_from(done, on_step))
        log += [row | {"step": row["step"] + done} for row in rows]
        model, done = merged(model), done + steps
    model, rows = last(model, folder, resume, _counting_from(done, on_step))
    with suppress(OSError):
        folder.rmdir()  # Without checkpoints it is empty.
    return model, log + [row | {"step": row["step"] + done} for row in rows]


def _counting_from(done: int, on_step: OnStep | None) -> OnStep | None:
    """`on_step` with the steps of the stages before; a later stage's step 0 was the last step of the one before."""
    if on_step is None or done == 0:
        return on_step
    return lambda step, model: on_step(done + step, model) if step else None
