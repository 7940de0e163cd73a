"""Harmful fine-tuning: the attack of the paper, and the first that anybody with the weights would try."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from repnoise.attacks.base import Attack, Attacked, Cost
from repnoise.data.mixtures import epochs, mixed
from repnoise.data.records import AttackSplit, LossOn, Pair
from repnoise.data.sources import PairedData
from repnoise.errors import RepnoiseError
from repnoise.optimisation import Training

if TYPE_CHECKING:  # Presets must be cheap to import.
    from torch import Tensor, nn

    from repnoise.data.tokenization import Codec
    from repnoise.modeling import LoadedModel
    from repnoise.training import OnStep


@dataclass(frozen=True)
class FineTuningAttack(Attack):
    """Supervised fine-tuning on harmful completions (paper section 4), all weights or low-rank adapters.

    Needs the weights, some harmful answers and the compute of an ordinary fine-tuning.

    Attributes:
        training: optimiser, learning rate, steps, batch, LoRA, seed.
        samples: harmful examples used at the most, drawn with the seed; None for all.
        benign_share: share of training examples that are harmless; they keep the rest of the model alive.
        loss_on: "completion", or "all" tokens of prompt and completion (the paper's attacks).
        categories: train on these categories of harm only; empty for all.
        split: whose harmful examples: the attacker's own "attack" split, or the defender's (paper Tables 1 and 2).
    """

    training: Training = field(default_factory=Training)
    samples: int | None = None
    benign_share: float = 0.0
    loss_on: LossOn = "completion"
    categories: tuple[str, ...] = ()
    split: AttackSplit = "attack"

    def __post_init__(self) -> None:
        if not 0 <= self.benign_share < 1:
            raise RepnoiseError(f"benign_share is a share from 0 to below 1, not {self.benign_share}.")
        if self.samples is not None and self.samples < 1:
            raise RepnoiseError(f"samples must be at least 1 (or None for all), not {self.samples}.")

    def label(self) -> str:
        """Such as "lora-400@3e-3-benign-0.5": steps or epochs at the learning rate, and what is unusual."""
        training = self.training
        mantissa, exponent = f"{training.learning_rate:e}".split("e")
        budget = f"{training.epochs:g}-epochs" if training.steps is None else str(training.steps)
        parts = ["lora"] if training.lora_rank else []
        parts += [f"{budget}@{float(mantissa):g}e{int(exponent)}"]
        parts += [f"{self.samples}-samples"] if self.samples else []
        parts += [f"benign-{self.benign_share:g}"] if self.benign_share else []
        parts += ["defenders-examples"] if self.split == "defence" else []
        return "-".join([*parts, *self.categories])

    def seeded(self, seed: int) -> Self:
        return replace(self, training=replace(self.training, seed=seed))

    def pairs(self, data: PairedData) -> list[Pair]:
        pairs = data.attacker_pairs(self.categories, self.split)
        if self.samples is not None and self.samples < len(pairs):
            pairs = random.Random(self.training.seed).sample(pairs, self.samples)
        return pairs

    def costs(self, loaded: LoadedModel, data: PairedData, codec: Codec) -> Callable[[int], Cost]:
        lengths = [len(row["input_ids"]) for row in self._examples(codec, data)]
        batch = self.training.batch_size * self.training.accumulation
        flops = flops_by_token(loaded.model, self.training.lora_rank)

        def cost(step: int) -> Cost:
            seen = lengths[: step * batch]
            return Cost(step, len(seen), sum(seen), None if flops is None else flops * sum(seen))

        return cost

    def require(self, data: PairedData) -> None:
        self.training.require_trackers()
        if not self.pairs(data):
            which = f" of {', '.join(self.categories)}" if self.categories else ""
            raise RepnoiseError(f"{data.name} has no pairs{which} for the attacker: its {self.split} split has none.")
        if self.benign_share > 0 and not data.benign:
            raise RepnoiseError(f"{data.name} has no benign examples to mix in: give some with --benign FILE.")

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
        from repnoise.data.collators import ExampleCollator
        from repnoise.training import train

        model, log = train(
            loaded.model,
            self._examples(replace(codec, loss_on=self.loss_on), data),
            ExampleCollator(loaded.tokenizer.pad_token_id),
            language_modelling,
            self.training,
            folder,
            resume,
            on_step,
            progress,
        )
        return Attacked(model, log)

    def _examples(self, codec: Codec, data: PairedData) -> list[Any]:
        """Tokenized examples in the order of training."""
        harmful = [codec.row(pair.prompt, pair.harmful) for pair in self.pairs(data)]
        count = self.training.examples_seen(len(harmful))
        if self.benign_share == 0:
            return epochs(harmful, count, self.training.seed)
        benign = [codec.row(example.prompt, example.completion) for example in data.benign]
        return mixed(harmful, benign, self.benign_share, count, self.training.seed)


def flops_by_token(model: nn.Module, lora_rank: int | None = None) -> float | None:
    """Floating-point operations of training on one token, see `cost.training_flops`; None if they cannot be counted."""
    from repnoise.cost import parameters_in_products, training_flops
    from repnoise.hidden_states import find_decoder

    try:
        frozen = parameters_in_products(model)
    except RepnoiseError:
        return None
    if lora_rank is None:
        return training_flops(frozen, 1)
    matrices = [weight for layer in find_decoder(model).layers for weight in layer.parameters() if weight.dim() == 2]
    adapters = sum(lora_rank * sum(weight.shape) for weight in matrices)
    return training_flops(frozen + adapters, 1, adapters)


def language_modelling(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    from repnoise.defences.base import completion_ce

    return completion_ce(model, batch), {}
