"""Representation Rerouting, the method of the circuit breakers (Zou et al., NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repnoise.defences.base import (
    Batch,
    Defence,
    Terms,
    completion_ce,
    frozen_copy,
    require_completion,
    require_weights,
)
from repnoise.defences.rmu import token_states
from repnoise.errors import RepnoiseError
from repnoise.hidden_states import find_decoder, require_gradient
from repnoise.losses import IGNORE


@dataclass(frozen=True)
class RepresentationRerouting(Defence):
    """Turn the states of harmful completions to where they are orthogonal to what they were.

        loss = c_s R + c_r (1 - R) mean ||h(kept) - h^frozen(kept)||_2 + stability
        R = mean ReLU(cos(h(harmful), h^frozen(harmful)))

    h is the residual state after a layer. R is a mean over `layers` and the tokens of harmful completions; the other
    mean is over all layers and the tokens of what is kept: refusals (their completions: the prompts are those of the
    harmful ones) and general harmless examples. The norm is not squared, and the factor 1 - R has no gradient.

    Source: A. Zou et al. 2024, "Improving Alignment and Robustness with Circuit Breakers" (arXiv:2406.04313), whose
    retain set holds general chats, harmless questions that look harmful, and refusals. Published for Llama-3-8B: alpha
    = 10, hidden states 10 and 20 (the outputs of layers 9 and 19, counted from 0), LoRA of rank 16 and scale 16 on the
    layers up to there, 1e-4, 150 steps of 16.

    Where this differs: published, c_s falls from alpha to alpha / 2 and the weight of the retain term rises from 0 to
    alpha / 2 with the steps. A defence is a loss that knows no step (a resumed run would count from 0 again), so here
    c_s is constant, at its mean 0.75 alpha in the preset, and the weight of the retain term rises as rerouting gets on.
    A constant weight would not do: where the model is what it was, the cosine has no slope and the norm has a kink, so
    that nothing ever moves. The published code divides the retain term by all places, padding included, and takes its
    last state behind the final norm; here padding is left out and the state is the residual one. The stability term is
    an addition: it is 0 in the paper, and what sets rerouting going then is dropout, or rounding errors that Adam
    scales up.

    Threat model: whoever asks, by whatever prompt, without changing weights.

    Known to fail: multi-turn prompts (Li et al. 2024, arXiv:2408.15221), soft prompts in the embedding space (Schwinn
    and Geisler 2024, arXiv:2407.15902), and a little fine-tuning, since what is rerouted is still there.

    Attributes:
        layers: indices of the rerouted layers; negative from the end, None for all.
        rerouting_weight: c_s.
        retain_weight: c_r, weight of the retain term once rerouting is done, for refusals and general data alike.
        stability_weight: weight of the cross-entropy of the paired harmless completions (0 in the paper).
    """

    keeps_start = True

    layers: tuple[int, ...] | None = (1, 3)
    rerouting_weight: float = 7.5
    retain_weight: float = 5.0
    stability_weight: float = 1.0

    def __post_init__(self) -> None:
        require_weights(
            rerouting_weight=self.rerouting_weight,
            retain_weight=self.retain_weight,
            stability_weight=self.stability_weight,
        )
        if self.layers is not None and len(self.layers) == 0:
            raise RepnoiseError("layers must name at least one layer (or be None for all).")

    def begin(self, model: nn.Module) -> Callable[..., tuple[Tensor, Terms]]:
        """Keeps a frozen copy."""
        return partial(self._loss, frozen_copy(model))

    def loss(
        self, model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
    ) -> tuple[Tensor, Terms]:
        """As in the base class, for the first step of a training: the model is compared with itself."""
        return self._loss(frozen_copy(model), model, harmless, harmful, retain)

    def _loss(
        self, frozen: nn.Module, model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
    ) -> tuple[Tensor, Terms]:
        require_completion(harmful)
        chosen = find_decoder(model).choose(self.layers)
        now, before = _states(frozen, model, harmful, chosen, harmful["labels"] != IGNORE)
        require_gradient(now, "residual states")
        terms = {"rerouting": alignment(now, before)}
        loss = self.rerouting_weight * terms["rerouting"]
        if self.retain_weight > 0:
            terms["retain"] = _drift(frozen, model, harmless, retain)
            progress = (1 - terms["rerouting"].detach()).clamp_min(0)  # Rounding can leave a cosine above 1.
            loss = loss + self.retain_weight * progress * terms["retain"]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stability_weight > 0):
            terms["stability"] = completion_ce(model, harmless)
        loss = loss + self.stability_weight * terms["stability"]
        return loss, {name: term.detach() for name, term in terms.items()}


def alignment(now: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
    """Mean over layers and tokens of the cosine of two states (N, D) where it is above 0."""
    return torch.stack(
        [F.cosine_similarity(a, b, dim=-1).relu().mean() for a, b in zip(now, before, strict=True)]
    ).mean()


def _drift(frozen: nn.Module, model: nn.Module, harmless: Batch, retain: Batch | None) -> Tensor:
    """Mean distance of states to what they were, over all layers and the tokens of both batches together."""
    layers = range(len(find_decoder(model).layers))
    kept = [(harmless, harmless["labels"] != IGNORE)]
    if retain is not None:
        kept.append((retain, retain["attention_mask"] > 0))
    distances = []
    for batch, tokens in kept:
        now, before = _states(frozen, model, batch, layers, tokens)
        distances += [torch.linalg.vector_norm(a - b, dim=-1) for a, b in zip(now, before, strict=True)]
    return torch.cat(distances).mean()


def _states(
    frozen: nn.Module, model: nn.Module, batch: Batch, layers: Sequence[int], tokens: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """States (N, D) at the chosen tokens after each layer, of the model and of the frozen one."""
    now = token_states(model, batch, layers, tokens)
    with torch.no_grad():
        return now, token_states(frozen, batch, layers, tokens)
