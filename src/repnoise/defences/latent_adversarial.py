"""Targeted latent adversarial training (Sheshadri et al., TMLR 2025): refuse under the worst nudge of hidden states."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
from repnoise.errors import RepnoiseError
from repnoise.hidden_states import find_decoder
from repnoise.losses import IGNORE, causal_ce, next_token

AWAY_FLOOR = -5.0
"""Tokens whose log-probability is below this count as unlearnt: the away loss leaves them alone."""


@dataclass(frozen=True)
class LatentAdversarial(Defence):
    """Train under perturbations of the residual stream that were found, at each step, to bring out harmful completions.

        inner: delta = argmin CE(harmful | delta) + adversary_away_weight away(harmless | delta), ||delta_t|| <= epsilon
        outer: loss = refusal_weight CE(harmless | delta) + away_weight away(harmful | delta) + retain + stability

    delta is added to the residual state at each prompt token t, after each of `layers` and, with `embeddings`, to the
    embeddings; each token's vector at each place has a length of at most epsilon. away(y) is the mean over tokens of
    -log(1 - p(y_t)), for those with p above e^-5. The inner problem is solved from delta = 0 by `inner_steps` steps of
    Adam, each followed by a projection. Retain and stability are unperturbed cross-entropies.

    Source: A. Sheshadri et al. 2024, "Latent Adversarial Training Improves Robustness to Persistent Harmful Behaviors
    in LLMs" (arXiv:2407.15549); untargeted: S. Casper et al. 2024 (arXiv:2403.05030). Published for jailbreaks of
    Llama-2-7B: embeddings and layers 8, 16, 24, 30, epsilon = 6, 16 inner steps at 5e-2, toward and away with weight
    0.5 each for both sides, benign data with 1.5, LoRA of rank 64, 2e-5, 100 rounds of 16. The published code makes
    four model steps against each perturbation, starts its optimiser anew for each, decays delta a little (AdamW), and
    for Llama-3 has KL divergence in place of benign cross-entropy and perturbs completions, too: none of that is here.
    Refusals without a perturbation are not part of it, hence a stability weight of 0 in the preset.

    Threat model: prompts and perturbed states that bring suppressed knowledge out; the paper finds that it slows down
    relearning, too.

    Known to fail: the model still holds what it refuses to tell. Refusal becomes one strong direction whose ablation,
    found on the model itself, undoes it (Abbas et al. 2025, arXiv:2504.18872), and fine-tuning does so, too.

    Attributes:
        layers: indices of the layers after which states are perturbed; negative from the end, None for all.
        embeddings: perturb the token embeddings, too.
        epsilon: the most length of one token's perturbation at one place, in units of the states.
        inner_steps: steps of the inner problem, each a forward and backward pass.
        inner_rate: Adam's learning rate there, about the most change of one coordinate in one step.
        adversary_away_weight: weight of the adversary's push away from refusals; 0 saves half of its passes.
        refusal_weight: weight of the refusals under the perturbation.
        away_weight: weight of the push away from harmful completions under the perturbation.
        retain_weight: weight of the cross-entropy of the general harmless data.
        stability_weight: weight of the refusals without a perturbation (0 in the paper).
    """

    layers: tuple[int, ...] | None = (0, 2, 4)
    embeddings: bool = False
    epsilon: float = 10.0
    inner_steps: int = 4
    inner_rate: float = 1.0
    adversary_away_weight: float = 0.0
    refusal_weight: float = 1.0
    away_weight: float = 1.0
    retain_weight: float = 4.0
    stability_weight: float = 1.0

    def __post_init__(self) -> None:
        require_weights(
            adversary_away_weight=self.adversary_away_weight,
            refusal_weight=self.refusal_weight,
            away_weight=self.away_weight,
            retain_weight=self.retain_weight,
            stability_weight=self.stability_weight,
        )
        for name in ("epsilon", "inner_steps", "inner_rate"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise RepnoiseError(f"{name} must be above 0, not {value}.")
        if self.layers is not None and len(self.layers) == 0 and not self.embeddings:
            raise RepnoiseError("layers must name at least one layer (or be None for all), unless embeddings is set.")

    def loss(
        self, model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
    ) -> tuple[Tensor, Terms]:
        """As in the base class. The gradient is made here: it needs the perturbation's hooks, also where activations
        are recomputed in the backward pass."""
        require_completion(harmful)
        places = self._places(model)
        deltas = self._adversary(model, places, harmless, harmful)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with perturbed(places, deltas):
            logits = _logits(model, harmful)
            terms = {
                "attacked": causal_ce(logits, harmful["labels"]),
                "away": away(logits, harmful["labels"]),
                "refusal": completion_ce(model, harmless),
            }
            under_attack = self.refusal_weight * terms["refusal"] + self.away_weight * terms["away"]
            gradients = torch.autograd.grad(under_attack, parameters, allow_unused=True)
        with torch.set_grad_enabled(self.stability_weight > 0):
            terms["stability"] = completion_ce(model, harmless)
        calm = self.stability_weight * terms["stability"]
        if retain is not None and self.retain_weight > 0:
            terms["retain"] = completion_ce(model, retain)
            calm = calm + self.retain_weight * terms["retain"]
        loss = with_gradient(under_attack, parameters, gradients) + calm
        return loss, {name: term.detach() for name, term in terms.items()}

    def _places(self, model: nn.Module) -> list[nn.Module]:
        """The modules whose outputs are perturbed."""
        decoder, inner = find_decoder(model), getattr(model, "get_input_embeddings", None)
        layers = decoder.modules_at("residual", [] if self.layers == () else decoder.choose(self.layers))
        return [*([inner()] if self.embeddings and inner else []), *layers]

    def _adversary(
        self, model: nn.Module, places: Sequence[nn.Module], harmless: Batch, harmful: Batch
    ) -> list[Tensor]:
        """One perturbation (B, P, D) a place that makes harmful completions likely; P is the longest prompt."""
        prompt = prompt_tokens(harmful)
        config: Any = model.config
        usual = config.get_text_config(decoder=True).hidden_size
        widths = [getattr(place, "embedding_dim", usual) for place in places]
        deltas = [torch.zeros(*prompt.shape, width, device=prompt.device, requires_grad=True) for width in widths]
        optimizer = torch.optim.Adam(deltas, lr=self.inner_rate)
        for _ in range(self.inner_steps):
            with perturbed(places, deltas):
                objective = completion_ce(model, harmful)
                if self.adversary_away_weight > 0:
                    pushed = away(_logits(model, harmless), harmless["labels"])
                    objective = objective + self.adversary_away_weight * pushed
                gradients = torch.autograd.grad(objective, deltas)
            for delta, gradient in zip(deltas, gradients, strict=True):
                delta.grad = gradient * prompt[..., None]
            optimizer.step()
            with torch.no_grad():
                for delta in deltas:
                    project(delta, self.epsilon)
        return [delta.detach() for delta in deltas]


@contextmanager
def perturbed(places: Sequence[nn.Module], deltas: Sequence[Tensor]) -> Iterator[None]:
    """Inside the block, deltas (B, P, D) are added to what the modules put out (B, T, D) at its first P tokens."""

    def adding(delta: Tensor) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            state = output[0] if isinstance(output, tuple) else output
            rows, length, width = delta.shape
            change = nn.functional.pad(delta, (0, 0, 0, state.numel() // (rows * width) - length)).to(state.dtype)
            moved = state + change.view_as(state)  # OPT's layers put out (B * T, D).
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        return hook

    handles = [place.register_forward_hook(adding(delta)) for place, delta in zip(places, deltas, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def prompt_tokens(batch: Batch) -> Tensor:
    """Where the prompts are, (B, P) with P the longest prompt: what stands before a row's first labelled token."""
    labelled = batch["labels"] != IGNORE
    prompt = (labelled.cumsum(1) == 0) & (batch["attention_mask"] > 0)
    return prompt[:, : int(prompt.sum(1).max())]


def project(delta: Tensor, epsilon: float) -> None:
    """Scale the vectors of delta (..., D) that are longer than epsilon down to it, in place."""
    delta.div_((delta.norm(dim=-1, keepdim=True) / epsilon).clamp_min(1))


def away(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labelled tokens of -log(1 - p), 0 for those with log p below AWAY_FLOOR: a scalar in fp32.

    1 - p is made of the other tokens' logits, so that it is exact where p is close to 1.
    """
    targets = next_token(labels)
    predicting = targets != IGNORE
    logits, ids = logits[predicting].float(), targets[predicting][:, None]
    everything = logits.logsumexp(-1)
    others = logits.scatter(-1, ids, -math.inf).logsumexp(-1)
    likely = logits.gather(-1, ids)[:, 0] - everything >= AWAY_FLOOR
    return ((everything - others) * likely).mean()


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
