"""What methods with inner steps need: gradients as tensors, and weights that may be moved and come back unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from repnoise.defences.base import Batch


def open_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The weights that are being trained: all that are not frozen, or the adapters."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gradients_of(value: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """The derivative of a scalar by each parameter, None where it does not depend on it; `.grad` is left alone."""
    return list(torch.autograd.grad(value, parameters, allow_unused=True))


def added(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    """The sum of two gradients, None standing for zero."""
    return new if old is None else old if new is None else old + new


def rows(batch: Batch, which: Any) -> dict[str, Tensor]:
    """Some rows of a batch, by a slice or by indices."""
    return {name: tensor[which] for name, tensor in batch.items()}


@contextmanager
def moved_for_a_while(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside the block weights and `.grad` may be changed at will; after it they are what they were, bit for bit.

    Backward passes of what is computed inside belong inside, too: checkpointed activations are made again from the
    weights of that moment. No graph made before may still be waiting for its backward pass, which a moved weight would
    spoil. Autocast keeps 16-bit copies of weights and would not see them move, so it keeps none inside.
    """
    kept = [(parameter.data, parameter.grad) for parameter in parameters]
    kind = parameters[0].device.type
    autocast = {"enabled": torch.is_autocast_enabled(kind), "dtype": torch.get_autocast_dtype(kind)}
    try:
        for parameter in parameters:
            parameter.data, parameter.grad = parameter.data.clone(), None
        with torch.autocast(kind, cache_enabled=False, **autocast):
            yield
    finally:
        for parameter, (weights, gradient) in zip(parameters, kept, strict=True):
            parameter.data, parameter.grad = weights, gradient
