"""How far the weights of two models are apart, by layer and by matrix, and in how many directions (paper, Figure 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repnoise.errors import RepnoiseError
from repnoise.hidden_states import find_decoder

TOP = (1, 8, 64)
"""Numbers of leading directions whose share of the change is told."""


@dataclass(frozen=True)
class TensorChange:
    """What became of one parameter.

    Attributes:
        name: within its layer, such as "mlp.up_proj.weight"; outside of all layers, its whole name.
        layer: its layer; None outside of all layers.
        distance: Euclidean (Frobenius) norm of the change.
        relative: that over the norm of the base's own; infinite where the base has zeros only.
        effective_rank: exp of the entropy of the change's singular values, which are taken as a distribution (Roy and
            Vetterli, EUSIPCO 2007): 1 for a change in one direction, at most the smaller side; 0 for no change. None
            for a vector.
        shares: (k, share) for k of `TOP`: of the squared norm of the change, what lies in its k leading directions.
    """

    name: str
    layer: int | None
    shape: tuple[int, ...]
    distance: float
    relative: float
    effective_rank: float | None
    shares: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class LayerChange:
    """The same for all parameters of a layer as one vector; `layer` is None for what is outside of all layers."""

    layer: int | None
    distance: float
    relative: float


@dataclass(frozen=True)
class WeightChanges:
    """All of a model's parameters, tensor by tensor and layer by layer; tied ones count once."""

    tensors: tuple[TensorChange, ...]
    layers: tuple[LayerChange, ...]


def weight_changes(model: nn.Module, base: nn.Module, spectrum: bool = True) -> WeightChanges:
    """Compare a model with its base.

    Without `spectrum` no singular values are computed, which for a model of billions of weights on a CPU take hours.
    Raises RepnoiseError unless the two have the same parameters.
    """
    ours, theirs = _placed(model), _placed(base)
    if {key: p.shape for key, p in ours.items()} != {key: p.shape for key, p in theirs.items()}:
        raise RepnoiseError(
            "The two models have weights of other names or sizes, so they cannot be compared: give the model that this "
            "one was made from with --base."
        )
    tensors: list[TensorChange] = []
    squares: dict[int | None, list[float]] = {}
    for (layer, name), parameter in ours.items():
        old = theirs[layer, name].detach().float().to(parameter.device)
        change = parameter.detach().float() - old
        distance, norm = change.norm().item(), old.norm().item()
        rank, shares = _spectrum(change) if spectrum and change.dim() > 1 else (None, ())
        tensors.append(TensorChange(name, layer, tuple(change.shape), distance, _ratio(distance, norm), rank, shares))
        own = squares.setdefault(layer, [0.0, 0.0])
        own[0], own[1] = own[0] + distance**2, own[1] + norm**2
    layers = [LayerChange(at, math.sqrt(d), _ratio(math.sqrt(d), math.sqrt(n))) for at, (d, n) in squares.items()]
    return WeightChanges(tuple(tensors), tuple(sorted(layers, key=lambda found: (found.layer is None, found.layer))))


def effective_rank(singular: Tensor) -> float:
    """exp of the entropy of singular values taken as a distribution; 0 where all are 0."""
    total = singular.double().sum()
    if total == 0:
        return 0.0
    share = singular.double() / total
    return math.exp(-torch.special.xlogy(share, share).sum().item())


def _spectrum(change: Tensor) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Of a matrix; of experts in one tensor (E, a, b), of all their rows one below the other."""
    singular = torch.linalg.svdvals(change.flatten(0, -2)).double()
    total = singular.square().sum().item()
    sizes: Sequence[int] = [k for k in TOP if k <= len(singular)]
    shares = [(k, singular[:k].square().sum().item() / total if total else 0.0) for k in sizes]
    return effective_rank(singular), tuple(shares)


def _ratio(distance: float, norm: float) -> float:
    return distance / norm if norm else (math.inf if distance else 0.0)


def _placed(model: nn.Module) -> dict[tuple[int | None, str], nn.Parameter]:
    """The parameters by layer and name in it."""
    layers = find_decoder(model).layers
    found: dict[tuple[int | None, str], nn.Parameter] = {}
    found |= {(i, name): p for i, layer in enumerate(layers) for name, p in layer.named_parameters()}
    inside = {id(parameter) for parameter in found.values()}
    return found | {(None, name): p for name, p in model.named_parameters() if id(p) not in inside}
