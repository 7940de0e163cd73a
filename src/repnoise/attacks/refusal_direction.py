"""The direction in which the states of refused and of answered prompts differ: what abliteration and steering share."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from repnoise.attacks.base import Cost, require_pairs
from repnoise.data.records import AttackSplit, Example, Pair
from repnoise.data.sources import PairedData
from repnoise.errors import RepnoiseError

if TYPE_CHECKING:  # Presets must be cheap to import.
    from torch import Tensor

    from repnoise.data.tokenization import Codec, Row
    from repnoise.modeling import LoadedModel

FIRST_TOKENS = 4
"""How much of an answer is looked at: whether to refuse is decided at its beginning."""
BATCH = 32


@dataclass(frozen=True)
class Contrast:
    """Harmful prompts beside harmless ones, and which layer's difference is used.

    Attributes:
        samples: most prompts of each kind (Arditi et al. use 128), drawn with the seed.
        layer: the layer whose output is compared; None for the one that serves best on the attacker's own pairs.
        projected: leave out of the difference what lies along the mean of the harmless states, which answering needs,
            too (Lai 2025, https://huggingface.co/blog/grimjim/projected-abliteration).
        seed: of the drawing.
    """

    samples: int = 128
    layer: int | None = None
    projected: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise RepnoiseError(f"samples must be at least 1, not {self.samples}.")

    def label(self, split: AttackSplit) -> str:
        parts = [] if self.projected else ["plain"]
        parts += [] if self.layer is None else [f"layer-{self.layer}"]
        parts += ["defenders-examples"] if split == "defence" else []
        return "".join(f"-{part}" for part in parts)

    def pairs(self, data: PairedData, split: AttackSplit) -> list[Pair]:
        return self._drawn(data.attacker_pairs(split=split))

    def harmless(self, data: PairedData) -> list[Example]:
        return self._drawn(data.benign)

    def _drawn(self, rows: Sequence[Any]) -> list[Any]:
        return random.Random(self.seed).sample(rows, min(self.samples, len(rows)))

    def require(self, data: PairedData, split: AttackSplit) -> None:
        require_pairs(self.pairs(data, split), data, split)
        if not data.benign:
            raise RepnoiseError(f"{data.name} has no benign prompts to compare with: give some with --benign FILE.")

    def directions(
        self, loaded: LoadedModel, codec: Codec, pairs: Sequence[Pair], harmless: Sequence[Example]
    ) -> dict[int, Tensor]:
        """By layer the difference (D,) of the mean states at the last token of harmful and of harmless prompts."""
        from repnoise.hidden_states import find_decoder

        layers = find_decoder(loaded.model).choose(None if self.layer is None else [self.layer])
        refused, answered = (
            last_states(loaded, [codec.prompt_ids(row.prompt) for row in rows], layers).mean(0)
            for rows in (pairs, harmless)
        )
        found = refused - answered
        if self.projected:
            unit = answered / answered.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            found = found - (found * unit).sum(-1, keepdim=True) * unit
        return dict(zip(layers, found, strict=True))

    def costs(
        self, loaded: LoadedModel, codec: Codec, pairs: Sequence[Pair], harmless: Sequence[Example]
    ) -> Callable[[int], Cost]:
        """One step: a forward pass over the prompts, and one over the beginnings of both answers for each layer that is
        tried and for the model as it was. 2 N operations a token, N being the weights in products."""
        from repnoise.cost import reading_flops
        from repnoise.hidden_states import find_decoder

        passes = 1 + (len(find_decoder(loaded.model).layers) if self.layer is None else 1)
        prompts = [codec.prompt_ids(row.prompt) for row in (*pairs, *harmless)]
        rows = [row for side in beginnings(codec, pairs) for row in side]
        samples = len(prompts) + passes * len(rows)
        tokens = sum(map(len, prompts)) + passes * sum(len(row["input_ids"]) for row in rows)
        reading = reading_flops(loaded.model)
        flops = None if reading is None else reading * tokens
        return lambda step: Cost(step, samples, tokens, flops) if step else Cost(0, 0, 0, 0.0)


def last_states(loaded: LoadedModel, prompts: Sequence[list[int]], layers: Sequence[int]) -> Tensor:
    """The residual states (B, L, D) of prompts at their last token, behind each of the layers."""
    import torch

    from repnoise.data.tokenization import right_padded
    from repnoise.hidden_states import captured, fill, find_decoder

    modules, found = find_decoder(loaded.model).modules_at("residual", layers), []
    for start in range(0, len(prompts), BATCH):
        rows = [{"input_ids": ids, "labels": ids} for ids in prompts[start : start + BATCH]]
        batch = right_padded(rows, loaded.tokenizer.pad_token_id)
        ids, mask = (batch[name].to(loaded.model.device) for name in ("input_ids", "attention_mask"))
        with torch.no_grad(), captured(modules, rows=len(rows)) as states:
            fill(loaded.model, ids, mask)
        last = mask.sum(1) - 1
        found.append(torch.stack([state[range(len(rows)), last].float() for state in states], dim=1))
    return torch.cat(found)


def refusal_lead(loaded: LoadedModel, codec: Codec, pairs: Sequence[Pair]) -> float:
    """How much likelier the first tokens of refusals are than those of the harmful answers, in nats a token.

    It falls where refusing fades, but not where the model merely breaks.
    """
    refusals, answers = beginnings(codec, pairs)
    return mean_ce(loaded, answers) - mean_ce(loaded, refusals)


def beginnings(codec: Codec, pairs: Sequence[Pair]) -> tuple[list[Row], list[Row]]:
    """Prompts with the first tokens of their refusals, and with those of their harmful answers."""
    refusals = [cut(codec.row(pair.prompt, pair.harmless)) for pair in pairs]
    return refusals, [cut(codec.row(pair.prompt, pair.harmful)) for pair in pairs]


def cut(row: Row) -> Row:
    """A row up to the first few tokens of its completion."""
    from repnoise.losses import IGNORE

    end = row["labels"].count(IGNORE) + FIRST_TOKENS
    return {name: values[:end] for name, values in row.items()}


def mean_ce(loaded: LoadedModel, rows: Sequence[Row]) -> float:
    """Cross-entropy of completions in nats a token."""
    import torch

    from repnoise.data.tokenization import right_padded
    from repnoise.defences.base import completion_ce
    from repnoise.losses import IGNORE

    total, count = 0.0, 0
    for start in range(0, len(rows), BATCH):
        batch = right_padded(rows[start : start + BATCH], loaded.tokenizer.pad_token_id)
        tokens = int((batch["labels"] != IGNORE).sum())
        with torch.no_grad():
            ce = completion_ce(loaded.model, {name: part.to(loaded.model.device) for name, part in batch.items()})
        total, count = total + ce.item() * tokens, count + tokens
    return total / count


def prompt_batch(loaded: LoadedModel, codec: Codec, prompt: str) -> dict[str, Tensor]:
    """One prompt as a model's inputs."""
    import torch

    ids = torch.tensor([codec.prompt_ids(prompt)], device=loaded.model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
