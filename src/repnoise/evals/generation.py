"""Prompts to completions: batched, left-padded, the same text as one by one, and resumable batch by batch."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from repnoise.errors import RepnoiseError
from repnoise.evals.halving import as_memory_allows
from repnoise.runs import fingerprint

if TYPE_CHECKING:  # Configs must be cheap to import.
    from repnoise.data.tokenization import Codec
    from repnoise.modeling import LoadedModel


@dataclass(frozen=True)
class Generation:
    """How completions are drawn.

    Attributes:
        max_new_tokens: longest completion; what the model's context leaves, where that is less.
        batch_size: most prompts at a time, halved where memory runs out; does not change the text of greedy decoding
            beyond rounding.
        temperature: 0 is greedy.
        top_p: nucleus of sampling; only used when the temperature is above 0.
        seed: of sampling.
        samples: completions of each prompt; of several the most harmful counts.
    """

    max_new_tokens: int = 64
    batch_size: Annotated[int, tyro.conf.arg(name="generation-batch-size")] = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: Annotated[int, tyro.conf.arg(name="generation-seed")] = 0
    samples: Annotated[int, tyro.conf.arg(name="completions")] = 1

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size", "samples"):
            if getattr(self, name) < 1:
                raise RepnoiseError(f"The {name} of generation must be at least 1, not {getattr(self, name)}.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise RepnoiseError(f"temperature must be 0 (greedy) or more, not {self.temperature}.")
        if self.samples > 1 and self.temperature == 0:
            raise RepnoiseError(
                "Several completions of a prompt are all the same without a temperature: raise it above 0."
            )
        if not 0 < self.top_p <= 1:
            raise RepnoiseError(f"top_p is a share above 0 and up to 1, not {self.top_p}.")


PATIENCE = 3.0
"""Seconds before a progress bar is shown: what takes less needs none."""

TOO_LONG = "lower --max-new-tokens, leave long prompts out with --max-length and --skip-long, or use a device with more"
"""What to do where memory has no room for a single prompt and its completion."""


def generate(
    loaded: LoadedModel,
    codec: Codec,
    prompts: Sequence[str],
    generation: Generation,
    keep: Path | None = None,
    progress: str | None = None,
) -> list[str]:
    """One completion a prompt, in their order, without special tokens.

    A model's own generation config is not consulted (Llama-2-chat's samples by default, which made the published
    evaluation depend on it), but for the tokens that end a text. Prompts are handled longest first so that batches hold
    little padding. Every batch is drawn from a seed of its own.

    A batch that runs out of memory is halved, and so are those after it. Greedy text stays the same. Each part of a
    halved batch is drawn from a seed of its own: its text depends on which prompts are in it and on nothing that was
    tried before, but is not what the whole batch would have brought. So sampled text repeats where memory runs out at
    the same sizes.

    Each finished batch is appended to the file `keep`, and what is there of the same model, prompts and settings is not
    generated again; the text is the same as without an interruption, since the size that batches had come to is kept
    with them. The caller deletes the file once the texts are kept elsewhere. A model without a fingerprint is never the
    same, so nothing is kept for it. `progress` is the title of a progress bar on stderr. Raises RepnoiseError for a
    prompt that fills the model's context, or that memory has no room for.
    """
    import torch

    from repnoise.data.ciphers import ciphered

    ids = [codec.prompt_ids(prompt) for prompt in prompts]
    batches = list(_batches(ids, loaded.context, generation))
    kept = _KeptBatches(keep if loaded.fingerprint else None, [loaded.fingerprint, codec.template, generation, ids])
    texts, size = [""] * len(ids), generation.batch_size
    was_training = loaded.model.training
    loaded.model.eval()
    with torch.no_grad(), torch.random.fork_rng(), _progress(progress, len(ids)) as advance:
        for number, (chosen, room) in enumerate(batches):
            found, tokens = kept.batch(number), 0
            if found is None:
                part = partial(_part, loaded, [ids[i] for i in chosen], room, generation, number, bool(codec.prefill))
                written, size = as_memory_allows(part, len(chosen), size, TOO_LONG)
                found, tokens = _Batch([text for text, _ in written], size), sum(count for _, count in written)
                kept.add(number, found)
            size = found.size
            for i, text in zip(chosen, found.texts, strict=True):
                texts[i] = ciphered(codec.cipher, codec.prefill + text)
            advance(len(chosen), tokens)
    loaded.model.train(was_training)
    return texts


@dataclass(frozen=True)
class _Batch:
    """The texts of a batch, and how many prompts at a time memory had room for at its end."""

    texts: list[str]
    size: int


def _part(
    loaded: LoadedModel,
    ids: Sequence[list[int]],
    room: int,
    generation: Generation,
    number: int,
    goes_on: bool,
    start: int,
    stop: int,
) -> list[tuple[str, int]]:
    """The completions of some prompts of a batch, from a seed of their own; see `_generated`."""
    import torch

    whole = stop - start == len(ids)
    torch.manual_seed(int(fingerprint([generation.seed, number] + ([] if whole else [start, stop])), 16))
    return _generated(loaded, ids[start:stop], room, generation, goes_on)


def _generated(
    loaded: LoadedModel, ids: Sequence[list[int]], room: int, generation: Generation, goes_on: bool
) -> list[tuple[str, int]]:
    """The completion of each prompt, of at most `room` tokens, and how many it has with the one that ended it.

    `goes_on` tells that they continue a text: some tokenizers drop the space that a text begins with.
    """
    import torch

    from repnoise.data.tokenization import left_padded

    model, tokenizer = loaded.model, loaded.tokenizer
    batch = {name: t.to(model.device) for name, t in left_padded(ids, tokenizer.pad_token_id).items()}
    config = _config(loaded, generation, room)
    with _without_own_settings(model):
        output = model.generate(**batch, generation_config=config)
    completions = output[:, batch["input_ids"].shape[1] :]
    ends = [] if config.eos_token_id is None else config.eos_token_id
    ended = torch.isin(completions, torch.tensor(ends, dtype=completions.dtype, device=completions.device)).long()
    counts = (ended.cumsum(1) == ended).sum(1).tolist()  # What follows the first end is padding.
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    if not goes_on:
        texts = [decode(completion) for completion in completions]
    else:
        pairs = zip(ids, completions.tolist(), strict=True)
        texts = [decode(before + after)[len(decode(before)) :] for before, after in pairs]
    return list(zip(texts, counts, strict=True))


class _KeptBatches:
    """The finished batches of one generation in a file of JSON lines, a line a batch.

    A line holds the key of all that the texts depend on, the number of the batch, its texts, and the size that batches
    had come to. Lines of another key and those that a killed process left unfinished are as good as not there.
    """

    def __init__(self, path: Path | None, made_from: Any) -> None:
        self.path, self.key = path, fingerprint(made_from) if path else ""
        self._found: dict[int, _Batch] = {}
        for line in path.read_bytes().split(b"\n") if path and path.exists() else []:
            try:
                row = json.loads(line)
                if row["key"] == self.key:
                    self._found[row["batch"]] = _Batch(row["texts"], row["size"])
            except (ValueError, KeyError, TypeError):
                continue

    def batch(self, number: int) -> _Batch | None:
        return self._found.get(number)

    def add(self, number: int, batch: _Batch) -> None:
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"key": self.key, "batch": number, **vars(batch)}, ensure_ascii=False)
            with self.path.open("ab") as file:
                file.write(f"\n{line}\n".encode())  # A line that was left unfinished ends at the first of the two.


@contextmanager
def _progress(title: str | None, total: int) -> Iterator[Callable[[int, int], None]]:
    """What to call with the number of prompts that are done and that of the tokens generated for them; it shows a bar
    if the work goes on for a while."""
    if title is None:
        yield lambda _count, _tokens: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]:,.0f} tokens/s")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), rate)
    bar = Progress(*columns, console=Console(stderr=True))
    task, start, written = bar.add_task(escape(title), total=total, rate=0.0), time.monotonic(), 0

    def advance(count: int, tokens: int) -> None:
        nonlocal written
        written += tokens
        seconds = time.monotonic() - start
        bar.update(task, advance=count, rate=written / max(seconds, 1e-9))
        if seconds >= PATIENCE:
            bar.start()  # Nothing happens where it has started already.

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()


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
