"""SimNPO (Fan et al., NeurIPS 2025): negative preference optimization without a reference, normalised by length."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repnoise.defences.base import Batch, Defence, Terms, completion_ce, require_weights
from repnoise.defences.npo import sequence_nll
from repnoise.errors import RepnoiseError


@dataclass(frozen=True)
class SimNPO(Defence):
    """Push down the likelihood per token of harmful completions, until it is low rather than lower than it was.

        loss = forget_weight (2 / beta) mean -log sigmoid(-(beta / |y|) log pi(y|x) - gamma) + stability + retain

    pi(y|x) is the probability of a whole harmful completion y of |y| tokens; the mean is over rows. With m the mean
    cross-entropy of y, the weight of its gradient is 2 sigmoid(gamma - beta m): a completion that the model knows well
    gets most of it, and one whose m is beyond gamma / beta little, however likely it once was.

    Source: C. Fan et al. 2024, "Simplicity Prevails" (arXiv:2410.07163), its SimNPO loss, with the cross-entropy of
    general data beside it. Published for TOFU (Llama-2-7B, forget05): beta = 2.5, gamma = 0, weights 0.1375 and 1,
    AdamW at 1e-5, batches of 32 over 8 GPUs; beta = 4.5 with 0.125 for forget10. Refusals are not part of it, hence a
    stability weight of 0 in the preset.

    Threat model: knowledge is to be gone for whoever asks; the paper also tries relearning from some of what was
    forgotten, and finds SimNPO to hold longer than NPO.

    Known to fail: relearning from a few examples still works with enough steps, as with other ascent; for a beta far
    above 1 the gradient is gone as soon as a completion costs a few nats a token.

    Attributes:
        beta: beta, the inverse temperature.
        margin: gamma, the margin of the reward; more of it forgets more.
        forget_weight: weight of the forgetting term.
        retain_weight: weight of the cross-entropy of the general harmless data.
        stability_weight: weight of the cross-entropy of the paired harmless completions (0 in the paper).
    """

    beta: float = 1.0
    margin: float = 0.0
    forget_weight: float = 1.0
    retain_weight: float = 4.0
    stability_weight: float = 1.0

    def __post_init__(self) -> None:
        require_weights(
            forget_weight=self.forget_weight,
            retain_weight=self.retain_weight,
            stability_weight=self.stability_weight,
        )
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise RepnoiseError(f"beta must be above 0, not {self.beta}.")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise RepnoiseError(f"margin must be 0 or more, not {self.margin}.")

    def loss(
        self, model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
    ) -> tuple[Tensor, Terms]:
        terms = {"forget": self._forget(*sequence_nll(model, harmful))}
        loss = self.forget_weight * terms["forget"]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stability_weight > 0):
            terms["stability"] = completion_ce(model, harmless)
        loss = loss + self.stability_weight * terms["stability"]
        if retain is not None and self.retain_weight > 0:
            terms["retain"] = completion_ce(model, retain)
            loss = loss + self.retain_weight * terms["retain"]
        return loss, {name: term.detach() for name, term in terms.items()}

    def _forget(self, nll: Tensor, lengths: Tensor) -> Tensor:
        """The forgetting term of completions with these -log pi (B,) in nats and lengths (B,) in tokens."""
        reward = self.beta * nll / lengths.clamp_min(1) - self.margin
        return -2 / self.beta * F.logsigmoid(reward).mean()
