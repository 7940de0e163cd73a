"""What a data set gives to the rest, whatever its format: pairs by split, harmless examples, plain text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from repnoise.data.records import SPLITS, AttackSplit, Example, ExampleSet, Pair, TemplateName
from repnoise.errors import RepnoiseError

JOINED = " + "
"""Joins the categories of a pair that has several: whoever withholds one of them withholds the pair."""


@dataclass(frozen=True)
class PairedData:
    """A data set as everything else sees it.

    Attributes:
        name: where it came from, as the user gave it.
        pairs: paired completions by split (see `records.SPLITS`), for training.
        held_out: "covered" and "uncovered": what resistance is measured on. Prompts differ from those in `pairs`
            where the data set has another phrasing of the same question; else they are the same.
        retain: general harmless examples for the defender.
        benign: harmless examples for the attacker's mixtures.
        retained_test: what `retain` teaches, asked in other words: what the defender meant to keep. Facts only.
        harmless_test: harmless examples that are in neither of the two: what nobody took care to keep.
        lookalikes: harmless questions that look harmful (over-refusal), with answers where there are any.
        unsafe: the harmful questions that those look like, where the data set has them (XSTest).
        requests: harmful questions without an answer; resistance asks them with the uncovered ones.
        tasks: harmless tasks to be trained on (trainability), by name.
        plain_text: text for perplexity.
        template: the prompt template that fits the data: "auto" or "none" for continuations.
        exact: whether completions are facts, so that the exact judge applies.
        skipped: rows left out while loading, by reason.
        groups: names that stand for several categories of the data set at once.
    """

    name: str
    pairs: dict[str, list[Pair]]
    held_out: dict[str, list[Pair]]
    retain: list[Example] = field(default_factory=list)
    benign: list[Example] = field(default_factory=list)
    retained_test: list[Example] = field(default_factory=list)
    harmless_test: list[Example] = field(default_factory=list)
    lookalikes: list[Example] = field(default_factory=list)
    unsafe: list[Example] = field(default_factory=list)
    requests: list[Example] = field(default_factory=list)
    tasks: dict[str, ExampleSet] = field(default_factory=dict)
    plain_text: list[str] = field(default_factory=list)
    template: TemplateName = "auto"
    exact: bool = False
    skipped: dict[str, int] = field(default_factory=dict)
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def defender_pairs(self, covered: bool = True, withheld: Sequence[str] = ()) -> list[Pair]:
        """What the defender trains on: its own split, with `covered` also the covered half of the held-out pairs,
        less every pair that has a withheld category, whatever others it has."""
        splits = ("defence", "covered") if covered else ("defence",)
        names = self._category_names(withheld)
        pairs = [p for split in splits for p in self.pairs[split] if names.isdisjoint(categories_of(p.category))]
        if not pairs:
            raise RepnoiseError(f"No pairs are left for the defence in {self.name}: withhold fewer categories.")
        return pairs

    def attacker_pairs(self, categories: Sequence[str] = (), split: AttackSplit = "attack") -> list[Pair]:
        """What the attacker trains on: a split, or only the pairs of it that have one of some categories."""
        names = self._category_names(categories)
        pairs = self.pairs[split]
        return [p for p in pairs if not names.isdisjoint(categories_of(p.category))] if categories else list(pairs)

    def _category_names(self, names: Sequence[str]) -> set[str]:
        """The categories that names of categories and groups stand for; raises RepnoiseError for one without pairs."""
        if not names:
            return set()
        joined = {pair.category for split in self.pairs.values() for pair in split}
        known = {name for category in joined for name in categories_of(category)}
        found: set[str] = set()
        for name in names:
            meant = known & {*self.groups.get(name, (name,))}
            if not meant:
                there = ", ".join([*sorted(known), *self.groups])
                raise RepnoiseError(f"{self.name} has no category {name!r}; it has: {there}.")
            found |= meant
        return found


def categories_of(category: str) -> tuple[str, ...]:
    """The categories of a pair or example, of which several are joined by `JOINED`."""
    return tuple(category.split(JOINED))


def paired(name: str, splits: dict[str, list[Pair]], **parts: Any) -> PairedData:
    """Data of a real data set: no second phrasings, so the held-out pairs are those of the splits themselves."""
    return PairedData(name, splits, {split: splits[split] for split in ("covered", "uncovered")}, **parts)


def prompt_key(prompt: str) -> str:
    """What makes two prompts the same for every split."""
    return prompt.strip().lower()


def hash_position(prompt: str) -> float:
    """A number in [0, 1) that depends on the prompt only."""
    # Divided by a power of two that leaves 53 bits: more would round up to 1.
    return (int.from_bytes(hashlib.sha256(prompt_key(prompt).encode()).digest()[:8]) >> 11) / 2**53


def split_by_prompt(
    pairs: Sequence[Pair],
    shares: Sequence[float] = (0.35, 0.35, 0.15, 0.15),
    by: Callable[[Pair], str] = lambda pair: pair.prompt,
) -> dict[str, list[Pair]]:
    """Divide pairs into the four splits by a hash of the prompt, so that no prompt is ever in two of them.

    `shares` are the sizes of the splits in the order of `records.SPLITS`; `by` is what is hashed, where prompts of one
    origin have to stay together. Adding rows never moves a row.
    """
    splits: dict[str, list[Pair]] = {name: [] for name in SPLITS}
    for pair in pairs:
        position, limit = hash_position(by(pair)), 0.0
        for name, share in zip(SPLITS, shares, strict=True):
            limit += share
            if position < limit or name == SPLITS[-1]:
                splits[name].append(pair)
                break
    return splits


HARMFUL_TOO = "harmless completion of a prompt that has a harmful one too"
"""Why `split_harmless` leaves examples out."""


def split_harmless(examples: Sequence[Example], pairs: Sequence[Pair]) -> tuple[dict[str, list[Example]], int]:
    """Divide harmless examples by a hash of the prompt: `retain` (half), `benign` (three tenths) and `harmless_test`.

    Examples whose prompt has a harmful completion too are left out, else one side could be trained on the prompts that
    the other is measured on; the second value is how many.
    """
    harmful = {prompt_key(pair.prompt) for pair in pairs}
    parts: dict[str, list[Example]] = {"retain": [], "benign": [], "harmless_test": []}
    kept = [example for example in examples if prompt_key(example.prompt) not in harmful]
    for example in kept:
        position = hash_position(example.prompt)
        parts["retain" if position < 0.5 else "benign" if position < 0.8 else "harmless_test"].append(example)
    return parts, len(examples) - len(kept)
