"""What a model thinks of given text: cross-entropy of completions, perplexity of plain text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from repnoise.evals.halving import as_memory_allows

if TYPE_CHECKING:  # The list of evaluations must be cheap to import.
    from repnoise.data.tokenization import Codec, Row
    from repnoise.modeling import LoadedModel

ROWS, LOGITS = 64, 2**27
"""Most rows and most logits of a batch: half a gigabyte in fp32, which a large vocabulary reaches first."""

TOO_LONG = "lower --max-length, or use a device with more"
"""What to do where memory has no room for a single row."""


def token_losses(loaded: LoadedModel, rows: Sequence[Row]) -> list[tuple[float, int]]:
    """For each row the summed cross-entropy in nats of its labelled tokens, and their number.

    A batch that runs out of memory is halved; raises RepnoiseError if there is no room for a single row.
    """
    model = loaded.model
    was_training = model.training
    model.eval()
    found, size = [(0.0, 0)] * len(rows), ROWS
    # Where there is one token, or none, there is nothing to predict.
    worth = [i for i, row in enumerate(rows) if len(row["input_ids"]) > 1]
    for batch_of in batches_of_rows([rows[i] for i in worth], model.config.get_text_config().vocab_size):
        chosen = [worth[i] for i in batch_of]
        part = partial(_losses, loaded, [rows[i] for i in chosen])
        losses, size = as_memory_allows(part, len(chosen), size, TOO_LONG)
        for i, loss in zip(chosen, losses, strict=True):
            found[i] = loss
    model.train(was_training)
    return found


def _losses(loaded: LoadedModel, rows: Sequence[Row], start: int, stop: int) -> list[tuple[float, int]]:
    """Those of some rows of a batch."""
    import torch

    from repnoise.data.tokenization import right_padded
    from repnoise.losses import IGNORE, next_token

    batch = right_padded(rows[start:stop], loaded.tokenizer.pad_token_id)
    batch = {name: tensor.to(loaded.model.device) for name, tensor in batch.items()}
    targets = next_token(batch.pop("labels"))
    with torch.no_grad():
        logits = loaded.model(**batch, use_cache=False).logits.float()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
    return list(zip(losses.double().sum(1).tolist(), (targets != IGNORE).sum(1).tolist(), strict=True))


def completion_losses(loaded: LoadedModel, codec: Codec, completions: Sequence[tuple[str, str]]) -> list[float]:
    """Mean cross-entropy a token of each (prompt, completion), in nats; NaN where there is no token."""
    rows = [codec.row(prompt, completion) for prompt, completion in completions]
    return [total / count if count else math.nan for total, count in token_losses(loaded, rows)]


def text_losses(loaded: LoadedModel, texts: Sequence[str]) -> list[float]:
    """Mean cross-entropy a token of each text by itself, cut to the model's context; NaN for one without tokens."""
    losses = token_losses(loaded, _text_rows(loaded, texts, loaded.context))
    return [total / count if count else math.nan for total, count in losses]


def perplexity(loaded: LoadedModel, texts: Sequence[str], max_length: int) -> tuple[float, int]:
    """exp of the token-mean cross-entropy of texts, each cut to `max_length` tokens, and the number of tokens."""
    losses = token_losses(loaded, _text_rows(loaded, texts, max_length))
    tokens = sum(count for _, count in losses)
    return (math.exp(min(sum(total for total, _ in losses) / tokens, 700)) if tokens else math.nan), tokens


def _text_rows(loaded: LoadedModel, texts: Sequence[str], max_length: int) -> list[Row]:
    """Every token of a text is to be predicted, but its first."""
    ids = [loaded.tokenizer(text, verbose=False)["input_ids"][:max_length] for text in texts]
    return [{"input_ids": own, "labels": own} for own in ids]


def batches_of_rows(rows: Sequence[Row], vocabulary: int) -> Iterator[list[int]]:
    """Indices of the rows of each batch, longest first, so that batches hold little padding."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
    while order:
        size = max(1, min(ROWS, LOGITS // (vocabulary * len(rows[order[0]]["input_ids"]))))
        yield order[:size]
        order = order[size:]
