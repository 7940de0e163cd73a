"""Overlap guard: do parts of the data that must not know of each other share prompts, or nearly the same ones?

What is near was decided on real prompts (numbers of pairs with a Jaccard index of at least 0.8). XSTest has 450 prompts
that are meant to share words: by single words 7 pairs are near, all of them contrasts that differ in the one word that
counts; by runs of 5 characters 1 is (it differs in the last word). Among 1,083 sentences of ViGGO's test set it is 2,
both rightly; runs of 3 words find 2 as well, but lose short prompts, where one changed word is in most runs. So: runs
of 5 characters, at least 0.8 shared. One changed word in a prompt of twenty is found, in one of ten it is not.
A dialogue that goes on where another ends (HH-RLHF) is near only if most of the two is the same.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from repnoise.data.records import AttackSplit, Example, Pair
from repnoise.data.sources import PairedData, prompt_key
from repnoise.errors import RepnoiseError
from repnoise.runs import fingerprint

RUN = 5
"""Characters of a shingle."""

NEAR = 0.8
"""Least Jaccard index of the shingles of near duplicates."""

BANDS, ROWS = 21, 6
"""Of the MinHash: finds 99.8 % of the pairs at NEAR, and of those it finds the true index is then computed."""

WATCHED = (
    ("defence", "attack"),
    ("defence", "uncovered"),
    ("attack", "covered"),
    ("attack", "uncovered"),
    ("retain", "harmless_test"),
    ("benign", "harmless_test"),
)
"""Parts of paired data that must not overlap. The defender's data has the covered half in it, by design."""


@dataclass(frozen=True)
class Match:
    """Two prompts that are the same or nearly so, by row and fingerprint: a record should hold no harmful text."""

    rows: tuple[int, int]
    fingerprints: tuple[str, str]
    similarity: float


@dataclass(frozen=True)
class Overlap:
    """What two parts have in common, counted in different prompts, repetitions aside.

    Attributes:
        parts: their names.
        prompts: different prompts in each.
        exact: prompts that are in both, up to case, white space, punctuation and the way they are encoded.
        near: prompts of the second part that are not in the first, but resemble one there. None if not looked for.
        examples: up to three, the most similar first.
    """

    parts: tuple[str, str]
    prompts: tuple[int, int]
    exact: int
    near: int | None
    examples: tuple[Match, ...] = ()


@dataclass(frozen=True)
class Parts:
    """Prompts by part, the pairs of parts that may overlap, and whether near duplicates mean anything."""

    prompts: dict[str, list[str]]
    meant: frozenset[tuple[str, str]]
    near: bool


def training_parts(
    data: PairedData,
    covered: bool = True,
    withheld: Sequence[str] = (),
    split: AttackSplit = "attack",
    categories: Sequence[str] = (),
) -> Parts:
    """The parts of a data set as a defence and an attack with these settings use them (see `PairedData`).

    Meant are all overlaps but those of WATCHED; with the attacker on the defender's own examples (`split`), as in the
    paper's Tables 1 and 2, that of defence and attack too. Of facts (`data.exact`: the sandbox, whose questions are
    made of a few frames) only exact duplicates count.
    """
    found: dict[str, Sequence[Pair | Example]] = {
        "defence": data.defender_pairs(covered, withheld),
        "attack": data.attacker_pairs(categories, split),
        "covered": data.held_out["covered"],
        "uncovered": data.held_out["uncovered"],
        "retain": data.retain,
        "benign": data.benign,
        "harmless_test": data.harmless_test,
    }
    prompts = {name: [record.prompt for record in records] for name, records in found.items()}
    watched = set(WATCHED) - ({("defence", "attack")} if split == "defence" else set())
    return Parts(prompts, frozenset(set(combinations(prompts, 2)) - watched), near=not data.exact)


def overlaps(parts: Mapping[str, Sequence[str]], near: bool = True) -> list[Overlap]:
    """What every two parts have in common, in the order of the parts; those with nothing in common are listed, too.

    Exact duplicates are found by a key; near ones (see the module) by MinHash and locality-sensitive hashing (Broder,
    On the Resemblance and Containment of Documents, 1997), whose finds are checked one by one.
    """
    texts = [_first_rows(prompts) for prompts in parts.values()]
    alike = _near_duplicates(list(dict.fromkeys(text for rows in texts for text in rows))) if near else {}
    pairs = combinations(zip(parts, texts, strict=True), 2)
    return [_overlap((a, b), parts, first, second, alike, near) for (a, first), (b, second) in pairs]


def unwanted(found: Sequence[Overlap], meant: Collection[tuple[str, str]] = ()) -> list[Overlap]:
    """The overlaps that are not meant and not empty, in whichever order `meant` names the two parts."""
    allowed = {frozenset(pair) for pair in meant}
    return [one for one in found if (one.exact or one.near) and frozenset(one.parts) not in allowed]


def guard(found: Sequence[Overlap], meant: Collection[tuple[str, str]] = ()) -> None:
    """Raise RepnoiseError with the counts if parts overlap that are not meant to (see `unwanted`)."""
    if wrong := unwanted(found, meant):
        raise RepnoiseError(
            f"Parts of the data share prompts that should not: {'; '.join(map(_told, wrong))}: take these out of one "
            "of the two, or add --allow-overlap if it is meant."
        )


def _told(overlap: Overlap) -> str:
    near = f" and {overlap.near:,} near" if overlap.near else ""
    return f"{' and '.join(overlap.parts)} ({overlap.exact:,} exact{near} duplicates of {overlap.prompts[1]:,} prompts)"


def same_key(prompt: str) -> str:
    """What makes two prompts the same here: `prompt_key` after Unicode's compatibility form, without punctuation and
    invisible characters, with single spaces; `prompt_key` alone if nothing is left of that. Symbols stay: C and C++ are
    two things."""
    text = "".join(map(_kept, unicodedata.normalize("NFKC", prompt).casefold()))
    return prompt_key(" ".join(text.split())) or prompt_key(prompt)


@cache
def _kept(letter: str) -> str:
    """A letter as it is compared: a space for punctuation and control characters, nothing for one without a width."""
    category = unicodedata.category(letter)
    if category == "Cf":
        return ""
    return " " if category[0] in "PZC" or category == "Sk" else letter


def _first_rows(prompts: Sequence[str]) -> dict[str, int]:
    """Each different prompt's key with the first row that has it."""
    rows: dict[str, int] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(same_key(prompt), row)
    return rows


def _overlap(
    names: tuple[str, str],
    parts: Mapping[str, Sequence[str]],
    first: Mapping[str, int],
    second: Mapping[str, int],
    alike: Mapping[str, Mapping[str, float]],
    near: bool,
) -> Overlap:
    matches = [(1.0, text, text) for text in second if text in first]
    exact = len(matches)
    for text in second:
        others = {other: found for other, found in alike.get(text, {}).items() if other in first}
        if others and text not in first:
            best = max(others, key=others.__getitem__)
            matches.append((others[best], best, text))
    examples = [
        Match(
            (first[a], second[b]),
            (fingerprint(parts[names[0]][first[a]]), fingerprint(parts[names[1]][second[b]])),
            round(similarity, 3),
        )
        for similarity, a, b in sorted(matches, key=lambda match: -match[0])[:3]
    ]
    sizes = (len(first), len(second))
    return Overlap(names, sizes, exact, len(matches) - exact if near else None, tuple(examples))


def _near_duplicates(texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each text the others that are near, with their Jaccard index."""
    found: dict[str, dict[str, float]] = {}
    for first, second in _candidates(texts):
        a, b = _shingles(first), _shingles(second)
        if (similarity := len(a & b) / len(a | b)) >= NEAR:
            found.setdefault(first, {})[second] = similarity
            found.setdefault(second, {})[first] = similarity
    return found


def _candidates(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of different texts, each once, that fall into one bucket of a band."""
    import zlib

    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
    empty = MinHash(num_perm=BANDS * ROWS, hashfunc=zlib.crc32)
    for position, text in enumerate(texts):
        hashed = empty.copy()
        hashed.update_batch([shingle.encode() for shingle in _shingles(text)])
        for other in index.query(hashed):
            yield texts[int(str(other))], text
        index.insert(position, hashed)


def _shingles(text: str) -> set[str]:
    return {text[start : start + RUN] for start in range(max(1, len(text) - RUN + 1))}
