"""Muon for the matrices of a model's layers, AdamW for everything else, as one optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from repnoise.hidden_states import find_decoder


class MuonAndAdamW(torch.optim.Optimizer):
    """PyTorch's Muon (Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982) and its AdamW, each for its own weights.

    Muon makes the update of a matrix orthogonal, which has no meaning for vectors, and is known to hurt embeddings and
    unembeddings. Its updates are scaled to the size of AdamW's, so that one learning rate and one schedule do for both.
    """

    def __init__(self, matrices: Sequence[nn.Parameter], others: Sequence[nn.Parameter], lr: float, decay: float):
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts += [torch.optim.Muon(matrices, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")]
        # As Trainer does it, norms and biases do not decay.
        groups = [
            {"params": [weight for weight in others if weight.dim() > 1], "weight_decay": decay},
            {"params": [weight for weight in others if weight.dim() <= 1], "weight_decay": 0.0},
        ]
        if groups := [group for group in groups if group["params"]]:
            self.parts += [torch.optim.AdamW(groups, lr=lr)]
        # The groups are the parts' own: a schedule that changes them here changes them there.
        super().__init__([group for part in self.parts for group in part.param_groups], {"lr": lr})

    def step(self, closure: Any = None) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


class MuonFactory:
    """What transformers' Trainer calls for an optimiser that has to see the whole model.

    A prefix, a prompt and IA3's factors are no matrices of layers: with those adapters, all is AdamW.
    """

    def __call__(self, model: nn.Module, lr: float, decay: float) -> MuonAndAdamW:
        of_layers = {id(weight) for layer in find_decoder(model).layers for weight in layer.parameters()}
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        matrices = [weight for weight in trained if id(weight) in of_layers and _is_matrix(weight)]
        chosen = {id(weight) for weight in matrices}
        return MuonAndAdamW(matrices, [weight for weight in trained if id(weight) not in chosen], lr, decay)


def _is_matrix(weight: nn.Parameter) -> bool:
    """One row or one column, as IA3 has them, is a vector."""
    return weight.dim() == 2 and min(weight.shape) > 1
