"""Vaccine: refusals are learned under the perturbation of the hidden states that hurts them most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repnoise.defences.base import Batch, Defence, Terms, completion_ce, require_weights, with_gradient
from repnoise.hidden_states import find_decoder


@dataclass(frozen=True)
class Vaccine(Defence):
    """Train on refusals while the attention outputs of all layers are pushed to where the loss is highest.

        loss = CE(harmless; e_l + eps_l) + retain_weight * CE(retain),   eps_l = rho * g_l / ||(g_1, ..., g_L)||

    e_l (B, T, D) is what the attention of layer l adds to the residual stream, g_l the gradient of CE(harmless) by it
    in a first pass, and the norm is over all layers, tokens and rows of the batch together. The second pass, under eps,
    makes the gradient of the weights; eps counts as constant in it (as in sharpness-aware minimisation).

    Source: Huang, Hu and Liu, NeurIPS 2024, arXiv:2402.01109, and their code (git-disl/Vaccine), which hooks the
    attention modules, as here. It aligns a base model with LoRA on refusals alone, no harmful completion is used, and
    the perturbation stands for the drift of hidden states that later harmful data cause. Rosati et al. 2024
    (arXiv:2405.14577) report rho 1 and 10, but their code applies the rule to the harmful fine-tuning batch, as if the
    attacker trained so; their numbers (0.28 to 0.76, no better than undefended) say little about the method.
    General harmless data are not perturbed.

    Threat model: fine-tuning as a service with a share of harmful data; the defender aligns before. Known to fail
    against harmful data alone, and a large rho costs ordinary ability. The size of eps is that of a whole batch: with a
    larger batch, or longer completions, each token gets less of it.

    Two forward and backward passes a step (the first by activations only), three with general harmless data.

    Attributes:
        perturbation_radius: rho, the Euclidean norm of the perturbation over all layers and the whole batch.
        retain_weight: weight of the general harmless data; the paper has none.
    """

    perturbation_radius: float = 1.0
    retain_weight: float = 4.0

    def __post_init__(self) -> None:
        require_weights(perturbation_radius=self.perturbation_radius, retain_weight=self.retain_weight)

    def loss(
        self, model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
    ) -> tuple[Tensor, Terms]:
        decoder = find_decoder(model)
        attention = decoder.modules_at("attention", range(len(decoder.layers)))
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        stability, gradients = gradient_by_outputs(model, harmless, attention)
        loss = ce_under(model, harmless, attention, scaled(gradients, self.perturbation_radius), weights)
        terms = {"stability": stability, "perturbed": loss}
        if retain is not None and self.retain_weight > 0:
            terms["retain"] = completion_ce(model, retain)
            loss = loss + self.retain_weight * terms["retain"]
        return loss, {name: term.detach() for name, term in terms.items()}


def gradient_by_outputs(model: nn.Module, batch: Batch, modules: Sequence[nn.Module]) -> tuple[Tensor, list[Tensor]]:
    """The cross-entropy of the completions, and its gradient (B, T, D) by the output of each module."""
    with shifted(modules, [None] * len(modules)) as shifts:
        ce = completion_ce(model, batch)
        gradients = torch.autograd.grad(ce, shifts)
    return ce.detach(), list(gradients)


def scaled(gradients: Sequence[Tensor], radius: float) -> list[Tensor]:
    """The gradients with the Euclidean norm of all together being `radius`; where they are 0, they stay so."""
    norm = torch.stack([gradient.float().norm() for gradient in gradients]).norm()
    return [gradient.float() * (radius / norm.clamp_min(torch.finfo(norm.dtype).tiny)) for gradient in gradients]


def ce_under(
    model: nn.Module, batch: Batch, modules: Sequence[nn.Module], shifts: Sequence[Tensor], weights: Sequence[Tensor]
) -> Tensor:
    """The cross-entropy of the completions while the modules' outputs are shifted, with its gradient by `weights`.

    The gradient is made here and not in the trainer's backward pass: under gradient checkpointing that would compute
    the layers again, and without the shifts.
    """
    with shifted(modules, shifts):
        ce = completion_ce(model, batch)
        gradients = torch.autograd.grad(ce, list(weights), allow_unused=True)
    return with_gradient(ce, weights, gradients)


@contextmanager
def shifted(modules: Sequence[nn.Module], shifts: Sequence[Tensor | None]) -> Iterator[list[Any]]:
    """Add to each module's output (B, T, D) its shift, during one forward and backward pass inside the block.

    Where a shift is None, zeros that ask for a gradient take its place in the list that the block gets.
    """
    used: list[Any] = list(shifts)

    def add(position: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            state = output[0] if isinstance(output, tuple) else output
            if used[position] is None:
                used[position] = torch.zeros_like(state, requires_grad=True)
            moved = state + used[position].to(state.dtype)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        return hook

    handles = [module.register_forward_hook(add(i)) for i, module in enumerate(modules)]
    try:
        yield used
    finally:
        for handle in handles:
            handle.remove()
