"""Targeted Vaccine: only layers that harmful data move much are perturbed, and only they are trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repnoise.defences.base import Batch, Defence, Terms, completion_ce, require_weights, with_gradient
from repnoise.defences.vaccine import ce_under, gradient_by_outputs, scaled
from repnoise.errors import RepnoiseError
from repnoise.hidden_states import Decoder, find_decoder


@dataclass(frozen=True)
class TVaccine(Defence):
    """Vaccine in a few layers a step, drawn by how large the gradient of harmful data is there.

        loss = CE(harmless; e_l + eps_l for l in S) + retain_weight * CE(retain),   eps_l = rho * g_l / ||(g_l) in S||
        S: `sampled_layers` layers, drawn without replacement with probability p_l = ||h_l|| / (||h_1|| + ... + ||h_L||)

    e_l (B, T, D) is what the attention of layer l adds to the residual stream, g_l the gradient of CE(harmless) by it,
    and h_l that of CE(harmful). The weights of the other layers stay as they are in that step, those outside of the
    layers (embeddings, final norm, unembedding) always.

    Source: Liu, Lin, Huang, Mo, Mu and Shen 2024, arXiv:2410.09760, of which only the abstract could be read, and their
    code (Lslland/T-Vaccine): rho 3, 8 of 32 layers, drawn anew every 20 steps, with probabilities that are measured
    every 200 steps on one of 200 harmful examples, LoRA. Here both are new at every step, from its batch, since a
    defence keeps nothing from step to step: layers get the same share of the steps, and a resumed run repeats an
    uninterrupted one. The abstract says that other layers are frozen; the code closes the adapters of their attention
    and lets those of all MLPs learn. The abstract is followed here.

    Threat model: Vaccine's, for a defender who has harmful data. Known to fail: where Vaccine does, and what the
    layers that are seldom drawn know stays as it is.

    Three forward and backward passes a step (two of them by activations only), four with general harmless data.

    Attributes:
        perturbation_radius: rho, the Euclidean norm of the perturbation over the drawn layers and the whole batch.
        sampled_layers: how many layers are drawn; all that can be trained, if there are fewer.
        freeze_others: leave what is not in the drawn layers as it is (paper), or perturb the drawn ones and train all.
        retain_weight: weight of the general harmless data, which are not perturbed; the paper has none.
    """

    perturbation_radius: float = 1.0
    sampled_layers: int = 3
    freeze_others: bool = True
    retain_weight: float = 4.0

    def __post_init__(self) -> None:
        require_weights(perturbation_radius=self.perturbation_radius, retain_weight=self.retain_weight)
        if self.sampled_layers < 1:
            raise RepnoiseError(f"sampled_layers must be at least 1, not {self.sampled_layers}.")

    def begin(self, model: nn.Module) -> Callable[..., tuple[Tensor, Terms]]:
        if self.freeze_others:
            inside = {id(weight) for layer in find_decoder(model).layers for weight in layer.parameters()}
            for weight in model.parameters():
                if id(weight) not in inside:
                    weight.requires_grad_(False)
        return self.loss

    def loss(
        self, model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
    ) -> tuple[Tensor, Terms]:
        decoder = find_decoder(model)
        attention = decoder.modules_at("attention", range(len(decoder.layers)))
        harmful_ce, harmful_gradients = gradient_by_outputs(model, harmful, attention)
        drawn = self._drawn(decoder, harmful_gradients)
        trained = [decoder.layers[i] for i in drawn] if self.freeze_others else [model]
        weights = [weight for module in trained for weight in module.parameters() if weight.requires_grad]
        perturbed = [attention[i] for i in drawn]
        stability, gradients = gradient_by_outputs(model, harmless, perturbed)
        loss = ce_under(model, harmless, perturbed, scaled(gradients, self.perturbation_radius), weights)
        terms = {"stability": stability, "perturbed": loss, "harmful": harmful_ce}
        if retain is not None and self.retain_weight > 0:
            general = completion_ce(model, retain)
            own = torch.autograd.grad(general, weights, allow_unused=True)
            terms["retain"] = with_gradient(general, weights, own)
            loss = loss + self.retain_weight * terms["retain"]
        return loss, {name: term.detach() for name, term in terms.items()}

    def _drawn(self, decoder: Decoder, gradients: list[Tensor]) -> list[int]:
        """Which layers are perturbed in this step: of those that have weights to train, in ascending order."""
        open_layers = [
            i for i, layer in enumerate(decoder.layers) if any(weight.requires_grad for weight in layer.parameters())
        ]
        if not open_layers:
            raise RepnoiseError("T-Vaccine trains decoder layers, and all of them are frozen: leave some open.")
        norms = torch.stack([gradients[i].float().norm() for i in open_layers])
        # A layer without gradient is drawn after all others, and torch asks for some chance for each of them.
        chances = norms.clamp_min(torch.finfo(norms.dtype).tiny)
        picks = torch.multinomial(chances, min(self.sampled_layers, len(open_layers)))
        return sorted(open_layers[i] for i in picks.tolist())
