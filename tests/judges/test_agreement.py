"""Agreement of judges against values by hand and against scikit-learn."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from repnoise.judges.agreement import Disagreement, agreement, disagreements

NAN = math.nan


def of_table(both, only_first, only_second, neither):
    first = [1.0] * (both + only_first) + [0.0] * (only_second + neither)
    second = [1.0] * both + [0.0] * only_first + [1.0] * only_second + [0.0] * neither
    return {"phrases": first, "classifier": second}


def test_kappa_of_a_table_by_hand():
    # 35 of 50 agree; by chance 0.5 * 0.6 + 0.5 * 0.4 = one half would.
    (found,) = agreement(of_table(20, 5, 10, 15))
    assert (found.judges, found.n, found.unscored) == (("phrases", "classifier"), 50, 0)
    assert found.same.mean == pytest.approx(0.7)
    assert found.kappa.mean == pytest.approx(0.4)
    # The standard error is sqrt(0.7 * 0.3 / 50) / 0.5 = 0.13.
    assert found.kappa.low == pytest.approx(0.4 - 0.254, abs=0.04)
    assert found.kappa.high == pytest.approx(0.4 + 0.254, abs=0.04)


values = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30)


@settings(deadline=None, max_examples=40)
@given(values)
def test_kappa_agrees_with_scikit_learn_whichever_judge_is_first(pairs):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    yes = [[value >= 0.5 for value in judge] for judge in (first, second)]
    (found,), (swapped,) = agreement({"a": first, "b": second}), agreement({"b": second, "a": first})
    if len({*yes[0], *yes[1]}) == 1:
        assert found.kappa is None and found.same.mean == 1
        return
    assert found.kappa.mean == pytest.approx(cohen_kappa_score(*yes)) == pytest.approx(swapped.kappa.mean)
    assert found.kappa.low <= found.kappa.mean <= found.kappa.high <= 1 + 1e-9


def test_a_few_texts_without_a_difference_are_no_certain_agreement():
    (found,) = agreement(of_table(3, 0, 0, 3))
    assert found.kappa.mean == 1 and found.kappa.high == pytest.approx(1)
    # Wilson's lower limit for 6 of 6 is 0.61, and one half is chance.
    assert found.kappa.low == pytest.approx(2 * 0.6097 - 1, abs=1e-3)


def test_only_texts_that_both_scored_count_and_the_ranks_are_spearmans():
    found = agreement({"a": [0.1, 0.2, 0.9, NAN, 0.3], "b": [0.0, 0.4, 0.6, 0.5, NAN], "c": [1.0, 0.5, NAN, NAN, 0.0]})
    assert [one.judges for one in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [(one.n, one.unscored) for one in found] == [(3, 2), (3, 2), (2, 3)]
    assert found[0].spearman == pytest.approx(1.0)
    assert found[1].spearman == pytest.approx(-1.0)
    (one,) = agreement({"a": [0.1, 0.2, 0.3, 0.4], "b": [0.2, 0.1, 0.3, 0.9]})
    # Squared differences of ranks sum to 2: 1 - 6 * 2 / (4 * 15).
    assert one.spearman == pytest.approx(0.8)


def test_judges_who_say_the_same_of_everything_have_no_kappa_and_no_ranks():
    (found,) = agreement({"a": [0.0, 0.0, 0.0], "b": [0.2, 0.1, 0.3]})
    assert found.kappa is None and found.spearman is None and found.same.mean == 1.0
    (one_sided,) = agreement({"a": [0.0, 0.0, 0.0, 0.0], "b": [1.0, 0.0, 1.0, 0.0]})
    assert one_sided.kappa.mean == 0 and one_sided.spearman is None
    (nothing,) = agreement({"a": [NAN], "b": [1.0]})
    assert (nothing.n, nothing.unscored, nothing.spearman) == (0, 1, None) and nothing.kappa is None
    assert agreement({"a": [0.5]}) == []


def test_the_texts_that_judges_differ_on_are_listed_most_first():
    scores = {"a": [0.0, 1.0, 0.5, NAN, 0.0], "b": [0.25, 0.0, 0.5, 1.0, 1.0], "c": [0.0, 0.5, 0.5, NAN, NAN]}
    found = disagreements(scores)
    assert [(one.index, one.difference) for one in found] == [(1, 1.0), (4, 1.0), (0, 0.25)]
    assert found[1] == Disagreement(4, {"a": 0.0, "b": 1.0}, 1.0)
    assert disagreements(scores, most=1) == found[:1]


def test_judges_of_other_texts_are_not_compared():
    for compare in (agreement, disagreements):
        with pytest.raises(ValueError, match="a value for each text, not: a 2, b 1"):
            compare({"a": [0.0, 1.0], "b": [0.0]})
