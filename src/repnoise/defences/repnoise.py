"""Representation Noising (Rosati et al., NeurIPS 2024), with the masks, estimators and averages done right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from repnoise.defences.base import Batch, Defence, Terms, completion_ce, require_completion, require_weights
from repnoise.distributed.pooling import agreed, pooled_count, pooled_mean, pooled_rows
from repnoise.errors import RepnoiseError
from repnoise.hidden_states import Site, captured, fill, find_decoder, require_gradient
from repnoise.losses import IGNORE, KERNEL_MULTIPLIERS, mmd2, mmd2_floor, next_token, read_out_ce

Samples = Literal["tokens", "sequences"]
HarmfulTokens = Literal["completion", "all"]


@dataclass(frozen=True)
class RepNoise(Defence):
    """Push what the model computes on harmful completions towards Gaussian noise, and its predictions away from them.

        loss = stability + noise_weight * noise - ascent_weight * log(1 + ascent)

    (paper eq. 5 and Algorithm 1; the paper's alpha and beta trade places between the two, hence the plain names.)

    - stability: cross-entropy of the harmless completions, plus `retain_weight` times that of general harmless data.
    - noise: mean over `layers` of the multi-kernel MMD^2 between the activations of the harmful completion's tokens at
      `site` and draws from N(0, noise_scale^2 I). It cannot fall below `noise_floor`, which is logged beside it.
    - ascent: mean over `layers` of the cross-entropy of the harmful completion read out of the residual state after
      the layer through final norm and unembedding (the lens); only the last layer with `lens=False`.

    Attributes:
        noise_weight: weight of the noise term (beta of the paper's code).
        ascent_weight: weight of the ascent term (alpha of the paper's code).
        retain_weight: weight of the general harmless data beside the paired harmless completions.
        layers: indices of the layers that are noised and read by the lens; None for all, negative from the end.
        layers_per_step: so many of them, drawn anew each step, stand for all: an unbiased estimate of both means over
            depth (not of the logarithm of the ascent), for less time and memory. None for all.
        site: where noise is put: the "mlp" output before it joins the residual stream (paper), the "attention" output,
            or the "residual" state itself.
        samples: "tokens": each completion token is a sample in D dimensions; "sequences": each row, flattened to
            T * D with everything but the completion set to zero, as in the paper (needs at least two rows).
        noise_scale: standard deviation of the target noise; the paper's is 1.
        kernel_multipliers: bandwidths of the kernel as multiples of the mean squared distance.
        max_samples: at most so many token samples a layer and step, drawn anew each step; None for all.
        lens: ascent at every chosen layer (paper) or at the last only.
        final_norm: whether the lens goes through the final norm, as the model's own last state does.
        detach_unembedding: keep ascent from moving the final norm and the unembedding themselves.
        log_ascent: log(1 + ascent) (published code) or plain ascent, which can grow without bound.
        harmful_tokens: noise and ascent at the tokens of the harmful "completion", or at "all" of them, the prompt's
            included, which the harmless answer to the same prompt needs (the paper's "without mask", its table 15).
        top_directions: noise only in so many directions, those in which a layer's samples of the batch are largest:
            the first right singular vectors of the matrix of samples, not centred, and constants for the gradient. None
            for all. The paper proposes it as future work and gives no formula.
    """

    noise_weight: float = 4.0
    ascent_weight: float = 0.1
    retain_weight: float = 4.0
    layers: tuple[int, ...] | None = None
    layers_per_step: int | None = None
    site: Site = "mlp"
    samples: Samples = "tokens"
    noise_scale: float = 1.0
    kernel_multipliers: tuple[float, ...] = KERNEL_MULTIPLIERS
    max_samples: int | None = 512
    lens: bool = True
    final_norm: bool = True
    detach_unembedding: bool = False
    log_ascent: bool = True
    harmful_tokens: HarmfulTokens = "completion"
    top_directions: int | None = None

    def __post_init__(self) -> None:
        require_weights(
            noise_weight=self.noise_weight, ascent_weight=self.ascent_weight, retain_weight=self.retain_weight
        )
        for name, options in (("site", Site), ("samples", Samples), ("harmful_tokens", HarmfulTokens)):
            if (value := getattr(self, name)) not in get_args(options):
                raise RepnoiseError(f"{name} must be one of {', '.join(get_args(options))}, not {value!r}.")
        if not (math.isfinite(self.noise_scale) and self.noise_scale > 0):
            raise RepnoiseError(f"noise_scale must be above 0, not {self.noise_scale}.")
        if not self.kernel_multipliers or not all(math.isfinite(m) and m > 0 for m in self.kernel_multipliers):
            raise RepnoiseError(f"kernel_multipliers must be numbers above 0, not {self.kernel_multipliers}.")
        if self.max_samples is not None and self.max_samples < 2:
            raise RepnoiseError(f"max_samples must be at least 2 (or None for all), not {self.max_samples}.")
        for name in ("top_directions", "layers_per_step"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise RepnoiseError(f"{name} must be at least 1 (or None for all), not {value}.")
        if self.layers is not None and len(self.layers) == 0:
            raise RepnoiseError("layers must name at least one layer (or be None for all).")

    def loss(
        self, model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
    ) -> tuple[Tensor, Terms]:
        require_completion(harmful)
        stability = completion_ce(model, harmless, by_lens=True)
        terms = {"stability": stability}
        if retain is not None and self.retain_weight > 0:
            terms["retain"] = completion_ce(model, retain, by_lens=True)
            stability = stability + self.retain_weight * terms["retain"]

        decoder = find_decoder(model)
        chosen = self._layers_of_step(decoder.choose(self.layers), harmful["input_ids"].device)
        read = chosen if self.lens else [len(decoder.layers) - 1]
        noised = decoder.modules_at(self.site, chosen)
        ids, labels = harmful["input_ids"], harmful["labels"]
        if self.harmful_tokens == "all":
            labels = ids.masked_fill(harmful["attention_mask"] == 0, IGNORE)
        with captured([*noised, *decoder.modules_at("residual", read)], rows=len(ids)) as states:
            fill(model, ids, harmful["attention_mask"])
        activations, residuals = states[: len(noised)], states[len(noised) :]
        require_gradient(activations, f"{self.site} activations")

        noise, floor = self._noise(activations, labels)
        ascent = lens_ce(lambda x: decoder.read_out(x, self.final_norm, self.detach_unembedding), residuals, labels)
        reward = torch.log1p(ascent) if self.log_ascent else ascent
        loss = stability + self.noise_weight * noise - self.ascent_weight * reward
        terms |= {"noise": noise, "noise_floor": noise.new_tensor(floor), "ascent": ascent}
        return loss, {name: term.detach() for name, term in terms.items()}

    def _noise(self, activations: list[Tensor], labels: Tensor) -> tuple[Tensor, float]:
        """Mean over layers of MMD^2 to fresh Gaussian draws, and the value it would have if they were Gaussian."""
        chosen = labels != IGNORE
        width = activations[0].shape[-1]
        if self.samples == "tokens":
            picked = self._pick(chosen)
            n, dimension = len(picked), width
        else:
            # Rows differ in their number of dimensions; the floor hardly depends on it when it is large.
            picked, n, dimension = None, len(labels), width * max(1, int(chosen.sum()) // len(labels))
        if n < 2:
            raise RepnoiseError(
                f"Noise compares samples with one another, and a batch has only {n} of the kind {self.samples!r}: "
                "raise --batch-size."
            )
        if self.top_directions is not None:
            dimension = min(self.top_directions, n, dimension)
        distances = [self._distance(activation, chosen, picked) for activation in activations]
        return torch.stack(distances).mean(), mmd2_floor(n, n, dimension, self.kernel_multipliers)

    def _distance(self, activation: Tensor, chosen: Tensor, picked: Tensor | None) -> Tensor:
        """MMD^2 between one layer's samples and as many draws: the picked tokens, or (None) whole sequences."""
        if picked is not None:
            x = pooled_rows(activation[chosen])[picked].float()
        else:
            x = (activation.float() * chosen[..., None]).flatten(1)
        if self.top_directions is not None:
            x = on_top_directions(x, self.top_directions)
            y = agreed(torch.randn_like(x))
        elif picked is not None:
            y = agreed(torch.randn_like(x))
        else:
            y = (torch.randn_like(activation, dtype=torch.float32) * chosen[..., None]).flatten(1)
        return mmd2(x, y * self.noise_scale, self.kernel_multipliers)

    def _layers_of_step(self, chosen: list[int], device: torch.device) -> list[int]:
        if self.layers_per_step is None or self.layers_per_step >= len(chosen):
            return chosen
        drawn = agreed(torch.randperm(len(chosen), device=device))[: self.layers_per_step]
        return [chosen[i] for i in sorted(drawn.tolist())]

    def _pick(self, chosen: Tensor) -> Tensor:
        """Which of the chosen tokens are samples in this step: the same ones for every layer."""
        count = pooled_count(chosen.sum())
        if self.max_samples is None or count <= self.max_samples:
            return torch.arange(count, device=chosen.device)
        return agreed(torch.randperm(count, device=chosen.device))[: self.max_samples]


def lens_ce(read_out: Callable[[Tensor], Tensor], residuals: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Mean over layers of the cross-entropy of the labels (B, T) read out of their residual states, each (B, T, D).

    Every layer has the same number of tokens, so the mean over layers is one mean over all their states.
    """
    targets = next_token(labels)
    predicting = targets != IGNORE
    states = torch.cat([residual[predicting] for residual in residuals])
    return pooled_mean(read_out_ce(read_out, states, targets[predicting].repeat(len(residuals))), predicting.sum)


def on_top_directions(x: Tensor, count: int) -> Tensor:
    """Coordinates (n, k) of the rows of `x` (n, D) along its first k = min(count, n, D) right singular vectors.

    The vectors are constants: the gradient moves samples along them and does not turn them.
    """
    # Rows that are not finite stay so in the product, for the trainer to tell of; the decomposition would raise.
    finite = torch.nan_to_num(x.detach(), 0.0, 0.0, 0.0)
    with torch.autocast(x.device.type, enabled=False):
        return x @ torch.linalg.svd(finite, full_matrices=False).Vh[:count].T
