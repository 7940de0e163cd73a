"""A table of the paper beside ours: which runs stand for each number, and which of its claims our numbers bear out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from repnoise.metrics import recorded, within_bounds
from repnoise.runs import Run, load_run, read_rows
from repnoise.statistics import Interval, pooled_interval

Where = tuple[str, str]
"""Row and column of an entry."""
Read = Callable[[Run], Interval | None]
"""What of a finished run an entry shows; None where the run has no such number."""
Verdict = Literal["holds", "does not hold", "cannot be told", "not measured"]

NOTICED = 0.05
"""Differences of the paper's shares below this count as none: it has one seed."""


@dataclass(frozen=True)
class Metric:
    """Reads a metric of a run, at its end, or before the first step (from its curve).

    Attributes:
        name: as in run.json; see `metrics.NAMES`.
        start: at the beginning of the curve.
    """

    name: str
    start: bool = False

    def __call__(self, run: Run) -> Interval | None:
        metrics = _at_start(run) if self.start else run.record["metrics"]
        found = recorded(metrics.get(self.name))
        return None if math.isnan(found.mean) else within_bounds(found, self.name)


def _at_start(run: Run) -> dict:
    curve = run.path / "curve.jsonl"
    rows = read_rows(curve) if curve.exists() else []
    return next((row["metrics"] for row in rows if row["step"] == 0), {})


@dataclass(frozen=True)
class Entry:
    """One number of the paper, and the runs that stand for it.

    Attributes:
        row, column: where it stands.
        paper: the paper's number; None where it has none.
        runs: ours, one a seed; none where the project has nothing that would stand for it.
        read: what of them is shown.
    """

    row: str
    column: str
    paper: float | None
    runs: tuple[Path, ...]
    read: Read

    @property
    def where(self) -> Where:
        return self.row, self.column

    def interval(self, read: Read | None = None) -> Interval | None:
        """Over seeds and prompts; None while no run of it is finished, or none has the number."""
        read = read or self.read
        begun = [load_run(path) for path in self.runs if (path / "run.json").exists()]
        measured = [read(run) for run in begun if run.finished]
        known = [one for one in measured if one is not None and not math.isnan(one.mean)]
        if not known:
            return None
        pooled = pooled_interval(known)
        name = getattr(read, "name", None)
        return within_bounds(pooled, name) if name else pooled


@dataclass(frozen=True)
class Claim:
    """What the paper says of its table, as comparisons of entries.

    Attributes:
        text: in words.
        pairs: of each the first is "below" the second, or "alike": no further apart than the margin.
        says: which of the two.
        margin: for "alike", in the unit of the entries.
        ours: not what the paper says, but what we ask beside it.
    """

    text: str
    pairs: tuple[tuple[Where, Where], ...]
    says: Literal["below", "alike"] = "below"
    margin: float = 0.1
    ours: bool = False

    def verdict(self, found: Callable[[Where], Interval | None]) -> Verdict:
        """It holds where every comparison does beyond chance, and does not where one goes the other way beyond chance.

        That a difference is not seen is no evidence that there is none: "alike" holds only where the whole interval of
        the difference lies within the margin (two one-sided tests).
        """
        told: set[Verdict] = {*self._each(found)}
        if "does not hold" in told:
            return "does not hold"
        return told.pop() if len(told) == 1 else "cannot be told"

    def count(self, found: Callable[[Where], Interval | None]) -> tuple[int, int]:
        """How many of the comparisons hold by themselves, of how many."""
        return self._each(found).count("holds"), len(self.pairs)

    def _each(self, found: Callable[[Where], Interval | None]) -> list[Verdict]:
        return [self._told(found(first), found(second)) for first, second in self.pairs]

    def _told(self, first: Interval | None, second: Interval | None) -> Verdict:
        if first is None or second is None:
            return "not measured"
        high, opposite = first.most_above(second), second.most_above(first)
        if high is None or opposite is None:
            return "cannot be told"
        low, margin = -opposite, self.margin
        if self.says == "below":
            return "holds" if high < 0 else "does not hold" if low > 0 else "cannot be told"
        if low > margin or high < -margin:
            return "does not hold"
        return "holds" if -margin <= low and high <= margin else "cannot be told"


@dataclass(frozen=True)
class Numbers:
    """What the runs of a table say, read in one way.

    Attributes:
        shown: what the numbers are, in words.
        read: how they were read; None for each entry's own way.
        found: the numbers, by row and column.
    """

    shown: str
    read: Read | None
    found: Mapping[Where, Interval | None]


@dataclass(frozen=True)
class Table:
    """Rows by columns.

    Attributes:
        corner: what the rows are.
        entries: in the order in which they are shown.
        claims: what the paper says of them.
        reference: row that the others are compared with; None for none.
        shown: what our numbers are, in words.
        also: other readings of the same runs, by what they are: shown below, and the claims tried on them, too.
        notes: what there is to know of this scale: counterparts, and what is missing.
    """

    corner: str
    entries: tuple[Entry, ...]
    claims: tuple[Claim, ...] = ()
    reference: str | None = None
    shown: str = ""
    also: tuple[tuple[str, Read], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(entry.row for entry in self.entries))

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(entry.column for entry in self.entries))

    @property
    def runs(self) -> set[Path]:
        return {path for entry in self.entries for path in entry.runs}

    def entry(self, where: Where) -> Entry | None:
        return next((entry for entry in self.entries if entry.where == where), None)

    def read_out(self) -> list[Numbers]:
        """Our numbers: those that the entries show, then those of `also`. This reads the runs' files."""
        every: list[tuple[str, Read | None]] = [(self.shown, None), *self.also]
        return [Numbers(told, read, {one.where: one.interval(read) for one in self.entries}) for told, read in every]

    def agreement(self, entry: Entry, ours: Numbers) -> str:
        """Whether an entry differs from the reference's in the paper's direction: "agrees", "differs", or nothing where
        ours differ no more than by chance, or either has no number."""
        other = self.entry((self.reference, entry.column)) if self.reference else None
        if other is None or entry is other or entry.paper is None or other.paper is None:
            return ""
        mine, theirs = ours.found[entry.where], ours.found[other.where]
        if mine is None or theirs is None:
            return ""
        direction = theirs.surely_below(mine) - mine.surely_below(theirs)
        apart = entry.paper - other.paper
        paper = 0 if abs(apart) < NOTICED else round(math.copysign(1, apart))
        return "" if direction == 0 else "agrees" if direction == paper else "differs"


@dataclass(frozen=True)
class OfCategories:
    """Reads a metric of several categories together, weighted by how many prompts they have.

    Attributes:
        name: of the metric, without a category.
        categories: as the data has them.
    """

    name: str
    categories: tuple[str, ...]

    def __call__(self, run: Run) -> Interval | None:
        measured = [Metric(f"{self.name}@{category}")(run) for category in self.categories]
        known = [one for one in measured if one is not None and one.n and not math.isnan(one.mean)]
        if not known:
            return None
        n = sum(one.n for one in known)
        mean = sum(one.mean * one.n for one in known) / n
        unscored = sum(one.unscored for one in known)
        below, above = [], []
        for one in known:
            if one.low is None or one.high is None:
                return Interval(mean, None, None, n, unscored)
            below.append(one.n / n * (one.mean - one.low))
            above.append(one.n / n * (one.high - one.mean))
        return Interval(mean, mean - math.hypot(*below), mean + math.hypot(*above), n, unscored)


def below_everywhere(text: str, row: str, other: str, columns: Iterable[str], ours: bool = False) -> Claim:
    """That a row is below another in all of these columns."""
    return Claim(text, tuple(((row, column), (other, column)) for column in columns), ours=ours)


def alike_everywhere(text: str, row: str, other: str, columns: Sequence[str], margin: float = 0.1) -> Claim:
    """That a row is like another in all of these columns."""
    return Claim(text, tuple(((row, column), (other, column)) for column in columns), "alike", margin)
