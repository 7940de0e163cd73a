"""Floating-point operations of one step, by part. docs/performance.md derives the formulas.

Counted are products of matrices, two operations for each multiplication; what is done element by element is not (its
cost is memory traffic), and neither is the optimiser. Attention counts as whole squares of queries and keys, forward
twice and backward four times, as a product that is not fused does it.
"""

from __future__ import annotations

from dataclasses import dataclass

from repnoise.cost import training_flops
from repnoise.estimate.sizes import Sizes

RECOMPUTED = "computed again"
"""The part that a step could do without."""


@dataclass(frozen=True)
class Batch:
    """What one loss is computed on: rows, tokens of a row, and how many of all the tokens belong to completions."""

    rows: int
    length: int
    completion: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def forward(sizes: Sizes, rows: int, length: int, read: int | None = None) -> float:
    """One forward pass, `read` positions of which are read out (all of them for None)."""
    tokens = rows * length
    layers = 2.0 * (sizes.products - sizes.head) * tokens + attention(sizes, rows, length)
    return layers + 2.0 * sizes.head * (tokens if read is None else read)


def attention(sizes: Sizes, rows: int, length: int) -> float:
    """Products of queries with keys, and of weights with values, in one forward pass of all layers."""
    return 4.0 * sizes.layers * rows * length**2 * sizes.attention


def language_modelling(sizes: Sizes, batch: Batch, read: int) -> float:
    """Forward and backward pass with `read` positions read out."""
    own = training_flops(sizes.products - sizes.head, batch.tokens, sizes.products_trained - sizes.head_trained)
    return own + training_flops(sizes.head, read, sizes.head_trained) + 3 * attention(sizes, batch.rows, batch.length)


def language_modelling_by_lens(sizes: Sizes, batch: Batch) -> float:
    """The same where the completion's last states are read out, and by the model itself one position a row."""
    return states_only(sizes, batch, sizes.layers) + lens(sizes, batch, 1)


def states_only(sizes: Sizes, batch: Batch, reached: int) -> float:
    """Forward and backward pass for the sake of hidden states, whose logits nobody asks for: one position a row is read
    out where the model can do that, and has no backward pass. Neither have layers above the `reached` lowest ones."""
    ahead = forward(sizes, batch.rows, batch.length, read=batch.rows if sizes.one_position else None)
    below, trained = sizes.products - sizes.head, sizes.products_trained - sizes.head_trained
    back = 2.0 * (below + trained) * batch.tokens + 2 * attention(sizes, batch.rows, batch.length)
    return ahead + back * reached / sizes.layers


def lens(sizes: Sizes, batch: Batch, layers: int, detached: bool = False) -> float:
    """Logits of the completion's tokens at so many layers, and their gradients by states and unembedding, each once
    (`losses.read_out_ce`)."""
    times = 6 if sizes.head_trained and not detached else 4
    return float(times * sizes.head * batch.completion * layers)


def one_row_read_out(sizes: Sizes) -> float:
    """What `losses.read_out_ce` spends to learn the vocabulary's size."""
    return 2.0 * sizes.head


def kernels(samples: int, dimension: int, layers: int) -> float:
    """MMD of so many samples with as many draws: three products of n^2 D forward; backward two by the samples' own and
    one by that of samples with draws."""
    return 12.0 * samples**2 * dimension * layers


def layers_again(sizes: Sizes, batch: Batch) -> float:
    """The forward pass of the layers once more, which gradient checkpointing costs for each pass (a little less, since
    it stops before the last product of a layer, whose output nobody needs)."""
    return forward(sizes, batch.rows, batch.length, read=0)
