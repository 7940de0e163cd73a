"""How far a model has moved from the one that it was made from: the divergence of their next-token distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from repnoise.data.records import Example
from repnoise.errors import RepnoiseError
from repnoise.evals.halving import as_memory_allows
from repnoise.evals.likelihood import ROWS, TOO_LONG, batches_of_rows

if TYPE_CHECKING:  # The list of evaluations must be cheap to import.
    from torch import Tensor

    from repnoise.data.tokenization import Codec, Row
    from repnoise.modeling import LoadedModel

ARRAYS = 4
"""Arrays of the size of a batch's logits that exist at one time: those of two models, and what is made of them."""


def kl_to_base(
    base: LoadedModel,
    loaded: LoadedModel,
    codec: Codec,
    examples: Sequence[Example] = (),
    texts: Sequence[str] = (),
) -> list[float]:
    """KL(base || model) of each example and then of each text, in nats a token; NaN where there is no token.

    At every token of an example's completion, and of a plain text but its first, both models see the same ids before
    it, and the divergence is that of their distributions of what comes next: in fp32, 0 for two equal models and above
    0 for any other. A batch that runs out of memory is halved. Raises RepnoiseError where the two do not have one
    tokenizer, or there is no room for a single row.
    """
    _require_one_vocabulary(base, loaded)
    rows = [codec.row(example.prompt, example.completion) for example in examples]
    for text in texts:
        ids = loaded.tokenizer(text, verbose=False)["input_ids"][: codec.max_length]
        rows.append({"input_ids": ids, "labels": ids})
    found, size = [math.nan] * len(rows), ROWS
    measured = [i for i, row in enumerate(rows) if len(row["input_ids"]) > 1]
    vocabulary = ARRAYS * loaded.model.config.get_text_config().vocab_size
    for chosen in batches_of_rows([rows[i] for i in measured], vocabulary):
        places = [measured[i] for i in chosen]
        part = partial(_divergences, base, loaded, [rows[i] for i in places])
        values, size = as_memory_allows(part, len(places), size, TOO_LONG)
        for place, value in zip(places, values, strict=True):
            found[place] = value
    return found


def _divergences(base: LoadedModel, loaded: LoadedModel, rows: Sequence[Row], start: int, stop: int) -> list[float]:
    """The token mean of some rows of one batch."""
    import torch

    from repnoise.data.tokenization import right_padded
    from repnoise.losses import IGNORE, next_token

    batch = right_padded(rows[start:stop], loaded.tokenizer.pad_token_id)
    counted = (next_token(batch.pop("labels")) != IGNORE).to(loaded.model.device)
    with torch.no_grad():
        ours = _log_probabilities(loaded, batch)
        # A sum of probabilities times differences of logarithms; rounding may take it a little below 0.
        theirs = _log_probabilities(base, batch).to(ours.device)
        by_token = torch.nn.functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1).clamp_min(0)
    totals, counts = by_token.double().where(counted, 0).sum(1).tolist(), counted.sum(1).tolist()
    return [total / count if count else math.nan for total, count in zip(totals, counts, strict=True)]


def _log_probabilities(loaded: LoadedModel, batch: dict[str, Tensor]) -> Tensor:
    """(B, T, V) in fp32."""
    model = loaded.model
    was_training = model.training
    model.eval()
    logits = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}, use_cache=False).logits
    model.train(was_training)
    return logits.float().log_softmax(-1)


def _require_one_vocabulary(base: LoadedModel, loaded: LoadedModel) -> None:
    sizes = [one.model.config.get_text_config().vocab_size for one in (base, loaded)]
    if sizes[0] != sizes[1] or base.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
        raise RepnoiseError(
            f"The two models do not have one tokenizer ({sizes[0]:,} and {sizes[1]:,} tokens), so their next tokens "
            "cannot be compared: give the model that this one was made from."
        )
