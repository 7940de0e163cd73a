"""Gradient ascent on the harmful completions: at the output, or at every depth through the lens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repnoise.defences.base import Batch, Defence, Terms, completion_ce, require_completion, require_weights
from repnoise.defences.repnoise import lens_ce
from repnoise.hidden_states import captured, fill, find_decoder, require_gradient


@dataclass(frozen=True)
class GradientAscent(Defence):
    """Make harmful completions unlikely, with nothing (pure) or something beside it that keeps the model whole.

        loss = stability_weight * CE(harmless) + retain_weight * CE(retain) - ascent
        ascent = CE(harmful), or with `lens` the mean of it over the layers' residual states; or log(1 + that)

    A baseline of Rosati et al. 2024 (arXiv:2405.14577). Theirs is pure, and its code ascends the whole sequence, prompt
    and padding included; here it is the completion, as elsewhere. Their layer-wise version (appendix J) is not pure in
    their code: it keeps the harmless completions and takes the logarithm of the mean over layers, which is what
    `stability_weight=1, lens=True, log_ascent=True` does here, and the same as RepNoise without its noise. (There the
    logarithm is of the mean, divided by one layer too many; here of 1 + the mean, which is never negative.)

    Threat model: weights are released and fine-tuned on harmful data. Known to fail: pure ascent has no bound and ends
    with a model that can do nothing (with its logarithm too, only later); stopped before that, the paper's attacks with
    10,000 examples restore harmfulness to 0.74 to 0.77.

    One forward and backward pass a step, one more for each weight above 0; the lens adds an unembedding of the
    completion's tokens a layer.

    Attributes:
        stability_weight: weight of the harmless completions; 0 for pure ascent.
        retain_weight: weight of the general harmless data; 0 for pure ascent.
        lens: ascent at every layer, or at the output only.
        log_ascent: log(1 + ascent), whose gradient fades as ascent succeeds, or ascent itself.
    """

    stability_weight: float = 1.0
    retain_weight: float = 4.0
    lens: bool = False
    log_ascent: bool = True

    def __post_init__(self) -> None:
        require_weights(stability_weight=self.stability_weight, retain_weight=self.retain_weight)

    def loss(
        self, model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
    ) -> tuple[Tensor, Terms]:
        terms = {"ascent": self._ascent(model, harmful)}
        loss = -torch.log1p(terms["ascent"]) if self.log_ascent else -terms["ascent"]
        kept = (("stability", self.stability_weight, harmless), ("retain", self.retain_weight, retain))
        for name, weight, batch in kept:
            if batch is not None and weight > 0:
                terms[name] = completion_ce(model, batch)
                loss = loss + weight * terms[name]
        return loss, {name: term.detach() for name, term in terms.items()}

    def _ascent(self, model: nn.Module, harmful: Batch) -> Tensor:
        if not self.lens:
            return completion_ce(model, harmful)
        require_completion(harmful)
        decoder = find_decoder(model)
        layers = decoder.modules_at("residual", range(len(decoder.layers)))
        with captured(layers, rows=len(harmful["input_ids"])) as states:
            fill(model, harmful["input_ids"], harmful["attention_mask"])
        require_gradient(states, "residual states")
        return lens_ce(decoder.read_out, states, harmful["labels"])
