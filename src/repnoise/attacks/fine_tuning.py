"""Harmful fine-tuning: the attack of the paper, and the first that anybody with the weights would try."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repnoise.attacks.base import Attack
from repnoise.data.mixtures import epochs, mixed
from repnoise.data.records import LossOn, TemplateName
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
        template: prompt template of the attacker; "auto" is the one that fits model and data.
        categories: train on these categories of harm only; empty for all.
        max_length: most tokens of an example.
        measure_at: steps after which harm is measured, beside the last; () for a curve of none.
    """

    training: Training = field(default_factory=Training)
    samples: int | None = None
    benign_share: float = 0.0
    loss_on: LossOn = "completion"
    template: TemplateName = "auto"
    categories: tuple[str, ...] = ()
    max_length: int = 256
    measure_at: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.benign_share < 1:
            raise RepnoiseError(f"benign_share is a share from 0 to below 1, not {self.benign_share}.")

    def apply(
        self,
        loaded: LoadedModel,
        data: PairedData,
        folder: Path,
        resume: bool = False,
        on_step: OnStep | None = None,
        progress: str | None = None,
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        from repnoise.data.collators import ExampleCollator
        from repnoise.data.tokenization import Codec, resolve_template
        from repnoise.training import train

        template = self.template if self.template != "auto" else data.template
        codec = Codec(
            loaded.tokenizer,
            resolve_template(template, loaded.tokenizer),
            min(self.max_length, loaded.context),
            self.loss_on,
        )
        return train(
            loaded.model,
            self._examples(codec, data),
            ExampleCollator(loaded.tokenizer.pad_token_id),
            _language_modelling,
            self.training,
            folder,
            resume,
            on_step,
            progress,
        )

    def _examples(self, codec: Codec, data: PairedData) -> list[Any]:
        """Tokenized examples in the order of training."""
        pairs = data.attacker_pairs(self.categories)
        if not pairs:
            raise RepnoiseError(f"{data.name} has no pairs for the attacker: its attack split is empty.")
        if self.samples is not None and self.samples < len(pairs):
            pairs = random.Random(self.training.seed).sample(pairs, self.samples)
        harmful = [codec.row(pair.prompt, pair.harmful) for pair in pairs]
        count = self.training.examples_seen(len(harmful))
        if self.benign_share == 0:
            return epochs(harmful, count, self.training.seed)
        if not data.benign:
            raise RepnoiseError(f"{data.name} has no benign examples to mix in: give some with --benign FILE.")
        benign = [codec.row(example.prompt, example.completion) for example in data.benign]
        return mixed(harmful, benign, self.benign_share, count, self.training.seed)


def _language_modelling(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    from repnoise.defences.base import completion_ce

    return completion_ce(model, batch), {}
