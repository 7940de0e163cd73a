"""Representation Misdirection for Unlearning (Li et al., ICML 2024): harmful states steered to one random direction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from repnoise.defences.base import (
    Batch,
    Defence,
    Terms,
    completion_ce,
    frozen_copy,
    require_completion,
    require_weights,
    with_gradient,
)
from repnoise.errors import RepnoiseError
from repnoise.hidden_states import Decoder, captured, fill, find_decoder, require_gradient
from repnoise.losses import IGNORE

UPDATED_LAYERS = 3
"""Layers whose down projections learn: the steered one and those right below it."""


@dataclass(frozen=True)
class RMU(Defence):
    """Make the residual states of harmful completions at one layer equal to one fixed random vector.

        loss = mean ||h_l(harmful) - c u||^2 + alpha mean ||h_l(retain) - h_l^frozen(retain)||^2 + stability

    h_l is the residual state after layer l, u a random direction, and the means are over tokens: those of harmful
    completions, and all of the general harmless examples (the completions of refusals where there are none). Only the
    down projections of the MLPs of layers l - 2, l - 1 and l learn, or as many of these as there are. The layers above
    see noise instead of what they need for a harmful answer.

    Source: N. Li et al. 2024, "The WMDP Benchmark" (arXiv:2403.03218), section 4. As published there, entries of u are
    uniform in [0, 1) before u is scaled to length 1, the model is Zephyr-7B, l = 7, c = 6.5, alpha = 1200, AdamW at
    5e-5, batches of 4. The published code takes the mean over the D coordinates where the formula has the sum: a factor
    that Adam does not see, unless stability is added or gradients are clipped. It steers all tokens of plain text, and
    chooses weights by their number in a layer (6 is Llama's down projection); here they are found by where they stand.
    The stability term, which keeps the refusals, is an addition: it is 0 in the paper.

    Threat model: knowledge is to be gone for whoever asks. Fine-tuning is not among the attacks it was made for.

    Known to fail: the layers above l still hold the knowledge, and a short fine-tuning, even on unrelated text, undoes
    the steering (Lucki et al. 2024, arXiv:2409.18025). It acts only where c is larger
    than the usual length of a state, which differs from model to model and grows with depth (Dang et al. 2024,
    arXiv:2408.06223).

    Attributes:
        layer: l, the steered layer; negative from the end.
        steering: c, the length of the vector that states are steered to.
        retain_weight: alpha, weight of the states of the general harmless data staying as they were.
        stability_weight: weight of the cross-entropy of the paired harmless completions (0 in the paper).
        direction_seed: of the random direction u, which has a generator of its own.
    """

    keeps_start = True

    layer: int = 3
    steering: float = 40.0
    retain_weight: float = 10.0
    stability_weight: float = 300.0
    direction_seed: int = 0

    def __post_init__(self) -> None:
        require_weights(retain_weight=self.retain_weight, stability_weight=self.stability_weight)
        if not (math.isfinite(self.steering) and self.steering > 0):
            raise RepnoiseError(f"steering must be above 0, not {self.steering}.")

    def begin(self, model: nn.Module) -> Callable[..., tuple[Tensor, Terms]]:
        """Keeps a frozen copy, and closes all weights but the down projections that learn."""
        frozen = frozen_copy(model)
        learning = {id(parameter) for parameter in self._learning(find_decoder(model))}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in learning)
        return partial(self._loss, frozen)

    def loss(
        self, model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
    ) -> tuple[Tensor, Terms]:
        """As in the base class, for the first step of a training: the model is compared with itself."""
        return self._loss(frozen_copy(model), model, harmless, harmful, retain)

    def _loss(
        self, frozen: nn.Module, model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
    ) -> tuple[Tensor, Terms]:
        require_completion(harmful)
        decoder = find_decoder(model)
        layers = decoder.choose((self.layer,))
        (state,) = token_states(model, harmful, layers, harmful["labels"] != IGNORE)
        require_gradient([state], "residual states")
        terms = {"forget": (state - self.steering * self._direction(state)).square().sum(-1).mean()}
        loss = terms["forget"]
        if self.retain_weight > 0:
            terms["retain"] = _drift(frozen, model, layers, harmless, retain)
            loss = loss + self.retain_weight * terms["retain"]
        with torch.set_grad_enabled(self.stability_weight > 0):
            terms["stability"] = completion_ce(model, harmless)
        loss = loss + self.stability_weight * terms["stability"]
        # Adapters are put on after `begin`, on every linear map: the gradient leaves out those that are not to learn.
        learning = self._learning(decoder)
        gradients = torch.autograd.grad(loss, learning)
        return with_gradient(loss, learning, gradients), {name: term.detach() for name, term in terms.items()}

    def _direction(self, like: Tensor) -> Tensor:
        """u (D,), the same one at every step and on every device."""
        drawn = torch.rand(like.shape[-1], generator=torch.Generator().manual_seed(self.direction_seed))
        return (drawn / drawn.norm()).to(like)

    def _learning(self, decoder: Decoder) -> list[nn.Parameter]:
        """The open parameters of the down projections of the steered layer and those right below it."""
        (layer,) = decoder.choose((self.layer,))
        layers = range(max(0, layer - UPDATED_LAYERS + 1), layer + 1)
        projections = [_last_map(mlp, decoder.architecture) for mlp in decoder.modules_at("mlp", layers)]
        return [parameter for module in projections for parameter in module.parameters() if parameter.requires_grad]


def token_states(model: nn.Module, batch: Batch, layers: Sequence[int], tokens: Tensor) -> list[Tensor]:
    """The residual states (N, D) in fp32 after each of the layers, at the N places where `tokens` (B, T) is true."""
    with captured(find_decoder(model).modules_at("residual", layers), rows=len(tokens)) as states:
        fill(model, batch["input_ids"], batch["attention_mask"])
    return [state[tokens].float() for state in states]


def _drift(frozen: nn.Module, model: nn.Module, layers: Sequence[int], harmless: Batch, retain: Batch | None) -> Tensor:
    """Mean squared distance of states to what they were, on general harmless text or, without any, on refusals."""
    kept, tokens = (
        (harmless, harmless["labels"] != IGNORE) if retain is None else (retain, retain["attention_mask"] > 0)
    )
    (now,) = token_states(model, kept, layers, tokens)
    with torch.no_grad():
        (before,) = token_states(frozen, kept, layers, tokens)
    return (now - before).square().sum(-1).mean()


def _last_map(mlp: nn.Module, architecture: str) -> nn.Module:
    """The matrix that an MLP ends in, with its adapter where it has one, which counts as part of it.

    Raises RepnoiseError for an MLP of experts, whose matrices are not modules.
    """
    maps = [module for module in mlp.modules() if getattr(getattr(module, "weight", None), "ndim", 0) == 2]
    within = {id(part) for module in maps if hasattr(module, "base_layer") for part in module.modules()}
    maps = [module for module in maps if hasattr(module, "base_layer") or id(module) not in within]
    if not maps or any(parameter.dim() > 2 for parameter in mlp.parameters()):
        raise RepnoiseError(f"RMU does not know the down projection of {architecture}'s MLPs: use another defence.")
    return maps[-1]
