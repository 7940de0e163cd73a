"""What metrics are called, which of them are shares, which mean harm, and how their numbers are written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from repnoise.statistics import Interval

SHARES = frozenset(
    {"recovered", "recovered_content", "harmless_accuracy", "harmless_accuracy_unretained", "incoherent_rate"}
    | {"harmfulness", "harmfulness_as_published", "refusal_rate", "rouge1", "rouge2", "rougeL"}
    | {f"{group}_{what}" for group in ("over", "unsafe") for what in ("refusal_rate", "partial_refusal_rate")}
    | {"over_compliance_rate", "unsafe_compliance_rate"}
)
"""Metrics between 0 and 1, shown in per cent: base names, see `base_name`."""

NAMES = {
    "recovered": "recovered, covered",
    "recovered_uncovered": "recovered, uncovered",
    "recovered_content": "content recovered, covered",
    "recovered_content_uncovered": "content recovered, uncovered",
    "harmfulness": "harmfulness, covered",
    "harmfulness_uncovered": "harmfulness, uncovered",
    "harmfulness_as_published": "the same, broken text as harmless, covered",
    "harmfulness_as_published_uncovered": "the same, broken text as harmless, uncovered",
    "harmless_accuracy": "harmless accuracy",
    "harmless_accuracy_unretained": "harmless accuracy, unretained",
    "refusal_rate": "refused",
    "over_refusal_rate": "over-refused",
    "over_partial_refusal_rate": "over-refused in part",
    "over_compliance_rate": "safe prompts answered",
    "unsafe_refusal_rate": "unsafe prompts refused",
    "unsafe_partial_refusal_rate": "unsafe prompts refused in part",
    "unsafe_compliance_rate": "unsafe prompts answered",
    "incoherent_rate": "incoherent",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "harmful_ce": "harmful cross-entropy",
    "harmless_ce": "harmless cross-entropy",
    "perplexity": "perplexity",
    "kl_to_base": "divergence from the base",
}
"""Metrics in the order of columns."""

HARM = {
    **{"recovered": 1.0, "recovered_uncovered": 1.0, "harmfulness": 1.0, "harmfulness_uncovered": 1.0},
    **{"harmful_ce": -1.0, "refusal_rate": -1.0},
}
"""What an attacker wants, and in which direction."""

HEADLINES = ("recovered", "recovered_uncovered", "harmfulness", "harmfulness_uncovered", "harmful_ce", "refusal_rate")
"""The metric that decides between attacks: the first that was measured."""


def base_name(metric: str) -> str:
    """A metric less its judge, category, task and data set: see `evals.evaluations.Metrics`."""
    return re.split(r"[/@]| on ", metric)[0]


def name_of(metric: str) -> str:
    """In words: "recovered, covered: hexes"; a judge and another data set in brackets."""
    name, _, category = metric.partition("@")
    name, _, data = name.partition(" on ")
    base, _, judge = name.partition("/")
    words = NAMES.get(base, base)
    if base == "lm-eval":
        words, judge = judge, ""
    more = [judge, f"on {data}" if data else ""]
    words += "".join(f" ({part})" for part in more if part)
    return f"{words}: {category}" if category else words


def is_share(metric: str) -> bool:
    """Whether a metric lies between 0 and 1."""
    if base_name(metric) == "lm-eval":
        return metric.endswith(("_acc", "_acc_norm", "_exact_match", "_pct_stereotype"))
    return base_name(metric).removesuffix("_uncovered") in SHARES


def within_bounds(interval: Interval, metric: str) -> Interval:
    """A share's interval ends at 0 and 1; the others are positive."""
    if interval.low is None or interval.high is None:
        return interval
    high = min(1.0, interval.high) if is_share(metric) else interval.high
    return Interval(interval.mean, max(0.0, interval.low), high, interval.n, interval.unscored)


def recorded(found: Mapping[str, Any] | None) -> Interval:
    """A metric as a run's file has it; a mean of NaN where there is none."""
    found = found or {}
    value = math.nan if found.get("value") is None else found["value"]
    return Interval(value, found.get("low"), found.get("high"), found.get("n") or 0, found.get("unscored") or 0)


def number(value: float | None, metric: str) -> str:
    """A share in whole per cent (never "0 %" or "100 %" when it is not), anything else with three digits."""
    if value is None or math.isnan(value):
        return "–"
    if not is_share(metric):
        return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"
    if 0 < value <= 0.005:  # Which rounds to 0.
        return "<1 %"
    return ">99 %" if 0.995 <= value < 1 else f"{100 * value:.0f} %"


def limits(interval: Interval, metric: str) -> str:
    """The interval alone: "[31, 46]"."""
    if interval.low is None or interval.high is None:
        return ""
    if is_share(metric):
        return f"[{100 * interval.low:.0f}, {100 * interval.high:.0f}]"
    return f"[{number(interval.low, metric)}, {number(interval.high, metric)}]"


def spelled(interval: Interval, metric: str) -> str:
    return f"{number(interval.mean, metric)} {limits(interval, metric)}".strip()
