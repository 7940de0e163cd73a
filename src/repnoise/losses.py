"""The mathematics of the objective on plain tensors: no model, no trainer.

Notation: B rows, T tokens a row, D width, V vocabulary, N completion tokens of a batch, n samples of a kernel estimate.
Labels are token ids aligned with the input, -100 where a token is not to be predicted (prompt and padding).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
KERNEL_MULTIPLIERS = (0.25, 0.5, 1.0, 2.0, 4.0)
LOGITS_AT_ONCE, ROWS_AT_ONCE = 2**23, 512
"""What may exist at one time in `read_out_ce`: so many logits (32 MiB in fp32), or those of so many states where that
is more. With fewer states, adding up the unembedding's gradient would take longer than making it."""


def next_token(labels: Tensor) -> Tensor:
    """What position t has to predict: the labels (B, T) moved one to the left, the last column ignored."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE)


def causal_ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the labelled tokens, as a scalar in fp32.

    `logits` (B, T, V), `labels` (B, T). Labels are masked, never logits, so the first completion token (predicted from
    the last prompt token) counts like any other and so does token id 0. No labelled token at all gives NaN.
    """
    return token_ce(logits, next_token(labels))


def token_ce(logits: Tensor, targets: Tensor) -> Tensor:
    """The same where position t of `targets` (B, T) is what position t of `logits` (B, T, V) has to predict."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE)


def read_out_ce(read_out: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of `targets` (N,) under `read_out(states)`, where `states` is (N, D).

    `read_out` maps (n, D) to logits (n, V) with weights that are leaves of the graph. Where there are more states than
    `rows_at_once`, logits are made a chunk of that size at a time and once only: their gradient by states and weights
    is taken while they are there, so there is none of second order. The bound holds for one call: concatenate the
    states of several layers instead of calling it for each.
    """
    # One row tells the vocabulary's size, and its graph the weights.
    row = read_out(states[:1].detach())
    rows = rows_at_once(row.shape[-1])
    if len(states) <= rows:
        return F.cross_entropy(read_out(states).float(), targets, reduction="sum") / len(states)
    if torch.is_grad_enabled():
        total = _ReadOutCE.apply(read_out, rows, targets, states, *_leaves(row))
    else:
        chunks = zip(states.split(rows), targets.split(rows), strict=True)
        total = torch.stack([_ce_with_slope(read_out(x), y)[0] for x, y in chunks]).sum()
    return total / len(states)  # type: ignore[operator]


def rows_at_once(vocabulary: int) -> int:
    """How many states are read out at one time where a state has so many logits."""
    return max(1, ROWS_AT_ONCE, LOGITS_AT_ONCE // vocabulary)


class _ReadOutCE(torch.autograd.Function):
    """The summed cross-entropy of states (N, D) a chunk of rows at a time, and its gradient in the same go.

    Kept for the backward pass is what has the size of states and weights, and nothing of the size of logits.
    """

    @staticmethod
    def forward(
        ctx: Any, read_out: Callable[[Tensor], Tensor], rows: int, targets: Tensor, states: Tensor, *weights: Tensor
    ) -> Tensor:
        by_states, by_weights = torch.empty_like(states), [torch.zeros_like(weight) for weight in weights]

        def chunk(x: Tensor, ids: Tensor, by_x: Tensor) -> Tensor:
            """What it makes is gone before the next chunk is begun."""
            x = x.detach().requires_grad_()
            with torch.enable_grad():
                logits = read_out(x.view_as(x))  # Hooks of modules may not have a leaf as input.
            loss, slope = _ce_with_slope(logits.detach(), ids)
            found, *others = torch.autograd.grad(logits, (x, *weights), slope)
            by_x.copy_(found)
            for total, part in zip(by_weights, others, strict=True):
                total += part
            return loss

        chunks = zip(states.split(rows), targets.split(rows), by_states.split(rows), strict=True)
        losses = [chunk(*parts) for parts in chunks]
        ctx.save_for_backward(by_states, *by_weights)
        return torch.stack(losses).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(upstream[0] * gradient for gradient in ctx.saved_tensors)


def _ce_with_slope(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy (in at least fp32) and its derivative by the logits (n, V), with one more copy of them."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    top = wide.amax(-1, keepdim=True)
    slope = (wide - top).exp_()
    mass = slope.sum(-1, keepdim=True)
    loss = (mass.log() + top - wide.gather(-1, targets[:, None])).sum()
    slope /= mass
    slope.scatter_add_(-1, targets[:, None], slope.new_full((len(targets), 1), -1))
    return loss, slope.to(logits.dtype)


def _leaves(output: Tensor) -> list[Tensor]:
    """The leaves with a gradient that a tensor was made from."""
    found, seen = [], set()
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found.append(leaf)
        waiting += [following for following, _ in node.next_functions]
    return found


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """All squared Euclidean distances (n, m) between the rows of `x` (n, D) and of `y` (m, D), through one product.

    The cancellation in ||a||^2 + ||b||^2 - 2ab is small where the rows lie about the origin: centre them first.
    """
    return (x.square().sum(-1)[:, None] + y.square().sum(-1)[None, :] - 2 * (x @ y.T)).clamp_min(0)


def mmd2(x: Tensor, y: Tensor, multipliers: Sequence[float] = KERNEL_MULTIPLIERS, unbiased: bool = False) -> Tensor:
    """Squared maximum mean discrepancy between samples `x` (n, D) and `y` (m, D), a scalar in at least fp32.

    The kernel is the sum over `multipliers` of exp(-||a - b||^2 / (multiplier * bandwidth)), the bandwidth being the
    detached mean of all squared distances between different samples of both sets (paper section 3, after Wang et al.
    2021). The default is the biased V-statistic of the paper: never negative, and about `mmd2_floor` when both samples
    come from one Gaussian. `unbiased` leaves out each sample's similarity with itself: zero in the mean then, at times
    negative; for analysis.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"MMD needs at least two samples on each side, got {n} and {m}.")
    if not x.dtype == y.dtype == torch.float64:
        x, y = x.float(), y.float()
    # Under autocast the products would run in 16 bits, whose rounding is larger than the distances' differences.
    with torch.autocast(x.device.type, enabled=False):
        centre = (x.detach().sum(0) + y.detach().sum(0)) / (n + m)
        x, y = x - centre, y - centre
        within_x, within_y, between = (
            squared_distances(x, x).fill_diagonal_(0),
            squared_distances(y, y).fill_diagonal_(0),
            squared_distances(x, y),
        )
        total = within_x.detach().sum() + within_y.detach().sum() + 2 * between.detach().sum()
        # Above 0 with room to spare, so that samples that are all equal have a gradient of 0 and not 0 * infinity.
        bandwidth = (total / ((n + m) * (n + m - 1))).clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
        similar_x, similar_y, similar = (
            _GaussianMixture.apply(distances / bandwidth, tuple(multipliers)).sum()  # type: ignore[union-attr]
            for distances in (within_x, within_y, between)
        )
    if not unbiased:
        return similar_x / n**2 + similar_y / m**2 - 2 * similar / (n * m)
    on_diagonal = len(multipliers)
    without_x = (similar_x - n * on_diagonal) / (n * (n - 1))
    without_y = (similar_y - m * on_diagonal) / (m * (m - 1))
    return without_x + without_y - 2 * similar / (n * m)


class _GaussianMixture(torch.autograd.Function):
    """The sum over m of exp(-r / m) for each r, and its derivative, in one go over the multipliers m.

    Autograd would keep a matrix of pairs for each multiplier; this keeps the one that holds the derivative.
    """

    @staticmethod
    def forward(ctx: Any, relative: Tensor, multipliers: tuple[float, ...]) -> Tensor:
        total = torch.zeros_like(relative)
        slope = torch.zeros_like(relative) if ctx.needs_input_grad[0] else None
        for multiplier in multipliers:
            gaussian = torch.exp(relative * (-1 / multiplier))
            total += gaussian
            if slope is not None:
                slope.add_(gaussian, alpha=-1 / multiplier)
        ctx.save_for_backward(*([] if slope is None else [slope]))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return gradients[0] * slope, None


def mmd2_floor(n: int, m: int, dimension: int, multipliers: Sequence[float] = KERNEL_MULTIPLIERS) -> float:
    """What the biased `mmd2` still shows when both samples come from one Gaussian in `dimension` dimensions.

    Each sample is perfectly similar to itself, which only the within-set means contain: the excess is
    (1/n + 1/m) (k(a, a) - E k(a, b)). With the bandwidth at its mean, ||a - b||^2 / bandwidth is chi-squared over its
    degrees of freedom, whose Laplace transform is (1 + 2 s / D)^(-D/2). For n = m and large D: 2 (5 - 1.907) / n.
    """
    half = dimension / 2
    similarity = sum(math.exp(-half * math.log1p(1 / (multiplier * half))) for multiplier in multipliers)
    return (1 / n + 1 / m) * (len(multipliers) - similarity)
