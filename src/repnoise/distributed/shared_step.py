"""What several processes call in place of the objective, and how they draw different random numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repnoise.distributed.pooling import pooled
from repnoise.distributed.processes import Share
from repnoise.distributed.sharding import shard
from repnoise.optimisation import Training

Objective = Callable[[nn.Module, Any], tuple[Tensor, dict[str, Tensor]]]
"""(model, batch) to the scalar to minimise and its detached terms."""


def draw_apart(training: Training, share: Share, checkpoint: Path | None) -> None:
    """Different random numbers for the losses of different processes; a checkpoint of as many replaces them."""
    if share.processes > 1 and not share.pooled:
        steps = int(checkpoint.name.split("-")[1]) if checkpoint else 0
        torch.manual_seed(training.seed + 2**32 * (1 + torch.distributed.get_rank() + share.processes * steps))


class _Step(nn.Module):
    """The whole objective as the forward pass of one module: what wraps it sees all uses of weights, the lens' too."""

    def __init__(self, objective: Objective, model: nn.Module, share: Share) -> None:
        super().__init__()
        self.model, self.objective, self.share = model, objective, share

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        with pooled(self.share.pooled):
            return self.objective(self.model, batch)


def shared_step(objective: Objective, model: nn.Module, share: Share) -> nn.Module | None:
    """What several processes call in place of the objective."""
    if share.processes == 1:
        return None
    step = _Step(objective, model, share)
    if share.sharded:
        shard(step, model)
    return step
