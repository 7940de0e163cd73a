"""Prompts to completions: batched, left-padded, the same text as one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from repnoise.data.tokenization import Codec, left_padded
from repnoise.modeling import LoadedModel


@dataclass(frozen=True)
class Generation:
    """How completions are drawn.

    Attributes:
        max_new_tokens: longest completion.
        batch_size: prompts at a time; does not change the text of greedy decoding beyond rounding.
        temperature: 0 is greedy.
        top_p: nucleus of sampling; only used when the temperature is above 0.
        seed: of sampling.
    """

    max_new_tokens: int = 64
    batch_size: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@torch.no_grad()
def generate(loaded: LoadedModel, codec: Codec, prompts: Sequence[str], generation: Generation) -> list[str]:
    """One completion a prompt, in their order, without special tokens.

    A model's own generation config is not consulted (Llama-2-chat's samples by default, which made the published
    evaluation depend on it). Prompts are handled longest first so that batches hold little padding.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    ids = [codec.prompt_ids(prompt) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    texts = [""] * len(ids)
    was_training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(generation.seed)
        for start in range(0, len(order), generation.batch_size):
            chosen = order[start : start + generation.batch_size]
            batch = left_padded([ids[i] for i in chosen], tokenizer.pad_token_id)
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            output = model.generate(**batch, generation_config=_config(loaded, generation))
            completions = output[:, batch["input_ids"].shape[1] :]
            for i, completion in zip(chosen, completions, strict=True):
                texts[i] = tokenizer.decode(completion, skip_special_tokens=True)
    model.train(was_training)
    return texts


def _config(loaded: LoadedModel, generation: Generation):
    from transformers import GenerationConfig

    sampling = generation.temperature > 0
    own = loaded.model.generation_config
    return GenerationConfig(
        max_new_tokens=generation.max_new_tokens,
        do_sample=sampling,
        temperature=generation.temperature if sampling else None,
        top_p=generation.top_p if sampling else None,
        eos_token_id=own.eos_token_id if own.eos_token_id is not None else loaded.tokenizer.eos_token_id,
        pad_token_id=loaded.tokenizer.pad_token_id,
    )
