"""PEFT's adapters around a model, for attacks that leave its weights alone while they train."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from repnoise.modeling import with_lora

if TYPE_CHECKING:
    from torch import Tensor, nn

    from repnoise.attacks.parts import Parts
    from repnoise.optimisation import Training


SMALL = 0.02
"""Standard deviation of a prefix before training."""


def with_adapter(model: Any, parts: Parts, training: Training) -> nn.Module:
    """The model in PEFT's wrapper, with fresh adapters that the seed decides; its own weights are frozen."""
    torch.manual_seed(training.seed)
    if parts.adapter in ("lora", "dora"):
        assert training.lora_rank is not None  # `Parts.require` told.
        return with_lora(model, training.lora_rank, training.lora_alpha, parts.adapter == "dora", training.four_bit)
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of old names in transformers, and that GPT-2's weights are transposed.
        wrapped = get_peft_model(model, _config(parts))
    if not parts.mergeable:
        # What PEFT does whenever it is called, and nobody who uses it can change.
        warnings.filterwarnings("ignore", "`past_key_values` is deprecated", FutureWarning)
        wrapped.prepare_inputs_for_generation = _begun_with_virtual_tokens(wrapped, parts)
    if parts.adapter == "prefix":
        with torch.no_grad():  # PEFT's are as large as 1, which breaks the text before anything is learned.
            wrapped.prompt_encoder["default"].embedding.weight.mul_(SMALL)
    if parts.adapter == "prompt":
        wrapped.register_forward_hook(_without_virtual_tokens)
    return wrapped


def _config(parts: Parts) -> Any:
    from peft import IA3Config, PrefixTuningConfig, PromptTuningConfig

    if parts.adapter == "ia3":
        return IA3Config(target_modules="all-linear", feedforward_modules=[], task_type="CAUSAL_LM")
    settings: Any = {"num_virtual_tokens": parts.virtual_tokens, "task_type": "CAUSAL_LM"}
    if parts.adapter == "prefix":
        return PrefixTuningConfig(**settings)
    # Better than random vectors by Lester et al., section 3.2; what is best there, the names of classes, is not here.
    return PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **settings)


def _without_virtual_tokens(wrapped: Any, _inputs: Any, output: Any) -> Any:
    """Leave out what is predicted at the virtual tokens, so that logits stand at the tokens that were given."""
    output.logits = output.logits[:, wrapped.active_peft_config.num_virtual_tokens :]
    return output


def _begun_with_virtual_tokens(wrapped: Any, parts: Parts) -> Callable[..., dict[str, Any]]:
    """How a wrapped model makes its inputs in `generate`.

    PEFT 0.21 does not find the cache of transformers 5.24, and so loses a prefix, or puts a prompt before every new
    token. It also counts padding as positions, so that a text would depend on what it is generated beside.
    """
    plain, virtual = wrapped.base_model_prepare_inputs_for_generation, parts.virtual_tokens

    def prepare(input_ids: Tensor, attention_mask: Tensor | None = None, cache: Any = None, **rest: Any) -> Any:
        inputs = plain(input_ids, attention_mask=attention_mask, cache=cache, **rest)
        seen = cache.get_seq_length() if cache is not None else 0
        length = inputs["input_ids"].shape[1]
        if attention_mask is None:  # `generate` drops one that hides nothing.
            mask = input_ids.new_ones(len(input_ids), (seen or virtual) + length)
        else:
            mask = torch.cat([attention_mask.new_ones(len(input_ids), virtual), attention_mask], dim=1)
        if not seen:
            begun = wrapped.get_prompt(len(input_ids))
            if parts.adapter == "prefix":
                inputs["cache"] = begun
            else:
                embeddings = torch.cat([begun, wrapped.word_embeddings(inputs["input_ids"])], dim=1)
                inputs |= {"input_ids": None, "inputs_embeds": embeddings}
                length += virtual
        if "position_ids" in inputs:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -length:]
        return inputs | {"attention_mask": mask}

    return prepare
