"""What the terminal shows: each model at its worst, and the metrics of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from repnoise.metrics import limits, name_of, number, recorded
from repnoise.report.drawing import wrapped
from repnoise.report.summary import Row
from repnoise.report.tables import overview
from repnoise.runs import Run

if TYPE_CHECKING:
    from rich.table import Table


def terminal_table(rows: Sequence[Row]) -> Table:
    """A column for each model, for the terminal: before the attack, under the best attack of the grid, after it."""
    from rich.markup import escape
    from rich.table import Table

    shown = overview(rows)
    table = Table(title="Each model under the best attack of its grid", title_justify="left", caption_justify="left")
    table.add_column("", max_width=22)
    for line in shown["lines"]:
        table.add_column(escape(wrapped(line["defence"], 13)), justify="right", overflow="fold")
    for i, name in enumerate(shown["names"]):
        cells = (line["cells"][i] for line in shown["lines"])
        # An interval stays in one line.
        table.add_row(name, *(escape(f"{cell['value']} {cell['limits'].replace(' ', '')}".strip()) for cell in cells))
    table.add_row("best attack", *(escape(wrapped(line["attack"], 13)) for line in shown["lines"]))
    table.caption = "95 % intervals. covered: the defender had seen these answers; uncovered: nobody had."
    return table


def metrics_table(run: Run) -> Table:
    """All metrics of one run, for the terminal."""
    return metric_lines(f"{run.record['kind']} {run.record['name']}", run.record.get("metrics") or {})


def metric_lines(title: str, metrics: dict[str, Any]) -> Table:
    """Metrics with their intervals, for the terminal; those of single categories are in the run and the report."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for column in ("metric", "value", "95 % interval", "n"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for metric, found in metrics.items():
        if "@" in metric:
            continue
        interval = recorded(found)
        count = f"{interval.n} ({interval.unscored} unscored)" if interval.unscored else str(interval.n)
        table.add_row(escape(name_of(metric)), number(interval.mean, metric), limits(interval, metric), count)
    return table
