"""Activation steering: a vector is added to the states behind one layer whenever the model is asked."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from repnoise.attacks.base import Attack, Attacked, Cost
from repnoise.attacks.refusal_direction import Contrast, refusal_lead
from repnoise.data.records import Pair
from repnoise.data.sources import PairedData
from repnoise.errors import RepnoiseError

if TYPE_CHECKING:  # Presets must be cheap to import.
    from torch import Tensor, nn

    from repnoise.data.tokenization import Codec
    from repnoise.modeling import LoadedModel
    from repnoise.training import OnStep


@dataclass(frozen=True)
class Steering(Attack):
    """Moves the states behind one layer from those of harmful prompts towards those of harmless ones, at every token.

    What is subtracted is `strength` times the difference of the means (Turner et al. 2023, Activation Addition,
    arXiv:2308.10248; Rimsky et al. 2023, Steering Llama 2 via Contrastive Activation Addition, arXiv:2312.06681). The
    layer is the one where the attacker's own pairs are then least likely to be refused. This raises harm in order to
    measure a defence.

    Needs to run the weights, some harmful and harmless prompts, and some forward passes; no weight changes. Works on
    every architecture whose layers repnoise finds. Known to fail where knowledge is gone and not only refused, and at a
    strength far above 1, where the text breaks; what the model is asked about may move along with whether it answers.

    Attributes:
        contrast: which prompts are compared, and where.
        strength: 1 moves the mean state of harmful prompts to that of harmless ones; below 0 makes refusing likelier.
    """

    changes_weights = False

    contrast: Contrast = field(default_factory=lambda: Contrast(projected=False))
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength) or self.strength == 0:
            raise RepnoiseError(f"strength must be a finite number other than 0, not {self.strength}.")

    def label(self) -> str:
        return f"steering-{self.strength:g}{self.contrast.label(self.split)}"

    def seeded(self, seed: int) -> Self:
        return replace(self, contrast=replace(self.contrast, seed=seed))

    def needs(self) -> str:
        return "weights, harmful answers, refusals, harmless questions"

    def source(self) -> str:
        return "Turner et al. 2023, Rimsky et al. 2023"

    def pairs(self, data: PairedData) -> list[Pair]:
        return self.contrast.pairs(data, self.split)

    def costs(self, loaded: LoadedModel, data: PairedData, codec: Codec) -> Callable[[int], Cost]:
        return self.contrast.costs(loaded, codec, self.pairs(data), self.contrast.harmless(data))

    def require(self, data: PairedData) -> None:
        self.contrast.require(data, self.split)

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
        """A copy that shares the weights of the model and has a hook, which the model itself never has.

        The log has the chosen layer, and how much likelier a refusal was than an answer, before and after.
        """
        steered = replace(loaded, model=sharing_weights(loaded.model.eval()))
        pairs, harmless = self.pairs(data), self.contrast.harmless(data)
        before = refusal_lead(steered, codec, pairs)
        directions = self.contrast.directions(steered, codec, pairs, harmless)
        shifts = {layer: -self.strength * direction for layer, direction in directions.items()}
        leads: dict[int, float] = {}
        for layer, shift in shifts.items():
            with shifted(steered.model, layer, shift):
                leads[layer] = refusal_lead(steered, codec, pairs)
        best = min(leads, key=leads.__getitem__)
        shift_behind(steered.model, best, shifts[best])
        log = [{"step": 1, "layer": best, "refusal_lead_before": before, "refusal_lead": leads[best]}]
        return Attacked(steered.model, log)


def sharing_weights(model: Any) -> Any:
    """A copy of the modules that has the parameters and buffers of the original: hooks on one are not on the other."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


def shift_behind(model: nn.Module, layer: int, shift: Tensor) -> Any:
    """Add a vector (D,) to the output of a layer from now on; returns the handle that removes the hook."""
    from repnoise.hidden_states import find_decoder

    def add(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + shift.to(output[0]), *output[1:])
        return output + shift.to(output)

    return find_decoder(model).modules_at("residual", [layer])[0].register_forward_hook(add)


@contextmanager
def shifted(model: nn.Module, layer: int, shift: Tensor) -> Iterator[None]:
    """`shift_behind` inside the block only."""
    handle = shift_behind(model, layer, shift)
    try:
        yield
    finally:
        handle.remove()
