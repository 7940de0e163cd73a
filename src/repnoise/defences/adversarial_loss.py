"""Adversarial loss: keep the harmless completions, unlearn the harmful ones, at the output alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from repnoise.defences.base import Batch, Defence, Terms, completion_ce, require_weights
from repnoise.defences.safety_training import SafetyTraining


@dataclass(frozen=True)
class AdversarialLoss(Defence):
    """The difference of the two cross-entropies.

        loss = CE(harmless) + retain_weight * CE(retain) - ascent_weight * CE(harmful)

    Equation 4 of Rosati et al. 2024 (arXiv:2405.14577), there without the general harmless data. Their code calls the
    weight alpha, with 0.1 as its default; both cross-entropies see what the pair does not share, here the completions.

    Threat model: weights are released and fine-tuned on harmful data. Known to fail: the harmful term has no bound, so
    a large weight drowns stability and the model is lost; a small one changes little but the last layers (their figure
    2), and the paper's larger attacks restore harmfulness to 0.64 to 0.77.

    Two forward and backward passes a step, three with general harmless data.

    Attributes:
        ascent_weight: weight of the cross-entropy of the harmful completions (beta of equation 4).
        retain_weight: weight of the general harmless data; the paper has none.
    """

    ascent_weight: float = 0.1
    retain_weight: float = 4.0

    def __post_init__(self) -> None:
        require_weights(ascent_weight=self.ascent_weight, retain_weight=self.retain_weight)

    def loss(
        self, model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
    ) -> tuple[Tensor, Terms]:
        kept, terms = SafetyTraining(self.retain_weight).loss(model, harmless, harmful, retain)
        ascent = completion_ce(model, harmful)
        return kept - self.ascent_weight * ascent, terms | {"ascent": ascent.detach()}
