"""A perturbation of hidden states, found by gradient descent: neither the prompt nor the weights change."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from repnoise.attacks.base import Attack, Attacked, Cost, costs_of_examples, require_pairs
from repnoise.attacks.fine_tuning import flops_by_token, language_modelling
from repnoise.data.mixtures import epochs
from repnoise.data.records import Pair
from repnoise.data.sources import PairedData
from repnoise.errors import RepnoiseError
from repnoise.optimisation import Training

if TYPE_CHECKING:  # Presets must be cheap to import.
    from torch import Tensor, nn

    from repnoise.data.tokenization import Codec, Row
    from repnoise.modeling import LoadedModel
    from repnoise.training import OnStep

STATES_OF = 64
"""Most prompts that the usual length of a state is measured on."""


@dataclass(frozen=True)
class LatentPerturbation(Attack):
    """One vector for each of the first tokens of a prompt, added to the residual stream behind one decoder layer.

    The same vectors serve all prompts. They are trained to make the attacker's harmful answers likely, and after every
    step the one at position t is scaled down to at most `epsilon` times the mean length of the states there. After
    Casper et al. 2024 (arXiv:2403.05030: perturbed latents find failures that prompts do not) and Schwinn et al. 2024
    (arXiv:2402.09063: attacks in the embedding space of open models), whose perturbations are each found for one
    prompt; a universal one says what the model would do, not what an optimiser can write into one state.

    Needs the weights, some harmful answers, and the compute of a fine-tuning without gradients of the weights, which
    stay as they are, bit for bit. Fails where knowledge is gone and not only refused: a few vectors of bounded length
    switch what is there on, but hold no answers. With a large `epsilon` it breaks the text instead.

    Attributes:
        training: optimiser, learning rate, steps, batch, seed. The learning rate is in units of the mean length of a
            state, for each of its coordinates; low-rank adapters make no sense here.
        layer: the layer behind which it is added, negative ones counted from the end.
        tokens: how many of the first tokens of a row are perturbed, special ones included; at most as many as the
            shortest of the attacker's prompts has.
        epsilon: most length of a perturbation, in mean lengths of a state at its position.
    """

    changes_weights = False

    training: Training = field(
        default_factory=lambda: Training(learning_rate=1e-2, steps=100, batch_size=16, save_every=None)
    )
    layer: int = 0
    tokens: int = 4
    epsilon: float = 1.0

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise RepnoiseError(f"tokens must be at least 1, not {self.tokens}.")
        if not 0 < self.epsilon < math.inf:
            raise RepnoiseError(f"epsilon must be above 0, not {self.epsilon}.")
        if self.training.lora_rank is not None:
            raise RepnoiseError("A latent perturbation trains no adapters: leave --lora-rank out.")

    def label(self) -> str:
        """Such as "latent-100-epsilon-0.5-layer-2"."""
        budget = f"{self.training.epochs:g}-epochs" if self.training.steps is None else str(self.training.steps)
        return f"latent-{budget}-epsilon-{self.epsilon:g}-layer-{self.layer}"

    def seeded(self, seed: int) -> Self:
        return replace(self, training=replace(self.training, seed=seed))

    def needs(self) -> str:
        return "weights, harmful answers"

    def source(self) -> str:
        return "Casper et al. 2024, Schwinn et al. 2024"

    def pairs(self, data: PairedData) -> list[Pair]:
        return data.attacker_pairs(split=self.split)

    def costs(self, loaded: LoadedModel, data: PairedData, codec: Codec) -> Callable[[int], Cost]:
        """4 N operations a token, N being the weights in products: forward, and backward to the states. An upper bound,
        as the backward pass ends at the layer; the pass that measures the length of states is left out."""
        lengths = [len(row["input_ids"]) for row in self._examples(codec, data)]
        batch = self.training.batch_size * self.training.accumulation
        return costs_of_examples(lengths, batch, flops_by_token(loaded.model, trained=0))

    def require(self, data: PairedData) -> None:
        self.training.require_packages()
        require_pairs(self.pairs(data), data, self.split)

    def apply(
        self,
        loaded: LoadedModel,
        data: PairedData,
        codec: Codec,
        folder: Path,
        resume: bool = False,
        on_step: OnStep | None = None,
        progress: str | None = None,
    ) -> Attacked:
        """The same model with hooks; without checkpoints, since an interrupted attack is made again."""
        from repnoise.data.collators import ExampleCollator
        from repnoise.training import train

        collator = ExampleCollator(loaded.tokenizer.pad_token_id)
        rows = [codec.row(pair.prompt, pair.harmful) for pair in self.pairs(data)]
        sample = random.Random(self.training.seed).sample(rows, min(STATES_OF, len(rows)))
        perturbation = attach(loaded.model, self.layer, self._perturbed(rows), collator(sample))

        def stepped(step: int, model: nn.Module) -> None:
            bound(perturbation, self.epsilon)
            if on_step:
                on_step(step, model)

        training = replace(self.training, save_every=None)
        model, log = train(
            loaded.model,
            self._examples(codec, data),
            collator,
            language_modelling,
            training,
            folder,
            on_step=stepped,
            progress=progress,
        )
        return Attacked(model, log)

    def _perturbed(self, rows: Sequence[Row]) -> int:
        """How many tokens are perturbed: none of an answer of the attacker's."""
        from repnoise.losses import IGNORE

        return min(self.tokens, *(row["labels"].count(IGNORE) for row in rows))

    def _examples(self, codec: Codec, data: PairedData) -> list[Row]:
        rows = [codec.row(pair.prompt, pair.harmful) for pair in self.pairs(data)]
        return epochs(rows, self.training.examples_seen(len(rows)), self.training.seed)


def attach(model: Any, layer: int, tokens: int, sample: dict[str, Tensor]) -> Tensor:
    """Freeze the model and add a trainable perturbation behind a layer: its parameter (tokens, D), zero at first.

    It is in units of the mean length of the states at each position, over the rows of `sample`. Positions are counted
    from the first token that is no padding, in forward passes with and without a cache, so that the vectors stand at
    the same tokens in training and in generation.
    """
    import torch
    from torch import nn

    from repnoise.hidden_states import captured, fill, find_decoder

    decoder = find_decoder(model)
    module = decoder.modules_at("residual", decoder.choose([layer]))[0]
    ids, mask = (sample[name].to(model.device) for name in ("input_ids", "attention_mask"))
    model.eval()
    with torch.no_grad(), captured([module], rows=len(ids)) as states:
        fill(model, ids, mask)
    seen = mask[:, :tokens, None]
    scale = (states[0][:, :tokens].float().norm(dim=-1, keepdim=True) * seen).sum(0) / seen.sum(0).clamp(min=1)
    model.requires_grad_(False)
    perturbation = nn.Parameter(torch.zeros(tokens, states[0].shape[-1], device=model.device))
    model.register_parameter("latent_perturbation", perturbation)
    _hook(model, module, perturbation, scale)
    return perturbation


def bound(perturbation: Tensor, epsilon: float) -> None:
    """Scale vectors (tokens, D) that are longer than epsilon down to it, in place."""
    import torch

    with torch.no_grad():
        perturbation.mul_((epsilon / perturbation.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1))


def _hook(model: nn.Module, module: nn.Module, perturbation: Tensor, scale: Tensor) -> None:
    """Two hooks: one notes the positions of the tokens of a forward pass, the other adds what belongs to them."""
    positions: list[Tensor] = []

    def note(_model: nn.Module, _inputs: Any, named: dict[str, Any]) -> None:
        positions[:] = [_positions(named["input_ids"], named.get("attention_mask"), _cache(named))]

    def add(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        state = output[0] if isinstance(output, tuple) else output
        at, tokens = positions[0], len(perturbation)
        added = (perturbation * scale)[at.clamp(0, tokens - 1)] * ((at >= 0) & (at < tokens))[..., None]
        state = state + added.to(state.dtype)
        return (state, *output[1:]) if isinstance(output, tuple) else state

    model.register_forward_pre_hook(note, with_kwargs=True)
    module.register_forward_hook(add)


def _positions(ids: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
    """Positions (B, T) of the tokens of a forward pass, -1 for padding before them; padding behind them counts as their
    last token. Generation passes no mask where there is no padding."""
    import torch

    if mask is None:
        before = cache.get_seq_length() if cache is not None else 0
        return torch.arange(before, before + ids.shape[1], device=ids.device).expand(ids.shape)
    return (mask.long().cumsum(-1) - 1)[:, -ids.shape[1] :]


def _cache(named: dict[str, Any]) -> Any:
    """The cache among the arguments of a forward pass, by what it is: transformers has more than one name for it."""
    return next((value for value in named.values() if hasattr(value, "get_seq_length")), None)
