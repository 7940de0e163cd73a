"""Linear maps in 4 bits under low-rank adapters (QLoRA), and the weights that they had, which are kept aside.

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv:2305.14314: NF4, blocks of 64 weights with
one factor each, these factors in 8 bits (double quantisation). bitsandbytes quantises. Products are made here: its own
layer takes another kernel, and so has other last bits, where no gradient is asked for, and returns fp32 under bf16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

BLOCK = 64
FACTORS = 256
"""Weights that share a factor, and factors that share one of theirs: both are the paper's."""

BYTES = 0.5 + 1 / BLOCK + 4 / (BLOCK * FACTORS)
"""Of a weight in 4 bits: itself, and its part in a factor of 8 bits and in one of 32 bits."""


class FourBitLinear(nn.Module):
    """x W^T + b with W in NF4, computed in the precision of its surroundings, and without a gradient for W.

    The weights that it was made from wait in the CPU's memory, in the module that had them, which is no part of this
    one for PyTorch: nothing moves it, counts it or saves it. The bias is the same parameter in both.
    """

    packed: Tensor

    def __init__(self, original: Any, device: torch.device | None = None) -> None:
        super().__init__()
        from bitsandbytes.functional import quantize_4bit

        self._original = (original,)
        weight = self._upright(original.weight.detach().to(device or original.weight.device))
        self.shape, flat = weight.shape, weight.reshape(-1)
        # In rows of one block: bitsandbytes' kernel for CPUs takes the wrong factors where rows end within a block.
        rows = pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
        settings: Any = {"blocksize": BLOCK, "quant_type": "nf4", "compress_statistics": True}
        packed, self.state = quantize_4bit(rows, **settings)
        self.register_buffer("packed", packed, persistent=False)
        self.bias = original.bias
        self.set_aside()

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """W (outputs, inputs) as its 4 bits have it."""
        from bitsandbytes.functional import dequantize_4bit

        flat = dequantize_4bit(self.packed, self.state).view(-1)
        return flat[: self.shape.numel()].view(self.shape).to(dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        kind = inputs.device.type
        if torch.is_autocast_enabled(kind):
            inputs = inputs.to(torch.get_autocast_dtype(kind))
        product: Tensor = _Product.apply(inputs, self)  # type: ignore[assignment]
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def original(self, device: torch.device) -> nn.Module:
        """The module that this one was made from, with its weights on the device."""
        module = self._original[0]
        module.weight.data = module.weight.data.to(device)
        return module

    def set_aside(self) -> None:
        """Let the original weights wait where they take none of a GPU's memory."""
        self.original(torch.device("cpu"))

    def _upright(self, weight: Tensor) -> Tensor:
        """(outputs, inputs), which GPT-2's maps have the other way round."""
        return weight if isinstance(self._original[0], nn.Linear) else weight.T


class _Product(torch.autograd.Function):
    """Keeps nothing for the backward pass but the layer: the weights are read from their 4 bits once more."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: FourBitLinear) -> Tensor:
        ctx.layer = layer
        return linear(inputs, layer.weight_as(inputs.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.weight_as(gradient.dtype), None


def hold_in_four_bits(adapted: nn.Module) -> None:
    """Put the linear maps under all LoRA adapters of a model into 4 bits, on the device where the adapters are."""
    for adapter in adapters_on(adapted):
        adapter.base_layer = FourBitLinear(adapter.base_layer, next(adapter.lora_A.parameters()).device)


def give_back(adapted: nn.Module) -> None:
    """Put the original weights back under the adapters for good."""
    for adapter, layer in _in_four_bits(adapted):
        adapter.base_layer = layer.original(layer.packed.device)


@contextmanager
def as_saved(model: nn.Module) -> Iterator[None]:
    """Inside the block the adapters stand on the original weights, as in the model that is saved; after it on those of
    4 bits again. Nothing happens to other models."""
    held = list(_in_four_bits(model))
    try:
        give_back(model)
        yield
    finally:
        for adapter, layer in held:
            adapter.base_layer = layer
            layer.set_aside()


def adapters_on(model: nn.Module) -> list[Any]:
    """PEFT's LoRA layers, each with the linear map that it is beside as its `base_layer`."""
    return [module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "base_layer")]


def _in_four_bits(model: nn.Module) -> list[tuple[Any, FourBitLinear]]:
    found = ((adapter, adapter.base_layer) for adapter in adapters_on(model))
    return [(adapter, layer) for adapter, layer in found if isinstance(layer, FourBitLinear)]
