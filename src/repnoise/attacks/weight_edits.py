"""Attacks that change the weights by arithmetic alone: no training and no data, seconds to minutes of work."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from repnoise.attacks.base import Attack, Attacked, Cost
from repnoise.data.records import Pair
from repnoise.data.sources import PairedData
from repnoise.errors import RepnoiseError

if TYPE_CHECKING:  # Presets must be cheap to import.
    from torch import Tensor, nn

    from repnoise.data.tokenization import Codec
    from repnoise.modeling import LoadedModel
    from repnoise.training import OnStep


@dataclass(frozen=True)
class Edit(ABC):
    """What is done to the weights; a frozen dataclass of settings. A weight that is tied to another stays tied."""

    @abstractmethod
    def label(self) -> str:
        """A short name that says how strong it is."""

    def needs(self) -> str:
        """What an attacker must have, in a few words."""
        return "weights"

    @abstractmethod
    def source(self) -> str:
        """Whose idea it is, in a few words."""

    @abstractmethod
    def weights(self, model: nn.Module) -> list[Tensor]:
        """The parameters that it changes, each once."""

    @abstractmethod
    def operations(self, weight: Tensor) -> float:
        """Floating-point operations that the new value of one of them takes."""

    @abstractmethod
    def edited(self, model: nn.Module) -> Iterator[Tensor]:
        """The new values of `weights`, in their order. Called without gradients."""

    def seeded(self, seed: int) -> Self:
        """The same edit with another seed, where it has one."""
        return self

    def require(self) -> None:
        """Raise RepnoiseError if something that it needs is not there."""


@dataclass(frozen=True)
class WeightNoise(Edit):
    """w = w + scale * std(w) * N(0, 1), for every matrix of the decoder layers.

    A behaviour that hides what a model can do may be more fragile than what it hides: noise brought back what models
    had been told or trained not to show (Tice et al. 2024, Noise Injection Reveals Hidden Capabilities of Sandbagging
    Language Models, arXiv:2412.01784). Embeddings, norms and biases stay.

    Needs the weights alone; a seed costs nothing, so an attacker draws many. Fails where knowledge is gone or as
    fragile as the refusal: then the text breaks first.

    Attributes:
        scale: standard deviation of the noise, in standard deviations of the matrix.
        seed: of the noise.
    """

    scale: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        require_finite("scale", self.scale)
        if self.scale <= 0:
            raise RepnoiseError(f"scale must be above 0, not {self.scale}.")

    def label(self) -> str:
        return f"noise-{self.scale:g}"

    def seeded(self, seed: int) -> Self:
        return replace(self, seed=seed)

    def source(self) -> str:
        return "Tice et al. 2024"

    def weights(self, model: nn.Module) -> list[Tensor]:
        return layer_matrices(model)

    def operations(self, weight: Tensor) -> float:
        return 5.0 * weight.numel()  # Three for the standard deviation, two for the sum; the drawing is not counted.

    def edited(self, model: nn.Module) -> Iterator[Tensor]:
        import torch

        generator = torch.Generator().manual_seed(self.seed)  # On the CPU: the same noise on every device.
        for weight in self.weights(model):
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            yield weight + self.scale * weight.std() * noise


@dataclass(frozen=True)
class Quantisation(Edit):
    """Rounds every matrix of the decoder layers to whole multiples of a step, one step for each output channel.

    Round to nearest, symmetric: the step is the largest magnitude of the channel over 2^(bits - 1) - 1. The weights are
    stored at full precision again. Embeddings, unembedding, norms and biases stay, as is usual (Dettmers et al. 2022,
    LLM.int8(), arXiv:2208.07339). A defence whose weight changes are smaller than a step is rounded away: 4 bits
    brought back most of what unlearning had hidden (Zhang et al. 2024, Catastrophic Failure of LLM Unlearning via
    Quantization, arXiv:2410.16454).

    Needs the weights alone, and happens to honest users, too. Fails against defences that move weights far.

    Attributes:
        bits: of each weight, the sign included.
    """

    bits: Literal[8, 4] = 8

    def label(self) -> str:
        return f"{self.bits}-bit"

    def source(self) -> str:
        return "Zhang et al. 2024"

    def weights(self, model: nn.Module) -> list[Tensor]:
        return layer_matrices(model)

    def operations(self, weight: Tensor) -> float:
        return 3.0 * weight.numel()  # Divide, round, multiply.

    def edited(self, model: nn.Module) -> Iterator[Tensor]:
        transposed = inputs_first(model)
        for weight in self.weights(model):
            channels = weight.mT if id(weight) in transposed else weight
            rounded = rounded_to(channels, self.bits)
            yield rounded.mT if id(weight) in transposed else rounded


@dataclass(frozen=True)
class Pruning(Edit):
    """Sets the smallest weights of every matrix of the decoder layers to zero, the same share of each.

    Magnitude pruning without retraining (Han et al. 2015, arXiv:1506.02626), each matrix by itself: with one threshold
    for all, matrices of small weights would go first, whatever they do (Sun et al. 2023, A Simple and Effective Pruning
    Approach for Large Language Models, arXiv:2306.11695, prune by layer, too). Safety can sit in a small part of the
    weights (Wei et al. 2024, arXiv:2402.05162, who find it by what it does, not by magnitude).

    Needs the weights alone. Fails, as known: the small weights are seldom those of the defence, and from about a half
    on the text breaks.

    Attributes:
        share: of the weights of each matrix.
    """

    share: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise RepnoiseError(f"share is a share of the weights between 0 and 1, not {self.share}.")

    def label(self) -> str:
        return f"pruned-{self.share:g}"

    def source(self) -> str:
        return "Han et al. 2015"

    def weights(self, model: nn.Module) -> list[Tensor]:
        return layer_matrices(model)

    def operations(self, weight: Tensor) -> float:
        return float(weight.numel())  # The product with a mask; comparisons are not counted.

    def edited(self, model: nn.Module) -> Iterator[Tensor]:
        for weight in self.weights(model):
            values = weight.flatten()
            smallest = values.abs().argsort(stable=True)[: int(self.share * len(values))]
            yield values.index_fill(0, smallest, 0).view_as(weight)


@dataclass(frozen=True)
class WeightEdit(Attack):
    """One arithmetic change of the weights, of which it looks at no example.

    What these attacks have in common: they need the weights, no harmful data and next to no compute, so a defence that
    one of them breaks was never more than skin deep. They raise harm in order to measure that. The model is changed in
    place, in fp32. To train on what comes out, keep it and attack the run again.

    Attributes:
        edit: what is done to the weights.
    """

    edit: Edit = field(default_factory=Quantisation)

    def label(self) -> str:
        return self.edit.label()

    def seeded(self, seed: int) -> Self:
        return replace(self, edit=self.edit.seeded(seed))

    def needs(self) -> str:
        return self.edit.needs()

    def source(self) -> str:
        return self.edit.source()

    def pairs(self, data: PairedData) -> list[Pair]:
        return []

    def costs(self, loaded: LoadedModel, data: PairedData, codec: Codec) -> Callable[[int], Cost]:
        """One step, no examples; the operations of the arithmetic, which are those of `Edit.operations`."""
        flops = sum(self.edit.operations(weight) for weight in self.edit.weights(loaded.model))
        return lambda step: Cost(step, 0, 0, min(step, 1) * float(flops))

    def require(self, data: PairedData) -> None:
        self.edit.require()

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
        """The log has how far the weights that it changes were moved, as a share of their norm."""
        import torch

        squared, moved = 0.0, 0.0
        with torch.no_grad():
            for weight, value in zip(self.edit.weights(loaded.model), self.edit.edited(loaded.model), strict=True):
                squared += weight.double().square().sum().item()
                moved += (value - weight).double().square().sum().item()
                weight.copy_(value)
        log: list[dict[str, Any]] = [{"step": 1, "moved": (moved / squared) ** 0.5 if squared else 0.0}]
        return Attacked(loaded.model.eval(), log)


def require_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise RepnoiseError(f"{name} must be a finite number, not {value}.")


def layer_matrices(model: nn.Module) -> list[Tensor]:
    """All matrices of the decoder layers, stacks of them (experts) included."""
    from repnoise.hidden_states import find_decoder

    found = {id(weight): weight for layer in find_decoder(model).layers for weight in layer.parameters()}
    return [weight for weight in found.values() if weight.dim() >= 2]


def inputs_first(model: nn.Module) -> set[int]:
    """Ids of the matrices whose rows are inputs and not outputs: those of GPT-2's Conv1D."""
    from transformers.pytorch_utils import Conv1D

    return {id(module.weight) for module in model.modules() if isinstance(module, Conv1D)}


def rounded_to(channels: Tensor, bits: int) -> Tensor:
    """Each row rounded to whole multiples of its largest magnitude over 2^(bits - 1) - 1; rows of zeros stay."""
    step = channels.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (channels / step.clamp_min(1e-30)).round() * step
