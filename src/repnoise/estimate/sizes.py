"""What an estimate needs to know of a model, from its config alone: how many weights, and what a forward pass keeps."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from repnoise.cost import parameters_in_products
from repnoise.errors import RepnoiseError
from repnoise.four_bit import FourBitLinear, adapters_on
from repnoise.hidden_states import Decoder, find_decoder
from repnoise.modeling import with_lora
from repnoise.optimisation import Training

TRACED_LAYERS = 12
"""Most layers whose forward pass is traced; of a deeper model, the others are taken to keep as much on average."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of weights and widths of a model as it is trained.

    Attributes:
        architecture: its class.
        layers: decoder layers, L.
        width: D.
        vocabulary: rows of the unembedding, V.
        attention: width of all heads together; `keys` that of keys and of values.
        weights: all of them, each once, adapters included; `trained` those with a gradient.
        products: weights that every token is multiplied by (`cost.parameters_in_products`), the unembedding's among
            them; `products_trained` those with a gradient.
        head: the unembedding's own, V D; `head_trained` is that or 0.
        four_bit: of `weights`, those that are held in 4 bits while adapters are trained; `largest` those of the largest
            map among them.
        one_position: whether the model can be asked for the logits of its last position alone.
    """

    architecture: str
    layers: int
    width: int
    vocabulary: int
    attention: int
    keys: int
    weights: int
    trained: int
    products: int
    products_trained: int
    head: int
    head_trained: int
    one_position: bool
    four_bit: int = 0
    largest: int = 0


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward pass keeps for its backward pass, logits left out.

    Attributes:
        layers: of all decoder layers.
        rest: of what comes before and after them.
        again: what one layer keeps while it is computed again, under gradient checkpointing; else 0.
        casts: copies of weights in 16 bits, which all passes of a step share.
    """

    layers: float
    rest: float
    again: float
    casts: float

    @property
    def all(self) -> float:
        return self.layers + self.rest


def shell(model_config: Any, training: Training | None = None) -> Any:
    """The model without its weights (on torch's meta device), with the adapters that a training puts on it.

    Raises RepnoiseError for a config that no causal language model has.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32)
        except ValueError as error:
            kind = getattr(model_config, "model_type", "this")
            raise RepnoiseError(f"{kind} is not a causal language model that repnoise can train.") from error
        if training is not None and training.lora_rank is not None:
            model = with_lora(model, training.lora_rank, training.lora_alpha)
    return model.train()


def sizes_of(model: Any, four_bit: bool = False) -> Sizes:
    """Count a model's weights, those under adapters as held in 4 bits if they are. Raises RepnoiseError where a token
    does not meet each of them once."""
    decoder = find_decoder(model)
    config = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    per_head = getattr(config, "head_dim", None) or config.hidden_size // heads
    head: Any = decoder.unembedding.weight
    packed = [adapter.base_layer.weight.numel() for adapter in adapters_on(model)] if four_bit else []
    return Sizes(
        architecture=decoder.architecture,
        layers=len(decoder.layers),
        width=config.hidden_size,
        vocabulary=head.shape[0],
        attention=heads * per_head,
        keys=(getattr(config, "num_key_value_heads", None) or heads) * per_head,
        weights=sum(weight.numel() for weight in model.parameters()),
        trained=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        products=parameters_in_products(model),
        products_trained=parameters_in_products(model, trained=True),
        head=head.numel(),
        head_trained=head.numel() if head.requires_grad else 0,
        one_position="logits_to_keep" in inspect.signature(_plain(model).forward).parameters,
        four_bit=sum(packed),
        largest=max(packed, default=0),
    )


def kept_by_a_pass(model: Any, rows: int, length: int, training: Training) -> Kept:
    """Trace a forward pass of `rows` times `length` tokens with tensors that have shapes and no contents.

    The model is used up: it loses the layers that are not traced, and its weights become such tensors.
    """
    decoder = find_decoder(model)
    traced = _shortened(model, decoder)
    precision = training.precision
    for adapter in adapters_on(model) if training.four_bit else []:
        adapter.base_layer = _FourBitShape(adapter.base_layer)
    with FakeTensorMode():
        _without_contents(model)
        ids = torch.zeros(rows, length, dtype=torch.long)
        seen = {_storage(weight) for weight in model.parameters()}

        def forward() -> Any:
            return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)

        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            # Weights are cast in the first pass, and those that are trained only there.
            in_layers, rest, _first = _kept(forward, decoder, seen)
            again_layers, again_rest, _second = _kept(forward, decoder, seen)
    share = len(decoder.layers) / traced
    # In fp32 there are none: a mask that is made once would count as one.
    casts = (in_layers - again_layers) * share + rest - again_rest if precision == "bf16" else 0.0
    if not training.gradient_checkpointing:
        return Kept(again_layers * share, again_rest, 0.0, casts)
    state = rows * length * model.config.get_text_config(decoder=True).hidden_size * (4 if precision == "fp32" else 2)
    return Kept(len(decoder.layers) * state, again_rest, again_layers / traced, casts)


def _kept(forward: Callable[[], Any], decoder: Decoder, seen: set[int]) -> tuple[float, float, Any]:
    """Bytes of new storages that autograd keeps of a forward pass, inside and outside the decoder layers, and what
    holds them."""
    found, held, depth = [0, 0], [], 0

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in seen:
            seen.add(_storage(tensor))
            found[0 if depth else 1] += tensor.untyped_storage().nbytes()
        held.append(tensor)
        return tensor

    def enter(*_arguments: Any) -> None:
        nonlocal depth
        depth += 1

    def leave(*_arguments: Any) -> None:
        nonlocal depth
        depth -= 1

    with _hooked(decoder, enter, leave), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    return found[0], found[1], (held, output)


@contextmanager
def _hooked(decoder: Decoder, enter: Callable[..., None], leave: Callable[..., None]) -> Iterator[None]:
    handles = [layer.register_forward_pre_hook(enter) for layer in decoder.layers]
    handles += [layer.register_forward_hook(leave) for layer in decoder.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shortened(model: Any, decoder: Decoder) -> int:
    """Leave no more than TRACED_LAYERS in the model; how many there are then."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) and module[0] is decoder.layers[0]:
            del module[TRACED_LAYERS:]
            return len(module)
    return len(decoder.layers)


def _without_contents(model: nn.Module) -> None:
    """Put tensors of the current mode in place of all weights and buffers; what was shared stays so."""
    new: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in new:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    trained = isinstance(tensor, nn.Parameter)
                    new[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if trained else empty
                tensors[name] = new[id(tensor)]  # type: ignore[assignment]


class _FourBitShape(FourBitLinear):
    """A linear map whose 4 bits are not there: its weights have a shape and no contents."""

    def __init__(self, original: Any) -> None:
        nn.Module.__init__(self)
        self._original, self.bias = (original,), original.bias
        self.shape = self._upright(original.weight).shape

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        return torch.empty(self.shape, dtype=dtype)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
