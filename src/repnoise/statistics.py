"""Intervals over prompts and over seeds, and the worst case of a grid of attacks. numpy and scipy only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    `low` and `high` are None where the values say nothing about their spread. `n` values were averaged; `unscored` more
    were NaN and were left out.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    unscored: int = 0

    def overlaps(self, other: Interval) -> bool:
        """Whether the two have a value in common; an interval that is not known overlaps everything."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return True
        return self.low <= other.high and other.low <= self.high

    def most_above(self, other: Interval) -> float | None:
        """The upper limit of this mean less another, independent one; None where the limits it needs are not known.

        The distances to the limits add in quadrature (Newcombe's hybrid, Statistics in Medicine 17, 1998, page 873).
        """
        if self.high is None or other.low is None:
            return None
        return self.mean - other.mean + math.hypot(self.high - self.mean, other.mean - other.low)

    def surely_below(self, other: Interval) -> bool:
        """Whether the interval of the difference of two independent means is all below 0, which may be so of intervals
        that overlap a little. Never of one that is not known."""
        most = self.most_above(other)
        return most is not None and most < 0


def bootstrap_interval(values: Sequence[float], level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of one value a prompt, with an interval over prompts. NaN means "unscored": counted, never averaged.

    The interval is the percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13),
    except for values that are all 0 or 1: those get Wilson's score interval. Resampling 40 failures can only ever give
    0 successes, so the bootstrap would call "0 of 40" certain, and that is the very claim a good defence makes;
    Wilson's upper limit for it is 9 %. It keeps close to its nominal coverage for few prompts (Brown, Cai and
    DasGupta, Interval Estimation for a Binomial Proportion, Statistical Science 16, 2001). One value that is neither 0
    nor 1 has no
    interval.
    """
    given = np.asarray(values, dtype=float)
    known = given[~np.isnan(given)]
    n, unscored = len(known), len(given) - len(known)
    if n == 0:
        return Interval(math.nan, None, None, 0, unscored)
    mean = float(known.mean())
    if np.isin(known, (0.0, 1.0)).all():
        return Interval(mean, *wilson(mean, n, level), n, unscored)
    if n == 1:
        return Interval(mean, None, None, 1, unscored)
    return Interval(mean, *percentile_limits(known, level, seed), n, unscored)


def percentile_limits(known: np.ndarray, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Limits of the mean of values (n,) without NaN by the percentile bootstrap."""
    generator, n, mean = np.random.default_rng(seed), len(known), float(known.mean())
    means = [known[generator.integers(n, size=n)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    # Rounding can put the mean of equal values a hair outside.
    return min(float(low), mean), max(float(high), mean)


def wilson(share: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a share of n (Wilson, Journal of the American Statistical Association 22, 1927)."""
    z = float(special.ndtri((1 + level) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and 1 one limit is the share itself, up to rounding.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def chance_interval(chance: float, n: int, m: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of P(a > b) + P(a = b) / 2 (Newcombe, Statistics in Medicine 25, 2006, page 559, method 5).

    Hanley and McNeil's variance, taken at the limit itself, so that it has a width at 0 and 1. Ties, which it does not
    know of, make it wider than it need be.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    z, size = float(ndtri((1 + level) / 2)), (n + m) / 2 - 1

    def excess(limit: float) -> float:
        variance = limit * (1 - limit) * (1 + size * ((1 - limit) / (2 - limit) + limit / (1 + limit))) / (n * m)
        return (chance - limit) ** 2 - z * z * variance

    low = 0.0 if chance == 0 else float(brentq(excess, 0.0, chance))  # type: ignore[arg-type]
    high = 1.0 if chance == 1 else float(brentq(excess, chance, 1.0))  # type: ignore[arg-type]
    return low, high


def seed_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of one value a seed, with Student's t interval: seeds are few, so the normal's 1.96 would be far too small
    (with 3 seeds the factor is 4.30; Student, The Probable Error of a Mean, Biometrika 6, 1908). One seed says nothing
    about seeds: no interval then. NaN is left out and counted."""
    known = [float(value) for value in values if not math.isnan(value)]
    n, unscored = len(known), len(values) - len(known)
    if n == 0:
        return Interval(math.nan, None, None, 0, unscored)
    mean = float(np.mean(known))
    if n == 1:
        return Interval(mean, None, None, 1, unscored)
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * float(np.std(known, ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, unscored)


def pooled_interval(runs: Sequence[Interval], level: float = 0.95) -> Interval:
    """Mean over the runs of several seeds on the same prompts, with an interval for other seeds *and* other prompts.

    Seeds alone are not enough: three seeds that all recover 0 of 40 answers do not differ, and are still only 40
    answers. So the distances from the mean to the limits over seeds (Student's t) and over prompts (each run's own,
    averaged: the prompts are shared, so more seeds do not shrink them) are added in quadrature, on each side (MOVER:
    Zou and Donner, Statistics in Medicine 27, 2008). With one seed it is the interval over prompts. `n` is the number
    of prompts.
    """
    known = [run for run in runs if not math.isnan(run.mean)]
    n, unscored = min((run.n for run in known), default=0), max((run.unscored for run in runs), default=0)
    seeds = seed_interval([run.mean for run in known], level)
    below = [run.mean - run.low for run in known if run.low is not None]
    above = [run.high - run.mean for run in known if run.high is not None]
    if len(known) < 2 and not (below and above):
        return Interval(seeds.mean, None, None, n, unscored)
    spread = 0.0 if seeds.high is None else seeds.high - seeds.mean
    down = math.hypot(spread, float(np.mean(below)) if below else 0.0)
    up = math.hypot(spread, float(np.mean(above)) if above else 0.0)
    return Interval(seeds.mean, seeds.mean - down, seeds.mean + up, n, unscored)


def two_level_interval(runs: Sequence[Sequence[float]], level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of one value a seed and prompt, bootstrapped over seeds and prompts both. `runs[s][p]` is seed s, prompt p.

    The prompts are those of every seed, so the two are crossed, not nested: each resample draws seeds and, apart from
    them, prompts (Owen, The Pigeonhole Bootstrap, Annals of Applied Statistics 1, 2007, who shows that it errs on the
    wide side). Of S seeds it draws S - 1: S draws have only (S - 1) / S of the variance, a third too little with three
    seeds (Rao and Wu, Resampling Inference with Complex Survey Data, JASA 83, 1988). For values that are all 0 or 1 the
    limits are never inside Wilson's for the number of prompts (see `bootstrap_interval`).

    It makes no assumption about how seeds and prompts add up, which `pooled_interval` does; but no resampling knows
    more than the few seeds that it draws from, while Student's t allows for them. Where seeds differed more than
    prompts, simulated intervals of 95 % held the truth 79, 88, 92 and 93 times in a hundred with 2, 3, 5 and 10 seeds,
    those of `pooled_interval` 95 to 99 times: below about ten seeds, print the latter. With one seed it is
    `bootstrap_interval`. A run's mean is that of its scored prompts; `n` and `unscored` are those of the run with the
    fewest scored prompts. Raises ValueError for runs of different length.
    """
    given = np.atleast_2d(np.array(runs, dtype=float))
    scored = given[~np.isnan(given).all(axis=1)]
    if len(scored) < 2:
        return bootstrap_interval((scored if len(scored) else given)[0].tolist(), level, seed)
    given, known = scored, ~np.isnan(scored)
    n, unscored = int(known.sum(axis=1).min()), int((~known).sum(axis=1).max())
    filled = np.where(known, given, 0.0)
    mean = float((filled.sum(axis=1) / known.sum(axis=1)).mean())
    means = _crossed_means(filled, known, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    if np.isin(given[known], (0.0, 1.0)).all():
        least, most = wilson(mean, n, level)
        low, high = min(low, least), max(high, most)
    return Interval(mean, min(float(low), mean), max(float(high), mean), n, unscored)


def _crossed_means(filled: np.ndarray, known: np.ndarray, generator: np.random.Generator) -> list[float]:
    """Means of resampled seeds and prompts, from values (S, P) that are 0 where they are not known."""
    seeds, prompts = filled.shape
    means: list[float] = []
    for _ in range(RESAMPLES):
        weight = np.bincount(generator.integers(prompts, size=prompts), minlength=prompts)
        drawn = generator.integers(seeds, size=seeds - 1)
        count = known[drawn] @ weight
        # A resample may miss every scored prompt of a run that has few.
        if count.any():
            means.append(float(((filled[drawn] @ weight)[count > 0] / count[count > 0]).mean()))
    return means


def independent_runs(groups: Iterable[Sequence[Interval]]) -> list[Interval]:
    """One interval a group, for `pooled_interval`: attacks of several seeds on one defended model say how much attacks
    differ, not how much another defended model would, so the mean of a group counts as one run. Where there is one
    group only, its runs are all that differs."""
    found = [list(group) for group in groups]
    return found[0] if len(found) == 1 else [_averaged(group) for group in found]


def _averaged(group: Sequence[Interval]) -> Interval:
    known = [run for run in group if not math.isnan(run.mean)]
    unscored = max((run.unscored for run in group), default=0)
    if not known:
        return Interval(math.nan, None, None, 0, unscored)
    mean = float(np.mean([run.mean for run in known]))
    low, high = _mean_limit([run.low for run in known]), _mean_limit([run.high for run in known])
    return Interval(mean, low, high, min(run.n for run in known), unscored)


def _mean_limit(limits: Sequence[float | None]) -> float | None:
    known = [limit for limit in limits if limit is not None]
    return float(np.mean(known)) if len(known) == len(limits) else None


def worst_case(grid: Mapping[str, Sequence[float]], harm: float = 1.0) -> str | None:
    """The best attack of a grid, from one value a seed for each attack: the one with the highest mean times `harm`.

    An attacker picks what works, so a defence is worth what it is worth against that attack, and the mean over attacks
    means nothing (Carlini et al., On Evaluating Adversarial Robustness, 2019, arXiv:1902.06705). `harm` is -1 where a
    low value is the harm. The first of equals; None if nothing was scored.
    """
    means = {attack: harm * seed_interval(values).mean for attack, values in grid.items()}
    scored = {attack: mean for attack, mean in means.items() if not math.isnan(mean)}
    return max(scored, key=scored.__getitem__, default=None)
