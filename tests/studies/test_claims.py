"""What a table says of the paper's claims: on intervals that are set by hand."""

import pytest

from fabricated_runs import shares
from repnoise.runs import Run, code_state, environment, write_rows
from repnoise.statistics import Interval
from repnoise.studies.tables import (
    Claim,
    Entry,
    Metric,
    OfCategories,
    Table,
    alike_everywhere,
    below_everywhere,
)

LOW, HIGH = Interval(0.1, 0.05, 0.15, 80), Interval(0.6, 0.5, 0.7, 80)
NEAR = Interval(0.62, 0.56, 0.68, 80)
ALONE = Interval(0.2, None, None, 1)


def verdict(claim, **found):
    return claim.verdict(lambda where: found.get(where[0]))


def test_the_limits_of_a_difference_add_in_quadrature():
    low, high = -HIGH.most_above(LOW), LOW.most_above(HIGH)
    assert (low, high) == pytest.approx((-0.5 - (0.05**2 + 0.1**2) ** 0.5, -0.5 + (0.05**2 + 0.1**2) ** 0.5))
    assert LOW.most_above(ALONE) is None


def test_below_holds_beyond_chance_only():
    claim = below_everywhere("", "mine", "theirs", ["c"])
    assert verdict(claim, mine=LOW, theirs=HIGH) == "holds"
    assert verdict(claim, mine=HIGH, theirs=LOW) == "does not hold"
    assert verdict(claim, mine=HIGH, theirs=NEAR) == "cannot be told"
    assert verdict(claim, mine=ALONE, theirs=HIGH) == "cannot be told"
    assert verdict(claim, mine=HIGH) == verdict(claim) == "not measured"


def test_alike_holds_only_where_the_whole_interval_of_the_difference_lies_within_the_margin():
    claim = alike_everywhere("", "mine", "theirs", ["c"], margin=0.2)
    assert verdict(claim, mine=HIGH, theirs=NEAR) == "holds"
    assert verdict(alike_everywhere("", "mine", "theirs", ["c"], 0.1), mine=HIGH, theirs=NEAR) == "cannot be told"
    assert verdict(claim, mine=LOW, theirs=HIGH) == verdict(claim, mine=HIGH, theirs=LOW) == "does not hold"


def test_every_comparison_has_to_hold_and_one_that_goes_the_other_way_is_enough_to_refute():
    pairs = ((("a", "c"), ("b", "c")), (("a", "c"), ("d", "c")))
    claim = Claim("", pairs)
    assert verdict(claim, a=LOW, b=HIGH, d=HIGH) == "holds"
    assert verdict(claim, a=LOW, b=HIGH, d=LOW) == "cannot be told"
    assert verdict(claim, a=LOW, b=HIGH) == "cannot be told"
    assert verdict(claim, a=HIGH, b=LOW, d=NEAR) == "does not hold"
    assert claim.count(lambda where: {"a": LOW, "b": HIGH, "d": LOW}[where[0]]) == (1, 2)


@pytest.fixture
def made(tmp_path):
    def made(name, status="finished", start=None, **values):
        record = {"kind": "attack", "name": name, "config": {}, "status": status, "metrics": shares(n=80, **values)}
        Run(tmp_path / name).update(**record, environment=environment(), code=code_state())
        if start is not None:
            rows = [{"step": step, "metrics": shares(n=80, recovered=share)} for step, share in ((0, start), (5, 1.0))]
            write_rows(tmp_path / name / "curve.jsonl", rows)
        return tmp_path / name

    return made


def test_an_entry_is_the_mean_of_its_finished_runs_and_nothing_without_any(made):
    runs = (made("a", recovered=0.25), made("b", recovered=0.75), made("c", "running", recovered=1.0))
    found = Entry("r", "c", None, runs, Metric("recovered")).interval()
    assert found.mean == pytest.approx(0.5) and found.low == 0 and found.high == 1  # Two seeds say little.
    assert Entry("r", "c", None, runs[2:], Metric("recovered")).interval() is None
    assert Entry("r", "c", None, runs, Metric("rouge1")).interval() is None
    assert Entry("r", "c", None, (), Metric("recovered")).interval() is None


def test_a_metric_may_be_that_before_the_first_step(made):
    entry = Entry("r", "c", None, (made("a", start=0.25, recovered=0.75),), Metric("recovered", start=True))
    assert entry.interval().mean == pytest.approx(0.25)


def test_an_entry_agrees_with_the_paper_where_it_differs_from_the_reference_in_the_same_direction(made):
    low, high = (made("low", recovered=0.1),), (made("high", recovered=0.9),)

    def agreement(paper, ours, theirs):
        own = Entry("own", "c", paper, ours, Metric("recovered"))
        table = Table("", (own, Entry("base", "c", 0.7, theirs, Metric("recovered"))), (), "base")
        return table.agreement(own, table.read_out()[0])

    assert agreement(0.1, low, high) == "agrees"
    assert agreement(0.1, high, low) == agreement(0.72, low, high) == "differs"
    assert agreement(0.1, low, low) == agreement(None, low, high) == ""


def test_categories_together_weigh_as_many_as_they_have_prompts(tmp_path):
    metrics = {
        "recovered@a": {"value": 0.5, "low": 0.3, "high": 0.7, "n": 30, "unscored": 1},
        "recovered@b": {"value": 0.1, "low": 0.0, "high": 0.4, "n": 10, "unscored": 0},
        "recovered@c": {"value": None, "low": None, "high": None, "n": 0, "unscored": 5},
    }
    found = OfCategories("recovered", ("a", "b", "c", "not there"))(Run(tmp_path, {"metrics": metrics}))
    assert found.mean == pytest.approx(0.4) and (found.n, found.unscored) == (40, 1)
    assert found.low == pytest.approx(0.4 - (0.15**2 + 0.025**2) ** 0.5)
    assert found.high == pytest.approx(0.4 + (0.15**2 + 0.075**2) ** 0.5)
    assert OfCategories("recovered", ("c",))(Run(tmp_path, {"metrics": metrics})) is None
