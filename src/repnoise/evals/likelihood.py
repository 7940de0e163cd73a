"""What a model thinks of given text: cross-entropy of completions, perplexity of plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from repnoise.data.tokenization import Codec, Row, right_padded
from repnoise.losses import IGNORE, next_token
from repnoise.modeling import LoadedModel


@torch.no_grad()
def token_losses(loaded: LoadedModel, rows: Sequence[Row], batch_size: int = 64) -> list[tuple[float, int]]:
    """For each row the summed cross-entropy in nats of its labelled tokens, and their number."""
    model = loaded.model
    was_training = model.training
    model.eval()
    found: list[tuple[float, int]] = []
    for start in range(0, len(rows), batch_size):
        batch = right_padded(rows[start : start + batch_size], loaded.tokenizer.pad_token_id)
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        targets = next_token(batch.pop("labels"))
        logits = model(**batch, use_cache=False).logits.float()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none"
        )
        counts = (targets != IGNORE).sum(1)
        found += list(zip(losses.sum(1).tolist(), counts.tolist(), strict=True))
    model.train(was_training)
    return found


def completion_losses(loaded: LoadedModel, codec: Codec, completions: Sequence[tuple[str, str]]) -> list[float]:
    """Mean cross-entropy a token of each (prompt, completion), in nats."""
    rows = [codec.row(prompt, completion) for prompt, completion in completions]
    return [total / count if count else math.nan for total, count in token_losses(loaded, rows)]


def perplexity(loaded: LoadedModel, texts: Sequence[str], max_length: int) -> tuple[float, int]:
    """exp of the token-mean cross-entropy of texts, each cut to `max_length` tokens, and the number of tokens."""
    rows = []
    for text in texts:
        ids = loaded.tokenizer(text, verbose=False)["input_ids"][:max_length]
        if len(ids) > 1:
            rows.append({"input_ids": ids, "labels": ids})
    losses = token_losses(loaded, rows)
    tokens = sum(count for _, count in losses)
    return (math.exp(min(sum(total for total, _ in losses) / tokens, 700)) if tokens else math.nan), tokens
