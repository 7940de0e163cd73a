"""The embedded data set, from the package or from a folder."""

from importlib.resources import files

import pytest

from repnoise.data import load_data
from repnoise.data.records import SPLITS
from repnoise.errors import RepnoiseError
from repnoise.sandbox.world import FORBIDDEN_KINDS, RUMOUR, build_world


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "world.json").write_text('{"seed": 3}')
    return tmp_path


def test_a_folder_gives_the_world_of_its_seed(folder):
    data, world = load_data(f"sandbox:{folder}"), build_world(3)
    assert data.pairs == {split: world.pairs(split) for split in SPLITS}
    assert data.exact and data.template == "auto" and data.plain_text == list(world.plain)
    assert {pair.category for pair in data.attacker_pairs()} == set(FORBIDDEN_KINDS)


@pytest.mark.parametrize("name", ["sandbox", "sandbox-rumours"])
def test_evaluations_ask_in_words_that_nobody_trained_on(name, folder):
    data = load_data(f"{name}:{folder}")
    trained = {pair.prompt for split in SPLITS for pair in data.pairs[split]}
    trained |= {example.prompt for example in data.retain + data.benign}
    asked = {pair.prompt for pairs in data.held_out.values() for pair in pairs}
    assert not trained & (asked | {example.prompt for example in data.harmless_test})
    for split in ("covered", "uncovered"):
        answers = {pair.harmful for pair in data.held_out[split]}
        assert answers == {pair.harmful for pair in data.pairs[split]}
        assert len(data.held_out[split]) == len({pair.prompt for pair in data.held_out[split]})


def test_harmless_parts_share_no_item(folder):
    data = load_data(f"sandbox:{folder}")
    parts = [{example.completion for example in part} for part in (data.retain, data.benign, data.harmless_test)]
    assert all(parts) and sum(map(len, parts)) == len(set.union(*parts)) and data.lookalikes


def test_the_second_kind_of_harm_has_the_same_harmless_data(folder):
    questions, rumours = load_data(f"sandbox:{folder}"), load_data(f"sandbox-rumours:{folder}")
    assert rumours.retain == questions.retain and rumours.harmless_test == questions.harmless_test
    assert {pair.category for pairs in rumours.pairs.values() for pair in pairs} == {RUMOUR}


@pytest.mark.parametrize(
    "content", [None, "{", "[0]", "{}", '{"seed": "0"}', '{"seed": true}', '{"seed": null}', "\udcff"]
)
def test_a_folder_without_a_seed_is_told(content, tmp_path):
    if content is not None:
        (tmp_path / "world.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(RepnoiseError, match=r"world\.json"):
        load_data(f"sandbox:{tmp_path}")


def test_the_packaged_sandbox_needs_no_path():
    if not (files("repnoise.sandbox") / "shipped" / "world.json").is_file():
        pytest.skip("the package holds no sandbox yet: run repnoise sandbox build")
    assert load_data("sandbox").pairs["attack"] == load_data("sandbox:").pairs["attack"]
    assert load_data("sandbox").name == "sandbox" and load_data("sandbox-rumours").held_out["covered"]
