"""Means and samples over the processes of a training, so that a batch that they share has the loss of one batch.

Outside `pooled`, and in one process, every function here returns what it was given. Inside, each process holds some
rows of a batch, and all of them compute the same loss of the whole batch; each knows its own part of the gradient. The
mean of these parts over processes, which every data-parallel wrapper takes, has to be the gradient, so each is
multiplied by the number of processes here. No backward pass communicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_POOLED: ContextVar[bool] = ContextVar("pooled", default=False)


@contextmanager
def pooled(wanted: bool) -> Iterator[None]:
    """Take the rows of all processes as one batch inside the block, where that is wanted."""
    token = _POOLED.set(wanted)
    try:
        yield
    finally:
        _POOLED.reset(token)


def pooled_mean(mean: Tensor, count: Callable[[], Tensor]) -> Tensor:
    """The mean over all processes of a mean (a scalar) that was taken over `count()` things here."""
    return _PooledMean.apply(mean, count()) if _POOLED.get() else mean  # type: ignore[return-value]


def pooled_rows(rows: Tensor) -> Tensor:
    """The rows (n, D) of all processes, in the order of their ranks, for rows (n_here, D) whose number may differ."""
    return _PooledRows.apply(rows) if _POOLED.get() else rows  # type: ignore[return-value]


def pooled_count(count: Tensor) -> int:
    """The sum of a count over processes."""
    return int(_summed(count) if _POOLED.get() else count)


def agreed(drawn: Tensor) -> Tensor:
    """What the first process drew at random, in place of what each drew itself."""
    if _POOLED.get():
        dist.broadcast(drawn, 0)
    return drawn


class _PooledMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, count: Tensor) -> Tensor:
        total, counted = _summed(torch.stack([mean.double() * count, count.double()]))
        ctx.share = (dist.get_world_size() * count / counted).to(mean.dtype)
        return (total / counted).to(mean.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0] * ctx.share, None


class _PooledRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rank, size = dist.get_rank(), dist.get_world_size()
        counts = [torch.zeros((), dtype=torch.int64, device=rows.device) for _ in range(size)]
        dist.all_gather(counts, torch.tensor(len(rows), device=rows.device))
        lengths = [int(count) for count in counts]
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(size)]
        dist.all_gather(parts, padded)
        ctx.start, ctx.end, ctx.size = sum(lengths[:rank]), sum(lengths[: rank + 1]), size
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        return upstream[0][ctx.start : ctx.end] * ctx.size


def _summed(value: Tensor) -> Tensor:
    dist.all_reduce(value)
    return value
