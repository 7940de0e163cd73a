"""Additional safety training: the harmless completions once more, the baseline that every alignment step is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from repnoise.defences.base import Batch, Defence, Terms, completion_ce, require_weights


@dataclass(frozen=True)
class SafetyTraining(Defence):
    """Fine-tune on refusals, and on general harmless data where there is any.

        loss = CE(harmless) + retain_weight * CE(retain)

    A baseline of Rosati et al. 2024 (arXiv:2405.14577, "additional safety training": refusals to 10,000 unsafe
    questions of BeaverTails). It is also the stability term of RepNoise and its rivals: it says what that does alone.

    Threat model: weights are released and fine-tuned on harmful data. Known to fail: in the paper it holds back no
    attack at all (harmfulness 0.74 to 0.76 after each of six, as undefended), because refusing is learned in few
    directions and unlearned as fast. The harmful completions are never looked at.

    One forward and backward pass a step, two with general harmless data.

    Attributes:
        retain_weight: weight of the general harmless data beside the refusals; the paper has none.
    """

    retain_weight: float = 4.0

    def __post_init__(self) -> None:
        require_weights(retain_weight=self.retain_weight)

    def loss(
        self, model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
    ) -> tuple[Tensor, Terms]:
        terms = {"stability": completion_ce(model, harmless)}
        loss = terms["stability"]
        if retain is not None and self.retain_weight > 0:
            terms["retain"] = completion_ce(model, retain)
            loss = loss + self.retain_weight * terms["retain"]
        return loss, {name: term.detach() for name, term in terms.items()}
