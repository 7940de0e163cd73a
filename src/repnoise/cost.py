"""What it costs to break a defence: the cost at which harm crosses a threshold, over runs that may never cross it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from repnoise.errors import RepnoiseError

if TYPE_CHECKING:
    from scipy.stats import CensoredData
    from torch import nn

Curve = Sequence[tuple[float, float]]
"""Points (cost, harm) of one attack in any order; cost in steps, samples, tokens or FLOPs, harm NaN is "unscored"."""


@dataclass(frozen=True)
class Event:
    """Where the harm of one run crossed the threshold, or that it did not.

    Attributes:
        cost: the first measured cost with harm at the threshold or beyond it. Harm is measured at a few points only, so
            this is an upper bound. If `censored`, the largest cost tried, at which harm was still below.
        censored: whether harm never crossed: breaking the run takes more than `cost`, nobody knows how much.
        still_below: the largest measured cost before `cost` that did not cross; None if there is none. The true cost of
            a single curve lies above it.
        unscored: points of the curve that no judge scored, which were left out.
    """

    cost: float
    censored: bool
    still_below: float | None = None
    unscored: int = 0

    def spelled(self) -> str:
        """Such as "at most 400", or "more than 1,000"."""
        cost = f"{self.cost:,.6g}" if self.cost < 1e6 else f"{self.cost:.2e}"
        if not self.censored:
            return "0" if self.cost == 0 else f"at most {cost}"
        return f"more than {cost}"


def cost_to_break(curves: Sequence[Curve], threshold: float, harm: float = 1.0) -> list[Event]:
    """For each curve the least measured cost at which harm reaches the threshold; one event a curve, in their order.

    A model that is over the threshold before any attack costs 0. A curve without a single scored point is censored at 0
    and so says nothing. `harm` is -1 where a low value is the harm (see `statistics.worst_case`). An attacker picks
    what works: for a grid of attacks on one model, give the points of all of them as one curve; the event is then the
    cheapest attack that broke it, and the censored cost the largest that any of them was given.
    """
    return [_event(curve, threshold, harm) for curve in curves]


def _event(curve: Curve, threshold: float, harm: float) -> Event:
    for cost, _ in curve:
        if not 0 <= cost < math.inf:
            raise ValueError(f"A cost is a number from 0, not {cost}.")
    scored = sorted((cost, value) for cost, value in curve if not math.isnan(value))
    unscored = len(curve) - len(scored)
    broken = next((cost for cost, value in scored if harm * value >= harm * threshold), None)
    below = [cost for cost, _ in scored if broken is None or cost < broken]
    if broken is None:
        return Event(max(below, default=0.0), True, max(below, default=None), unscored)
    return Event(broken, False, max(below, default=None), unscored)


@dataclass(frozen=True)
class Survival:
    """Share of runs that are still below the threshold after each cost (Kaplan and Meier, JASA 53, 1958).

    Attributes:
        n: runs.
        broken: how many of them crossed; the others are censored.
        costs: the costs at which a run crossed or was given up, ascending.
        share: the share that has not crossed after each of them.
        low: its lower limits; None where there is none to be had: before the first run crosses and after the last has
            crossed, Greenwood's variance is 0, which is no certainty.
        high: its upper limits, likewise.
        median: the least cost after which at most half of the runs are below; None if that was never reached.
        most_tried: the largest cost of all: without a median, it is more than that.
    """

    n: int
    broken: int
    costs: tuple[float, ...]
    share: tuple[float, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    median: float | None
    most_tried: float

    def typical(self) -> Event:
        """The median as an event, for `ratio` and to be spelled."""
        return Event(self.most_tried, True) if self.median is None else Event(self.median, False)


def survival(events: Sequence[Event], level: float = 0.95) -> Survival:
    """The Kaplan-Meier curve of runs, one event a run, with pointwise limits on the log-log scale (which stay within 0
    and 1: Kalbfleisch and Prentice, The Statistical Analysis of Failure Time Data, 2002, section 1.4).

    Raises ValueError for no events.
    """
    import warnings

    from scipy.stats import ecdf

    if not events:
        raise ValueError("Survival of no runs.")
    found = ecdf(_censored(events)).sf
    with warnings.catch_warnings():
        # At shares of 0 and 1 the limits are not defined, and come back as NaN.
        warnings.simplefilter("ignore", RuntimeWarning)
        limits: Any = found.confidence_interval(level, method="log-log")
    costs, share = found.quantiles.tolist(), found.probabilities.tolist()
    # Products of shares may end a hair above one half.
    median = next((cost for cost, left in zip(costs, share, strict=True) if left <= 0.5 + 1e-12), None)
    low, high = (tuple(map(_known, limit.probabilities.tolist())) for limit in (limits.low, limits.high))
    broken = sum(not event.censored for event in events)
    return Survival(len(events), broken, tuple(costs), tuple(share), low, high, median, max(costs))


@dataclass(frozen=True)
class Ratio:
    """How many times the reference's cost; `bound` says what is known of it.

    "about": both were broken. ">=": this one was never broken, so the ratio is this at the least. "<=": the reference
    was never broken, so it is this at the most. "unknown": neither was, or the reference costs 0; `value` is NaN.
    """

    value: float
    bound: Literal["about", ">=", "<=", "unknown"]

    def spelled(self) -> str:
        if self.bound == "unknown":
            return "unknown"
        return f"{'' if self.bound == 'about' else self.bound + ' '}{self.value:.3g} times"


def ratio(event: Event, reference: Event) -> Ratio:
    """The cost to break one model over that of another, as far as censoring lets it be known."""
    if reference.cost == 0 or (event.censored and reference.censored):
        return Ratio(math.nan, "unknown")
    bound = ">=" if event.censored else "<=" if reference.censored else "about"
    return Ratio(event.cost / reference.cost, bound)


@dataclass(frozen=True)
class LogRank:
    """A log-rank test: two-sided p, runs and broken runs of each. NaN if no run broke while runs of both
    were at stake."""

    statistic: float
    p: float
    n: tuple[int, int]
    broken: tuple[int, int]


def log_rank(first: Sequence[Event], second: Sequence[Event]) -> LogRank:
    """Whether two groups of runs differ in what breaking them costs (Mantel, Cancer Chemotherapy Reports 50, 1966).

    Its p comes from a normal approximation, which for three runs a group is a rough one: with so few, no p is small
    enough to mean much.
    """
    import numpy as np
    from scipy.stats import logrank

    n = (len(first), len(second))
    broken = (sum(not event.censored for event in first), sum(not event.censored for event in second))
    if not all(n):
        return LogRank(math.nan, math.nan, n, broken)
    # Without a break while runs of both were at stake there is nothing to compare: 0 / 0.
    with np.errstate(invalid="ignore", divide="ignore"):
        found = logrank(_censored(first), _censored(second))
    told = math.isfinite(found.statistic)
    return LogRank(*(float(found.statistic), float(found.pvalue)) if told else (math.nan, math.nan), n, broken)


def _censored(events: Sequence[Event]) -> CensoredData:
    from scipy.stats import CensoredData

    return CensoredData.right_censored([event.cost for event in events], [event.censored for event in events])


def _known(limit: float) -> float | None:
    return None if math.isnan(limit) else limit


def training_flops(parameters: int, tokens: int, trained: int | None = None) -> float:
    """Floating-point operations of a training: (4 N + 2 N_trained) a token, N being `parameters`.

    A product with a weight takes 2 operations a weight and token: once forward, once backward for the activations and,
    where the weight is trained, once more for its gradient. All weights trained: 6 N (Kaplan et al., Scaling Laws for
    Neural Language Models, 2020, arXiv:2001.08361, section 2.1; Hoffmann et al., Training Compute-Optimal Large
    Language Models, 2022, arXiv:2203.15556, appendix F). Low-rank adapters with A weights on a frozen model with N_0:
    4 N_0 + 6 A, from N = N_0 + A and N_trained = A.

    Take both from `parameters_in_products`: looking up an embedding is no product, reading out is one (Kaplan et al.
    leave both out, which for a small model with a large vocabulary is most of it). Left out are the products of
    queries, keys and values, which matter once the context is longer than some ten widths; what gradient checkpointing
    computes again; and the optimiser. Tokens include padding if it was computed.
    """
    trained = parameters if trained is None else trained
    if not 0 <= trained <= parameters or tokens < 0:
        raise ValueError(f"{trained} of {parameters} parameters cannot be trained on {tokens} tokens.")
    return float((4 * parameters + 2 * trained) * tokens)


def counted_in_products(model: nn.Module) -> int | None:
    """`parameters_in_products`, or None for a model of which they cannot be counted."""
    try:
        return parameters_in_products(model)
    except RepnoiseError:
        return None


def reading_flops(model: nn.Module) -> float | None:
    """Floating-point operations of a forward pass on one token: 2 N; None if they cannot be counted."""
    counted = counted_in_products(model)
    return None if counted is None else 2.0 * counted


def parameters_in_products(model: nn.Module, trained: bool = False) -> int:
    """How many weights every token is multiplied by: linear layers and the unembedding, each once even if it is tied to
    the embedding; with `trained`, only those that are trained.

    Adapters count; biases and norms, which are no products, do not. Raises RepnoiseError for a model where a token does
    not meet every weight once (a mixture of experts, convolutions).
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    config: Any = getattr(model, "config", None)
    experts = getattr(config.get_text_config() if config else None, "num_experts_per_tok", None)
    odd = next((name for name, weight in model.named_parameters() if weight.dim() > 2), None)
    if experts or odd:
        why = "is a mixture of experts" if experts else f"has a weight that is no matrix ({odd})"
        raise RepnoiseError(
            f"FLOPs of {type(model).__name__} cannot be counted, since it {why}: measure its cost in steps, samples or "
            "tokens instead."
        )
    # PyTorch lists a module once, however often it is used or wrapped.
    products = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    return sum(m.weight.numel() for m in products if m.weight.requires_grad or not trained)
