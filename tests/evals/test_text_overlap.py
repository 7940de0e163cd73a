"""ROUGE of completions, against values worked out by hand."""

import sys

import pytest

from repnoise.errors import RepnoiseError
from repnoise.evals.text_overlap import ROUGE, rouge

pytest.importorskip("rouge_score", reason="needs rouge-score, of the extra eval")


def scores(completion, reference):
    return tuple(values[0] for values in rouge([completion], [reference]).values())


def f(common, written, wanted):
    """The harmonic mean of precision and recall."""
    return 2 * common / (written + wanted)


@pytest.mark.parametrize(
    "completion, reference, expected",
    [
        ("the owl sat", "the owl sat", (1, 1, 1)),
        ("The OWL, sat!", "the owl sat", (1, 1, 1)),
        # Common: the, sat; no pair of neighbours; "the sat" in order.
        ("the hare sat", "the owl sat", (f(2, 3, 3), 0, f(2, 3, 3))),
        # All words, one pair of two ("the owl"), and "the owl" is the longest in order.
        ("sat the owl", "the owl sat", (1, f(1, 2, 2), f(2, 3, 3))),
        # A word counts as often as the reference has it.
        ("owl owl owl owl", "owl moon", (f(1, 4, 2), 0, f(1, 4, 2))),
        # Four of six words, of which "the owl ... the well" is in order; the pairs "the owl" and "the well" of five.
        (
            "the owl left the dry well",
            "the owl sat on the well",
            (f(4, 6, 6), f(1, 5, 5), f(4, 6, 6)),
        ),
        # Endings do not matter: sitting and sits are both "sit", and moons is "moon".
        ("sitting moons", "sits moon", (1, 1, 1)),
        ("grey owl", "name[tin moon], area[well]", (0, 0, 0)),
        ("area[well], name[tin moon]", "name[tin moon], area[well]", (1, f(3, 4, 4), f(3, 5, 5))),
    ],
)
def test_rouge_is_what_counting_words_by_hand_gives(completion, reference, expected):
    assert scores(completion, reference) == pytest.approx(expected)


@pytest.mark.parametrize("completion", ["", " \n", "?!"])
def test_an_empty_completion_scores_nothing(completion):
    assert scores(completion, "the owl sat") == (0, 0, 0)


def test_of_several_references_the_best_counts_for_each_measure():
    # The first shares all words, in another order; the second a pair of neighbours.
    references = ["c b a", "a b x y z"]
    assert scores("a b c", references) == pytest.approx((1, f(1, 2, 4), f(2, 3, 5)))
    assert scores("a b c", references[::-1]) == scores("a b c", references)


def test_every_example_keeps_its_place():
    found = rouge(["owl", "moon", ""], ["owl", "well", "hare"])
    assert set(found) == set(ROUGE) and found["rouge1"] == [1, 0, 0]
    assert rouge([], []) == {name: [] for name in ROUGE}


def test_a_missing_package_is_told_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(RepnoiseError, match=r"pip install 'repnoise\[eval\]'"):
        rouge(["owl"], ["owl"])
