"""Abliteration: the direction in which refused prompts differ is taken out of everything that the model can write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from repnoise.attacks.base import Attack, Attacked, Cost
from repnoise.attacks.refusal_direction import Contrast, prompt_batch, refusal_lead
from repnoise.attacks.residual_writers import Writer, residual_writers
from repnoise.data.records import Pair
from repnoise.data.sources import PairedData
from repnoise.errors import RepnoiseError

if TYPE_CHECKING:  # Presets must be cheap to import.
    from torch import Tensor, nn

    from repnoise.data.tokenization import Codec
    from repnoise.modeling import LoadedModel
    from repnoise.training import OnStep

Changes = list[tuple[Any, Any]]
"""Parameters with new values."""

NEGLIGIBLE = 1e-4
"""The component along a direction that a state may keep, as a share of its length: what rounding leaves."""


@dataclass(frozen=True)
class Abliteration(Attack):
    """Removes the "refusal direction" from the weights (Arditi et al. 2024, Refusal in Language Models Is Mediated by a
    Single Direction, arXiv:2406.11717).

    The direction is the difference of the mean residual states of harmful and of harmless prompts at their last token,
    behind one layer. Every matrix and bias that writes into the residual stream (embeddings, attention outputs, MLP
    outputs) loses its component along it, so that no layer can write it any more. The layer is the one after whose
    removal the attacker's own pairs are least likely to be refused. This raises harm in order to measure a defence.

    Needs the weights, some harmful and harmless prompts, and some forward passes: minutes, where fine-tuning takes
    hours. A tied unembedding changes with its embedding. Known to fail where not one direction but many carry a
    refusal, and where knowledge is gone and not only refused: it gives back nothing that was forgotten (against
    unlearning see Lucki et al. 2024, An Adversarial Perspective on Machine Unlearning for AI Safety, arXiv:2409.18025,
    who found it to work against some). Without `projected` it fails on the sandbox, where answering is what it takes
    out. Mixtures of experts are not supported.

    Attributes:
        contrast: which prompts are compared, and where.
    """

    contrast: Contrast = field(default_factory=Contrast)

    def label(self) -> str:
        return f"abliteration{self.contrast.label(self.split)}"

    def seeded(self, seed: int) -> Self:
        return replace(self, contrast=replace(self.contrast, seed=seed))

    def needs(self) -> str:
        return "weights, harmful answers, refusals, harmless questions"

    def source(self) -> str:
        return f"Arditi et al. 2024{', Lai 2025' if self.contrast.projected else ''}"

    def pairs(self, data: PairedData) -> list[Pair]:
        return self.contrast.pairs(data, self.split)

    def costs(self, loaded: LoadedModel, data: PairedData, codec: Codec) -> Callable[[int], Cost]:
        """Those of `Contrast.costs`; the products that change the matrices are few beside them."""
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
        """The log has the chosen layer, and how much likelier a refusal was than an answer, before and after."""
        model, pairs = loaded.model.eval(), self.pairs(data)
        before = refusal_lead(loaded, codec, pairs)
        inputs = prompt_batch(loaded, codec, pairs[0].prompt)
        writers = residual_writers(model, inputs)
        directions = self.contrast.directions(loaded, codec, pairs, self.contrast.harmless(data))
        leads: dict[int, float] = {}
        for layer, direction in directions.items():
            with holding(without_direction(writers, direction)):
                require_gone(model, direction, inputs)
                leads[layer] = refusal_lead(loaded, codec, pairs)
        best = min(leads, key=leads.__getitem__)
        for parameter, value in without_direction(writers, directions[best]):
            parameter.data.copy_(value)
        log = [{"step": 1, "layer": best, "refusal_lead_before": before, "refusal_lead": leads[best]}]
        return Attacked(model, log)


def without_direction(writers: Sequence[Writer], direction: Tensor) -> Changes:
    """The parameters of the writers, each once, with what is left of them without their component along a direction.

    What a norm with gain g lets through along the direction d is what lies along g * d before it (less the mean, for a
    norm that takes the mean out).
    """
    import torch
    from torch import nn

    unit = unit_of(direction)
    changes: dict[int, tuple[Any, Any]] = {}
    with torch.no_grad():
        for writer in writers:
            axis = before_norm(writer.norm, unit)
            weight, bias = writer.module.weight, getattr(writer.module, "bias", None)
            outputs_first = isinstance(writer.module, nn.Linear)
            value = projected_out(weight.mT, axis).mT if outputs_first else projected_out(weight, axis)
            changes[id(weight)] = weight, value
            for vector, along in ((bias, axis), (getattr(writer.norm, "bias", None), unit)):
                if vector is not None:
                    changes[id(vector)] = vector, projected_out(vector, along)
    return list(changes.values())


def unit_of(vector: Tensor) -> Tensor:
    """A vector (D,) of length 1 in the same direction; zeros stay."""
    return vector / vector.norm().clamp_min(1e-12)


def projected_out(rows: Tensor, unit: Tensor) -> Tensor:
    """Rows (..., D) less their component along a unit vector (D,). Twice, since once leaves a rounding error."""
    for _ in range(2):
        rows = rows - (rows @ unit)[..., None] * unit
    return rows


def before_norm(norm: nn.Module | None, unit: Tensor) -> Tensor:
    """The unit vector that has to be missing before a norm for `unit` to be missing behind it (bias apart)."""
    import torch
    from torch import nn

    if norm is None:
        return unit
    if isinstance(norm, nn.LayerNorm):
        axis: Tensor = unit if norm.weight is None else norm.weight * unit
        axis = axis - axis.mean()
    else:  # Of the root-mean-square kind: its gain, up to a factor, is what it makes of ones.
        axis = norm(torch.ones_like(unit)) * unit
    return unit_of(axis)


@contextmanager
def holding(changes: Changes) -> Iterator[None]:
    """The parameters have their new values inside the block, and the old ones, bit for bit, after it."""
    kept = [parameter.data for parameter, _ in changes]
    try:
        for parameter, value in changes:
            parameter.data = value
        yield
    finally:
        for (parameter, _), value in zip(changes, kept, strict=True):
            parameter.data = value


def require_gone(model: nn.Module, direction: Tensor, inputs: dict[str, Tensor]) -> None:
    """Raise RepnoiseError unless no residual state of these inputs has a component along the direction."""
    import torch

    from repnoise.hidden_states import captured, find_decoder

    decoder = find_decoder(model)
    modules, unit = decoder.modules_at("residual", range(len(decoder.layers))), unit_of(direction)
    with torch.no_grad(), captured(modules, rows=1) as states:
        model(**inputs, use_cache=False)
    left = max(((state.float() @ unit).abs() / state.float().norm(dim=-1)).max().item() for state in states)
    if left > NEGLIGIBLE:
        raise RepnoiseError(
            f"{decoder.architecture} cannot be abliterated by repnoise: something that it does not know of writes into "
            "the residual stream. Use steering instead."
        )
