"""Negative Preference Optimization (Zhang et al., COLM 2024): ascent that stops where a sequence is unlearnt."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from repnoise.errors import RepnoiseError
from repnoise.losses import IGNORE, next_token


@dataclass(frozen=True)
class NPO(Defence):
    """Treat harmful completions as the losing side of a preference that has no winning side.

        loss = forget_weight (2 / beta) mean log(1 + (pi(y|x) / pi_ref(y|x))^beta) + stability + retain

    pi(y|x) is the probability of a whole harmful completion and pi_ref what it was; the mean is over rows. The gradient
    is that of plain ascent times 2 r^beta / (1 + r^beta) with r = pi / pi_ref: 1 at the start, 0 once the sequence is
    unlikely. As beta goes to 0 it becomes plain ascent.

    Source: R. Zhang, L. Lin, Y. Bai, S. Mei 2024 (arXiv:2404.05868), equation 3. Its best variant, NPO+RT, adds the
    cross-entropy of general data with weight 1 and has none of refusals, hence a stability weight of 0 in the preset.

    Threat model: knowledge is to be gone for whoever asks. Fine-tuning is not among the attacks it was made for.

    Known to fail: since r is of whole sequences, a long completion counts as unlearnt when a few of its tokens are, and
    fine-tuning brings the rest back (Fan et al. 2024, arXiv:2410.07163, who answer with SimNPO; Lynch et al. 2024,
    arXiv:2402.16835, on relearning in general).

    Attributes:
        beta: beta, the inverse temperature.
        forget_weight: weight of the forgetting term (1 in the paper).
        retain_weight: weight of the cross-entropy of the general harmless data (1 in NPO+RT).
        stability_weight: weight of the cross-entropy of the paired harmless completions (0 in the paper).
    """

    keeps_start = True

    beta: float = 0.1
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

    def begin(self, model: nn.Module) -> Callable[..., tuple[Tensor, Terms]]:
        """Keeps a frozen copy, the reference."""
        return partial(self._loss, frozen_copy(model))

    def loss(
        self, model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
    ) -> tuple[Tensor, Terms]:
        """As in the base class, for the first step of a training: the model is its own reference."""
        return self._loss(frozen_copy(model), model, harmless, harmful, retain)

    def _loss(
        self, reference: nn.Module, model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
    ) -> tuple[Tensor, Terms]:
        nll, _ = sequence_nll(model, harmful)
        with torch.no_grad():
            before, _ = sequence_nll(reference, harmful)
        terms = {"forget": self._forget(before - nll), "log_ratio": (before - nll).mean()}
        loss = self.forget_weight * terms["forget"]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stability_weight > 0):
            terms["stability"] = completion_ce(model, harmless)
        loss = loss + self.stability_weight * terms["stability"]
        if retain is not None and self.retain_weight > 0:
            terms["retain"] = completion_ce(model, retain)
            loss = loss + self.retain_weight * terms["retain"]
        return loss, {name: term.detach() for name, term in terms.items()}

    def _forget(self, log_ratios: Tensor) -> Tensor:
        """The forgetting term of log(pi / pi_ref) (B,) of whole completions, in nats."""
        return 2 / self.beta * F.softplus(self.beta * log_ratios).mean()


def sequence_nll(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """-log of the probability of each row's completion, in nats, and its number of tokens: (B,) each, the first fp32.

    Raises RepnoiseError if there is no completion token in the batch.
    """
    require_completion(batch)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    targets = next_token(batch["labels"])
    nll = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return nll.view_as(targets).sum(1), (targets != IGNORE).sum(1)
