"""Lines of a figure as numbers: their points, what is told at each, and the table behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from repnoise.metrics import spelled
from repnoise.report.panels import Mark, Table
from repnoise.statistics import Interval


@dataclass(frozen=True)
class Curve:
    """A metric against steps: mean over seeds, band where it is known. `worst` marks its end as the worst case; `of`
    tells it from other lines of its name."""

    name: str
    steps: Sequence[float]
    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]
    worst: bool = False
    of: str = ""

    @property
    def label(self) -> str:
        return f"{self.name}, {self.of}" if self.of else self.name


def thinned(name: str, points: Sequence[tuple[float, float]], most: int = 25) -> Curve:
    """Of a long log some points, the first and the last among them."""
    every = max(1, -(-(len(points) - 1) // (most - 1)))
    chosen = [*points[:-1:every], points[-1]]
    steps, values = [step for step, _ in chosen], [value for _, value in chosen]
    return Curve(name, steps, values, values, values)


def curve_marks(curves: Sequence[Curve], axis: str, share: bool = False, least: float = -math.inf) -> list[Mark]:
    """Every point of the curves, as it is told; `least` is where an axis begins that cannot have what lies below."""
    scale = 100.0 if share else 1.0
    return [
        Mark(max(step, least), scale * curve.means[i], f"{curve.label}, {axis} {plain(step)}: {_told(curve, i, share)}")
        for curve in curves
        for i, step in enumerate(curve.steps)
    ]


def curve_table(axis: str, curves: Sequence[Curve], share: bool = False) -> Table:
    """The same as a table: a row for each step, a column for each curve."""
    columns = [{step: _told(curve, i, share) for i, step in enumerate(curve.steps)} for curve in curves]
    steps = sorted({step for column in columns for step in column})
    rows = tuple((plain(step), *(column.get(step, "–") for column in columns)) for step in steps)
    return Table((axis, *(curve.label for curve in curves)), rows)


def _told(curve: Curve, i: int, share: bool) -> str:
    """A value with its limits, where it has any."""
    mean, low, high = curve.means[i], curve.lows[i], curve.highs[i]
    known = low != high
    if share:  # Whose interval may have been drawn beyond what a share can be.
        limits = (max(0.0, low), min(1.0, high)) if known else (None, None)
        return spelled(Interval(mean, *limits, n=1), "recovered")
    return f"{short(mean)} [{short(low)}, {short(high)}]" if known else short(mean)


def short(value: float) -> str:
    """Three digits; what is 0 but for rounding is 0."""
    return "0" if abs(value) < 1e-12 else f"{value:.3g}"


def plain(number: float) -> str:
    """A step or a cost: whole where it is, in three digits where it is large."""
    if abs(number) >= 1e6:
        return f"{number:.2e}"
    return f"{number:,.0f}" if number == round(number) else f"{number:.3g}"
