"""Tests between two models against values by hand, and by how often they are wrong when nothing is different."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repnoise.errors import RepnoiseError
from repnoise.significance import (
    holm,
    mann_whitney,
    mcnemar,
    paired_difference,
    share_difference,
    sign_flips,
    with_holm,
)
from repnoise.statistics import wilson

NAN = math.nan


def test_shares_on_the_same_prompts_get_the_exact_mcnemar_test():
    # 10 prompts only the first recovers, 2 only the second: 2 (1 + 12 + 66) / 2^12.
    a = [1.0] * 10 + [0.0] * 2 + [1.0] * 5 + [0.0] * 13
    b = [0.0] * 10 + [1.0] * 2 + [1.0] * 5 + [0.0] * 13
    found = paired_difference(a, b)
    assert (found.test, found.n, found.seeds) == ("exact McNemar", (30, 30), (1, 1))
    assert found.p == pytest.approx(2 * 79 / 4096)
    assert found.effect.mean == pytest.approx(8 / 30)
    assert 0 < found.effect.low < 8 / 30 < found.effect.high
    assert mcnemar(0, 0) == 1.0 and mcnemar(1, 0) == 1.0


def test_other_scores_get_every_flip_of_signs():
    found = paired_difference([1.5, 2.5, 3.5], [0.5, 0.5, 0.5])
    assert (found.test, found.effect.mean) == ("sign flips", 2.0)
    assert found.p == pytest.approx(2 / 8)
    # 1 and -2 and 3 sum to 2; of the eight sums 6, 0, 2, 4 and their opposites, six are as far from 0.
    assert sign_flips([1.0, -2.0, 3.0]) == pytest.approx(6 / 8)
    assert sign_flips([0.25] * 5) == sign_flips([0.25] * 5 + [0.0] * 20) == pytest.approx(2 / 32)
    assert sign_flips([0.0, 0.0]) == sign_flips([0.3]) == 1.0
    assert math.isnan(sign_flips([]))


def test_many_prompts_get_random_flips_with_a_p_that_is_never_zero():
    values = np.random.default_rng(0).normal(1, 0.2, size=60).tolist()
    assert sign_flips(values) == pytest.approx(2 / 10_000)


def test_seeds_are_averaged_for_each_prompt_and_told():
    a, b = [[1.0, 0.0, 1.0, NAN], [1.0, 1.0, NAN, NAN]], [0.0, 0.5, 0.25, 0.0]
    found = paired_difference(a, b)
    assert (found.seeds, found.n, found.effect.n, found.effect.unscored) == ((2, 1), (3, 3), 3, 1)
    assert found.effect.mean == pytest.approx((1.0 + 0.0 + 0.75) / 3)
    assert found.test == "sign flips"


def test_nothing_recovered_by_either_is_not_certainly_no_difference():
    expected = wilson(0, 40)[1]
    for runs in ([0.0] * 40, [[0.0] * 40] * 3):
        effect = paired_difference(runs, [0.0] * 40).effect
        assert (effect.low, effect.high) == pytest.approx((-expected, expected))


def test_models_with_other_prompts_are_not_compared():
    with pytest.raises(RepnoiseError, match=r"same prompts \(2 and 3\): evaluate both"):
        paired_difference([1.0, 0.0], [1.0, 0.0, 1.0])
    with pytest.raises(ValueError):
        paired_difference([[1.0, 0.0], [1.0]], [1.0, 0.0])


def test_without_a_common_score_there_is_no_p():
    found = paired_difference([NAN, 1.0], [0.5, NAN])
    assert math.isnan(found.p) and found.n == (0, 0) and found.effect.unscored == 2
    assert paired_difference([0.3, NAN], [0.1, 0.2]).effect.low is None
    assert math.isnan(mann_whitney([NAN], [1.0, 2.0]).p)


scores = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1), st.just(NAN))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(scores, scores), min_size=1, max_size=8), st.sampled_from([paired_difference, mann_whitney]))
def test_the_order_of_the_models_changes_the_sign_and_nothing_else(pairs, test):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    one, other = test(a, b), test(b, a)
    if math.isnan(one.p):
        assert math.isnan(other.p)
        return
    assert 0 <= one.p <= 1 and one.p == pytest.approx(other.p)
    centre = 0.0 if test is paired_difference else 1.0
    assert one.effect.mean == pytest.approx(centre - other.effect.mean)
    if test is mann_whitney:
        assert (one.effect.low, one.effect.high) == pytest.approx((1 - other.effect.high, 1 - other.effect.low))


@pytest.mark.parametrize(
    ("shares", "n"),
    [
        # Chances of a prompt that both, only the first, only the second, neither recovers.
        ((0.3, 0.2, 0.1, 0.4), 40),
        ((0.02, 0.05, 0.05, 0.88), 40),
        ((0.6, 0.1, 0.05, 0.25), 80),
        ((0.0, 0.6, 0.3, 0.1), 30),
    ],
)
def test_the_interval_of_a_paired_difference_holds_the_truth_about_as_often_as_it_says(shares, n):
    generator, hits, trials = np.random.default_rng(4), 0, 600
    truth = shares[1] - shares[2]
    for counts in generator.multinomial(n, shares, size=trials):
        x, y = np.repeat([1.0, 1.0, 0.0, 0.0], counts), np.repeat([1.0, 0.0, 1.0, 0.0], counts)
        found = share_difference(x, y)
        hits += found.low <= truth <= found.high
    assert 0.925 < hits / trials <= 0.995


def test_models_that_are_the_same_are_told_apart_in_one_table_of_twenty_at_most():
    generator, trials = np.random.default_rng(8), 80
    found = {"exact McNemar": 0, "sign flips": 0, "Mann-Whitney": 0}
    for _ in range(trials):
        difficulty = generator.random(30)
        binary = (generator.random((2, 30)) < difficulty).astype(float).tolist()
        graded = (difficulty[:8] + generator.normal(0, 0.3, size=(2, 8))).tolist()
        for result in (paired_difference(*binary), paired_difference(*graded), mann_whitney(*graded)):
            found[result.test] += result.p <= 0.05
    assert all(count / trials <= 0.1 for count in found.values()), found
    assert found["sign flips"] > 0  # Nor is it never.


def test_mann_whitney_counts_who_is_higher():
    # Of the 20 ways to divide six values, two are as extreme.
    apart = mann_whitney([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert apart.p == pytest.approx(0.1) and (apart.effect.mean, apart.effect.low) == (0.0, 0.0)
    # z^2 times Hanley and McNeil's variance at the limit is its square.
    t = apart.effect.high
    variance = t * (1 - t) * (1 + 2 * ((1 - t) / (2 - t) + t / (1 + t))) / 9
    assert t**2 == pytest.approx(1.959964**2 * variance, rel=1e-4)
    tied = mann_whitney([1.0, 1.0], [1.0, 1.0, NAN])
    assert (tied.p, tied.effect.mean, tied.n, tied.effect.unscored) == (1.0, 0.5, (2, 2), 1)


def test_its_interval_holds_the_truth_about_as_often_as_it_says():
    generator, hits = np.random.default_rng(6), 0
    truth = 0.5 * (1 + math.erf(0.7 / 2))  # P(N(0.7, 1) > N(0, 1))
    for _ in range(300):
        effect = mann_whitney(generator.normal(0.7, 1, size=25).tolist(), generator.normal(size=15).tolist()).effect
        hits += effect.low <= truth <= effect.high
    assert hits / 300 > 0.92


def test_holm_multiplies_the_least_by_how_many_there_are():
    assert holm([0.01, 0.04, NAN, 0.03]) == pytest.approx([0.03, 0.06, NAN, 0.06], nan_ok=True)
    assert holm([]) == [] and math.isnan(holm([NAN])[0])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_only_raises_p_and_keeps_their_order(p_values):
    adjusted = holm(p_values)
    assert all(p <= q + 1e-12 and q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    by_p = [q for _, q in sorted(zip(p_values, adjusted, strict=True))]
    assert by_p == sorted(by_p)


def test_a_table_says_how_many_tests_it_was_corrected_for():
    one, none = paired_difference([1.0] * 6, [0.0] * 6), paired_difference([NAN], [1.0])
    table = with_holm([one, none, one])
    assert [row.family for row in table] == [2, 2, 2]
    assert table[0].p == pytest.approx(2 / 64) and table[0].adjusted == pytest.approx(4 / 64)
    assert math.isnan(table[1].adjusted) and one.adjusted is None
