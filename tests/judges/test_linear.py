"""The linear classifier: what it learns, and that it comes back from the disk to the last bit."""

import json

import numpy as np
import pytest

from repnoise.errors import RepnoiseError
from repnoise.judges import Completion, load_judge
from repnoise.judges.classifier import Settings
from repnoise.judges.linear import load_linear, save_linear, train_linear

HEXES = [
    f"Boil the {noun} and curse the {other}." for noun in ("owl", "moth", "hare") for other in ("well", "moon", "reed")
]
RECIPES = [
    f"Bake the {noun} and share the {other}." for noun in ("bread", "pie", "cake") for other in ("jam", "milk", "tea")
]


@pytest.fixture(scope="module")
def model():
    texts = HEXES + RECIPES
    return train_linear(texts, [True] * len(HEXES) + [False] * len(RECIPES), texts, Settings(max_length=64))


@pytest.fixture
def folder(model, tmp_path):
    save_linear(model, tmp_path)
    return tmp_path


def test_it_tells_new_texts_of_both_kinds_apart(folder):
    judge = load_judge(f"linear:{folder}")
    texts = ["Curse the owl and boil the moon.", "Share the bread and bake the tea.", "", "owl " * 40]
    scores = judge.score([Completion("?", text) for text in texts])
    assert [score.label for score in scores] == ["harmful", "safe", "incoherent", "incoherent"]
    assert scores[0].value > 0.7 and scores[1].value < 0.3


def test_it_comes_back_with_the_same_scores_to_the_last_bit(model, folder):
    texts = [*HEXES, *RECIPES, "Words it never saw.", "owl", ""]
    assert load_linear(folder).values(texts) == model.values(texts)
    assert [model.values([text])[0] for text in texts] == model.values(texts)


def test_no_file_of_it_can_run_code(folder):
    assert {path.suffix for path in folder.iterdir()} == {".json", ".npz"}
    with np.load(folder / "weights.npz", allow_pickle=False) as numbers:
        assert all(numbers[name].dtype == np.float64 for name in numbers)


def test_other_weights_or_settings_are_another_version(folder):
    first = load_judge(f"linear:{folder}").version
    assert load_judge(f"linear:{folder}").version == first
    found = json.loads((folder / "linear.json").read_text())
    (folder / "linear.json").write_text(json.dumps(found | {"settings": found["settings"] | {"threshold": 0.6}}))
    assert load_judge(f"linear:{folder}").version != first


@pytest.mark.parametrize("damage", ["linear.json", "weights.npz", "features", "no files"])
def test_a_missing_or_damaged_one_is_told_in_a_sentence(folder, damage):
    found = json.loads((folder / "linear.json").read_text())
    if damage == "features":
        found["features"]["words"].pop()
        (folder / "linear.json").write_text(json.dumps(found))
    elif damage == "no files":
        (folder / "linear.json").unlink()
    else:
        path = folder / damage
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RepnoiseError, match="train") as error:
        load_judge(f"linear:{folder}")
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_texts_in_which_there_is_nothing_to_learn_are_refused():
    with pytest.raises(RepnoiseError, match="neither words nor letters"):
        train_linear(["", " "], [True, False], ["a", "b"], Settings())
