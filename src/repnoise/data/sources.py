"""What a data set gives to the rest, whatever its format: pairs by split, harmless examples, plain text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from repnoise.data.examples import load_examples, load_text
from repnoise.data.records import SPLITS, AttackSplit, Example, Pair, TemplateName
from repnoise.errors import RepnoiseError


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
        lookalikes: harmless questions that look harmful (over-refusal), with answers.
        plain_text: text for perplexity.
        template: the prompt template that fits the data: "auto" or "none" for continuations.
        exact: whether completions are facts, so that the exact judge applies.
        skipped: rows left out while loading, by reason.
    """

    name: str
    pairs: dict[str, list[Pair]]
    held_out: dict[str, list[Pair]]
    retain: list[Example] = field(default_factory=list)
    benign: list[Example] = field(default_factory=list)
    retained_test: list[Example] = field(default_factory=list)
    harmless_test: list[Example] = field(default_factory=list)
    lookalikes: list[Example] = field(default_factory=list)
    plain_text: list[str] = field(default_factory=list)
    template: TemplateName = "auto"
    exact: bool = False
    skipped: dict[str, int] = field(default_factory=dict)

    def defender_pairs(self, covered: bool = True, withheld: Sequence[str] = ()) -> list[Pair]:
        """What the defender trains on: its own split, with `covered` also the covered half of the held-out pairs,
        less the withheld categories."""
        splits = ("defence", "covered") if covered else ("defence",)
        self._check_categories(withheld)
        pairs = [pair for split in splits for pair in self.pairs[split] if pair.category not in withheld]
        if not pairs:
            raise RepnoiseError(f"No pairs are left for the defence in {self.name}: withhold fewer categories.")
        return pairs

    def attacker_pairs(self, categories: Sequence[str] = (), split: AttackSplit = "attack") -> list[Pair]:
        """What the attacker trains on: a split, or only some categories of it."""
        self._check_categories(categories)
        return [pair for pair in self.pairs[split] if not categories or pair.category in categories]

    def _check_categories(self, names: Sequence[str]) -> None:
        known = sorted({pair.category for split in self.pairs.values() for pair in split})
        for name in names:
            if name not in known:
                raise RepnoiseError(f"{self.name} has no category {name!r}; it has: {', '.join(known)}.")


def paired(name: str, splits: dict[str, list[Pair]], **parts: Any) -> PairedData:
    """Data of a real data set: no second phrasings, so the held-out pairs are those of the splits themselves."""
    return PairedData(name, splits, {split: splits[split] for split in ("covered", "uncovered")}, **parts)


def with_extras(data: PairedData, retain: str | None, benign: str | None, plain_text: str | None) -> PairedData:
    """The data with the user's own harmless files in place of what it has.

    A fifth of the `retain` file, chosen by a hash of the prompt, becomes `harmless_test`, so that stability is measured
    on what the defender has not seen; nor does the attacker see it in `benign`. Raises RepnoiseError for a bad file.
    """
    if retain:
        examples = load_examples(retain)
        test = [example for example in examples if hash_position(example.prompt) >= 0.8]
        rest = [example for example in examples if hash_position(example.prompt) < 0.8]
        data = replace(data, retain=rest, harmless_test=test)
    if benign:
        data = replace(data, benign=load_examples(benign))
    if retain or benign:
        tested = {prompt_key(example.prompt) for example in data.harmless_test}
        kept = [example for example in data.benign if prompt_key(example.prompt) not in tested]
        if dropped := len(data.benign) - len(kept):
            skipped = data.skipped | {"benign examples that are in the harmless test": dropped}
            data = replace(data, benign=kept, skipped=skipped)
    return replace(data, plain_text=load_text(plain_text)) if plain_text else data


def prompt_key(prompt: str) -> str:
    """What makes two prompts the same for every split."""
    return prompt.strip().lower()


def hash_position(prompt: str) -> float:
    """A number in [0, 1) that depends on the prompt only."""
    # Divided by a power of two that leaves 53 bits: more would round up to 1.
    return (int.from_bytes(hashlib.sha256(prompt_key(prompt).encode()).digest()[:8]) >> 11) / 2**53


def split_by_prompt(pairs: Sequence[Pair], shares: Sequence[float] = (0.35, 0.35, 0.15, 0.15)) -> dict[str, list[Pair]]:
    """Divide pairs into the four splits by a hash of the prompt, so that no prompt is ever in two of them.

    `shares` are the sizes of the splits in the order of `records.SPLITS`. Adding rows never moves a row.
    """
    splits: dict[str, list[Pair]] = {name: [] for name in SPLITS}
    for pair in pairs:
        position, limit = hash_position(pair.prompt), 0.0
        for name, share in zip(SPLITS, shares, strict=True):
            limit += share
            if position < limit or name == SPLITS[-1]:
                splits[name].append(pair)
                break
    return splits
