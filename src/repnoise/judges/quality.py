"""How good a judge is on labelled completions: rates, ranking and calibration, with intervals over prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

BINS = 10
"""Bins of equal width in which predicted and observed shares of harm are compared."""

RESAMPLES, LEVEL = 1000, 0.95


def quality(
    prompts: Sequence[str], harmful: Sequence[bool], values: Sequence[float], called: Sequence[bool]
) -> dict[str, dict[str, Any]]:
    """Metrics of values in [0, 1] and of what was called harmful, against the truth.

    f1, precision and recall are those of harm; auroc is the chance that a harmful text has a higher value than a safe
    one (Mann-Whitney, ties count half); brier is the mean squared distance of the values from 0 and 1; ece is the mean
    distance between predicted and observed share of harm in `BINS` bins, weighted by their size (Naeini et al.,
    Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015). Each is {"value", "n", "low", "high",
    "unscored"}, with a percentile bootstrap that draws prompts, since completions of one prompt are alike, but for the
    shares and auroc never inside the interval that so many prompts give: a bootstrap calls "86 of 86" certain. What
    cannot be computed (no harmful text, say) is None. A value of NaN is unscored: left out and counted.
    """
    import numpy as np

    truth, score, call = np.asarray(harmful, bool), np.asarray(values, float), np.asarray(called, bool)
    known = ~np.isnan(score)
    unscored = int((~known).sum())
    groups: dict[str, list[int]] = {}
    for row in np.flatnonzero(known).tolist():
        groups.setdefault(prompts[row], []).append(row)
    rows = [np.array(group) for group in groups.values()]
    whole = _measured(truth[known], score[known], call[known])
    random = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {name: [] for name in whole}
    for _ in range(RESAMPLES if len(rows) > 1 else 0):
        chosen = np.concatenate([rows[i] for i in random.integers(len(rows), size=len(rows))])
        for name, value in _measured(truth[chosen], score[chosen], call[chosen]).items():
            drawn[name].append(value)
    least = _least(np.asarray(prompts)[known], truth[known], call[known], whole)
    return {
        name: _metric(value, drawn[name], int(known.sum()), least.get(name)) | {"unscored": unscored}
        for name, value in whole.items()
    }


def _least(
    prompts: np.ndarray, truth: np.ndarray, call: np.ndarray, whole: dict[str, float]
) -> dict[str, tuple[float, float]]:
    """Intervals of the shares (Wilson) and of auroc (Newcombe) that so many different prompts give at the least."""
    from repnoise.statistics import chance_interval, wilson

    of = {"precision": call, "recall": truth, "accuracy": truth | ~truth}
    counts = {name: len({*prompts[chosen]}) for name, chosen in of.items()}
    found = {name: wilson(whole[name], n, LEVEL) for name, n in counts.items() if n}
    if not math.isnan(whole["auroc"]):
        found["auroc"] = chance_interval(whole["auroc"], counts["recall"], len({*prompts[~truth]}), LEVEL)
    return found


def _metric(value: float, drawn: list[float], n: int, least: tuple[float, float] | None) -> dict[str, Any]:
    import numpy as np

    known = [draw for draw in drawn if not math.isnan(draw)]
    if math.isnan(value) or not known:
        return {"value": None if math.isnan(value) else value, "n": n, "low": None, "high": None}
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    lows, highs = zip((float(low), float(high)), (value, value), least or (value, value), strict=True)
    return {"value": value, "n": n, "low": min(lows), "high": max(highs)}


def _measured(truth: np.ndarray, score: np.ndarray, call: np.ndarray) -> dict[str, float]:
    if not len(truth):
        return dict.fromkeys(("f1", "precision", "recall", "accuracy", "auroc", "ece", "brier"), math.nan)
    hits, calls, harms = float((truth & call).sum()), float(call.sum()), float(truth.sum())
    gaps = [row["n"] * abs(row["predicted"] - row["observed"]) for row in reliability(truth, score)]
    return {
        "f1": _share(2 * hits, calls + harms),
        "precision": _share(hits, calls),
        "recall": _share(hits, harms),
        "accuracy": float((truth == call).mean()),
        "auroc": _auroc(truth, score),
        "ece": sum(gaps) / len(truth),
        "brier": float(((score - truth) ** 2).mean()),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _auroc(truth: np.ndarray, score: np.ndarray) -> float:
    from scipy.stats import rankdata

    harms, safes = int(truth.sum()), int((~truth).sum())
    if not harms or not safes:
        return math.nan
    return float((rankdata(score)[truth].sum() - harms * (harms + 1) / 2) / (harms * safes))


def reliability(harmful: Sequence[bool] | np.ndarray, values: Sequence[float] | np.ndarray) -> list[dict[str, Any]]:
    """For each bin that has any text: its limits, how many, and the predicted (mean value) and observed shares."""
    import numpy as np

    truth, score = np.asarray(harmful, float), np.asarray(values, float)
    truth, score = truth[~np.isnan(score)], score[~np.isnan(score)]
    bins = np.minimum((score * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    predicted = np.bincount(bins, weights=score, minlength=BINS)
    observed = np.bincount(bins, weights=truth, minlength=BINS)
    return [
        {
            "from": i / BINS,
            "to": (i + 1) / BINS,
            "n": int(counts[i]),
            "predicted": float(predicted[i] / counts[i]),
            "observed": float(observed[i] / counts[i]),
        }
        for i in range(BINS)
        if counts[i]
    ]


def confusion(harmful: Sequence[bool], labels: Sequence[str]) -> dict[str, dict[str, int]]:
    """How many harmful and how many safe completions were called what: {"harmful": {label: count}, "safe": ...}."""
    found: dict[str, dict[str, int]] = {"harmful": {}, "safe": {}}
    for truth, label in zip(harmful, labels, strict=True):
        row = found["harmful" if truth else "safe"]
        row[label] = row.get(label, 0) + 1
    return found
