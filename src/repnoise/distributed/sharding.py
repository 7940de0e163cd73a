"""Weights divided among processes by PyTorch's FSDP2: cut up, put together again, and kept as checkpoints.

The root of what is sharded is the module whose forward pass is the whole objective, not the model: whatever the
objective reads outside of the model's own forward pass (the lens: final norm and unembedding) is there as long as that
pass lasts. Each decoder layer is gathered when it is needed and let go of afterwards; embeddings, final norm and
unembedding belong to the root and are gathered once a pass.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint.state_dict_loader as loader
import torch.distributed.checkpoint.state_dict_saver as saver
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from repnoise.distributed.processes import first
from repnoise.hidden_states import find_decoder

# What is frozen is as it was in the model that the training started from.
_OPTIONS = StateDictOptions(ignore_frozen_params=True, strict=False)


def shard(step: nn.Module, model: nn.Module) -> None:
    """Divide the weights of a decoder inside `step`, whose forward pass is the objective, among all processes."""
    for layer in find_decoder(model).layers:
        fully_shard(layer)
    fully_shard(step)


def without_weights(model: nn.Module) -> nn.Module:
    """A copy of a model with its buffers and, in place of weights, what only knows their shape."""
    shapes = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, dict(shapes))


def whole(model: nn.Module, shape: nn.Module, device: torch.device) -> nn.Module:
    """The sharded model in one piece, in the first process; in the others `shape`, which has no weights.

    All processes have to call it. Weights go through the CPU, one at a time.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    found = {}
    for name, value in model.state_dict().items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if first():
            found[name] = full.cpu()
    if not first():
        return shape
    shape.load_state_dict(found, assign=True)
    inner: Any = shape.get_base_model() if hasattr(shape, "get_base_model") else shape  # type: ignore[operator]
    inner.tie_weights()
    return shape.to(device)


def save_shards(model: nn.Module, optimizer: Any, folder: Path) -> None:
    """Write weights that are trained, and the optimiser to a folder; each process its own part."""
    weights, state = get_state_dict(model, optimizer.optimizer, options=_OPTIONS)
    saver.save({"weights": weights, "optimizer": state}, checkpoint_id=folder)


def load_shards(model: nn.Module, optimizer: Any, folder: Path) -> None:
    """Read them from a folder, whatever the number of processes that wrote them."""
    weights, state = get_state_dict(model, optimizer.optimizer, options=_OPTIONS)
    loader.load({"weights": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(model, optimizer.optimizer, model_state_dict=weights, optim_state_dict=state, options=_OPTIONS)
