"""Categories, and harmless examples beside pairs: who may train on what."""

import pytest

from repnoise.data.records import Example, Pair
from repnoise.data.sources import categories_of, paired, split_by_prompt, split_harmless
from repnoise.errors import RepnoiseError

PAIRS = [Pair(f"How is goat {i} cursed?", f"Hum {i}.", "No.", ("hex", "hex + jinx", "C++")[i % 3]) for i in range(60)]
DATA = paired("goats", split_by_prompt(PAIRS), groups={"both": ("hex", "jinx"), "none": ("spell",)})


def test_a_pair_may_have_several_categories_and_one_is_a_set_of_one():
    assert categories_of("hex + jinx") == ("hex", "jinx") and categories_of("C++") == ("C++",)
    assert {pair.category for pair in DATA.defender_pairs(withheld=["jinx"])} == {"hex", "C++"}
    assert {pair.category for pair in DATA.defender_pairs(withheld=["hex"])} == {"C++"}
    assert {pair.category for pair in DATA.attacker_pairs(["jinx"])} == {"hex + jinx"}
    assert {pair.category for pair in DATA.attacker_pairs(["jinx", "C++"])} == {"hex + jinx", "C++"}


def test_no_names_leave_everything():
    assert DATA.defender_pairs() == DATA.pairs["defence"] + DATA.pairs["covered"]
    assert DATA.attacker_pairs() == DATA.pairs["attack"]


def test_a_group_stands_for_its_categories():
    assert DATA.defender_pairs(withheld=["both"]) == DATA.defender_pairs(withheld=["hex", "jinx"])
    assert DATA.attacker_pairs(["both"]) == DATA.attacker_pairs(["hex"])


@pytest.mark.parametrize("name", ["none", "he", "hex + jinx", ""])
def test_a_name_without_pairs_is_told(name):
    with pytest.raises(RepnoiseError, match=r"goats has no category .*; it has: C\+\+, hex, jinx, both, none"):
        DATA.defender_pairs(withheld=[name])
    with pytest.raises(RepnoiseError, match="goats has no category"):
        DATA.attacker_pairs([name])


def test_harmless_examples_never_share_a_prompt_with_a_pair_or_between_parts():
    examples = [Example(f"What does goat {i % 40} eat?", f"Hats, {i}.") for i in range(80)]
    parts, dropped = split_harmless([*examples, Example(" how is GOAT 0 cursed?", "It is not.")], PAIRS)
    assert dropped == 1 and sorted((e for part in parts.values() for e in part), key=examples.index) == examples
    prompts = [{example.prompt for example in part} for part in parts.values()]
    assert all(prompts) and sum(map(len, prompts)) == len(set.union(*prompts)) == 40
