"""Prompts to completions: batched, left-padded, the same text as one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from repnoise.errors import RepnoiseError

if TYPE_CHECKING:  # Configs must be cheap to import.
    from repnoise.data.tokenization import Codec
    from repnoise.modeling import LoadedModel


@dataclass(frozen=True)
class Generation:
    """How completions are drawn.

    Attributes:
        max_new_tokens: longest completion; what the model's context leaves, where that is less.
        batch_size: prompts at a time; does not change the text of greedy decoding beyond rounding.
        temperature: 0 is greedy.
        top_p: nucleus of sampling; only used when the temperature is above 0.
        seed: of sampling.
    """

    max_new_tokens: int = 64
    batch_size: Annotated[int, tyro.conf.arg(name="generation-batch-size")] = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: Annotated[int, tyro.conf.arg(name="generation-seed")] = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise RepnoiseError(f"The {name} of generation must be at least 1, not {getattr(self, name)}.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise RepnoiseError(f"temperature must be 0 (greedy) or more, not {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise RepnoiseError(f"top_p is a share above 0 and up to 1, not {self.top_p}.")


def generate(loaded: LoadedModel, codec: Codec, prompts: Sequence[str], generation: Generation) -> list[str]:
    """One completion a prompt, in their order, without special tokens.

    A model's own generation config is not consulted (Llama-2-chat's samples by default, which made the published
    evaluation depend on it), but for the tokens that end a text. Prompts are handled longest first so that batches hold
    little padding. Raises RepnoiseError for a prompt that fills the model's context.
    """
    import torch

    from repnoise.data.tokenization import left_padded

    model, tokenizer = loaded.model, loaded.tokenizer
    ids = [codec.prompt_ids(prompt) for prompt in prompts]
    texts = [""] * len(ids)
    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(generation.seed)
        for chosen, room in _batches(ids, loaded.context, generation):
            batch = left_padded([ids[i] for i in chosen], tokenizer.pad_token_id)
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            config = _config(loaded, generation, room)
            with _without_own_settings(model):
                output = model.generate(**batch, generation_config=config)
            completions = output[:, batch["input_ids"].shape[1] :]
            for i, completion in zip(chosen, completions, strict=True):
                texts[i] = tokenizer.decode(completion, skip_special_tokens=True)
    model.train(was_training)
    return texts


def _batches(ids: Sequence[list[int]], context: int, generation: Generation) -> Iterator[tuple[list[int], int]]:
    """Indices of the prompts of each batch, longest first, and how many tokens may follow.

    Only prompts with equal room share a batch, so that no text depends on what it was generated beside.
    """
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    if order and len(ids[order[0]]) >= context:
        raise RepnoiseError(
            f"A prompt of {len(ids[order[0]])} tokens fills the model's context of {context}: shorten it, or leave it "
            "out with --skip-long."
        )
    for room, group in groupby(order, key=lambda i: min(generation.max_new_tokens, context - len(ids[i]))):
        alike = list(group)
        for start in range(0, len(alike), generation.batch_size):
            yield alike[start : start + generation.batch_size], room


def _config(loaded: LoadedModel, generation: Generation, room: int) -> Any:
    from transformers import GenerationConfig

    own, tokenizer = loaded.model.generation_config, loaded.tokenizer
    ends = {"eos_token_id": tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id}
    ends["pad_token_id"] = tokenizer.pad_token_id
    if generation.temperature == 0:
        return GenerationConfig(max_new_tokens=room, do_sample=False, **ends)
    sampling = {"temperature": generation.temperature, "top_p": generation.top_p, "top_k": 0}
    return GenerationConfig(max_new_tokens=room, do_sample=True, **sampling, **ends)


@contextmanager
def _without_own_settings(model: Any) -> Iterator[None]:
    """Put the model's generation config aside: `generate` fills from it whatever a given config leaves open, such as a
    repetition penalty."""
    from transformers import GenerationConfig

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = own
