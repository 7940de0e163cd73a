"""What an analysis looks at: examples by group, and what its readers may be trained on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from repnoise.analysis.answers import Question, different_answers
from repnoise.data.sources import PairedData
from repnoise.data.tokenization import Codec, Row
from repnoise.errors import RepnoiseError
from repnoise.losses import IGNORE

Harmless = Literal["auto", "paired", "others"]

HARMFUL = {"covered": "harmful, covered", "uncovered": "harmful, uncovered"}
HARMLESS = "harmless"
ENOUGH = 20
"""Harmless examples that are enough for "auto" to take them."""
TRAINED_ON = 512
"""Most rows that a reader is trained on."""


@dataclass(frozen=True)
class Material:
    """Examples of one data set for one tokenizer.

    Attributes:
        rows: by group (`HARMFUL` and `HARMLESS`), prompts with their completions. Nobody but the defender has trained
            on the covered ones, and nobody on the uncovered ones.
        prompts: by group, the prompt of each row.
        paired: whether the harmless rows are the harmless completions of the same prompts.
        general: harmless rows that train the tuned lens.
        attacker: harmful rows of the attacker's split, which train the attacker's reader.
        questions: by group, prompts whose answers are all different.
        calibration: the same, of the attacker's split and not in `attacker`.
    """

    rows: dict[str, list[Row]]
    prompts: dict[str, list[str]]
    paired: bool
    general: list[Row]
    attacker: list[Row]
    questions: dict[str, list[Question]]
    calibration: list[Question]

    @property
    def harmful(self) -> list[str]:
        """The harmful groups that there are."""
        return [group for group in self.rows if group != HARMLESS]

    def labelled(self) -> tuple[list[Row], list[bool], list[str]]:
        """All rows, whether each is harmful, and their prompts."""
        rows = [row for own in self.rows.values() for row in own]
        labels = [group != HARMLESS for group, own in self.rows.items() for _ in own]
        return rows, labels, [prompt for own in self.prompts.values() for prompt in own]


def material(data: PairedData, codec: Codec, examples: int, answers: int, harmless: Harmless = "auto") -> Material:
    """At most `examples` rows and `answers` different answers of each group, the same ones in every run.

    Raises RepnoiseError where the data has no held-out pairs, or not the harmless examples that were asked for.
    """
    paired = harmless == "paired" or (harmless == "auto" and len(data.harmless_test) < ENOUGH)
    asked = {
        name: [(pair.prompt, pair.harmful) for pair in data.held_out[split]]
        for split, name in HARMFUL.items()
        if data.held_out.get(split)
    }
    if not asked:
        raise RepnoiseError(f"{data.name} has no held-out harmful completions to read: give paired data with --data.")
    held_out = [pair for split in HARMFUL for pair in data.held_out.get(split, ())]
    others = [(example.prompt, example.completion) for example in data.harmless_test]
    asked[HARMLESS] = [(pair.prompt, pair.harmless) for pair in held_out] if paired else others
    chosen = {name: _worth(_drawn(own, examples), codec) for name, own in asked.items()}
    if not chosen[HARMLESS]:
        raise RepnoiseError(f"{data.name} has no harmless examples to compare with: use --harmless paired.")
    attack = [(pair.prompt, pair.harmful) for pair in data.pairs["attack"]]
    there = len({answer for _, answer in attack})
    calibration = different_answers(attack, min(answers, there // 4), seed=1)
    aside = {answer for _, answer in calibration}
    retain = [(example.prompt, example.completion) for example in data.retain]
    general = retain or [(pair.prompt, pair.harmless) for pair in data.pairs["attack"]]
    return Material(
        {name: [codec.row(*question) for question in own] for name, own in chosen.items()},
        {name: [prompt for prompt, _ in own] for name, own in chosen.items()},
        paired,
        [codec.row(*q) for q in _worth(_drawn(general, TRAINED_ON), codec)],
        [codec.row(*q) for q in _worth(_drawn([q for q in attack if q[1] not in aside], TRAINED_ON), codec)],
        {name: own for name in chosen if len(own := different_answers(chosen[name], answers)) > 1},
        calibration,
    )


def _drawn(questions: Sequence[Question], count: int) -> list[Question]:
    return random.Random(0).sample(questions, min(count, len(questions)))


def _worth(questions: Sequence[Question], codec: Codec) -> list[Question]:
    """Those whose completions have tokens."""
    return [q for q in questions if any(label != IGNORE for label in codec.row(*q)["labels"])]
