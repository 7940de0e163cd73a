"""Which of some answers does a model's state point to? Bits recovered, against the entropy of the answers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repnoise.analysis.lens import Reader, read_log_probabilities
from repnoise.data.tokenization import Codec
from repnoise.errors import RepnoiseError
from repnoise.hidden_states import find_decoder
from repnoise.modeling import LoadedModel
from repnoise.statistics import Interval, bootstrap_interval

TEMPERATURES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, math.inf)
"""By which scores may be divided; at infinity all answers are equally likely, which is 0 bits."""

Question = tuple[str, str]
"""A prompt and its answer."""


@dataclass(frozen=True)
class AnswerBits:
    """What the states after each layer tell of which answer a prompt has.

    Attributes:
        group: whose answers they are.
        layers: after which layers the states were read.
        bits: for each layer the information in bits, with its interval over prompts. At most `entropy`; 0 for guessing,
            below it for a reading that is sure and wrong.
        shuffled: the same if each prompt's answer is taken to be that of another: the control, 0 or less.
        right: share of the prompts whose own answer is the likeliest.
        entropy: log2 of the number of answers, all being equally likely.
    """

    group: str
    layers: tuple[int, ...]
    bits: tuple[Interval, ...]
    shuffled: tuple[float, ...]
    right: tuple[float, ...]
    entropy: float


@dataclass(frozen=True)
class Calibration:
    """The temperature of each layer, chosen on answers that are not measured."""

    layers: tuple[int, ...]
    temperatures: tuple[float, ...]


def answer_bits(
    loaded: LoadedModel,
    codec: Codec,
    group: str,
    questions: Sequence[Question],
    reader: Reader,
    calibration: Calibration,
) -> AnswerBits:
    """How well the states tell the answer of each prompt from the answers of the others.

    Every answer is put behind every prompt, and read after each layer through `reader`, which nobody has trained on
    these answers. What is read is q(answer | prompt) = the product of q(token | prompt, tokens before it), so no
    answer helps itself. Over the answers that gives a posterior, and log2 N minus its cross-entropy is a lower bound of
    the information that the states have about the answer (Barber and Agakov 2003; usable information in the sense of
    Xu et al. 2020, arXiv:2002.10689). An answer that is likely behind any prompt is not evidence for it: the mean over
    the prompts is taken off its scores. Raises RepnoiseError for fewer than two different answers.
    """
    scores = _scores(loaded, codec, questions, reader, calibration.layers)
    n = len(questions)
    own, other = torch.arange(n), (torch.arange(n) + 1) % n
    bits, shuffled, right = [], [], []
    for score, temperature in zip(scores, calibration.temperatures, strict=True):
        posterior = _posterior(score, temperature)
        bits.append(bootstrap_interval((math.log2(n) + posterior[own, own]).tolist()))
        shuffled.append(math.log2(n) + posterior[own, other].mean().item())
        # Of equally likely answers none is named.
        ahead = score[own, own] > score.masked_fill(torch.eye(n, dtype=torch.bool), -math.inf).max(1).values
        right.append(ahead.double().mean().item())
    return AnswerBits(group, calibration.layers, tuple(bits), tuple(shuffled), tuple(right), math.log2(n))


def calibrated(
    loaded: LoadedModel,
    codec: Codec,
    questions: Sequence[Question],
    reader: Reader,
    layers: Sequence[int] | None = None,
) -> Calibration:
    """For each layer the temperature that loses least on questions that are not those to be measured."""
    chosen = find_decoder(loaded.model).choose(layers)
    found = []
    for score in _scores(loaded, codec, questions, reader, chosen):
        told = {temperature: _posterior(score, temperature).diagonal().mean().item() for temperature in TEMPERATURES}
        found.append(max(told, key=told.__getitem__))
    return Calibration(tuple(chosen), tuple(found))


def different_answers(questions: Sequence[Question], count: int, seed: int = 0) -> list[Question]:
    """At most `count` of the questions, drawn with the seed, no two of which have one answer or one prompt."""
    prompts, found = set(), {}
    for prompt, answer in random.Random(seed).sample(questions, len(questions)):
        if answer not in found and prompt not in prompts and len(found) < count:
            found[answer] = (prompt, answer)
            prompts.add(prompt)
    return list(found.values())


def _scores(
    loaded: LoadedModel, codec: Codec, questions: Sequence[Question], reader: Reader, layers: Sequence[int]
) -> Tensor:
    """(L, n, n): log-probability of each answer (column) behind each prompt (row), less the answer's mean."""
    if len({answer for _, answer in questions}) < max(2, len(questions)):
        raise RepnoiseError("Telling answers apart needs two or more questions with different answers.")
    n = len(questions)
    rows = [codec.row(prompt, answer) for prompt, _ in questions for _, answer in questions]
    totals, _ = read_log_probabilities(loaded, rows, layers, reader)
    scores = totals.T.unflatten(1, (n, n))
    return scores - scores.mean(1, keepdim=True)


def _posterior(scores: Tensor, temperature: float) -> Tensor:
    """log2 of the probability of each answer (column) for each prompt (row)."""
    return (scores / temperature).log_softmax(-1) / math.log(2)
