"""Booster: a step of harmful training shall lower the harmful loss as little as possible."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repnoise.defences.base import (
    Batch,
    Defence,
    Terms,
    completion_ce,
    require_completion,
    require_weights,
    with_gradient,
)
from repnoise.defences.inner_steps import gradients_of, moved_for_a_while, open_parameters
from repnoise.errors import RepnoiseError


@dataclass(frozen=True)
class Booster(Defence):
    """Attenuate what one normalised step of harmful training gains (Huang et al. 2024, arXiv:2409.01586).

        loss = f(w) + attenuation_weight * (h(w) - h(w - step_size * g / ||g||)),   g = gradient of h at w

    f is the cross-entropy of the harmless completions (the alignment data), h that of the harmful ones; ||g|| is the
    norm over all trained weights together. As in the paper's algorithm the inner step counts as a constant, so that the
    gradient is first-order: that of f, plus attenuation_weight times (that of h at w, less that of h at the moved
    weights). Published code and paper agree on this; the code adds 1e-7 to the norm, which is done here, too.

    Threat model: fine-tuning as a service, or open weights: the defender trains before release and has no say after
    it. In the paper the customer's data are mostly benign, with a share of harmful ones. Known to fail where harmful
    training is longer or faster than the one step that it looks at, since nothing in the loss removes what the model
    knows. The term is also low where the harmful loss is low to begin with, for then nothing is left to gain: with much
    weight and a short step refusals can be lost. With a long step it has no bound below.

    A step costs three forward and backward passes, one more with general harmless data.

    Attributes:
        attenuation_weight: lambda of the paper, which has 5.
        step_size: alpha of the paper, the length of the inner step in weight space; 0.1 there, for adapters. What is
            the same relative step for another model depends on the norm of what is trained.
        retain_weight: weight of the general harmless data, which the paper has not.
    """

    attenuation_weight: float = 5.0
    step_size: float = 0.1
    retain_weight: float = 0.0

    def __post_init__(self) -> None:
        require_weights(attenuation_weight=self.attenuation_weight, retain_weight=self.retain_weight)
        if not 0 < self.step_size < float("inf"):
            raise RepnoiseError(f"step_size must be above 0, not {self.step_size}.")

    def loss(
        self, model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
    ) -> tuple[Tensor, Terms]:
        require_completion(harmful)
        before, after, parameters, difference = self._step(model, harmful)
        terms = {"stability": completion_ce(model, harmless)}
        loss = terms["stability"]
        if retain is not None and self.retain_weight > 0:
            terms["retain"] = completion_ce(model, retain)
            loss = loss + self.retain_weight * terms["retain"]
        gained = with_gradient(before - after, parameters, difference)
        terms |= {"harmful": before, "gained": gained}
        return loss + self.attenuation_weight * gained, {name: term.detach() for name, term in terms.items()}

    def _step(self, model: nn.Module, harmful: Batch) -> tuple[Tensor, Tensor, list[nn.Parameter], list[Tensor | None]]:
        """The harmful loss before and after the inner step, the trained weights, and by each of them the gradient of
        the first less that of the second."""
        parameters = open_parameters(model)
        with moved_for_a_while(parameters):
            before = completion_ce(model, harmful)
            gradients = gradients_of(before, parameters)
            norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        parameter -= self.step_size * gradient / (norm + 1e-7)
            after = completion_ce(model, harmful)
            there = gradients_of(after, parameters)
        pairs = zip(gradients, there, strict=True)
        difference = [None if here is None or then is None else here - then for here, then in pairs]
        return before.detach(), after.detach(), parameters, difference
