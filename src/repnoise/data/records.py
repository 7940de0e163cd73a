"""The two records that everything else is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

TemplateName = Literal["auto", "chat", "plain", "none"]
"""Prompt template: the tokenizer's chat template, "Question: ... Answer: ...", nothing, or what fits."""

LossOn = Literal["completion", "all"]
"""Which tokens of an example are trained on."""

AttackSplit = Literal["attack", "defence"]
"""Whose examples an attacker has: its own, or the defender's (the paper's Tables 1 and 2). Never the held-out ones."""

SPLITS = ("defence", "attack", "covered", "uncovered")
"""Every paired data set is divided four ways, by prompt, without overlap.

`defence` and `attack` are what each side trains on. The other two are held out from the attacker and are what
resistance is measured on: `covered` pairs are also in the defender's data (the defender knew what was to be removed),
`uncovered` pairs are in nobody's (generalization, the third immunization condition).
"""


@dataclass(frozen=True)
class Pair:
    """One prompt with a harmful and a harmless completion."""

    prompt: str
    harmful: str
    harmless: str
    category: str = ""


@dataclass(frozen=True)
class Example:
    """One prompt with one completion: harmless answers, benign tasks, and what an attack trains on."""

    prompt: str
    completion: str
    category: str = ""


@dataclass(frozen=True)
class ExampleSet:
    """Examples of a data set that has no pairs, by split, and the rows that were left out, by reason.

    The splits by kind (see `data.DATASETS`): a task has "train" and "test", requests have "test", a contrast has "safe"
    and "unsafe", examples have "train".
    """

    name: str
    splits: dict[str, list[Example]]
    skipped: dict[str, int] = field(default_factory=dict)
