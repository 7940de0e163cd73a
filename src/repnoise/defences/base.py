"""What a defence is: hyper-parameters, and one method that turns a batch of pairs into a loss."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from repnoise.distributed.pooling import pooled_mean
from repnoise.errors import RepnoiseError
from repnoise.hidden_states import captured, fill, find_decoder, positions_to_read
from repnoise.losses import IGNORE, next_token, read_out_ce, token_ce

Batch = Mapping[str, Tensor]
"""`input_ids`, `attention_mask` and `labels`, each (B, T) int64, right-padded; labels are -100 off the completion."""

Terms = dict[str, Tensor]
"""Detached scalars to be logged by name."""


@dataclass(frozen=True)
class Defence(ABC):
    """A frozen dataclass of hyper-parameters: `dataclasses.asdict` of it is what is logged, stored and shown.

    Subclasses are final and add nothing but fields, `loss`, `begin` and `keeps_start` where they need them, and private
    helpers.
    """

    keeps_start: ClassVar[bool] = False
    """Whether what `begin` returns holds a copy of the model as it was."""

    @abstractmethod
    def loss(
        self, model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
    ) -> tuple[Tensor, Terms]:
        """The scalar to minimise on one batch of pairs, and its terms.

        Row i of `harmless` and of `harmful` is the same prompt with its two completions; `retain` is a batch of general
        harmless examples, absent when the user has none. Randomness comes from torch's default generators only, whose
        state a checkpoint carries, so that a resumed run repeats an uninterrupted one.

        A method with inner steps or several passes makes its gradient itself and returns it by `with_gradient`.
        """

    def begin(self, model: nn.Module) -> Callable[..., tuple[Tensor, Terms]]:
        """The loss for a training that starts from this model, which has no adapters yet.

        What a loss needs of the model as it was (a frozen copy of it, say) is bound here; weights that the method
        leaves alone are closed here by `requires_grad_(False)`. A resumed run begins from the same model again.
        """
        return self.loss


def frozen_copy(model: nn.Module) -> nn.Module:
    """The model as it is now, to be compared with: in evaluation mode and without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def with_gradient(value: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """A scalar of this value whose derivative by each of the parameters is the given tensor (None for zero).

    So a method with inner steps has its gradient clipped, accumulated, logged and applied like any other, by the one
    trainer that there is.
    """
    return _GivenGradient.apply(value.detach(), tuple(gradients), *parameters)  # type: ignore[return-value]


class _GivenGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor | None, ...], *_parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        given = (None if gradient is None else upstream[0] * gradient for gradient in ctx.gradients)
        return None, None, *given


def completion_ce(model: nn.Module, batch: Batch, by_lens: bool = False) -> Tensor:
    """Token-mean cross-entropy of the completions of a batch under the model, in nats.

    Where there would be many logits, positions that predict nothing in any row (prompts, mostly) are not read out; and
    `by_lens`, for a model that `check_lens` has passed, there are never more of them than `losses.rows_at_once` allows,
    at the price of the second derivative. Raises RepnoiseError if there is no completion token in it.
    """
    require_completion(batch)
    targets, inputs = next_token(batch["labels"]), {key: batch[key] for key in ("input_ids", "attention_mask")}
    predicting = targets != IGNORE
    if (some := positions_to_read(model, predicting)) is None:
        mean = token_ce(model(**inputs, use_cache=False).logits, targets)
    elif by_lens:
        decoder = find_decoder(model)
        with captured(decoder.modules_at("residual", [len(decoder.layers) - 1]), rows=len(targets)) as states:
            fill(model, **inputs)
        mean = read_out_ce(decoder.read_out, states[0][predicting], targets[predicting])
    else:
        mean = token_ce(model(**inputs, use_cache=False, logits_to_keep=some).logits, targets[:, some])
    return pooled_mean(mean, predicting.sum)


def require_completion(batch: Batch) -> None:
    """Raise RepnoiseError if a batch has no token to predict: its loss would be NaN."""
    if not (next_token(batch["labels"]) != IGNORE).any():
        raise RepnoiseError(
            "A batch has no completion token to learn from: check that no completion is empty, and that prompts leave "
            "room for them within --max-length."
        )


def require_weights(**weights: float) -> None:
    """Raise RepnoiseError unless every weight is finite and not negative, which would turn its term around."""
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise RepnoiseError(f"{name} must be 0 or more, not {weight}.")
