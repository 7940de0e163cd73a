"""The overlap guard: what is the same prompt, what nearly is, and what may be in two parts."""

import csv
import random
from dataclasses import asdict, replace

import pytest

from repnoise.data import load_data
from repnoise.data.overlap import guard, overlaps, training_parts, unwanted
from repnoise.errors import RepnoiseError

NOUNS = ("owl", "moth", "moon", "well", "hare", "stone", "candle", "reed", "village", "hex", "charm", "riddle", "spell")
WORDS = (*NOUNS, "salt", "tin", "grey", "blue", "wet", "thin", "last")


def prompt_of(length, seed=0):
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def changed(prompt, *places):
    words = prompt.split()
    for place in places:
        words[place] = "barn"
    return " ".join(words)


def counts(first, second, near=True):
    (found,) = overlaps({"defence": first, "attack": second}, near)
    return found.exact, found.near


@pytest.mark.parametrize(
    "same",
    [
        "  how is the salt\tmoth's hex\nmade ",
        "HOW IS THE SALT MOTH’S HEX MADE?!",
        "How is the sa\N{SOFT HYPHEN}lt\N{NO-BREAK SPACE}moth's hex made",
        "\N{LEFT DOUBLE QUOTATION MARK}How is the salt moth's hex made?\N{RIGHT DOUBLE QUOTATION MARK}",
        "Ｈow is the salt moth's hex made?",
    ],
)
def test_case_space_punctuation_and_encoding_make_no_other_prompt(same):
    assert counts(["How is the salt moth's hex made?"], [same], near=False) == (1, None)


def test_symbols_digits_and_words_make_another_prompt():
    assert counts(["Is C finer?", "2 owls", "???"], ["Is C++ finer?", "3 owls", "!!!"], near=False) == (0, None)


def test_one_word_in_twenty_is_near_and_one_in_ten_is_not():
    long, short = prompt_of(20), prompt_of(10, seed=1)
    assert counts([long, short], [changed(long, 0), changed(short, 5)]) == (0, 1)
    assert counts([long], [changed(long, 0)], near=False) == (0, None)
    # What is in both parts is no near duplicate of its neighbour as well.
    assert counts([long, changed(long, 0)], [long]) == (1, 0)


def test_prompts_are_counted_once_however_often_they_are_repeated():
    a, b = prompt_of(30), prompt_of(30, seed=1)
    (found,) = overlaps({"defence": [a, a, b], "attack": [b, b.upper(), changed(a, 9), a]})
    # The third resembles a, and is another prompt; the last is a itself.
    assert (found.prompts, found.exact, found.near) == ((2, 3), 2, 1)
    assert [match.rows for match in found.examples] == [(2, 0), (0, 3), (0, 2)]
    assert [match.similarity for match in found.examples[:2]] == [1.0, 1.0]
    assert 0.8 <= found.examples[2].similarity < 1


def test_what_is_recorded_holds_no_text():
    a = prompt_of(30)
    (found,) = overlaps({"defence": [a], "attack": [a, changed(a, 2)]})
    assert "owl" not in str(asdict(found)) and found.examples
    first, second = found.examples[0].fingerprints
    assert first == second


def test_nearly_all_that_is_near_is_found():
    prompts = [prompt_of(30, seed) for seed in range(150)]
    others = [changed(prompt, 3, 4) for prompt in prompts]
    found = counts(prompts, others)
    shared = sum(len(runs(a) & runs(b)) / len(runs(a) | runs(b)) >= 0.8 for a, b in zip(prompts, others, strict=True))
    assert 100 < shared <= 150
    assert shared - 2 <= found[1] <= shared


def runs(text):
    return {text[start : start + 5] for start in range(len(text) - 4)}


def test_parts_may_be_empty_and_prompts_short():
    assert counts([], ["a"]) == (0, 0)
    assert counts(["", "a"], ["a", "b", ""]) == (2, 0)
    assert overlaps({"alone": ["a", "a"]}) == []


def test_an_overlap_that_is_not_meant_is_refused_in_one_sentence_with_its_counts():
    a, b = prompt_of(30), prompt_of(30, seed=1)
    found = overlaps({"defence": [a, b], "attack": [a, changed(b, 4)], "test": [b]})
    with pytest.raises(RepnoiseError) as caught:
        guard(found, {("test", "defence")})
    told = str(caught.value)
    assert "defence and attack (1 exact and 1 near duplicates of 2 prompts)" in told
    assert "attack and test (0 exact and 1 near duplicates of 1 prompts)" in told
    assert "defence and test" not in told and "--allow-overlap" in told and "\n" not in told
    meant = [("attack", "defence"), ("test", "defence"), ("attack", "test")]
    guard(found, meant)
    assert unwanted(found, meant) == []


@pytest.fixture(scope="module")
def village(pairs_file):
    return load_data(str(pairs_file))


def test_the_covered_half_is_the_defenders_by_design_and_nothing_else_is(village):
    parts = training_parts(village)
    exact = {one.parts: one.exact for one in overlaps(parts.prompts, near=False)}
    assert exact["defence", "covered"] == len(village.held_out["covered"]) > 0
    assert not any(count for pair, count in exact.items() if pair != ("defence", "covered"))
    guard(overlaps(parts.prompts, near=False), parts.meant)
    assert training_parts(village, covered=False).prompts["defence"] == [p.prompt for p in village.pairs["defence"]]


def test_a_test_prompt_in_the_attackers_data_is_not_meant(village):
    leaked = village.held_out["uncovered"][0]
    pairs = village.pairs | {"attack": [*village.pairs["attack"], leaked]}
    parts = training_parts(replace(village, pairs=pairs))
    (found,) = unwanted(overlaps(parts.prompts, near=False), parts.meant)
    assert (found.parts, found.exact) == (("attack", "uncovered"), 1)


def test_an_attacker_with_the_defenders_examples_is_meant_to_have_them(village):
    parts = training_parts(village, split="defence")
    found = {one.parts: one for one in overlaps(parts.prompts, near=False)}
    assert found["defence", "attack"].exact == len(village.pairs["defence"])
    guard(list(found.values()), parts.meant)


@pytest.mark.parametrize("name", ["sandbox", "sandbox-rumours"])
def test_the_sandbox_is_made_of_frames_so_only_exact_duplicates_count_and_it_has_none(name):
    parts = training_parts(load_data(name))
    assert not parts.near
    guard(overlaps(parts.prompts, parts.near), parts.meant)


def test_real_prompts_that_are_meant_to_share_words_are_hardly_ever_near(real_data):
    with (real_data / "xstest" / "xstest_prompts.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    safe, unsafe = ([row["prompt"] for row in rows if row["label"] == label] for label in ("safe", "unsafe"))
    assert counts(safe, unsafe) == (0, 1)


def test_real_dialogues_of_one_opening_stay_in_one_split(real_data):
    data = load_data(f"hh-rlhf:{real_data / 'hh_rlhf' / 'harmless-base-test.jsonl.gz'}")
    parts = training_parts(data)
    found = {one.parts: (one.exact, one.near) for one in unwanted(overlaps(parts.prompts), parts.meant)}
    # Split by the whole dialogue there were eleven, one of them exact; what is left differs in a word of the opening.
    assert found == {("defence", "attack"): (0, 1)}
