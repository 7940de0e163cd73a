"""Memory of a training step: what is there at the moments when there is most. docs/performance.md tells why then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from repnoise.estimate.sizes import Kept, Sizes
from repnoise.four_bit import BYTES

FP32 = 4

OPTIMISER_BYTES = {"sgd": 0, "adafactor": 0, "lion_32bit": 4, "rmsprop": 4, "adagrad": 4, "muon": 4}
"""Bytes of state for a trained weight. Adam's and its kin's is 8, with two moments; in 8 bits, 2."""


@dataclass(frozen=True)
class Moment:
    """Bytes that are there at one time.

    Attributes:
        name: when that is.
        sharded: of weights, gradients and optimiser, of which each of several devices holds a part.
        rows: what grows with the rows of a device's batch.
        fixed: the rest.
    """

    name: str
    sharded: float
    rows: float
    fixed: float = 0.0

    @property
    def bytes(self) -> float:
        return self.sharded + self.rows + self.fixed

    def on(self, devices: int, batch: int, gathered: float) -> float:
        """Bytes on each of so many devices, which gather `gathered` bytes of weights at a time."""
        if devices == 1:
            return self.bytes
        return self.sharded / devices + gathered + self.rows * math.ceil(batch / devices) / batch + self.fixed


@dataclass(frozen=True)
class Held:
    """Bytes of a training that stay from step to step, or come and go with its gradients.

    Attributes:
        weights, gradients, optimiser: of the weights as they are held, and of those that are trained.
        casts: copies of weights in 16 bits.
        aside: in full precision, what is held in 4 bits: on the device before and after training, and whenever the
            model is measured.
        read: of the largest map that is held in 4 bits, while a product is made.
    """

    weights: float
    gradients: float
    optimiser: float
    casts: float
    aside: float = 0.0
    read: float = 0.0

    @property
    def always(self) -> float:
        return self.weights + self.optimiser

    @property
    def partly(self) -> float:
        """Gradients while some passes are still to come: in the type of the copies that the passes share, if any."""
        return self.gradients / 2 if self.casts else self.gradients


@dataclass(frozen=True)
class Reading:
    """What a language-modelling pass takes beside its activations, for its completions to be read out.

    Attributes:
        waits: bytes that are kept until its backward pass.
        made: bytes beside those while they are made.
        back: bytes that the backward pass adds.
        head: the unembedding's gradient where the forward pass makes it: one copy is kept, one more comes and goes.
    """

    waits: float
    made: float
    back: float
    head: float = 0.0

    @classmethod
    def whole(cls, logits: float, half: bool) -> Reading:
        """Of all logits at once, so many bytes in fp32 (`half`: made from logits in 16 bits): the cross-entropy keeps
        one copy, makes another, and two more in the backward pass."""
        return cls(logits, (1.5 if half else 1.0) * logits, 2 * logits)

    @classmethod
    def in_chunks(cls, states: float, logits: float, head: float) -> Reading:
        """Of states and chunks of logits with their gradient: `losses.read_out_ce`."""
        return cls(states, states + logits, states, head)


@dataclass(frozen=True)
class Extra:
    """What RepNoise's own terms take beside the passes of the model.

    Attributes:
        captured: outputs of modules that are held while the loss is made.
        states: states that the lens reads; as much again is their gradient.
        logits: those of one chunk with their gradient, in fp32.
        whole: whether there is one chunk only, whose logits wait for the backward pass.
        head: the unembedding's gradient, one copy; 0 where it gets none.
        kernels: what MMD keeps.
    """

    captured: float
    states: float
    logits: float
    whole: bool
    head: float
    kernels: float


def held(sizes: Sizes, kept: Kept, optimizer: str, half: bool = False) -> Held:
    state = 2 if "8bit" in optimizer else OPTIMISER_BYTES.get(optimizer, 8)
    return Held(
        FP32 * (sizes.weights - sizes.four_bit) + BYTES * sizes.four_bit,
        FP32 * sizes.trained,
        state * sizes.trained,
        kept.casts,
        aside=FP32 * sizes.four_bit,
        read=(FP32 + 2 * half) * sizes.largest,
    )


def moments(
    own: Held, kept: Kept, reading: Reading, read_passes: int, accumulates: bool, extra: Extra | None = None
) -> list[Moment]:
    """When memory may be at its peak, for a loss of so many language-modelling passes and perhaps RepNoise's terms.

    Backward passes go in the opposite order of the forward passes, so RepNoise's is the first, and after it gradients
    of all weights wait while the other passes' activations are still there.
    """
    always = own.always + own.casts + own.read + (own.gradients if accumulates else 0)
    passed = kept.all + reading.waits
    last = read_passes - 1
    heads = read_passes * reading.head
    found = [Moment("forward", always, last * passed + kept.all + reading.waits + reading.made, heads + reading.head)]
    first_back = Moment(
        "start of the backward pass", always, read_passes * passed + reading.back + kept.again, heads + reading.head
    )
    if extra is None:
        found.append(first_back)
    else:
        before = read_passes * passed + kept.all
        both = 2 * extra.states  # The states and their gradient, then that and the same times the loss' own.
        fixed = heads + 2 * extra.head + extra.kernels
        found.append(Moment("reading states", always, before + both + extra.captured, fixed + extra.logits))
        found.append(Moment("start of the backward pass", always, before + both, fixed + extra.logits * extra.whole))
        after = Moment("after the first backward pass", always + own.partly, first_back.rows, first_back.fixed)
        found.append(after)
    found.append(Moment("optimiser step", own.always + own.gradients * (2 if accumulates else 1), 0.0))
    if own.aside:
        found.append(Moment("the weights in full precision, to be measured", own.always + own.aside, 0.0))
    return found


def kernel_bytes(samples: int, dimension: int, layers: int) -> float:
    """What MMD keeps of a layer: samples and draws, and for the two matrices of pairs with a gradient the distances and
    the kernel's slope; beside that, once, what comes and goes while the last one is made."""
    pairs = FP32 * samples**2
    return layers * (4 * pairs + 2 * FP32 * samples * dimension) + 4 * pairs


def peak(found: Sequence[Moment]) -> Moment:
    return max(found, key=lambda moment: moment.bytes)
