"""From the config of a run and that of its model to what the run will take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from repnoise import hidden_states
from repnoise.attack import AttackConfig
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.attacks.parts import Parts
from repnoise.defences import RepNoise
from repnoise.defences.adversarial_loss import AdversarialLoss
from repnoise.defences.gradient_ascent import GradientAscent
from repnoise.defences.safety_training import SafetyTraining
from repnoise.defend import DefendConfig, freeze
from repnoise.errors import RepnoiseError
from repnoise.estimate import memory, operations
from repnoise.estimate.devices import USABLE, Device
from repnoise.estimate.memory import FP32, Extra, Moment, Reading
from repnoise.estimate.operations import RECOMPUTED, Batch
from repnoise.estimate.sizes import Sizes, kept_by_a_pass, shell, sizes_of
from repnoise.evals.likelihood import LOGITS, ROWS
from repnoise.evaluate import EvaluateConfig
from repnoise.hidden_states import find_decoder
from repnoise.losses import rows_at_once
from repnoise.optimisation import Training

MOST_DEVICES = 1024
OPTIMISER_TRAFFIC = 28
"""Bytes moved for a trained weight in a step of AdamW: weight, gradient and two moments read, all but the gradient
written."""


@dataclass(frozen=True)
class Rows:
    """What a config does not say, since it depends on the data.

    Attributes:
        examples: pairs of a defence, examples of an attack, prompts of an evaluation.
        length: tokens of a row with its padding; None for the most that the config allows.
        completion: share of them that belongs to the completion.
    """

    examples: int | None = None
    length: int | None = None
    completion: float = 0.75

    def __post_init__(self) -> None:
        if not 0 < self.completion <= 1:
            raise RepnoiseError(f"completion is a share above 0 and up to 1, not {self.completion}.")
        for name in ("examples", "length"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise RepnoiseError(f"{name} must be at least 1, not {value}.")


@dataclass(frozen=True)
class Estimate:
    """What a run takes.

    Attributes:
        sizes: the model's.
        precision: what it is computed in.
        batch: rows of one loss, or prompts of one batch of an evaluation.
        steps: optimiser steps, or batches of an evaluation.
        parts: operations of a step by what they are for.
        traffic: bytes that a step moves to and from memory whatever it computes.
        holds: bytes by kind, each at its largest; they are not all there at one time.
        moments: what is there when there is most.
        gathered: bytes of weights that are whole on every device while they are used, where there are several.
        disk_bytes: the most that the run's directory takes.
    """

    sizes: Sizes
    precision: str
    batch: Batch
    steps: int
    parts: dict[str, float]
    traffic: float
    holds: dict[str, float]
    moments: tuple[Moment, ...]
    gathered: float
    disk_bytes: float

    @property
    def step_flops(self) -> float:
        return sum(self.parts.values())

    @property
    def floor_flops(self) -> float:
        """Operations of a step less those that repeat what was computed before."""
        return self.step_flops - self.parts.get(RECOMPUTED, 0.0)

    @property
    def flops(self) -> float:
        return self.steps * self.step_flops

    @property
    def memory_bytes(self) -> float:
        """The peak on one device."""
        return memory.peak(self.moments).bytes

    def step_seconds(self, device: Device) -> float:
        return self.step_flops / device.rate(self.precision) + self.traffic / device.bandwidth

    def seconds(self, device: Device) -> float:
        """Of the run on one device, less what measuring before, on the way and after takes."""
        return self.steps * self.step_seconds(device)

    def devices(self, device: Device) -> int | None:
        """How many such devices it takes, with weights, gradients and optimiser sharded and the batch divided; None if
        no number of them does."""
        limit = USABLE * device.memory

        def fits(count: int) -> bool:
            return all(moment.on(count, self.batch.rows, self.gathered) <= limit for moment in self.moments)

        most = 1 if self.sizes.four_bit else MOST_DEVICES
        return next((count for count in range(1, most + 1) if fits(count)), None)


def model_config(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The config of a model by folder, run, hub id or "sandbox". Raises RepnoiseError if it cannot be read."""
    from pathlib import Path

    from transformers import AutoConfig

    from repnoise.modeling import locate

    place = str(Path(name).parent) if name.endswith("config.json") else name
    try:
        return AutoConfig.from_pretrained(locate(place), revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise RepnoiseError(
            f"There is no config of a model to be read in {name!r}: give a folder with config.json, a run that has its "
            "model, or a hub id that can be reached."
        ) from error


def estimate(config: DefendConfig | AttackConfig | EvaluateConfig, of_model: Any, rows: Rows | None = None) -> Estimate:
    """What a run of this config on a model of this config takes.

    Raises RepnoiseError for a model, a defence or an attack whose cost it has no formula for, and where the number of
    steps depends on data that `rows` says nothing of.
    """
    rows = rows or Rows()
    if isinstance(config, EvaluateConfig):
        return _evaluation(config, of_model, rows)
    if isinstance(config, AttackConfig):
        return _attack(config, of_model, rows)
    return _defence(config, of_model, rows)


def _defence(config: DefendConfig, of_model: Any, rows: Rows) -> Estimate:
    defence = config.defence
    passes = _passes(defence)
    model = shell(of_model, config.training)
    freeze(model, config)
    has_general = config.inputs.data.startswith("sandbox") or config.inputs.retain is not None
    general = has_general and getattr(defence, "retain_weight", 0) > 0
    length = _length(config, of_model, rows)
    own = defence if isinstance(defence, RepNoise) else None
    return _of_training(model, config.training, rows, length, passes + general, own, keeps=True)


def _passes(defence: Any) -> int:
    """Language-modelling passes in a step of a defence, less that of general examples and RepNoise's own terms."""
    if isinstance(defence, RepNoise | SafetyTraining):
        return 1
    if isinstance(defence, AdversarialLoss):
        return 2
    if isinstance(defence, GradientAscent) and not defence.lens:
        return 1 + (defence.stability_weight > 0)
    raise RepnoiseError(
        f"There is no formula for what {type(defence).__name__} takes: estimate repnoise, and run the other for a few "
        "steps."
    )


def _attack(config: AttackConfig, of_model: Any, rows: Rows) -> Estimate:
    attack = config.attack
    if type(attack) is not FineTuningAttack or attack.parts not in (Parts(), Parts("lora")):
        raise RepnoiseError(
            f"There is no formula for what {attack.label()} takes: estimate fine-tuning of all weights or with LoRA."
        )
    learned = 1.0 if attack.loss_on == "all" else rows.completion
    examples = Rows(rows.examples or attack.samples, rows.length, learned)
    length = _length(config, of_model, rows)
    return _of_training(shell(of_model, attack.training), attack.training, examples, length, 1, None, config.keep_model)


def _length(config: Any, of_model: Any, rows: Rows) -> int:
    """Tokens of a row: what is said, else the most that there may be."""
    context = getattr(of_model.get_text_config(), "max_position_embeddings", None) or config.inputs.max_length
    length = min(config.inputs.max_length, context) if rows.length is None else rows.length
    if length > context:
        raise RepnoiseError(f"The context of the model has {context:,} tokens: a row of {length:,} is longer.")
    return length


def _of_training(
    model: Any, training: Training, rows: Rows, length: int, passes: int, defence: RepNoise | None, keeps: bool
) -> Estimate:
    """Of `passes` language-modelling passes in a loss, and RepNoise's own terms where there is a defence."""
    sizes = sizes_of(model, training.four_bit)
    chosen = find_decoder(model).choose(defence.layers) if defence else []
    kept = kept_by_a_pass(model, training.batch_size, length, training)
    batch = Batch(training.batch_size, length, round(training.batch_size * length * rows.completion))
    half, accumulates = training.precision == "bf16", training.accumulation > 1
    parts, reading = _language_modelling(sizes, batch, passes, half, by_lens=defence is not None)
    extra = _repnoise(parts, sizes, batch, chosen, defence, kept.casts > 0) if defence else None
    if training.gradient_checkpointing:
        again = operations.layers_again(sizes, batch) * (passes + (defence is not None))
        parts[RECOMPUTED] = parts.get(RECOMPUTED, 0.0) + again
    own = memory.held(sizes, kept, training.optimizer, half)
    found = memory.moments(own, kept, reading, passes, accumulates, extra)
    holds = {"weights": own.weights, "gradients": own.gradients, "optimiser": own.optimiser}
    holds |= {"weights in 16 bits": own.casts} if own.casts else {}
    holds |= {"weights in full precision": own.aside} if own.aside else {}
    holds |= {"activations": kept.all * (passes + (extra is not None)), "logits": passes * reading.waits + reading.made}
    if extra:
        holds |= {"lens": extra.logits + 2 * extra.states + 2 * extra.head, "kernel matrices": extra.kernels}
    steps = _steps(training, rows.examples)
    checkpoint = 2 * FP32 * sizes.trained + 2 * own.optimiser if training.save_every else 0
    return Estimate(
        sizes=sizes,
        precision=training.precision,
        batch=batch,
        steps=steps,
        parts={name: flops * training.accumulation for name, flops in parts.items()},
        traffic=OPTIMISER_TRAFFIC * sizes.trained,
        holds=holds,
        moments=tuple(found),
        gathered=_gathered(sizes, training.precision),
        disk_bytes=FP32 * sizes.weights * (keeps or bool(training.save_every)) + checkpoint,
    )


def _language_modelling(
    sizes: Sizes, batch: Batch, passes: int, half: bool, by_lens: bool
) -> tuple[dict[str, float], Reading]:
    """Operations of so many passes by part, and what each takes to be read out: as `defences.base.completion_ce` does,
    with prompts of one length."""
    some = sizes.one_position and batch.tokens * sizes.vocabulary > hidden_states.FEW_LOGITS
    if some and by_lens:
        parts = {"language modelling": passes * operations.language_modelling_by_lens(sizes, batch)}
        parts[RECOMPUTED] = passes * operations.one_row_read_out(sizes)
        return parts, _read_by_lens(sizes, batch.completion, half)
    read = batch.completion if some else batch.tokens
    parts = {"language modelling": passes * operations.language_modelling(sizes, batch, read)}
    return parts, Reading.whole(float(FP32 * read * sizes.vocabulary), half)


def _read_by_lens(sizes: Sizes, states: int, half: bool) -> Reading:
    """Of so many states, as `losses.read_out_ce` does it."""
    at_once = rows_at_once(sizes.vocabulary)
    if states <= at_once:
        return Reading.whole(float(FP32 * states * sizes.vocabulary), half)
    held = float((2 if half else FP32) * states * sizes.width)
    return Reading.in_chunks(held, 2.0 * FP32 * at_once * sizes.vocabulary, float(FP32 * sizes.head_trained))


def _repnoise(
    parts: dict[str, float], sizes: Sizes, batch: Batch, chosen: list[int], defence: RepNoise, half: bool
) -> Extra:
    """Adds the operations of RepNoise's own terms to the parts, and returns what memory they take."""
    held = batch.completion
    if defence.harmful_tokens == "all":  # All are noised, and all but the first of a row predicted.
        held, batch = batch.tokens, Batch(batch.rows, batch.length, batch.tokens - batch.rows)
    layers = min(len(chosen), defence.layers_per_step or len(chosen))
    # The highest of k layers that are drawn from n is in the mean the k (n + 1) / (k + 1)-th of them.
    highest = chosen[round(layers * (len(chosen) + 1) / (layers + 1)) - 1]
    reached = highest + 1 if defence.lens else sizes.layers
    read = layers if defence.lens else 1
    tokens = defence.samples == "tokens"
    n = min(defence.max_samples or held, held) if tokens else batch.rows
    dimension = sizes.width if tokens else sizes.width * batch.length
    if defence.top_directions is not None:
        dimension = min(defence.top_directions, n, dimension)
    parts["harmful states"] = operations.states_only(sizes, batch, reached)
    parts["lens"] = operations.lens(sizes, batch, read, defence.detach_unembedding)
    parts["kernels"] = operations.kernels(n, dimension, layers)
    parts[RECOMPUTED] = parts.get(RECOMPUTED, 0.0) + operations.one_row_read_out(sizes)
    state = batch.completion * sizes.width * (2 if half else FP32)
    states, at_once = batch.completion * read, rows_at_once(sizes.vocabulary)
    logits = FP32 * min(states, at_once) * sizes.vocabulary
    return Extra(
        captured=layers * batch.tokens * sizes.width * (2 if half else FP32),
        states=float(read * state),
        logits=float((2 if states > at_once else 3) * logits),
        whole=states <= at_once,
        head=float(FP32 * sizes.head_trained * (not defence.detach_unembedding)),
        kernels=float(memory.kernel_bytes(n, dimension, layers)),
    )


def _steps(training: Training, examples: int | None) -> int:
    if training.steps is None and examples is None:
        raise RepnoiseError(
            f"How many steps {training.epochs:g} epochs are depends on the data: say --steps, or --examples."
        )
    return training.total_steps(examples or 0)


def _gathered(sizes: Sizes, precision: str) -> float:
    """Two decoder layers (one used, one on its way), and embedding and unembedding, which stay whole."""
    layer = (sizes.products - sizes.head) / sizes.layers
    return (2 if precision == "bf16" else FP32) * (2 * layer + 2 * sizes.head)


def _evaluation(config: EvaluateConfig, of_model: Any, rows: Rows) -> Estimate:
    """Of generating answers, batch by batch, keys and values of what was read being kept; judges are left out.

    A step is a batch. Every token of it reads all weights once, which on a fast device is most of its time.
    """
    if rows.examples is None:
        raise RepnoiseError("How long an evaluation takes depends on its prompts: say how many with --examples.")
    sizes = sizes_of(shell(of_model))
    drawn = config.evaluating.generation
    asked, new = rows.examples * drawn.samples, drawn.max_new_tokens
    batch = Batch(min(drawn.batch_size, asked), _length(config, of_model, rows), 0)
    prompt = max(1, batch.length - new)
    batch = Batch(batch.rows, prompt + new, batch.rows * new)
    growing = 4.0 * sizes.layers * sizes.attention * batch.rows * sum(range(prompt + 1, prompt + new))
    weights = FP32 * sizes.weights
    cache = 2 * FP32 * sizes.layers * batch.tokens * sizes.keys
    scored = min(LOGITS, ROWS * batch.length * sizes.vocabulary, asked * batch.length * sizes.vocabulary)
    models = 1 + (config.evaluating.base is not None)
    holds = {"weights": models * weights, "keys and values": cache, "logits": float(3 * FP32 * scored)}
    always, likelihood = holds["weights"], holds["logits"] * config.evaluating.likelihood
    return Estimate(
        sizes=sizes,
        precision="fp32",
        batch=batch,
        steps=math.ceil(asked / batch.rows),
        parts={
            "reading prompts": operations.forward(sizes, batch.rows, prompt, read=batch.rows),
            "writing": 2.0 * sizes.products * batch.rows * (new - 1) + growing,
        },
        traffic=new * weights + new * cache / 2,
        holds=holds,
        moments=(Moment("generating", always, cache), Moment("likelihoods", always, likelihood)),
        gathered=_gathered(sizes, "fp32"),
        disk_bytes=0.0,
    )
