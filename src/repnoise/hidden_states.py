"""The only file that knows how a decoder is built: where its layers are, what flows in them, how states are read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from repnoise.errors import RepnoiseError

FEW_LOGITS = 2**20
"""A batch with so many of them is read out whole: reading out less saves no time."""

Site = Literal["mlp", "attention", "residual"]

# The names that transformers' decoders give to the parts of a layer. OPT has no MLP module: its last linear map is it.
_MLP = ("mlp", "feed_forward", "block_sparse_moe", "ffn", "fc2")
_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_FINAL_NORM = (
    *("norm", "ln_f", "final_layernorm", "final_layer_norm", "final_norm", "norm_f"),
    *("layer_norm", "embedding_norm"),  # XGLM and BioGPT; LFM2
)


@dataclass(frozen=True)
class Decoder:
    """The parts of a causal language model that the objective needs, found once by `find_decoder`."""

    architecture: str
    layers: Sequence[nn.Module]
    final_norm: nn.Module | None
    project_out: nn.Module | None
    unembedding: nn.Module
    logit_scale: float
    logit_softcap: float | None

    def modules_at(self, site: Site, layers: Sequence[int]) -> list[nn.Module]:
        """The modules whose outputs are the activations at `site` of the given layers."""
        if site == "residual":
            return [self.layers[i] for i in layers]
        names = _MLP if site == "mlp" else _ATTENTION
        modules = [_part(self.layers[i], names) for i in layers]
        if None in modules:
            layer = list(layers)[modules.index(None)]
            raise RepnoiseError(f"repnoise does not know where {self.architecture} keeps the {site} of layer {layer}.")
        return [module for module in modules if module is not None]

    def choose(self, layers: Sequence[int] | None) -> list[int]:
        """The layer indices meant by `layers` (all of them for None), negative ones counted from the end."""
        depth = len(self.layers)
        wanted = range(depth) if layers is None else layers
        for index in wanted:
            if not -depth <= index < depth:
                raise RepnoiseError(f"There is no layer {index}: this model has layers 0 to {depth - 1}.")
        return sorted({index % depth for index in wanted})

    def read_out(self, states: Tensor, final_norm: bool = True, detached: bool = False) -> Tensor:
        """Logits (..., V) of residual states (..., D), as the model itself makes them of its last state (the "lens").

        With `detached`, no gradient reaches the parameters of the final norm and the unembedding.
        """
        for module in (self.final_norm if final_norm else None, self.project_out, self.unembedding):
            if module is not None:
                states = _detached_call(module, states) if detached else module(states)
        logits = states if self.logit_scale == 1 else states * self.logit_scale
        if self.logit_softcap is not None:
            logits = torch.tanh(logits / self.logit_softcap) * self.logit_softcap
        return logits


def find_decoder(model: nn.Module) -> Decoder:
    """Find layers, final norm and unembedding of a causal LM (bare, or wrapped by PEFT or a parallel wrapper).

    Raises RepnoiseError, naming the architecture, for a model that is not a decoder it can read.
    """
    inner = _unwrapped(model)
    architecture = type(inner).__name__
    config = inner.config.get_text_config(decoder=True)
    unembedding = inner.get_output_embeddings()
    stack = _layer_stack(inner, getattr(config, "num_hidden_layers", 0))
    if unembedding is None or stack is None or getattr(config, "is_encoder_decoder", False):
        raise RepnoiseError(
            f"{architecture} is not a decoder-only language model that repnoise can read: it needs a causal LM with "
            "a list of decoder layers with MLPs and an unembedding, such as Llama, Qwen or GPT-2."
        )
    parent, layers = stack
    return Decoder(
        architecture=architecture,
        layers=layers,
        final_norm=_part(parent, _FINAL_NORM),
        project_out=getattr(parent, "project_out", None),
        unembedding=unembedding,
        logit_scale=_logit_scale(config),
        logit_softcap=getattr(config, "final_logit_softcapping", None),
    )


@contextmanager
def captured(modules: Sequence[nn.Module], rows: int | None = None) -> Iterator[list[Tensor]]:
    """Collect the output (B, T, D) of each module in the order of `modules` during one forward pass inside the block.

    The hooks are gone when the block is left, however it is left. The list is filled by the forward pass. Some layers
    (OPT's, Llama 4's experts) flatten a batch to (B * T, D): with `rows`, the B of the batch, that is undone.
    """
    found: list[Any] = [None] * len(modules)

    def keep(position: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            state = output[0] if isinstance(output, tuple | list) else output
            found[position] = state.unflatten(0, (rows, -1)) if rows and state.dim() == 2 else state

        return hook

    handles = [module.register_forward_hook(keep(i)) for i, module in enumerate(modules)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def require_gradient(activations: Sequence[Tensor], what: str) -> None:
    """Raise if gradients are on and yet none would flow into captured activations.

    Re-entrant gradient checkpointing does this: the term would vanish from the training without a word.
    """
    if torch.is_grad_enabled() and not all(a is not None and a.requires_grad for a in activations):
        raise RepnoiseError(
            f"Some captured {what} carry no gradient, so the defence would train nothing there. Re-entrant gradient "
            "checkpointing does that: use gradient_checkpointing_kwargs={'use_reentrant': False}. So do frozen layers: "
            "leave them out of the defence's `layers`."
        )


def fill(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> None:
    """One forward pass for the sake of what is captured: only the last position is read out, where that is possible."""
    some: dict[str, Any] = {"logits_to_keep": 1} if _reads_some_positions(model) else {}
    model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **some)


def positions_to_read(model: nn.Module, wanted: Tensor) -> Tensor | None:
    """Which positions (K,) are `wanted` (B, T) in any row, for the model's `logits_to_keep`.

    None where the model takes none, or where all its logits are few: then everything is read out.
    """
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    few = embeddings is None or wanted.numel() * embeddings.weight.shape[0] <= FEW_LOGITS
    return None if few or not _reads_some_positions(model) else wanted.any(0).nonzero()[:, 0]


def _reads_some_positions(model: nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(_unwrapped(model).forward).parameters


@torch.no_grad()
def check_lens(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> None:
    """Raise unless reading out the last residual state gives the model's own logits.

    The safeguard for architectures that nobody tested: a scale, cap or norm that `find_decoder` does not know of would
    otherwise make the lens quietly wrong.
    """
    decoder = find_decoder(model)
    with captured(decoder.modules_at("residual", [len(decoder.layers) - 1])) as states:
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    seen = attention_mask.bool()
    ours, own = decoder.read_out(states[0])[seen].float(), logits[seen].float()
    if not torch.allclose(ours, own, rtol=1e-2, atol=1e-2 * own.abs().max().item()):
        raise RepnoiseError(
            f"repnoise cannot read {decoder.architecture}: its logits are not the unembedding of its normed last state."
        )


def _unwrapped(model: Any) -> Any:
    """The transformers model inside PEFT, DistributedDataParallel and the like."""
    while hasattr(model, "get_base_model") or not hasattr(model, "get_output_embeddings"):
        inner = model.get_base_model() if hasattr(model, "get_base_model") else getattr(model, "module", None)
        if inner is None:
            break
        model = inner
    if not hasattr(model, "get_output_embeddings"):
        raise RepnoiseError(f"{type(model).__name__} is not a transformers model.")
    return model


def _layer_stack(model: Any, depth: int) -> tuple[nn.Module, Sequence[nn.Module]] | None:
    """The module that holds the list of decoder layers, and the list: the outermost one of the configured length."""
    for parent in model.modules():
        for child in parent.children():
            if isinstance(child, nn.ModuleList) and len(child) == depth > 0 and _are_layers(child):
                return parent, list(child)
    return None


def _are_layers(modules: nn.ModuleList) -> bool:
    """Every decoder layer has an MLP; in hybrids of attention and recurrence, not every one has attention."""
    return all(_part(layer, _MLP) for layer in modules) and any(_part(layer, _ATTENTION) for layer in modules)


def _part(parent: nn.Module, names: Sequence[str]) -> nn.Module | None:
    return next((m for name in names if isinstance(m := getattr(parent, name, None), nn.Module)), None)


def _logit_scale(config: Any) -> float:
    """Cohere multiplies its logits by `logit_scale`, Granite divides them by `logits_scaling`."""
    scale = getattr(config, "logit_scale", None)
    if isinstance(scale, int | float):
        return float(scale)
    return 1 / (getattr(config, "logits_scaling", None) or 1.0)


def _detached_call(module: nn.Module, inputs: Tensor) -> Tensor:
    state = {name: tensor.detach() for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    return torch.func.functional_call(module, state, (inputs,))
