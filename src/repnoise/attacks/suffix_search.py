"""A universal suffix: a few tokens behind every question, searched for so that harmful answers become likely."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import tyro

from repnoise.attacks.base import Asking, Attack, Attacked, Cost, require_pairs
from repnoise.data.records import Pair
from repnoise.data.sources import PairedData
from repnoise.errors import RepnoiseError

if TYPE_CHECKING:  # Presets must be cheap to import.
    from torch import Tensor

    from repnoise.data.tokenization import Codec, Row
    from repnoise.modeling import LoadedModel
    from repnoise.training import OnStep

ROWS = 256
"""Most rows of one forward pass that scores candidates."""


@dataclass(frozen=True)
class SuffixSearch(Attack):
    """Greedy coordinate gradient (Zou et al. 2023, arXiv:2307.15043) at a small scale.

    A suffix of `tokens` tokens, one for all prompts, is to make the first `target_tokens` tokens of the attacker's
    harmful answers likely. A step takes the gradient of that loss with respect to the one-hot vectors of the suffix's
    tokens, draws `candidates` single substitutions from the `top_k` most promising tokens at each position, and goes on
    from the best of them, even where it is worse: a search that may not gets stuck. Asked in the end is the best suffix
    of all steps. Only suffixes count whose text becomes the same tokens again when it is asked; special tokens are left
    out.

    Needs the weights for the search, and for the attack nothing but a question with odd words behind it. A step costs
    one backward pass over the prompts and as many forward passes as there are candidates. Fails where knowledge is gone
    and not only refused, within small budgets on models with large vocabularies, and against filters of improbable
    text. Harm along the way is not measured: a curve has the start and the end.

    Attributes:
        tokens: length of the suffix.
        steps: substitutions made one after another.
        candidates: suffixes scored in a step.
        top_k: tokens at each position that they are drawn from.
        prompts: the attacker's pairs that the loss is a mean over, drawn with the seed.
        target_tokens: of each harmful answer, from its first.
        seed: of the first suffix, of the prompts and of the candidates.
    """

    changes_weights = False
    only_asks = True

    tokens: Annotated[int, tyro.conf.arg(name="suffix-tokens")] = 6
    steps: int = 30
    candidates: int = 64
    top_k: int = 32
    prompts: int = 16
    target_tokens: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "steps", "candidates", "top_k", "prompts", "target_tokens"):
            if getattr(self, name) < 1:
                raise RepnoiseError(f"The {name} of a suffix search must be at least 1, not {getattr(self, name)}.")

    def label(self) -> str:
        """Such as "suffix-8-tokens-50x64": steps times candidates."""
        return f"suffix-{self.tokens}-tokens-{self.steps}x{self.candidates}"

    def seeded(self, seed: int) -> Self:
        return replace(self, seed=seed)

    def needs(self) -> str:
        return "weights for the search, harmful answers"

    def source(self) -> str:
        return "Zou et al. 2023"

    def pairs(self, data: PairedData) -> list[Pair]:
        pairs = data.attacker_pairs(split=self.split)
        return random.Random(self.seed).sample(pairs, min(self.prompts, len(pairs)))

    def costs(self, loaded: LoadedModel, data: PairedData, codec: Codec) -> Callable[[int], Cost]:
        """A step sees every row once forward and backward to the embeddings (4 N operations a token, N being the
        weights in products) and once forward (2 N) for each candidate. An upper bound: candidates whose text becomes
        other tokens are not scored."""
        from repnoise.cost import counted_in_products

        pairs = self.pairs(data)
        targets = sum(len(target_of(codec, pair, self.target_tokens)) for pair in pairs)
        tokens = targets + sum(len(codec.prompt_ids(pair.prompt)) + self.tokens for pair in pairs)
        weights = counted_in_products(loaded.model)

        def cost(step: int) -> Cost:
            passes = step * (1 + self.candidates)
            flops = None if weights is None else float(step * (4 + 2 * self.candidates) * weights * tokens)
            return Cost(step, passes * len(pairs), passes * tokens, flops)

        return cost

    def require(self, data: PairedData) -> None:
        require_pairs(self.pairs(data), data, self.split)

    def apply(
        self,
        loaded: LoadedModel,
        data: PairedData,
        codec: Codec,
        folder: Path,
        resume: bool = False,
        on_step: OnStep | None = None,
        progress: str | None = None,
    ) -> Attacked:
        """The same model, asked with the suffix; the log has the best suffix so far and its loss, step by step."""
        search = Search(loaded.model, codec, self.pairs(data), self.target_tokens)
        rng = random.Random(self.seed)
        training = loaded.model.training
        loaded.model.eval()
        suffix = best = search.drawn(self.tokens, rng)
        loss, log = search.losses([suffix])[0], []
        for step in range(1, self.steps + 1):
            tried = search.candidates(suffix, self.candidates, self.top_k, rng)
            losses = search.losses(tried)
            lowest = min(losses, default=math.inf)
            if lowest < math.inf:
                suffix = tried[losses.index(lowest)]
            if lowest < loss:
                best, loss = suffix, lowest
            log.append({"step": step, "loss": loss, "suffix": search.text(best), "scored": len(tried)})
        loaded.model.train(training)
        return Attacked(loaded.model, log, Asking(wrapping=search.wrapping(best)))


class Search:
    """What a suffix is worth, and which others are near it, for one model and some pairs of prompt and answer."""

    def __init__(self, model: Any, codec: Codec, pairs: Sequence[Pair], target_tokens: int) -> None:
        self.model, self.codec = model, codec
        self.prompts = [pair.prompt for pair in pairs]
        self.targets = [target_of(codec, pair, target_tokens) for pair in pairs]
        self.allowed = allowed_tokens(codec.tokenizer)

    def text(self, suffix: Sequence[int]) -> str:
        return self.codec.tokenizer.decode(suffix).strip()

    def wrapping(self, suffix: Sequence[int]) -> str:
        return f"{{prompt}} {self.text(suffix)}"

    def rows(self, suffix: Sequence[int], prompts: int | None = None) -> list[tuple[Row, int]] | None:
        """Each pair (or the first so many) as a row that is asked with the suffix's text, and where the suffix stands
        in it; None if the text becomes other tokens."""
        from repnoise.losses import IGNORE

        codec, found = replace(self.codec, wrapping=self.wrapping(suffix)), []
        for prompt, target in zip(self.prompts[:prompts], self.targets, strict=False):
            head = codec.prompt_ids(prompt)
            starts = range(len(head) - len(suffix), -1, -1)
            start = next((at for at in starts if head[at : at + len(suffix)] == list(suffix)), None)
            if start is None:
                return None
            found.append(({"input_ids": head + target, "labels": [IGNORE] * len(head) + target}, start))
        return found

    def drawn(self, tokens: int, rng: random.Random) -> list[int]:
        """A random suffix, token after token, whose text becomes the same tokens again."""
        suffix: list[int] = []
        for _ in range(tokens):
            order = rng.sample(self.allowed, len(self.allowed))
            fitting = next((token for token in order if self.rows([*suffix, token]) is not None), None)
            if fitting is None:
                raise RepnoiseError(
                    f"No suffix of {tokens} tokens keeps its tokens with this tokenizer: use fewer --suffix-tokens, or "
                    "another --seed."
                )
            suffix.append(fitting)
        return suffix

    def candidates(self, suffix: Sequence[int], count: int, top_k: int, rng: random.Random) -> list[list[int]]:
        """Up to `count` suffixes that differ in one of the most promising tokens, and keep their tokens as text behind
        the first prompt."""
        import torch

        gradient = self.gradient(suffix)
        allowed = torch.tensor(self.allowed)
        best = (-gradient[:, self.allowed]).topk(min(top_k, len(self.allowed))).indices.cpu()
        choices = [
            (at, token) for at in range(len(suffix)) for token in allowed[best[at]].tolist() if token != suffix[at]
        ]
        found: list[list[int]] = []
        for at, token in rng.sample(choices, len(choices)):
            changed = [*suffix[:at], token, *suffix[at + 1 :]]
            if len(found) < count and self.rows(changed, 1) is not None:
                found.append(changed)
        return found

    def losses(self, suffixes: Sequence[Sequence[int]]) -> list[float]:
        """Mean cross-entropy in nats of the target tokens of all pairs under each suffix; infinite for one whose text
        becomes other tokens."""
        import torch

        rows = {i: own for i, suffix in enumerate(suffixes) if (own := self.rows(suffix)) is not None}
        flat, losses = [row for own in rows.values() for row, _ in own], [math.inf] * len(suffixes)
        with torch.no_grad():
            parts = [self._summed(flat[start : start + ROWS])[0] for start in range(0, len(flat), ROWS)]
        means = torch.cat(parts).view(len(rows), -1).sum(1) / sum(map(len, self.targets)) if parts else torch.empty(0)
        for i, loss in zip(rows, means.tolist(), strict=True):
            losses[i] = loss
        return losses

    def gradient(self, suffix: Sequence[int]) -> Tensor:
        """Gradient (n, V) of the loss with respect to the one-hot vectors of the suffix's n tokens.

        Taken at the output of the embedding, where one-hot vectors would be a product with what it makes of every
        token, so that it holds for whatever an architecture does to embeddings.
        """
        import torch

        rows = self.rows(suffix) or []
        embedding, outputs = self.model.get_input_embeddings(), []

        def keep(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
            outputs.append(output.detach().requires_grad_())
            return outputs[-1]

        handle = embedding.register_forward_hook(keep)
        try:
            sums, counts = self._summed([row for row, _ in rows])
        finally:
            handle.remove()
        (found,) = torch.autograd.grad(sums.sum() / counts.sum(), outputs[0])
        at_suffix = sum(found[i, start : start + len(suffix)] for i, (_, start) in enumerate(rows))
        with torch.no_grad():
            every_token = embedding(torch.arange(embedding.weight.shape[0], device=found.device))
        return at_suffix @ every_token.T

    def _summed(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy of the labelled tokens of each row, and their number."""
        import torch.nn.functional as F

        from repnoise.data.tokenization import right_padded
        from repnoise.losses import IGNORE, next_token

        batch = right_padded(rows, self.codec.tokenizer.pad_token_id)
        batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        targets = next_token(batch.pop("labels"))
        logits = self.model(**batch, use_cache=False).logits.float()
        losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
        return losses.sum(1), (targets != IGNORE).sum(1)


def target_of(codec: Codec, pair: Pair, tokens: int) -> list[int]:
    """The first so many tokens of the harmful answer as the codec writes it."""
    from repnoise.losses import IGNORE

    row = codec.row(pair.prompt, pair.harmful)
    return [label for label in row["labels"] if label != IGNORE][:tokens]


def allowed_tokens(tokenizer: Any) -> list[int]:
    """Tokens that a suffix may have: printable text of their own, and nothing that a tokenizer treats as special."""
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    texts = ((token, tokenizer.decode([token])) for token in range(len(tokenizer)) if token not in special)
    return [token for token, text in texts if text.strip() and text.isprintable() and "\ufffd" not in text]
