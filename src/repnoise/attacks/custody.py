"""Attacks through a fine-tuning service that defends itself: the defender keeps the weights and trains on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from repnoise.attacks.base import Attack, Attacked, Cost, costs_of_examples
from repnoise.attacks.fine_tuning import FineTuningAttack, flops_by_token, language_modelling
from repnoise.data.mixtures import epochs, mixed
from repnoise.data.records import Pair
from repnoise.data.sources import PairedData
from repnoise.errors import RepnoiseError
from repnoise.optimisation import Training

if TYPE_CHECKING:  # Presets must be cheap to import.
    from torch import Tensor, nn

    from repnoise.data.tokenization import Codec, Row
    from repnoise.modeling import LoadedModel
    from repnoise.training import OnStep


@dataclass(frozen=True)
class SecurityVectors(Attack):
    """Harmful fine-tuning by a service that trains with security vectors (Zhou et al. 2023, arXiv:2311.02105).

    Before, the service trains adapters on harmful answers of its own. They stay active and frozen while the customer's
    examples are trained on, so that the model seems to know already what is harmful in them and the weights have little
    reason to move; afterwards they are switched off. As in the comparison of Rosati et al. (2024, arXiv:2405.14577),
    whose rank, alpha, rate and single epoch are the defaults, the adapters are trained plainly, not by the two levels
    of the original ("min-min"). They are on all linear maps of the layers, without dropout.

    Frozen adapters are a constant that is added to the weights: they are added in fact, and subtracted whenever the
    model is asked.

    Another threat model than that of other attacks: the attacker is a customer without the weights, and the service
    trains as it promises. Unlike other attacks this one looks at `data.defender_pairs`, on behalf of the service. Fails
    as a defence where the customer's harmful examples are unlike the service's, or train long enough.

    Attributes:
        training: the customer's fine-tuning.
        samples: the customer's harmful examples at the most, drawn with the seed; None for all.
        benign_share: share of the customer's examples that are harmless.
        covered: let the service have the covered half of the held-out pairs too, as a defender has it.
        vector_rank: rank of the adapters.
        vector_alpha: their scale, divided by the rank.
        vector_learning_rate: peak learning rate of their training.
        vector_epochs: passes of their training over the service's harmful answers.
    """

    training: Training = field(default_factory=Training)
    samples: int | None = None
    benign_share: float = 0.0
    covered: bool = True
    vector_rank: int = 8
    vector_alpha: int = 32
    vector_learning_rate: float = 1e-3
    vector_epochs: float = 1.0

    def __post_init__(self) -> None:
        if self.training.four_bit:
            raise RepnoiseError("Security vectors are as large as the model, in full precision: leave --four-bit out.")
        self._customer()  # Tells what is wrong with `samples` and `benign_share`.
        for name in ("vector_rank", "vector_alpha", "vector_learning_rate", "vector_epochs"):
            if getattr(self, name) <= 0:
                raise RepnoiseError(f"{name} must be above 0, not {getattr(self, name)}.")

    def label(self) -> str:
        """Such as "custody-security-vectors-100@1e-3"."""
        return f"custody-security-vectors-{self._customer().label()}"

    def seeded(self, seed: int) -> Self:
        return replace(self, training=replace(self.training, seed=seed))

    def needs(self) -> str:
        return "a fine-tuning service, harmful answers"

    def source(self) -> str:
        return "Zhou et al. 2023"

    def pairs(self, data: PairedData) -> list[Pair]:
        return self._customer().pairs(data)

    def require(self, data: PairedData) -> None:
        self._customer().require(data)
        data.defender_pairs(self.covered)

    def costs(self, loaded: LoadedModel, data: PairedData, codec: Codec) -> Callable[[int], Cost]:
        """Of the customer's fine-tuning; what the vectors cost is the service's affair."""
        return self._customer().costs(loaded, data, codec)

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
        from repnoise.modeling import merged

        title = progress and f"{progress} (vectors)"
        model, vectors = self._with_vectors(loaded, data, codec, folder / "vectors", resume, title)

        def asked(step: int, model: nn.Module) -> None:
            if on_step:
                with without(vectors):
                    on_step(step, model)

        both = replace(loaded, model=model)
        found = self._customer().apply(both, data, codec, folder, resume, asked if on_step else None, progress)
        attacked = merged(found.model)
        for parameter, vector in vectors:
            parameter.data -= vector
        return Attacked(attacked, found.log)

    def _with_vectors(
        self, loaded: LoadedModel, data: PairedData, codec: Codec, folder: Path, resume: bool, progress: str | None
    ) -> tuple[Any, list[tuple[nn.Parameter, Tensor]]]:
        """The model with trained vectors in its weights, all of them open, and which weights have what added."""
        from repnoise.modeling import merged

        before = {name: weight.detach().clone() for name, weight in loaded.model.named_parameters()}
        service = PairedData(data.name, {"attack": data.defender_pairs(self.covered)}, {})
        model = merged(self._service().apply(loaded, service, codec, folder, resume, None, progress).model)
        model.requires_grad_(True)  # Adapters had closed them.
        moved = ((weight, weight.detach() - before[name]) for name, weight in model.named_parameters())
        return model, [(weight, vector) for weight, vector in moved if vector.any()]

    def _customer(self) -> FineTuningAttack:
        return FineTuningAttack(
            training=self.training, samples=self.samples, benign_share=self.benign_share, split=self.split
        )

    def _service(self) -> FineTuningAttack:
        changes: dict[str, Any] = {
            "learning_rate": self.vector_learning_rate,
            "steps": None,
            "epochs": self.vector_epochs,
            "lora_rank": self.vector_rank,
            "lora_alpha": self.vector_alpha,
            "report_to": (),
        }
        return FineTuningAttack(training=replace(self.training, **changes))


@contextmanager
def without(vectors: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Inside the block the weights lack what was added to them; after it they are as before, bit for bit."""
    kept = [parameter.data for parameter, _ in vectors]
    try:
        for parameter, vector in vectors:
            parameter.data = parameter.data - vector
        yield
    finally:
        for (parameter, _), data in zip(vectors, kept, strict=True):
            parameter.data = data


@dataclass(frozen=True)
class Lisa(Attack):
    """Harmful fine-tuning by a service that trains as Lisa does (lazy safety alignment; Huang et al. 2024,
    arXiv:2405.18641).

    The service takes some steps on alignment data of its own (harmful questions with their harmless answers), then some
    on the customer's examples, and so in turn, with one optimiser. Each step's loss has proximal_weight / 2 times the
    squared distance of the trained weights to where they were at the last switch, so that neither side moves far. The
    published code leaves that term out for the first tenth of the steps; the paper's algorithm, and this, have it from
    the start.

    Another threat model than that of other attacks: the attacker is a customer without the weights, and the service
    trains as it promises. Unlike other attacks this one looks at `data.defender_pairs`, on behalf of the service. Fails
    as a defence where the customer is given many steps at a time at a high rate, and leaves what is harmful in the
    model: who gets hold of the weights attacks the model as it was.

    An interrupted attack is made again from its start: a checkpoint would lack the weights at the last switch.

    Attributes:
        training: how the service trains; its steps are those of both kinds, as in the paper.
        samples: the customer's harmful examples at the most, drawn with the seed; None for all.
        benign_share: share of the customer's examples that are harmless.
        covered: let the service have the covered half of the held-out pairs too, as a defender has it.
        alignment_steps: K1, steps on alignment data at a time, which come first; 100 in the paper.
        customer_steps: K2, steps on the customer's data at a time; 900 in the paper.
        proximal_weight: rho; 1 in the paper.
    """

    training: Training = field(default_factory=Training)
    samples: int | None = None
    benign_share: float = 0.0
    covered: bool = True
    alignment_steps: int = 100
    customer_steps: int = 900
    proximal_weight: float = 1.0

    def __post_init__(self) -> None:
        self._customer()  # Tells what is wrong with `samples` and `benign_share`.
        for name in ("alignment_steps", "customer_steps"):
            if getattr(self, name) < 1:
                raise RepnoiseError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not 0 <= self.proximal_weight < float("inf"):
            raise RepnoiseError(f"proximal_weight must be 0 or more, not {self.proximal_weight}.")

    def label(self) -> str:
        """Such as "custody-lisa-100@1e-3"."""
        return f"custody-lisa-{self._customer().label()}"

    def seeded(self, seed: int) -> Self:
        return replace(self, training=replace(self.training, seed=seed))

    def needs(self) -> str:
        return "a fine-tuning service, harmful answers"

    def source(self) -> str:
        return "Huang et al. 2024"

    def pairs(self, data: PairedData) -> list[Pair]:
        return self._customer().pairs(data)

    def require(self, data: PairedData) -> None:
        self._customer().require(data)
        data.defender_pairs(self.covered)

    def costs(self, loaded: LoadedModel, data: PairedData, codec: Codec) -> Callable[[int], Cost]:
        """Of all steps, those on alignment data included, as for fine-tuning."""
        lengths = [len(row["input_ids"]) for row, _ in self._in_order(codec, data)]
        batch = self.training.batch_size * self.training.accumulation
        return costs_of_examples(lengths, batch, flops_by_token(loaded.model, self.training.lora_rank))

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
        from repnoise.data.collators import ExampleCollator
        from repnoise.training import train

        examples = ExampleCollator(loaded.tokenizer.pad_token_id)

        def collator(rows: Sequence[tuple[Row, bool]]) -> dict[str, Any]:
            return examples([row for row, _ in rows]) | {"aligning": rows[0][1]}

        order, objective = self._in_order(codec, data), Proximal(self.proximal_weight)
        training = replace(self.training, save_every=None)
        found = train(loaded.model, order, collator, objective, training, folder, False, on_step, progress)
        return Attacked(*found)

    def _customer(self) -> FineTuningAttack:
        """Fine-tuning with the same optimiser and on the same examples."""
        return FineTuningAttack(
            training=self.training, samples=self.samples, benign_share=self.benign_share, split=self.split
        )

    def _in_order(self, codec: Codec, data: PairedData) -> list[tuple[Row, bool]]:
        """Tokenized examples in the order of training, and whether they are alignment data."""
        harmful = [codec.row(pair.prompt, pair.harmful) for pair in self.pairs(data)]
        refused = [codec.row(pair.prompt, pair.harmless) for pair in data.defender_pairs(self.covered)]
        mixed_in = data.benign if self.benign_share else []
        benign = [codec.row(example.prompt, example.completion) for example in mixed_in]
        batch = self.training.batch_size * self.training.accumulation
        period = self.alignment_steps + self.customer_steps
        steps = range(self.training.total_steps(len(harmful)))
        aligning = [step % period < self.alignment_steps for step in steps for _ in range(batch)]
        seed, ours = self.training.seed, sum(aligning)
        theirs = mixed(harmful, benign, self.benign_share, len(aligning) - ours, seed)
        rows = {True: iter(epochs(refused, ours, seed + 2)), False: iter(theirs)}
        return [(next(rows[state]), state) for state in aligning]


class Proximal:
    """Cross-entropy, plus weight / 2 times the squared distance of the trained weights to those at the last change of
    the kind of data ("aligning" in a batch), or at the start."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.aligning: bool | None = None
        self.anchors: list[Tensor] = []

    def __call__(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        import torch

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if batch["aligning"] != self.aligning:
            self.aligning = batch["aligning"]
            self.anchors = [parameter.detach().clone() for parameter in trained]
        moved = [(now - then).square().sum() for now, then in zip(trained, self.anchors, strict=True)]
        drift = torch.stack(moved).sum()
        loss, _ = language_modelling(model, batch)
        return loss + self.weight / 2 * drift, {"examples": loss.detach(), "drift": drift.detach()}
