"""Is one model different from another? Tests of two sets of scores, and Holm's correction for a table of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from repnoise.errors import RepnoiseError
from repnoise.statistics import Interval, chance_interval, percentile_limits, wilson

if TYPE_CHECKING:  # Pandas alone takes a second.
    import numpy as np

RESAMPLES = 9999
"""Random sign flips where there are more than can be tried; the least p that they can give is 0.0002."""

Values = Sequence[float] | Sequence[Sequence[float]]
"""One value a prompt, or one such list a seed; NaN is "unscored"."""


@dataclass(frozen=True)
class Comparison:
    """A test of two models with everything that a printed p needs.

    Attributes:
        test: "exact McNemar", "sign flips" or "Mann-Whitney".
        measure: what `effect` is: "difference of means" or "chance that the first is higher".
        effect: its size with an interval; `effect.unscored` prompts were left out because a score was missing.
        p: two-sided; NaN if nothing was scored.
        n: prompts of the first and the second model that were compared; the same number if paired.
        seeds: runs of the first and the second model whose values were averaged for each prompt. With one each, the
            test is about other prompts, and says nothing about other seeds.
        adjusted: p after Holm's correction for a family of `family` tests; None before it.
    """

    test: str
    measure: str
    effect: Interval
    p: float
    n: tuple[int, int]
    seeds: tuple[int, int]
    adjusted: float | None = None
    family: int = 1


def paired_difference(a: Values, b: Values, level: float = 0.95, seed: int = 0) -> Comparison:
    """Whether two models that were asked the same prompts in the same order differ in their mean, a less b.

    Several seeds are averaged for each prompt first, over those that were scored, so the pairs are prompts: the p is
    about other prompts given these runs, not about other runs (`statistics.pooled_interval` is). A prompt that has no
    score in one of the two is left out and counted.

    Values that are all 0 or 1 get McNemar's test in its exact form (the binomial of the prompts on which the two
    differ; Psychometrika 12, 1947). Others get sign flips: if the models were the same, each prompt's difference could
    as well have had the other sign (Fisher, The Design of Experiments, 1935, section 21); all of them are tried if they
    are at most RESAMPLES. The interval is that of `share_difference` where every score is 0 or 1, else the percentile
    bootstrap over prompts. Raises RepnoiseError where the numbers of prompts differ.
    """
    import numpy as np

    runs, others = _runs(a), _runs(b)
    first, second = _over_seeds(runs), _over_seeds(others)
    if len(first) != len(second):
        raise RepnoiseError(
            f"The two models were not asked the same prompts ({len(first)} and {len(second)}): evaluate both on the "
            "same data with the same settings."
        )
    known = ~(np.isnan(first) | np.isnan(second))
    x, y, dropped = first[known], second[known], int((~known).sum())
    if len(x) and _binary(x) and _binary(y):
        only = [int((left > right).sum()) for left, right in ((x, y), (y, x))]
        test, p = "exact McNemar", mcnemar(*only)
    else:
        test, p = "sign flips", sign_flips((x - y).tolist(), seed)
    shares = _binary(runs) and _binary(others)
    effect = share_difference(x, y, level) if shares else _mean_difference(x - y, level, seed)
    n, seeds = (len(x), len(y)), (len(runs), len(others))
    return Comparison(test, "difference of means", replace(effect, unscored=dropped), p, n, seeds)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p from the prompts on which only one of the two scored; 1 where there are none."""
    from scipy.stats import binomtest

    both = only_first + only_second
    return float(binomtest(only_first, both, 0.5).pvalue) if both else 1.0


def sign_flips(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of a mean difference of 0 by random signs; NaN for no differences."""
    import numpy as np
    from scipy.stats import permutation_test

    # A difference of 0 has no sign, and without it fewer flips have to be tried.
    changed = np.asarray([value for value in differences if value != 0])
    if not len(changed):
        return 1.0 if len(differences) else math.nan
    if len(changed) == 1:
        return 1.0  # Two flips, both as far from 0.
    found = permutation_test(
        (changed,),
        lambda values, axis: np.sum(values, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 10**6 // len(changed)),
        rng=np.random.default_rng(seed),
    )
    return min(1.0, float(found.pvalue))


def share_difference(x: np.ndarray, y: np.ndarray, level: float = 0.95) -> Interval:
    """Difference of two shares on the same prompts (P,) with Newcombe's interval (Statistics in Medicine 17, 1998, page
    2635, method 10).

    Wilson's limits of the two shares, added in quadrature less what their correlation takes away; of a positive
    correlation, half a prompt's worth is not believed. It has a width even where no prompt tells the two apart, which
    the bootstrap has not. A value between 0 and 1 is a share of seeds; n is prompts then, too, which errs on the wide
    side.
    """
    n = len(x)
    if n == 0:
        return Interval(math.nan, None, None, 0)
    p, q = float(x.mean()), float(y.mean())
    (p_low, p_high), (q_low, q_high) = wilson(p, n, level), wilson(q, n, level)
    covariance = n * float((x * y).sum()) - n * p * n * q
    covariance = covariance if covariance < 0 else max(0.0, covariance - n / 2)
    spread = n * n * float(x.std()) * float(y.std())
    phi = covariance / spread if spread > 1e-9 else 0.0
    low = p - q - _correlated(p - p_low, q_high - q, phi)
    high = p - q + _correlated(p_high - p, q - q_low, phi)
    return Interval(p - q, low, high, n)


def _correlated(first: float, second: float, phi: float) -> float:
    """Length of the difference of two errors with correlation `phi`."""
    return math.sqrt(max(0.0, first**2 - 2 * phi * first * second + second**2))


def _mean_difference(differences: np.ndarray, level: float, seed: int) -> Interval:
    n = len(differences)
    limits = percentile_limits(differences, level, seed) if n > 1 else (None, None)
    return Interval(float(differences.mean()) if n else math.nan, *limits, n)


def mann_whitney(a: Values, b: Values, level: float = 0.95) -> Comparison:
    """Whether scores of `a` tend to be higher or lower than those of `b` (Mann and Whitney 1947), as in the paper.

    It treats prompts as independent samples. What it does not show: that another run of the same training would differ
    likewise (its n is prompts, and the paper has one seed), nor anything about a prompt, since it does not pair them:
    where the two were asked the same prompts, `paired_difference` is the sharper test. With hundreds of prompts a p of
    0.001 can go with a difference that is of no importance: read the effect, the chance that a random score of `a` is
    higher than one of `b` (ties count half), with the interval of `statistics.chance_interval`.
    """
    import numpy as np
    from scipy.stats import mannwhitneyu

    runs, others = _runs(a), _runs(b)
    first, second = _over_seeds(runs), _over_seeds(others)
    x, y = first[~np.isnan(first)], second[~np.isnan(second)]
    dropped = len(first) + len(second) - len(x) - len(y)
    if not len(x) or not len(y):
        effect, p = Interval(math.nan, None, None, 0, dropped), math.nan
    else:
        found = mannwhitneyu(x, y, alternative="two-sided")
        chance, p = float(found.statistic) / (len(x) * len(y)), float(found.pvalue)
        effect = Interval(chance, *chance_interval(chance, len(x), len(y), level), len(x) + len(y), dropped)
    n, seeds = (len(x), len(y)), (len(runs), len(others))
    return Comparison("Mann-Whitney", "chance that the first is higher", effect, p, n, seeds)


def holm(p_values: Sequence[float]) -> list[float]:
    """p adjusted for how many there are (Holm, Scandinavian Journal of Statistics 6, 1979), in their order.

    The chance of one false finding or more in the whole table is then at most what p is compared with, however the
    tests depend on each other. NaN was not tested: it stays, and does not count.
    """
    import numpy as np
    from statsmodels.stats.multitest import multipletests

    tested = [p for p in p_values if not math.isnan(p)]
    adjusted = iter(np.asarray(multipletests(tested, method="holm")[1]) if tested else ())
    return [p if math.isnan(p) else float(next(adjusted)) for p in p_values]


def with_holm(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """The comparisons of one table, each with its adjusted p and the number of tests in the family."""
    found = list(comparisons)
    family = sum(not math.isnan(comparison.p) for comparison in found)
    adjusted = holm([comparison.p for comparison in found])
    return [replace(one, adjusted=p, family=family) for one, p in zip(found, adjusted, strict=True)]


def _runs(values: Values) -> np.ndarray:
    """Values (seeds, prompts); ValueError if a seed has other prompts than the rest."""
    import numpy as np

    return np.atleast_2d(np.array(values, dtype=float))


def _over_seeds(runs: np.ndarray) -> np.ndarray:
    """Mean for each prompt (P,) over the seeds that were scored; NaN where none was."""
    import numpy as np

    known = ~np.isnan(runs)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, runs, 0.0).sum(axis=0) / np.maximum(count, 1), math.nan)


def _binary(values: np.ndarray) -> bool:
    import numpy as np

    return bool(np.isin(values[~np.isnan(values)], (0.0, 1.0)).all())
