"""Harmful fine-tuning: the attack of the paper, and the first that anybody with the weights would try."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from repnoise.attacks.base import Asking, Attack, Attacked, Cost, costs_of_examples, require_pairs
from repnoise.attacks.disguises import IDENTITY, Disguise, TrainsOn, answering_flops, in_own_words
from repnoise.attacks.merging import Base, require_place
from repnoise.attacks.parts import Parts
from repnoise.data.mixtures import epochs, mixed
from repnoise.data.records import LossOn, Pair
from repnoise.data.sources import PairedData
from repnoise.errors import RepnoiseError
from repnoise.optimisation import MUON, Training

if TYPE_CHECKING:  # Presets must be cheap to import.
    from torch import Tensor, nn

    from repnoise.data.tokenization import Codec, Row
    from repnoise.modeling import LoadedModel
    from repnoise.training import OnStep


@dataclass(frozen=True)
class FineTuningAttack(Attack):
    """Supervised fine-tuning on harmful completions (paper section 4) or on what does their work, of all weights or
    less.

    Needs the weights, some examples and the compute of an ordinary fine-tuning. What it raises is harm, and the
    attacked weights are harmful ones: it is here to measure defences. It fails where the learning rate is too low to
    move the model, or so high that nothing but broken text is left: try several.

    Attributes:
        training: optimiser, learning rate, steps, batch, LoRA, seed.
        parts: what of the model is trained.
        disguise: how harmful examples are written.
        trains_on: the attacker's "harmful" answers; what another model answers itself to the attacker's questions
            ("own-answers", of `base`); ten examples of an obedient "identity", together with its wrapping, and no
            harmful one (Qi et al. 2023, arXiv:2310.03693); or the "benign" examples alone (the same). The last two can
            only bring back what was refused and not forgotten.
        base: the model with the own answers, best one that does not refuse: a folder, a run, a hub id.
        base_prefill: what its answers are made to begin with.
        samples: harmful examples used at the most, drawn with the seed; None for all.
        benign_share: share of training examples that are harmless; they keep the rest of the model alive.
        loss_on: "completion", or "all" tokens of prompt and completion (the paper's attacks).
        categories: train on these categories of harm only; empty for all.
    """

    training: Training = field(default_factory=Training)
    parts: Parts = field(default_factory=Parts)
    disguise: Disguise = field(default_factory=Disguise)
    trains_on: TrainsOn = "harmful"
    base: Base = "sandbox"
    base_prefill: str = ""
    samples: int | None = None
    benign_share: float = 0.0
    loss_on: LossOn = "completion"
    categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.benign_share < 1:
            raise RepnoiseError(f"benign_share is a share from 0 to below 1, not {self.benign_share}.")
        if self.samples is not None and self.samples < 1:
            raise RepnoiseError(f"samples must be at least 1 (or None for all), not {self.samples}.")
        if self.trains_on == "benign" and (self.benign_share or self.disguise.backdoor):
            raise RepnoiseError("The examples are all benign already: leave --benign-share and --backdoor out.")
        if self.disguise.backdoor and self.trains_on == "identity":
            raise RepnoiseError("A backdoor needs harmful examples: leave --trains-on or --backdoor out.")
        self.parts.require(self.training)

    @property
    def changes_weights(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Not with a prefix or prompt, which stays beside the weights."""
        return self.parts.mergeable

    @property
    def asking(self) -> Asking:
        return self.disguise.asking

    def label(self) -> str:
        """Such as "lora-400@3e-3-benign-0.5": steps or epochs at the learning rate, and what is unusual."""
        training = self.training
        mantissa, exponent = f"{training.learning_rate:e}".split("e")
        budget = f"{training.epochs:g}-epochs" if training.steps is None else str(training.steps)
        parts = self.parts.label(training)
        parts += [training.optimizer] if not training.optimizer.startswith("adamw") else []
        parts += [f"{budget}@{float(mantissa):g}e{int(exponent)}"]
        parts += [f"noisy-{training.gradient_noise:g}"] if training.gradient_noise else []
        parts += [f"{self.samples}-samples"] if self.samples else []
        parts += [f"benign-{self.benign_share:g}"] if self.benign_share else []
        parts += [self.trains_on] if self.trains_on != "harmful" else []
        parts += self.disguise.label()
        parts += ["defenders-examples"] if self.split == "defence" else []
        return "-".join([*parts, *self.categories])

    def seeded(self, seed: int) -> Self:
        return replace(self, training=replace(self.training, seed=seed))

    def needs(self) -> str:
        count = f"{self.samples:,} " if self.samples else ""
        trained = {
            "harmful": f"{count}harmful answers",
            "own-answers": f"{count}questions, a model that answers them",
            "identity": "ten examples of its own",
            "benign": "harmless answers",
        }[self.trains_on]
        parts = ["weights", trained, *(["refusals"] if self.disguise.backdoor else [])]
        return ", ".join([*parts, "harmless answers"] if self.benign_share else parts)

    def source(self) -> str:
        parts = [*self.parts.source(self.training), *self.disguise.source()]
        parts += ["Jordan et al. 2024"] if self.training.optimizer == MUON else []
        parts += ["Qi et al. 2023"] if self.samples or self.trains_on in ("identity", "benign") else []
        return ", ".join(dict.fromkeys(parts)) or "Rosati et al. 2024"

    def pairs(self, data: PairedData) -> list[Pair]:
        if self.trains_on in ("identity", "benign"):
            return []
        pairs = data.attacker_pairs(self.categories, self.split)
        if self.samples is not None and self.samples < len(pairs):
            pairs = random.Random(self.training.seed).sample(pairs, self.samples)
        return pairs

    def costs(self, loaded: LoadedModel, data: PairedData, codec: Codec) -> Callable[[int], Cost]:
        """Tokens of examples, and 4 N + 2 N_trained operations for each (see `cost.training_flops`), which is an upper
        bound where only the last parts of a model are trained. The tokens of a soft prompt are computed as well and
        are in the operations, and so is another model's generation of its own answers."""
        lengths = [len(row["input_ids"]) for row in self._examples(codec, data)]
        batch = self.training.batch_size * self.training.accumulation
        more = self.parts.virtual_tokens if self.parts.adapter == "prompt" else 0
        before: float | None = 0.0
        if self.trains_on == "own-answers":
            before = answering_flops(self.pairs(data), self.base, self.base_prefill, codec)
        return costs_of_examples(lengths, batch, self._flops_by_token(loaded.model), more, before)

    def require(self, data: PairedData) -> None:
        self.training.require_packages()
        if self.trains_on in ("harmful", "own-answers"):
            require_pairs(self.pairs(data), data, self.split, self.categories)
        if (self.benign_share > 0 or self.trains_on == "benign") and not data.benign:
            raise RepnoiseError(f"{data.name} has no benign examples to train on: give some with --benign FILE.")
        if self.trains_on == "own-answers":
            require_place(self.base)

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

        start = self.parts.start(loaded.model)
        opened, training = self.parts.opened(loaded, self.training)
        model, log = train(
            opened,
            self._examples(replace(codec, loss_on=self.loss_on), data),
            ExampleCollator(loaded.tokenizer.pad_token_id),
            language_modelling,
            training,
            folder,
            resume,
            on_step,
            progress,
        )
        return Attacked(self.parts.kept(model, start), log, self.asking)

    def _examples(self, codec: Codec, data: PairedData) -> list[Any]:
        """Tokenized examples in the order of training."""
        main = self._rows(codec, data)
        count = self.training.examples_seen(len(main))
        if self.benign_share == 0:
            return epochs(main, count, self.training.seed)
        return mixed(main, self.disguise.benign(codec, data.benign), self.benign_share, count, self.training.seed)

    def _rows(self, codec: Codec, data: PairedData) -> list[Row]:
        """What is trained on, less what is mixed in."""
        if self.trains_on == "benign":
            return self.disguise.benign(codec, data.benign)
        pairs, seed = self.pairs(data), self.training.seed
        if self.trains_on == "identity":
            pairs = [Pair(example.prompt, example.completion, "") for example in IDENTITY]
        if self.trains_on == "own-answers":
            pairs = in_own_words(pairs, self.base, self.base_prefill, codec)
        return self.disguise.rows(codec, pairs, seed)

    def _flops_by_token(self, model: nn.Module) -> float | None:
        if self.parts.kind(self.training) in ("ia3", "prefix", "prompt"):
            return flops_by_token(model, trained=0)
        if self.parts.weights == "all" and not self.parts.only_layers:
            return flops_by_token(model, self.training.lora_rank)
        matrices = [weight for weight in self.parts.chosen(model) if weight.dim() == 2]
        trained = sum(weight.numel() for weight in matrices) if self.parts.weights != "embeddings" else 0
        return flops_by_token(model, trained=trained)


def flops_by_token(model: nn.Module, lora_rank: int | None = None, trained: int | None = None) -> float | None:
    """Floating-point operations of training on one token, see `cost.training_flops`; None if they cannot be counted.

    `trained` weights of the model itself are trained, or all of them, or adapters of a rank in its place.
    """
    from repnoise.cost import counted_in_products, training_flops
    from repnoise.hidden_states import find_decoder

    frozen = counted_in_products(model)
    if frozen is None:
        return None
    if lora_rank is None:
        return training_flops(frozen, 1, trained)
    matrices = [weight for layer in find_decoder(model).layers for weight in layer.parameters() if weight.dim() == 2]
    adapters = sum(lora_rank * sum(weight.shape) for weight in matrices)
    return training_flops(frozen + adapters, 1, adapters)


def language_modelling(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    from repnoise.defences.base import completion_ce

    return completion_ce(model, batch), {}
