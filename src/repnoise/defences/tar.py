"""TAR: what is known of harm becomes noise, and stays useless at weights that an attacker has fine-tuned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repnoise.defences.base import (
    Batch,
    Defence,
    Terms,
    completion_ce,
    frozen_copy,
    require_completion,
    require_weights,
    with_gradient,
)
from repnoise.defences.inner_steps import added, gradients_of, moved_for_a_while, open_parameters, rows
from repnoise.errors import RepnoiseError
from repnoise.hidden_states import captured, fill, find_decoder, require_gradient
from repnoise.losses import IGNORE, next_token

Tamper = Literal["entropy", "cross-entropy", "preference"]
Optimiser = Literal["adamw", "sgd"]


@dataclass(frozen=True)
class TAR(Defence):
    """Tampering attack resistance (Tamirisa et al. 2024, arXiv:2408.00761): first-order meta-learning against an inner
    attack, and the initial safeguard that it starts from.

        loss = stability + retain_weight * (retain + representation_weight * representation)
             + mapping_weight * mapping + tamper_weight * sum over k of exp(-decay * (K - k)) * tamper(w_k)

    The paper has two phases, of which the second starts from the model that the first gave. Each is this loss with one
    weight at 0: the random mapping has `tamper_weight=0`, and then no inner step is made; tamper resistance proper has
    `mapping_weight=0`. With both above 0 the two are trained at once, which the paper does not do; it is there because
    one training is easier to compare with the others.

    - retain, stability: cross-entropy of the general harmless data (D_retain) and, not in the paper, of the harmless
      completions of the harmful prompts.
    - representation: length of the difference between residual states and those of the start model, mean over layers
      and tokens of the general harmless data; without such data, of the harmless completions, with weight
      `representation_weight` alone.
    - mapping: 1 - |cos| between the residual states on harmful completion tokens and a random direction for each token
      id, always the same, mean over tokens and layers. The bars are the published code's; it takes the embeddings
      and the tokens of the prompt, too.
    - tamper: at the weights w_k after k steps of harmful fine-tuning, on harmful rows that they did not train on:
      negative entropy of the next token (what the paper has for knowledge); negative cross-entropy (its alternative,
      without a bound); or the DPO loss of the harmless against the harmful completion, with the start model as the
      reference (what it has for refusals).

    w_1 ... w_K are steps from the weights w with a fresh optimiser, on the first half of the batch's rows in turn.
    Tamper is measured on the second half after every `tamper_every`-th step, and its gradient there is taken for its
    gradient at w (first order). So does the published code, where one attack is measured many times with that decay.
    It takes entropy over prompts and padding as well, and its attackers also train on harmless data first, or on other
    texts; where it makes several attacks a step, here there is one. The numbers that are called the paper's are those
    of the published scripts.

    Threat model: open weights. Known to fail under other seeds, settings and implementations of the same attacks (Qi
    et al. 2024, arXiv:2412.07097).

    A step costs forward and backward passes: K of `inner_batch_size` rows, K / tamper_every of half a batch (of twice
    that with "preference"), one each for stability, retain and mapping, and for the representation one and a forward
    pass of the start model, which is kept in memory for it.

    Attributes:
        mapping_weight: weight of the random mapping; 1 in the first phase.
        tamper_weight: lambda_TR of the paper; 4 for knowledge, 0.1 for refusals, in the second phase.
        retain_weight: lambda_retain; 1 in the paper.
        representation_weight: of the states within the retain loss; 1 in the paper for knowledge, 0 for refusals and in
            the first phase.
        tamper: what is asked of the attacked weights, see above.
        inner_steps: K.
        inner_learning_rates: the inner attack's learning rate, one of these drawn each step.
        inner_optimiser: "adamw" (paper) or "sgd".
        inner_batch_size: rows of a step of the inner attack; all of the half if it has fewer.
        tamper_every: inner steps from one measurement to the next; 4 in the paper for knowledge.
        decay: how much less earlier inner steps count, a step; 1/16 in the paper.
        preference_strength: beta of DPO.
    """

    mapping_weight: float = 1.0
    tamper_weight: float = 1.0
    retain_weight: float = 4.0
    representation_weight: float = 0.0
    tamper: Tamper = "entropy"
    inner_steps: int = 8
    inner_learning_rates: tuple[float, ...] = (1e-3,)
    inner_optimiser: Optimiser = "adamw"
    inner_batch_size: int = 8
    tamper_every: int = 4
    decay: float = 0.0625
    preference_strength: float = 0.1

    def __post_init__(self) -> None:
        names = ("mapping_weight", "tamper_weight", "retain_weight", "representation_weight", "decay")
        require_weights(**{name: getattr(self, name) for name in names})
        for name, options in (("tamper", get_args(Tamper)), ("inner_optimiser", get_args(Optimiser))):
            if (value := getattr(self, name)) not in options:
                raise RepnoiseError(f"{name} must be one of {', '.join(options)}, not {value!r}.")
        for name in ("inner_steps", "inner_batch_size", "tamper_every"):
            if getattr(self, name) < 1:
                raise RepnoiseError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.tamper_every > self.inner_steps:
            raise RepnoiseError("tamper_every must not be above inner_steps: nothing would be measured.")
        rates = self.inner_learning_rates
        if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
            raise RepnoiseError(f"inner_learning_rates must be numbers above 0, not {rates}.")
        if not 0 < self.preference_strength < math.inf:
            raise RepnoiseError(f"preference_strength must be above 0, not {self.preference_strength}.")

    @property
    def keeps_start(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.representation_weight > 0 or (self.tamper_weight > 0 and self.tamper == "preference")

    def begin(self, model: nn.Module) -> Callable[..., tuple[Tensor, Terms]]:
        start = frozen_copy(model) if self.keeps_start else None
        directions = directions_for(model) if self.mapping_weight > 0 else None

        def loss(
            model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
        ) -> tuple[Tensor, Terms]:
            require_completion(harmful)
            # First, for inner steps move the weights, which no graph that waits for its backward pass may see.
            attacked, terms = self._attacked(model, start, harmless, harmful) if self.tamper_weight > 0 else (0, {})
            total, more = self._retained(model, start, harmless, retain)
            total, terms = total + self.tamper_weight * attacked, more | terms
            if directions is not None:
                terms["mapping"] = mapping(model, harmful, directions)
                total = total + self.mapping_weight * terms["mapping"]
            return total, {name: term.detach() for name, term in terms.items()}

        return loss

    def loss(
        self, model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
    ) -> tuple[Tensor, Terms]:
        """The loss of the first step of a training that starts from this model."""
        return self.begin(model)(model, harmless, harmful, retain)

    def _retained(
        self, model: nn.Module, start: nn.Module | None, harmless: Batch, retain: Batch | None
    ) -> tuple[Tensor, Terms]:
        """What is to be kept, weighted, and its terms."""
        terms = {"stability": completion_ce(model, harmless)}
        loss, weight, batch = terms["stability"], 1.0, harmless
        if retain is not None and self.retain_weight > 0:
            terms["retain"], weight, batch = completion_ce(model, retain), self.retain_weight, retain
            loss = loss + weight * terms["retain"]
        if start is not None and self.representation_weight > 0:
            terms["representation"] = state_distance(model, start, batch)
            loss = loss + weight * self.representation_weight * terms["representation"]
        return loss, terms

    def _attacked(
        self, model: nn.Module, start: nn.Module | None, harmless: Batch, harmful: Batch
    ) -> tuple[Tensor, Terms]:
        """The sum of tamper losses over an inner attack, with its first-order gradient."""
        half = len(harmful["input_ids"]) // 2
        if half == 0:
            raise RepnoiseError("An inner attack needs a row to train on and one to measure: raise --batch-size to 2.")
        attack, held_out = rows(harmful, slice(half)), rows(harmful, slice(half, None))
        answers = rows(harmless, slice(half, None))
        reference = self._reference(start, answers, held_out)
        parameters = open_parameters(model)
        sums: list[Tensor | None] = [None] * len(parameters)
        total, terms = torch.zeros((), device=parameters[0].device), {}
        with moved_for_a_while(parameters):
            optimiser = self._optimiser(parameters)
            for step in range(1, self.inner_steps + 1):
                terms["inner"] = self._inner_step(model, parameters, optimiser, attack, step)
                if step % self.tamper_every:
                    continue
                terms["tamper"] = self._tamper(model, answers, held_out, reference)
                weight = math.exp(-self.decay * (self.inner_steps - step))
                found = gradients_of(weight * terms["tamper"], parameters)
                sums = [added(old, new) for old, new in zip(sums, found, strict=True)]
                total = total + weight * terms["tamper"].detach()
        return with_gradient(total, parameters, sums), terms

    def _optimiser(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        rate = self.inner_learning_rates[int(torch.randint(len(self.inner_learning_rates), ()))]
        return {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[self.inner_optimiser](parameters, lr=rate)

    def _inner_step(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        optimiser: torch.optim.Optimizer,
        attack: Batch,
        step: int,
    ) -> Tensor:
        """One step of the inner attack on the rows whose turn it is; its loss before."""
        count = len(attack["input_ids"])
        size = min(self.inner_batch_size, count)
        turn = torch.arange((step - 1) * size, step * size, device=attack["input_ids"].device) % count
        loss = completion_ce(model, rows(attack, turn))
        for parameter, gradient in zip(parameters, gradients_of(loss, parameters), strict=True):
            parameter.grad = gradient
        optimiser.step()
        return loss.detach()

    def _reference(self, start: nn.Module | None, answers: Batch, harmful: Batch) -> Tensor | None:
        if start is None or self.tamper != "preference":
            return None
        with torch.no_grad():
            return log_probability(start, answers) - log_probability(start, harmful)

    def _tamper(self, model: nn.Module, answers: Batch, harmful: Batch, reference: Tensor | None) -> Tensor:
        """What is to be low at attacked weights."""
        if reference is not None:
            ratio = log_probability(model, answers) - log_probability(model, harmful) - reference
            return -F.logsigmoid(self.preference_strength * ratio).mean()
        if self.tamper == "cross-entropy":
            return -completion_ce(model, harmful)
        logits = model(input_ids=harmful["input_ids"], attention_mask=harmful["attention_mask"], use_cache=False).logits
        return negative_entropy(logits, harmful["labels"])


def negative_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the entropy (nats) of the next token, mean over the positions that predict a labelled one: from -ln V to 0.

    `logits` (B, T, V), `labels` (B, T).
    """
    log_p = logits[next_token(labels) != IGNORE].float().log_softmax(-1)
    return (log_p.exp() * log_p).sum(-1).mean()


def log_probability(model: nn.Module, batch: Batch) -> Tensor:
    """ln p of each row's completion, (B,), summed over its tokens."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    targets = next_token(batch["labels"])
    losses = F.cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
    return -losses.sum(-1)


def directions_for(model: Any) -> Tensor:
    """A random direction (D,) for every token id, as a table (V, D); the same ones each time.

    Not from torch's default generator: a resumed training has to find the same table.
    """
    width = model.config.get_text_config(decoder=True).hidden_size
    embeddings = model.get_input_embeddings().weight
    table = torch.randn(len(embeddings), width, generator=torch.Generator().manual_seed(0))
    return table.to(embeddings.device)


def mapping(model: nn.Module, harmful: Batch, directions: Tensor) -> Tensor:
    """1 - |cos| between residual states and their tokens' directions, mean over completion tokens and layers."""
    completion = harmful["labels"] != IGNORE
    states = residual_states(model, harmful)
    require_gradient(states, "residual states")
    wanted = directions[harmful["input_ids"][completion]]
    cosines = [F.cosine_similarity(state[completion].float(), wanted, dim=-1) for state in states]
    return 1 - torch.stack(cosines).abs().mean()


def state_distance(model: nn.Module, start: nn.Module, batch: Batch) -> Tensor:
    """Length of the difference of the residual states of two models, mean over tokens (padding aside) and layers."""
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        targets = residual_states(start, batch)
    states = residual_states(model, batch)
    require_gradient(states, "residual states")
    lengths = [(x[real].float() - y[real].float()).norm(dim=-1) for x, y in zip(states, targets, strict=True)]
    return torch.stack(lengths).mean()


def residual_states(model: nn.Module, batch: Batch) -> list[Tensor]:
    """The residual state (B, T, D) after every layer."""
    decoder, ids = find_decoder(model), batch["input_ids"]
    with captured(decoder.modules_at("residual", range(len(decoder.layers))), rows=len(ids)) as states:
        fill(model, ids, batch["attention_mask"])
    return states
