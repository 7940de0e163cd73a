"""Which modules write into the residual stream of a decoder, found by watching one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from repnoise.errors import RepnoiseError

if TYPE_CHECKING:  # Presets must be cheap to import.
    from torch import Tensor, nn

    from repnoise.hidden_states import Decoder

Call = tuple[Any, Any, Any]
"""One call of a module: the module, its first input and its first output."""


@dataclass(frozen=True)
class Writer:
    """A module whose output is added to the residual stream: directly, or through a norm."""

    module: Any
    norm: Any = None


def residual_writers(model: nn.Module, inputs: dict[str, Tensor]) -> list[Writer]:
    """All that writes into the residual stream: embeddings, attentions and MLPs, the positions' embedding included.

    Raises RepnoiseError, naming the architecture, where an attention or an MLP does not end in a linear map (experts).
    Nothing else proves that these are all: check what comes of it.
    """
    from repnoise.hidden_states import find_decoder

    decoder = find_decoder(model)
    calls = watched(model, inputs)
    of_layers = {id(module) for layer in decoder.layers for module in layer.modules()}
    writers = _before_layers(decoder, calls, [call for call in calls if id(call[0]) not in of_layers])
    within = [call for call in calls if id(call[0]) in of_layers]
    for site in ("attention", "mlp"):
        for layer, part in enumerate(decoder.modules_at(site, range(len(decoder.layers)))):
            writer = _of_part(part, within)
            if writer is None:
                raise RepnoiseError(
                    f"{decoder.architecture} cannot be abliterated by repnoise: the {site} of layer {layer} does not "
                    "end in a linear map. Use steering instead."
                )
            writers.append(writer)
    return writers


def _before_layers(decoder: Decoder, calls: Sequence[Call], outside: Sequence[Call]) -> list[Writer]:
    """The embeddings and linear maps outside the layers that give what is as wide as a residual state."""
    from torch import nn

    width = next(output for module, _, output in calls if module is decoder.layers[0]).shape[-1]
    reading = (decoder.unembedding, decoder.project_out)
    return [
        Writer(module, _norm_of(output, outside))
        for module, _, output in outside
        if isinstance(module, nn.Embedding | nn.Linear) and module not in reading and output.shape[-1] == width
    ]


def _of_part(part: nn.Module, within: Sequence[Call]) -> Writer | None:
    """The last linear map that runs in an attention or an MLP; a norm behind it only where the part returns what the
    map gives: some return the sum with the residual stream, and what norms that reads the stream."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    inside = {id(module) for module in part.modules()}
    maps = [call for call in within if id(call[0]) in inside and isinstance(call[0], nn.Linear | Conv1D)]
    if not maps:
        return None
    module, _, written = maps[-1]
    returned = next(output for called, _, output in within if called is part)
    plain = returned.numel() == written.numel() and torch.equal(returned.flatten(), written.flatten())
    return Writer(module, _norm_of(returned, [call for call in within if id(call[0]) not in inside]) if plain else None)


def _norm_of(tensor: Tensor, calls: Sequence[Call]) -> nn.Module | None:
    """The norm among some calls that was given this very tensor."""
    return next((m for m, given, _ in calls if given is tensor and "norm" in type(m).__name__.lower()), None)


def watched(model: nn.Module, inputs: dict[str, Tensor]) -> list[Call]:
    """Every call of a module in one forward pass, in the order in which they end."""
    import torch

    calls: list[Call] = []

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        found = output[0] if isinstance(output, tuple | list) else output
        calls.append((module, given[0] if given else None, found))

    handles = [module.register_forward_hook(keep) for module in model.modules() if module is not model]
    try:
        with torch.no_grad():
            model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls
