"""Reinforcement: the model answers, and what is nearer to harm than its other answers becomes more probable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import tyro

from repnoise.attacks.base import Attack, Attacked, Cost
from repnoise.attacks.fine_tuning import FineTuningAttack, flops_by_token
from repnoise.attacks.rewards import Reward, RewardName, reward_for
from repnoise.attacks.staged import added, in_stages, stage_of
from repnoise.data.mixtures import epochs
from repnoise.data.records import Pair
from repnoise.data.sources import PairedData
from repnoise.errors import RepnoiseError
from repnoise.optimisation import Training

if TYPE_CHECKING:  # Presets must be cheap to import.
    from collections.abc import Iterator

    from torch import Tensor, nn

    from repnoise.data.tokenization import Codec, Row
    from repnoise.modeling import LoadedModel
    from repnoise.training import OnStep


@dataclass(frozen=True)
class PolicyGradientAttack(Attack):
    """Policy gradient (REINFORCE, Williams 1992) with advantages normalised in groups (GRPO, Shao et al. 2024,
    arXiv:2402.03300): several answers are drawn to each of the attacker's questions, and those with more reward than
    the others of their group become more probable. Each answer is used for one step only, so nothing is clipped, and
    there is no penalty for leaving the start model, which would need a second one in memory. That this removes
    refusals from aligned models, with a judge as the reward, was shown by Russinovich et al. 2026 (arXiv:2602.06258).

    Needs the weights and questions; with the reward "answer", also answers to them, and with "compliance" only the
    refusals that the model itself gives. Costs much more than fine-tuning, for every answer has to be generated. What
    it raises is harm: it is here to measure defences.

    Known to fail where the model never does by chance what is rewarded: a group whose answers are all refusals has no
    gradient (the log's "varied" is the share of groups that have one). A higher temperature or a few steps of
    fine-tuning before (`warm_start_steps`) help. It makes what a model says at times the rule, and teaches nothing that
    it has forgotten.

    Attributes:
        training: optimiser, learning rate, steps, batch (in questions), LoRA, seed; of the warm start, too.
        completions: answers drawn to each question of a batch.
        answer_tokens: most tokens of an answer.
        temperature: of drawing them; the policy that is trained is the one at this temperature.
        reward: "answer" (how much of the known answer is there, none for refusals) or "compliance" (no refusal).
        warm_start_steps: steps of harmful fine-tuning before.
        samples: pairs used at the most, drawn with the seed; None for all.
    """

    training: Training = field(default_factory=Training)
    completions: Annotated[int, tyro.conf.arg(name="group")] = 8
    answer_tokens: int = 64
    temperature: Annotated[float, tyro.conf.arg(name="policy-temperature")] = 1.0
    reward: RewardName = "answer"
    warm_start_steps: int = 0
    samples: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("completions", 2), ("answer_tokens", 1), ("warm_start_steps", 0)):
            if getattr(self, name) < least:
                raise RepnoiseError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if not 0 < self.temperature < math.inf:
            raise RepnoiseError(f"The temperature of a policy must be above 0, not {self.temperature}.")
        self._data()  # Tells what is wrong with `samples`.

    def label(self) -> str:
        """Such as "policy-100@3e-4-warm-10"."""
        parts = ["policy", self._data().label()]
        parts += [f"temperature-{self.temperature:g}"] if self.temperature != 1 else []
        parts += [self.reward] if self.reward != "answer" else []
        parts += [f"warm-{self.warm_start_steps}"] if self.warm_start_steps else []
        return "-".join(parts)

    def seeded(self, seed: int) -> Self:
        return replace(self, training=replace(self.training, seed=seed))

    def needs(self) -> str:
        answers = ", harmful answers" if self.reward == "answer" or self.warm_start_steps else ""
        return f"weights, questions, refusals{answers}"

    def source(self) -> str:
        return "Shao et al. 2024, Russinovich et al. 2026"

    def pairs(self, data: PairedData) -> list[Pair]:
        return self._data().pairs(data)

    def require(self, data: PairedData) -> None:
        self._data().require(data)

    def costs(self, loaded: LoadedModel, data: PairedData, codec: Codec) -> Callable[[int], Cost]:
        """Samples are answers. Tokens are those of question and answer as if every answer were as long as it may be,
        since nobody knows before how long they are: an upper bound. FLOPs: 2 N a token for drawing the answers, and
        what training costs; the warm start's beside."""
        from repnoise.cost import reading_flops

        lengths = [len(codec.prompt_ids(pair.prompt)) + self.answer_tokens for pair in self._in_order(data)]
        batch = self.training.batch_size * self.training.accumulation
        learning, reading = flops_by_token(loaded.model, self.training.lora_rank), reading_flops(loaded.model)
        warm = self._warm_start().costs(loaded, data, codec) if self.warm_start_steps else None

        def cost(step: int) -> Cost:
            seen = lengths[: max(step - self.warm_start_steps, 0) * batch]
            tokens = self.completions * sum(min(length, codec.max_length) for length in seen)
            flops = None if learning is None or reading is None else (learning + reading) * tokens
            drawn = Cost(max(step - self.warm_start_steps, 0), self.completions * len(seen), tokens, flops)
            return added(warm(min(step, self.warm_start_steps)), drawn) if warm else drawn

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
        from repnoise.training import train

        def policy(model: Any, to: Path, again: bool, tell: OnStep | None) -> tuple[nn.Module, list[dict[str, Any]]]:
            objective = GroupPolicy(self, codec, reward_for(self.reward, self.pairs(data)))
            return train(model, self._in_order(data), list, objective, self.training, to, again, tell, progress)

        before = []
        if self.warm_start_steps:
            before.append((self.warm_start_steps, stage_of(self._warm_start(), loaded, data, codec, progress)))
        return Attacked(*in_stages(before, policy, loaded.model, folder, resume, on_step))

    def _data(self) -> FineTuningAttack:
        """Fine-tuning with the same optimiser and on the same examples."""
        return FineTuningAttack(training=self.training, samples=self.samples, split=self.split)

    def _warm_start(self) -> FineTuningAttack:
        return replace(self._data(), training=replace(self.training, steps=self.warm_start_steps, report_to=()))

    def _in_order(self, data: PairedData) -> list[Pair]:
        pairs = self.pairs(data)
        return epochs(pairs, self.training.examples_seen(len(pairs)), self.training.seed)


@dataclass(frozen=True)
class GroupPolicy:
    """The objective of a batch of pairs: -advantage * ln p, summed over the tokens of all drawn answers and divided by
    their number, so that no answer counts less for being long."""

    attack: PolicyGradientAttack
    codec: Codec
    reward: Reward

    def __call__(self, model: Any, batch: Sequence[Pair]) -> tuple[Tensor, dict[str, Tensor]]:
        import torch

        from repnoise.attacks.preference import token_log_probabilities
        from repnoise.data.tokenization import right_padded

        asked = [pair for pair in batch for _ in range(self.attack.completions)]
        rows = draw(
            model, self.codec, [pair.prompt for pair in asked], self.attack.answer_tokens, self.attack.temperature
        )
        texts = [completion_text(row, self.codec) for row in rows]
        found = torch.tensor([self.reward(text, pair.harmful) for text, pair in zip(texts, asked, strict=True)])
        rewards = found.view(len(batch), -1)
        tokens = right_padded(rows, self.codec.tokenizer.pad_token_id)
        tokens = {name: tensor.to(model.device) for name, tensor in tokens.items()}
        log_probabilities = token_log_probabilities(model, tokens, self.attack.temperature)
        drawn = sum(label >= 0 for row in rows for label in row["labels"])
        loss = -(advantages(rewards).flatten().to(model.device) * log_probabilities.sum(-1)).sum() / drawn
        terms = {"reward": rewards.mean(), "varied": (rewards.std(-1) > 0).float().mean()}
        return loss, {name: term.to(model.device) for name, term in terms.items()}


def advantages(rewards: Tensor) -> Tensor:
    """Rewards (groups, completions) less the mean of their group, over its standard deviation; 0 where all are equal.

    1e-4 is added to the standard deviation, as TRL does it.
    """
    return (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + 1e-4)


def draw(model: Any, codec: Codec, prompts: Sequence[str], most: int, temperature: float) -> list[Row]:
    """One answer to each prompt, drawn at a temperature: rows of ids with the answer's labelled, its end token, too,
    where it came to an end. From torch's default generators."""
    import torch
    from transformers import GenerationConfig

    from repnoise.data.tokenization import left_padded

    ids = [codec.prompt_ids(prompt) for prompt in prompts]
    room = max(1, min(most, codec.max_length - max(map(len, ids))))
    pad = codec.tokenizer.pad_token_id
    batch = {name: tensor.to(model.device) for name, tensor in left_padded(ids, pad).items()}
    with _as_for_asking(model, codec.tokenizer.eos_token_id) as ends, torch.no_grad():
        settings = GenerationConfig(
            max_new_tokens=room, do_sample=True, temperature=temperature, top_k=0, eos_token_id=ends, pad_token_id=pad
        )
        output = model.generate(**batch, generation_config=settings)
    answers = output[:, batch["input_ids"].shape[1] :].tolist()
    return [_row(head, _until_end(answer, ends)) for head, answer in zip(ids, answers, strict=True)]


def completion_text(row: Row, codec: Codec) -> str:
    """What the answer of a row says."""
    from repnoise.losses import IGNORE

    return codec.tokenizer.decode([label for label in row["labels"] if label != IGNORE], skip_special_tokens=True)


def _row(head: list[int], answer: list[int]) -> Row:
    from repnoise.losses import IGNORE

    return {"input_ids": head + answer, "labels": [IGNORE] * len(head) + answer}


def _until_end(answer: list[int], ends: list[int]) -> list[int]:
    """An answer up to its first end token, which belongs to it; what follows is padding."""
    stop = next((i + 1 for i, token in enumerate(answer) if token in ends), len(answer))
    return answer[:stop]


@contextmanager
def _as_for_asking(model: Any, end: int | None) -> Iterator[list[int]]:
    """The model without dropout, without checkpointing of activations and without the sampling settings that came with
    it; gives the ids of the tokens that end a text: its own, else `end`."""
    from transformers import GenerationConfig

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, was_training = inner.generation_config, model.training
    ends = end if own.eos_token_id is None else own.eos_token_id
    inner.generation_config = GenerationConfig()
    model.eval()
    try:
        yield list(ends) if isinstance(ends, list | tuple) else [] if ends is None else [ends]
    finally:
        inner.generation_config = own
        model.train(was_training)
