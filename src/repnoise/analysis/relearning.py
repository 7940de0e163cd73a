"""How fast does harm come back through one layer? Each is trained alone on an attacker's examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from repnoise.analysis.patching import log_probability
from repnoise.analysis.states import batches
from repnoise.data.mixtures import epochs
from repnoise.data.tokenization import Row, right_padded
from repnoise.defences.base import completion_ce
from repnoise.hidden_states import find_decoder
from repnoise.modeling import LoadedModel
from repnoise.statistics import Interval, bootstrap_interval

BATCH, LEARNING_RATE = 16, 1e-3
"""Rows of a step, and the rate of AdamW, which does not depend on how many weights a layer has. One rate for every
layer and model: it is a probe and not the best attack."""


@dataclass(frozen=True)
class Relearning:
    """The log-probability of held-out harmful completions while single layers are trained on others.

    Attributes:
        layers: which one was trained; all others, embedding, final norm and unembedding stayed as they were.
        steps: after how many steps it was measured, 0 before the first.
        log_probability: by layer and step, the mean over examples of the mean log-probability of a token in nats.
        together: by step, with all layers trained at once.
    """

    layers: tuple[int, ...]
    steps: tuple[int, ...]
    log_probability: tuple[tuple[Interval, ...], ...]
    together: tuple[Interval, ...]


def relearning(
    loaded: LoadedModel,
    attacker: Sequence[Row],
    held_out: Sequence[Row],
    steps: int,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
) -> Relearning:
    """Train each layer alone, and all together, for so many steps on the same batches in the same order; the model is
    afterwards as it was. Measured are the start and three points, spread evenly over the logarithm of the steps."""
    loaded.model.eval()
    layers = find_decoder(loaded.model).layers
    marks = tuple(sorted({0, *(max(1, round(steps ** (third / 3))) for third in (1, 2, 3))}))
    order = epochs(list(attacker), steps * BATCH, seed)

    def curve(trained: Sequence[nn.Module]) -> tuple[Interval, ...]:
        found = []
        with only_trained(loaded.model, trained) as weights:
            optimizer = torch.optim.AdamW(weights, learning_rate, weight_decay=0.0)
            for step in range(steps + 1):
                if step in marks:
                    found.append(_measured(loaded, held_out))
                if step < steps:
                    _take(loaded, order[step * BATCH : (step + 1) * BATCH], optimizer)
        return tuple(found)

    alone = tuple(curve([layer]) for layer in layers)
    return Relearning(tuple(range(len(layers))), marks, alone, curve(layers))


@contextmanager
def only_trained(model: nn.Module, parts: Sequence[nn.Module]) -> Iterator[list[nn.Parameter]]:
    """Inside the block the weights of these parts alone are open for training, and given; after it they are what they
    were, and as open as they were."""
    weights = list({id(weight): weight for part in parts for weight in part.parameters()}.values())
    before = [weight.detach().clone() for weight in weights]
    opened = [(weight, weight.requires_grad) for weight in model.parameters()]
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield weights
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
                weight.grad = None
        for weight, was_open in opened:
            weight.requires_grad_(was_open)


def _take(loaded: LoadedModel, rows: Sequence[Row], optimizer: torch.optim.Optimizer) -> None:
    """One step, without dropout."""
    batch = right_padded(rows, loaded.tokenizer.pad_token_id)
    optimizer.zero_grad()
    completion_ce(loaded.model, {name: part.to(loaded.model.device) for name, part in batch.items()}).backward()
    optimizer.step()


def _measured(loaded: LoadedModel, rows: Sequence[Row]) -> Interval:
    found = torch.zeros(len(rows))
    for places, inputs in batches(loaded, rows):
        found[places] = log_probability(loaded, inputs)
    return bootstrap_interval(found.tolist())
