"""Several judges on one set of texts: how far they agree, and where they do not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from repnoise.statistics import Interval

RESAMPLES = 2000


@dataclass(frozen=True)
class Agreement:
    """How far two judges agree on the texts that both scored.

    Attributes:
        judges: their names.
        n: texts that both scored.
        unscored: texts that one of them, or both, did not score.
        same: share of texts on which both say the same, a value of at least one half being a yes.
        kappa: Cohen's kappa: how far above chance that share is, chance being what judges would agree on who say yes as
            often as these do, but at random (Educational and Psychological Measurement 20, 1960). 0 is chance, 1 is
            perfect. None where it is not defined: both say the same of every text, or there is none.
        spearman: rank correlation of the values; None where a judge gives all texts one value, or n is below 2.
    """

    judges: tuple[str, str]
    n: int
    unscored: int
    same: Interval
    kappa: Interval | None
    spearman: float | None


@dataclass(frozen=True)
class Disagreement:
    """A text by its index, the values of those who scored it, and the largest difference between two of them."""

    index: int
    values: dict[str, float]
    difference: float


def agreement(scores: Mapping[str, Sequence[float]], level: float = 0.95, seed: int = 0) -> list[Agreement]:
    """The agreement of every two judges, from the values that each gave to the same texts; NaN is "unscored".

    Raises ValueError if one has another number of values.
    """
    _require_equal_lengths(scores)
    return [_agreement((a, b), scores[a], scores[b], level, seed) for a, b in combinations(scores, 2)]


def disagreements(scores: Mapping[str, Sequence[float]], most: int = 20) -> list[Disagreement]:
    """The texts on which judges differ the most, most first, then by index; at the most so many.

    Texts that fewer than two scored, and those on which all agree, are left out.
    """
    _require_equal_lengths(scores)
    found: list[Disagreement] = []
    for index, values in enumerate(zip(*scores.values(), strict=True)):
        known = {name: float(v) for name, v in zip(scores, values, strict=True) if not math.isnan(v)}
        if len(known) > 1 and (difference := max(known.values()) - min(known.values())) > 0:
            found.append(Disagreement(index, known, difference))
    return sorted(found, key=lambda one: -one.difference)[:most]


def _require_equal_lengths(scores: Mapping[str, Sequence[float]]) -> None:
    if len({len(values) for values in scores.values()}) > 1:
        counts = ", ".join(f"{name} {len(values)}" for name, values in scores.items())
        raise ValueError(f"Judges of one set of texts have a value for each text, not: {counts}.")


def _agreement(
    judges: tuple[str, str], first: Sequence[float], second: Sequence[float], level: float, seed: int
) -> Agreement:
    import numpy as np

    from repnoise.statistics import bootstrap_interval

    values = np.array([first, second], dtype=float)
    known = values[:, ~np.isnan(values).any(axis=0)]
    n, unscored = known.shape[1], values.shape[1] - known.shape[1]
    yes = known >= 0.5
    same = bootstrap_interval((yes[0] == yes[1]).astype(float).tolist(), level)
    return Agreement(judges, n, unscored, same, _kappa_interval(yes, same, level, seed), _spearman(known))


def _kappa_interval(yes: np.ndarray, same: Interval, level: float, seed: int) -> Interval | None:
    """Kappa of verdicts (2, n) with an interval over texts: the percentile bootstrap, which for a 2 by 2 table is a
    multinomial. Resamples in which both say the same of every text have no kappa and are left out.

    Of judges who never differ it would be certain, however few the texts: so the limits are never inside what Wilson's
    for the share of agreement give, with agreement by chance taken as it was found.
    """
    import numpy as np

    from repnoise.statistics import Interval

    n = yes.shape[1]
    counts = np.bincount(2 * yes[0] + yes[1], minlength=4)
    kappa = float(_kappas(counts[None])[0]) if n else math.nan
    if math.isnan(kappa) or same.low is None or same.high is None:
        return None
    drawn = _kappas(np.random.default_rng(seed).multinomial(n, counts / n, size=RESAMPLES))
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    chance = float(_by_chance(counts / n))
    least, most = ((share - chance) / (1 - chance) for share in (same.low, same.high))
    return Interval(kappa, min(float(low), least, kappa), max(float(high), most, kappa), n)


def _kappas(counts: np.ndarray) -> np.ndarray:
    """Kappa of each table of counts (R, 4), in the order no-no, no-yes, yes-no, yes-yes; NaN where it has none."""
    import numpy as np

    shares = counts / counts.sum(axis=1, keepdims=True)
    agreed = shares[:, 0] + shares[:, 3]
    chance = _by_chance(shares.T)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance < 1 - 1e-12, (agreed - chance) / (1 - chance), math.nan)


def _by_chance(shares: np.ndarray) -> np.ndarray:
    """Share of agreement of two judges with these shares (4, ...) of yes who do not look at the text."""
    _, only_second, only_first, yes = shares
    first, second = only_first + yes, only_second + yes
    return first * second + (1 - first) * (1 - second)


def _spearman(known: np.ndarray) -> float | None:
    from scipy.stats import spearmanr

    if known.shape[1] < 2 or (known == known[:, :1]).all(axis=1).any():
        return None
    found: Any = spearmanr(known[0], known[1])
    return float(found.statistic)
