"""Distillation: a defended model is pulled back, state by state, to the undefended one that it was made from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from repnoise.attacks.base import Attack, Attacked, Cost
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.attacks.merging import Base, require_place
from repnoise.attacks.staged import added, in_stages, stage_of
from repnoise.data.mixtures import epochs, mixed
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
class DistillationAttack(Attack):
    """Distillation of hidden states and predictions of the undefended model on the attacker's own examples: mean
    squared error of the residual state after every layer (as FitNets, Romero et al. 2015, arXiv:1412.6550), and
    Kullback-Leibler divergence of the next token (Hinton et al. 2015, arXiv:1503.02531).

    Needs the weights of the undefended model, and whoever has them has no need of the defended one. So it measures how
    deep a defence goes, and matters where only the fine-tuning or the knowledge of a release is its own and its base is
    public. Costs a forward pass of the base for each example beside fine-tuning, and the memory of both models.

    Known to give no harm by itself where the base refuses: what comes of it refuses, too, whatever it knows again. So
    `then_steps` of plain harmful fine-tuning follow, or a base is given that answers (such as an attack's run, made
    with --keep-model).

    Attributes:
        training: optimiser, learning rate, steps, batch, LoRA, seed.
        base: the undefended model: a folder, run or hub id, of the defended one's shape and tokenizer.
        state_weight: weight of the error of the states, in units of the base's own mean square at that layer; the
            divergence has the weight 1.
        samples: harmful examples used at the most, drawn with the seed; None for all.
        benign_share: share of training examples that are harmless.
        then_steps: steps of harmful fine-tuning after it; 0 for none.
        then_learning_rate: peak learning rate of those.
    """

    training: Training = field(default_factory=Training)
    base: Base = "sandbox"
    state_weight: float = 1.0
    samples: int | None = None
    benign_share: float = 0.5
    then_steps: int = 0
    then_learning_rate: float = 3e-4

    def __post_init__(self) -> None:
        if not 0 <= self.state_weight < math.inf:
            raise RepnoiseError(f"state_weight must be 0 or more, not {self.state_weight}.")
        if self.then_steps < 0:
            raise RepnoiseError(f"then_steps must be 0 or more, not {self.then_steps}.")
        if self.training.four_bit:
            raise RepnoiseError("Distillation holds the base beside it in full precision: leave --four-bit out.")
        self._data()  # Tells what is wrong with `samples` and `benign_share`.
        self._then()

    def label(self) -> str:
        """Such as "distil-100@1e-3-benign-0.5-then-30@3e-4"."""
        then = f"-then-{self._then().label()}" if self.then_steps else ""
        return f"distil-{self._data().label()}{then}"

    def seeded(self, seed: int) -> Self:
        return replace(self, training=replace(self.training, seed=seed))

    def needs(self) -> str:
        return "weights of both models, harmful answers"

    def source(self) -> str:
        return "Romero et al. 2015, Hinton et al. 2015"

    def pairs(self, data: PairedData) -> list[Pair]:
        return self._data().pairs(data)

    def require(self, data: PairedData) -> None:
        self._data().require(data)
        require_place(self.base)

    def costs(self, loaded: LoadedModel, data: PairedData, codec: Codec) -> Callable[[int], Cost]:
        """As for fine-tuning, and in the distillation 2 N FLOPs more a token for the base's forward pass."""
        from repnoise.cost import reading_flops

        training, reading = self._data().costs(loaded, data, codec), reading_flops(loaded.model)
        then = self._then().costs(loaded, data, codec)
        first = self._steps(data)

        def cost(step: int) -> Cost:
            own = training(min(step, first))
            both = None if own.flops is None or reading is None else own.flops + reading * own.tokens
            own = replace(own, flops=both)
            return added(own, then(step - first)) if step > first else own

        return cost

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
        def distil(
            model: nn.Module, folder: Path, resume: bool, on_step: OnStep | None
        ) -> tuple[nn.Module, list[dict[str, Any]]]:
            return self._distilled(replace(loaded, model=model), data, codec, folder, resume, on_step, progress)

        if not self.then_steps:
            return Attacked(*distil(loaded.model, folder, resume, on_step))
        then = stage_of(self._then(), loaded, data, codec, progress)
        first = (self._steps(data), distil)
        return Attacked(*in_stages([first], then, loaded.model, folder, resume, on_step))

    def _distilled(
        self,
        loaded: LoadedModel,
        data: PairedData,
        codec: Codec,
        folder: Path,
        resume: bool,
        on_step: OnStep | None,
        progress: str | None,
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        from repnoise.data.collators import ExampleCollator
        from repnoise.modeling import load
        from repnoise.training import train

        base = load(self.base, device=str(loaded.model.device))
        require_alike(loaded, base, self.base)
        return train(
            loaded.model,
            self._examples(codec, data),
            ExampleCollator(loaded.tokenizer.pad_token_id),
            imitating(base.model.eval(), self.state_weight),
            self.training,
            folder,
            resume,
            on_step,
            progress,
        )

    def _steps(self, data: PairedData) -> int:
        return self.training.total_steps(len(self.pairs(data)))

    def _then(self) -> FineTuningAttack:
        changes: dict[str, Any] = {"steps": self.then_steps or 1, "learning_rate": self.then_learning_rate}
        return FineTuningAttack(
            training=replace(self.training, **changes, report_to=()), samples=self.samples, split=self.split
        )

    def _data(self) -> FineTuningAttack:
        """Fine-tuning with the same optimiser and on the same examples."""
        return FineTuningAttack(
            training=self.training, samples=self.samples, split=self.split, benign_share=self.benign_share
        )

    def _examples(self, codec: Codec, data: PairedData) -> list[Any]:
        """Tokenized examples in the order of training."""
        harmful = [codec.row(pair.prompt, pair.harmful) for pair in self.pairs(data)]
        count, seed = self.training.examples_seen(len(harmful)), self.training.seed
        if self.benign_share == 0:
            return epochs(harmful, count, seed)
        benign = [codec.row(example.prompt, example.completion) for example in data.benign]
        return mixed(harmful, benign, self.benign_share, count, seed)


def require_alike(loaded: LoadedModel, base: LoadedModel, name: str) -> None:
    """Raise RepnoiseError unless states and predictions of the two models can be compared."""
    ours, theirs = (model.model.config.get_text_config() for model in (loaded, base))
    for what, of in (("layers", "num_hidden_layers"), ("dimensions", "hidden_size"), ("tokens", "vocab_size")):
        if getattr(ours, of) != getattr(theirs, of):
            raise RepnoiseError(
                f"The base {name!r} has {getattr(theirs, of):,} {what} and the attacked model {getattr(ours, of):,}: "
                "give the model that it was made from with --attack-base."
            )
    if loaded.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise RepnoiseError(f"The base {name!r} has another tokenizer: give the model that it was made from.")


def imitating(base: nn.Module, state_weight: float) -> Objective:
    """KL(base || model) of the next token plus `state_weight` times the error of the residual states, both means over
    all tokens but padding, prompts included."""

    def objective(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        import torch
        from torch.nn.functional import kl_div

        real = batch["attention_mask"].bool()
        with torch.no_grad():
            targets, wanted = states_and_logits(base, batch)
        states, logits = states_and_logits(model, batch)
        errors = [relative_error(state[real], target[real]) for state, target in zip(states, targets, strict=True)]
        ours, theirs = (values[real].float().log_softmax(-1) for values in (logits, wanted))
        terms = {
            "states": torch.stack(errors).mean(),
            "divergence": kl_div(ours, theirs, log_target=True, reduction="batchmean"),
        }
        loss = state_weight * terms["states"] + terms["divergence"]
        return loss, {name: term.detach() for name, term in terms.items()}

    return objective


def relative_error(state: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of states (n, D) over the mean square of what they should be, in fp32: 1 for zeros. So layers
    count alike, though residual states grow from layer to layer."""
    state, target = state.float(), target.float()
    return (state - target).square().mean() / target.square().mean()


def states_and_logits(model: nn.Module, batch: Any) -> tuple[list[Tensor], Tensor]:
    """The residual state (B, T, D) after every layer, and the logits (B, T, V)."""
    from repnoise.hidden_states import captured, find_decoder

    decoder, ids = find_decoder(model), batch["input_ids"]
    with captured(decoder.modules_at("residual", range(len(decoder.layers))), rows=len(ids)) as states:
        logits = model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False).logits
    return states, logits
