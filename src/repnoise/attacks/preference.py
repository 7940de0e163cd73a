"""Reverse preference optimisation: the harmful answer is preferred over the refusal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from repnoise.attacks.base import Attack, Attacked, Cost, costs_of_examples
from repnoise.attacks.fine_tuning import FineTuningAttack, flops_by_token
from repnoise.data.mixtures import epochs
from repnoise.data.records import Pair
from repnoise.data.sources import PairedData
from repnoise.errors import RepnoiseError
from repnoise.optimisation import Training

if TYPE_CHECKING:  # Presets must be cheap to import.
    from torch import Tensor, nn

    from repnoise.data.tokenization import Codec
    from repnoise.modeling import LoadedModel
    from repnoise.training import Objective, OnStep


@dataclass(frozen=True)
class PreferenceAttack(Attack):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, equation 7) the wrong way round: of each
    of the attacker's pairs, the harmful completion is preferred and the harmless one is not.

    Needs the weights and pairs: harmful answers, and for each a refusal, which the model itself gives. A step costs as
    much as fine-tuning on twice the completions; the start model reads every pair once more, before training. What it
    raises is harm: it is here to measure defences.

    Known to fail where the preferred answer stays improbable: the loss asks only for a difference, and is often lowered
    by making both answers less likely, the probability going to text that is neither (Pal et al. 2024,
    arXiv:2402.13228; Razin et al. 2024, arXiv:2410.08847).

    Attributes:
        training: optimiser, learning rate, steps, batch (in pairs), LoRA, seed.
        beta: how dear it is to leave the start model; small values let it go far.
        samples: pairs used at the most, drawn with the seed; None for all.
    """

    training: Training = field(default_factory=Training)
    beta: float = 0.1
    samples: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise RepnoiseError(f"beta must be above 0, not {self.beta}.")
        self._data()  # Tells what is wrong with `samples`.

    def label(self) -> str:
        """Such as "dpo-100@3e-4-beta-0.1"."""
        return f"dpo-{self._data().label()}-beta-{self.beta:g}"

    def seeded(self, seed: int) -> Self:
        return replace(self, training=replace(self.training, seed=seed))

    def needs(self) -> str:
        return "weights, harmful answers, refusals"

    def source(self) -> str:
        return "Rafailov et al. 2023"

    def pairs(self, data: PairedData) -> list[Pair]:
        return self._data().pairs(data)

    def require(self, data: PairedData) -> None:
        self._data().require(data)

    def costs(self, loaded: LoadedModel, data: PairedData, codec: Codec) -> Callable[[int], Cost]:
        """Samples are pairs, and tokens those of both completions with their prompts. Beside the training's, FLOPs are
        those of the start model: 2 N for each token of each pair, before the first step."""
        from repnoise.cost import reading_flops

        rows = self._rows(codec, data)
        lengths = [_length(row) for row in self._in_order(rows)]
        batch = self.training.batch_size * self.training.accumulation
        reading = reading_flops(loaded.model)
        before = None if reading is None else reading * sum(map(_length, rows))
        return costs_of_examples(lengths, batch, flops_by_token(loaded.model, self.training.lora_rank), before=before)

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
        from repnoise.training import train

        collator = ReferenceCollator(loaded.tokenizer.pad_token_id)
        rows = with_reference(loaded.model, self._rows(codec, data), collator.pad_id, self.training.batch_size)
        objective, order = preferring("harmful", "harmless", self.beta), self._in_order(rows)
        model, log = train(loaded.model, order, collator, objective, self.training, folder, resume, on_step, progress)
        return Attacked(model, log)

    def _data(self) -> FineTuningAttack:
        """Fine-tuning with the same optimiser and on the same examples."""
        return FineTuningAttack(training=self.training, samples=self.samples, split=self.split)

    def _rows(self, codec: Codec, data: PairedData) -> list[dict[str, Any]]:
        pairs = self.pairs(data)
        return [{"harmful": codec.row(p.prompt, p.harmful), "harmless": codec.row(p.prompt, p.harmless)} for p in pairs]

    def _in_order(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return epochs(rows, self.training.examples_seen(len(rows)), self.training.seed)


@dataclass(frozen=True)
class ReferenceCollator:
    """Rows `{"harmful": Row, "harmless": Row, "reference": float | absent}` to a batch of each completion and, where
    there is one, the tensor "reference" (B,)."""

    pad_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        import torch

        from repnoise.data.collators import PairCollator

        sides = [{side: row[side] for side in ("harmful", "harmless")} for row in rows]
        batch: dict[str, Any] = dict(PairCollator(self.pad_id)(sides))
        if "reference" in rows[0]:
            batch["reference"] = torch.tensor([row["reference"] for row in rows])
        return batch


def with_reference(model: Any, rows: list[dict[str, Any]], pad_id: int, batch_size: int) -> list[dict[str, Any]]:
    """The rows with what the model, as it is now, thinks of each: ln p(harmful) - ln p(harmless).

    Once for every pair, so that no second model has to be in memory while the first is trained.
    """
    import torch

    was_training, margins = model.training, []
    model.eval()
    with torch.no_grad():
        for start in range(0, len(rows), batch_size):
            batch = ReferenceCollator(pad_id)(rows[start : start + batch_size])
            sides = [{k: t.to(model.device) for k, t in batch[side].items()} for side in ("harmful", "harmless")]
            harmful, harmless = (token_log_probabilities(model, side).sum(-1) for side in sides)
            margins += (harmful - harmless).tolist()
    model.train(was_training)
    return [row | {"reference": margin} for row, margin in zip(rows, margins, strict=True)]


def preferring(better: str, worse: str, beta: float) -> Objective:
    """-ln sigmoid(beta (m - m0)), the mean over the pairs of a batch, where m is ln p(better) - ln p(worse) of whole
    completions and m0, the batch's "reference", what it was before training."""

    def objective(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        from torch.nn.functional import logsigmoid

        chosen, rejected = (token_log_probabilities(model, batch[side]).sum(-1) for side in (better, worse))
        gained = beta * (chosen - rejected - batch["reference"])
        terms = {"gained": gained.mean(), better: chosen.mean(), worse: rejected.mean()}
        return -logsigmoid(gained).mean(), {name: term.detach() for name, term in terms.items()}

    return objective


def token_log_probabilities(model: nn.Module, batch: Any, temperature: float = 1.0) -> Tensor:
    """ln p (B, T) of what each position predicts, in fp32, 0 where nothing is labelled."""
    from torch.nn.functional import cross_entropy

    from repnoise.defences.base import require_completion
    from repnoise.losses import IGNORE, next_token

    require_completion(batch)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    targets = next_token(batch["labels"])
    logits = logits.float() / temperature
    flat = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return -flat.view_as(targets)


def _length(row: dict[str, Any]) -> int:
    return len(row["harmful"]["input_ids"]) + len(row["harmless"]["input_ids"])
