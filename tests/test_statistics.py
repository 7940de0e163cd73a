"""Intervals against published values, against scipy's own, and by simulation; and who decides the worst case."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from repnoise import statistics
from repnoise.statistics import (
    Interval,
    bootstrap_interval,
    independent_runs,
    pooled_interval,
    seed_interval,
    two_level_interval,
    wilson,
    worst_case,
)

NAN = math.nan
shares = st.floats(0, 1)
runs_of_one_size = st.integers(5, 60).flatmap(
    lambda n: st.lists(st.integers(0, n).map(lambda k: bootstrap_interval([1.0] * k + [0.0] * (n - k))), min_size=1)
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_gives_the_published_limits(successes, n, low, high):
    assert wilson(successes / n, n) == pytest.approx((low, high), abs=5e-5)


@settings(deadline=None)
@given(st.integers(1, 400), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_agrees_with_scipy(n, data, level):
    successes = data.draw(st.integers(0, n))
    expected = scipy.stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    low, high = wilson(successes / n, n, level)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= low <= successes / n <= high <= 1


def test_none_of_forty_is_not_certainly_none():
    found = bootstrap_interval([0.0] * 40)
    assert found.low == 0
    assert found.high == pytest.approx(0.0876, abs=1e-4)


def test_the_bootstrap_agrees_with_scipys_percentile_bootstrap():
    values = np.random.default_rng(7).beta(0.5, 0.8, size=60)
    found = bootstrap_interval(values.tolist())
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    # A limit at 2.5 % of 2,000 resamples has a standard error of about a twentieth of the half-width.
    tolerance = 0.15 * (expected.high - expected.low) / 2
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=tolerance)


def test_the_bootstrap_gives_the_same_interval_every_time():
    values = np.random.default_rng(0).random(30).tolist()
    assert bootstrap_interval(values) == bootstrap_interval(values)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(-1e6, 1e6), max_size=20))
def test_the_bootstrap_holds_its_mean_and_stays_within_the_values(values):
    found = bootstrap_interval(values)
    if not values:
        assert math.isnan(found.mean)
    elif len(values) == 1 and values[0] not in (0, 1):
        assert (found.low, found.high) == (None, None)
    elif not {*values} <= {0, 1}:
        slack = 1e-9 * max(map(abs, values))
        assert min(values) - slack <= found.low <= found.mean <= found.high <= max(values) + slack


def test_equal_values_have_an_interval_of_no_width():
    found = bootstrap_interval([0.1] * 7)
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))


def test_unscored_prompts_are_counted_and_never_averaged():
    found = bootstrap_interval([1.0, NAN, 0.0, NAN, 1.0, 1.0])
    assert (found.mean, found.n, found.unscored) == (0.75, 4, 2)
    assert (found.low, found.high) == wilson(0.75, 4)
    assert bootstrap_interval([NAN, NAN]).unscored == 2
    assert math.isnan(bootstrap_interval([NAN, NAN]).mean)


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.sampled_from([0.8, 0.95]))
def test_the_interval_over_seeds_is_students(values, level):
    found = seed_interval(values, level)
    mean, error = np.mean(values), np.std(values, ddof=1) / math.sqrt(len(values))
    if error == 0:
        assert found.low == found.mean == found.high
    else:
        expected = scipy.stats.t.interval(level, len(values) - 1, loc=mean, scale=error)
        assert (found.low, found.high) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_three_seeds_have_the_factor_of_the_tables():
    found = seed_interval([1.0, 2.0, 3.0])
    assert found.high - found.mean == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)


def test_one_seed_says_nothing_about_other_seeds():
    assert seed_interval([0.3]) == Interval(0.3, None, None, 1)
    assert seed_interval([0.3, NAN]) == Interval(0.3, None, None, 1, 1)
    assert math.isnan(seed_interval([]).mean)


@given(runs_of_one_size.map(lambda runs: runs[0]))
def test_with_one_seed_the_pooled_interval_is_the_one_over_prompts(run):
    pooled = pooled_interval([run])
    assert (pooled.mean, pooled.low, pooled.high) == pytest.approx((run.mean, run.low, run.high), abs=1e-12)
    assert pooled.n == run.n


@settings(deadline=None)
@given(runs_of_one_size)
def test_the_pooled_interval_is_never_narrower_than_either_of_its_sources(runs):
    pooled, seeds = pooled_interval(runs), seed_interval([run.mean for run in runs])
    assert pooled.mean == pytest.approx(np.mean([run.mean for run in runs]))
    assert pooled.low <= pooled.mean + 1e-12 and pooled.mean <= pooled.high + 1e-12
    over_prompts = np.mean([run.high - run.low for run in runs])
    # On each side the two are added in quadrature.
    assert pooled.high - pooled.low >= over_prompts - 1e-9
    if seeds.high is not None:
        assert pooled.high - pooled.mean >= seeds.high - seeds.mean - 1e-9
        assert pooled.mean - pooled.low >= seeds.mean - seeds.low - 1e-9


def test_seeds_that_agree_are_no_more_prompts():
    run = bootstrap_interval([0.0] * 40)
    assert pooled_interval([run] * 3).high == pytest.approx(run.high)


def test_pooling_leaves_out_what_has_no_score():
    run = bootstrap_interval([1.0, 0.0, 0.0, 1.0])
    unscored = bootstrap_interval([NAN] * 4)
    pooled = pooled_interval([run, unscored])
    assert (pooled.mean, pooled.n, pooled.unscored) == (0.5, 4, 4)
    assert math.isnan(pooled_interval([unscored]).mean)
    assert math.isnan(pooled_interval([]).mean)


def test_pooling_numbers_without_an_interval_of_their_own_covers_the_seeds():
    pooled = pooled_interval([Interval(value, None, None, 900) for value in (4.0, 5.0, 6.0)])
    assert pooled.high - pooled.mean == pytest.approx(seed_interval([4.0, 5.0, 6.0]).high - 5.0)
    assert pooled_interval([Interval(4.0, None, None, 900)]) == Interval(4.0, None, None, 900)


def test_several_attacks_on_one_defended_model_are_not_several_defended_models():
    first, second = [Interval(v, v - 0.1, v + 0.1, 40) for v in (0.1, 0.3)], [Interval(0.6, 0.5, 0.7, 40)]
    assert independent_runs([first]) == first
    merged = independent_runs([first, second])
    assert [run.mean for run in merged] == pytest.approx([0.2, 0.6])
    assert (merged[0].low, merged[0].high) == pytest.approx((0.1, 0.3))
    unscored = independent_runs([[Interval(NAN, None, None, 0, 40)], second])
    assert math.isnan(unscored[0].mean) and unscored[0].unscored == 40
    assert independent_runs([]) == []


def test_intervals_overlap_where_they_share_a_value_and_where_one_is_not_known():
    low, high, between = (Interval(m, m - 0.1, m + 0.1, 40) for m in (0.2, 0.6, 0.4))
    assert not low.overlaps(high)
    assert not high.overlaps(low)
    assert between.overlaps(low) and high.overlaps(between)
    assert low.overlaps(Interval(0.9, None, None, 1))
    assert low.overlaps(Interval(0.4, 0.3, 0.5, 40))


def test_a_difference_is_sure_where_its_own_interval_excludes_zero():
    # Newcombe, Statistics in Medicine 17 (1998), table II, method 10: 56/70 - 48/80 has the interval [0.0524, 0.3339].
    high, low = Interval(56 / 70, *wilson(56 / 70, 70), 70), Interval(48 / 80, *wilson(48 / 80, 80), 80)
    assert low.overlaps(high)
    assert low.surely_below(high)
    assert not high.surely_below(low)
    # 9/10 - 3/10: [0.1705, 0.8090]; 6/7 - 2/7: [0.0582, 0.8062]; 10/10 - 8/10 reaches over 0.
    for more, fewer, sure in (((9, 10), (3, 10), True), ((6, 7), (2, 7), True), ((10, 10), (8, 10), False)):
        above, below = (Interval(k / n, *wilson(k / n, n), n) for k, n in (more, fewer))
        assert below.surely_below(above) == sure
    assert not low.surely_below(low)
    assert not low.surely_below(Interval(0.9, None, None, 1))
    assert not Interval(NAN, None, None, 0).surely_below(high)


def test_the_worst_case_is_the_attack_with_the_highest_mean():
    # The highest single run does not decide.
    assert worst_case({"weak": [0.1, 0.2], "steady": [0.5, 0.5], "lucky": [0.8, 0.0]}) == "steady"
    assert worst_case({"a": [0.1, 0.2, NAN], "b": [NAN, NAN]}) == "a"


def test_where_low_is_harm_the_worst_case_is_the_lowest_mean():
    assert worst_case({"weak": [5.0, 6.0], "strong": [2.0, 2.5]}, harm=-1.0) == "strong"


def test_of_equal_attacks_the_first_is_the_worst_case_and_of_none_there_is_none():
    assert worst_case({"weak": [1.0], "strong": [1.0]}) == "weak"
    assert worst_case({}) is None
    assert worst_case({"a": [NAN], "b": []}) is None


@pytest.mark.parametrize(("share", "n"), [(0.05, 40), (0.3, 40), (0.5, 20), (0.95, 80)])
def test_intervals_over_prompts_hold_the_true_share_about_as_often_as_they_say(share, n):
    # Exactly: every count with its probability.
    counts = np.arange(n + 1)
    probabilities = scipy.stats.binom.pmf(counts, n, share)
    limits = [wilson(count / n, n) for count in counts]
    covered = sum(p for p, (low, high) in zip(probabilities, limits, strict=True) if low <= share <= high)
    assert 0.92 < covered < 0.985


def test_bootstrap_intervals_hold_the_true_mean_about_as_often_as_they_say():
    generator = np.random.default_rng(3)
    samples = [generator.beta(2, 5, size=40).tolist() for _ in range(100)]
    found = [bootstrap_interval(sample, seed=seed) for seed, sample in enumerate(samples)]
    covered = np.mean([run.low <= 2 / 7 <= run.high for run in found])
    # The standard error over 100 samples is 2 points.
    assert covered > 0.88


@pytest.mark.parametrize("between_seeds", [0.0, 0.1])
def test_pooled_intervals_hold_the_true_share_when_seeds_and_prompts_both_vary(between_seeds):
    # Prompts are shared by the seeds: each has its own difficulty, and each seed its own shift.
    generator = np.random.default_rng(11)
    hits, trials, n = 0, 400, 60
    for _ in range(trials):
        difficulty = generator.uniform(0.1, 0.7, size=n)
        shifts = generator.uniform(-between_seeds, between_seeds, size=3)
        runs = []
        for shift in shifts:
            share = float((generator.random(n) < difficulty + shift).mean())
            runs.append(Interval(share, *wilson(share, n), n))
        pooled = pooled_interval(runs)
        hits += pooled.low <= 0.4 <= pooled.high
    assert hits / trials > 0.93


def test_with_one_seed_two_levels_are_the_bootstrap_over_prompts():
    values = np.random.default_rng(2).random(30).tolist()
    assert two_level_interval([values]) == bootstrap_interval(values)
    assert two_level_interval([[NAN] * 30, values]) == bootstrap_interval(values)
    assert math.isnan(two_level_interval([]).mean) and two_level_interval([[NAN, NAN]]).unscored == 2


def test_seeds_that_say_the_same_of_every_prompt_are_no_more_prompts():
    values = np.random.default_rng(2).random(40)
    alone, five = bootstrap_interval(values.tolist()), two_level_interval([values.tolist()] * 5)
    assert five.mean == pytest.approx(alone.mean)
    assert five.high - five.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert two_level_interval([[0.0] * 40] * 3).high == pytest.approx(wilson(0, 40)[1])


def test_where_only_seeds_differ_two_levels_have_the_standard_error_of_the_mean():
    # Drawing all 3 seeds would give two thirds of the variance, 0.82 of the width.
    for seeds in ([0.1, 0.4, 0.5], [0.1, 0.5, 0.3, 0.7, 0.2, 0.6]):
        runs = [[value] * 20 for value in seeds]
        means = statistics._crossed_means(np.array(runs), np.ones((len(seeds), 20), bool), np.random.default_rng(0))
        assert np.std(means) == pytest.approx(np.std(seeds, ddof=1) / math.sqrt(len(seeds)), rel=0.06)


def test_two_levels_average_the_scored_prompts_of_each_run():
    found = two_level_interval([[0.2, NAN, 0.4], [0.8, 0.6, 0.7], [NAN] * 3])
    assert found.mean == pytest.approx((0.3 + 0.7) / 2) and (found.n, found.unscored) == (2, 1)
    assert found.low <= 0.3 and found.high >= 0.7
    with pytest.raises(ValueError):
        two_level_interval([[0.2, 0.3], [0.4]])


@pytest.mark.parametrize(("seeds", "least"), [(2, 0.6), (8, 0.85)])
def test_resampling_few_seeds_claims_too_much_and_the_pooled_interval_does_not(seeds, least, monkeypatch):
    """What the docstring advises: with two seeds that differ, only Student's factor covers as often as it says."""
    monkeypatch.setattr(statistics, "RESAMPLES", 150)
    generator, trials, n = np.random.default_rng(5), 60, 25
    hits = {two_level_interval: 0, pooled_interval: 0}
    for _ in range(trials):
        difficulty = generator.uniform(-0.2, 0.2, size=n)
        shifts = generator.normal(0, 0.1, size=seeds)
        values = (0.4 + difficulty + shifts[:, None] + generator.normal(0, 0.1, size=(seeds, n))).tolist()
        pooled = pooled_interval([bootstrap_interval(run) for run in values])
        for method, found in ((two_level_interval, two_level_interval(values)), (pooled_interval, pooled)):
            hits[method] += found.low <= 0.4 <= found.high
    shares = {method: count / trials for method, count in hits.items()}
    assert shares[pooled_interval] > 0.92
    assert shares[two_level_interval] > least
    if seeds == 2:
        assert shares[two_level_interval] < 0.9
