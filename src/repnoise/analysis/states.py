"""What flows in a model while it reads given examples: a batch at a time, never all tokens of all examples at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repnoise.data.tokenization import Row, right_padded
from repnoise.hidden_states import Site, captured, fill, find_decoder
from repnoise.losses import IGNORE
from repnoise.modeling import LoadedModel

ROWS = 32
"""Rows of a batch: of a model of 32 layers and width 4,096 with 256 tokens a row, 4 GiB of states in fp32."""


@dataclass(frozen=True)
class Seen:
    """What one batch brought.

    Attributes:
        places: which of the rows are in it, by index.
        inputs: `input_ids`, `attention_mask` and `labels`, each (B, T).
        states: by layer, (B, T, D).
    """

    places: list[int]
    inputs: dict[str, Tensor]
    states: dict[int, Tensor]

    @property
    def completion(self) -> Tensor:
        """Where the completion's own tokens are, (B, T)."""
        return self.inputs["labels"] != IGNORE


@contextmanager
def reading(loaded: LoadedModel) -> Iterator[Any]:
    """The model without dropout, put back as it was at the end."""
    was_training = loaded.model.training
    loaded.model.eval()
    try:
        yield loaded.model
    finally:
        loaded.model.train(was_training)


def batches(loaded: LoadedModel, rows: Sequence[Row]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Indices and padded inputs of each batch, longest rows first, so that batches hold little padding."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
    for start in range(0, len(order), ROWS):
        places = order[start : start + ROWS]
        inputs = right_padded([rows[i] for i in places], loaded.tokenizer.pad_token_id)
        yield places, {name: tensor.to(loaded.model.device) for name, tensor in inputs.items()}


def streamed(
    loaded: LoadedModel, rows: Sequence[Row], layers: Sequence[int], site: Site = "residual"
) -> Iterator[Seen]:
    """Each batch with the activations at `site` of the layers; whoever asks for the next one has let go of the last."""
    modules = find_decoder(loaded.model).modules_at(site, layers)
    for places, inputs in batches(loaded, rows):
        with reading(loaded) as model, torch.no_grad(), captured(modules, rows=len(places)) as states:
            fill(model, inputs["input_ids"], inputs["attention_mask"])
        yield Seen(places, inputs, dict(zip(layers, states, strict=True)))


def example_means(
    loaded: LoadedModel, rows: Sequence[Row], layers: Sequence[int] | None = None, site: Site = "residual"
) -> Tensor:
    """The mean over the completion's tokens of each example, (n, L, D) in fp32 on the CPU.

    A row that has no completion token has zeros.
    """
    chosen = find_decoder(loaded.model).choose(layers)
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for seen in streamed(loaded, rows, chosen, site):
        mask = seen.completion[..., None]
        # where(), not a product: a state at padding may be infinite or NaN.
        sums = [state.float().where(mask, 0).sum(1) for state in seen.states.values()]
        means = torch.stack(sums, 1) / mask.sum(1).clamp_min(1)[:, None]
        for place, mean in zip(seen.places, means.cpu(), strict=True):
            found[place] = mean
    return torch.stack(found)


def sampled_tokens(
    loaded: LoadedModel,
    rows: Sequence[Row],
    count: int,
    layers: Sequence[int] | None = None,
    site: Site = "residual",
    seed: int = 0,
) -> Tensor:
    """Activations of `count` completion tokens of all the rows, drawn without replacement, (L, count, D) in fp32 on the
    CPU. Fewer where there are not so many; the same tokens in every layer, and in every model with the seed."""
    chosen = find_decoder(loaded.model).choose(layers)
    there = [(i, t) for i, row in enumerate(rows) for t, label in enumerate(row["labels"]) if label != IGNORE]
    drawn = torch.randperm(len(there), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    wanted: dict[int, list[tuple[int, int]]] = {}
    for position, token in enumerate(drawn):
        row, t = there[token]
        wanted.setdefault(row, []).append((t, position))
    found: list[Tensor] = [torch.empty(0)] * len(drawn)
    # Rows of which no token was drawn need not be read.
    kept = sorted(wanted)
    for seen in streamed(loaded, [rows[i] for i in kept], chosen, site):
        for b, place in enumerate(seen.places):
            for t, position in wanted[kept[place]]:
                found[position] = torch.stack([state[b, t].float().cpu() for state in seen.states.values()])
    return torch.stack(found, 1)
