"""What metrics are called and how their numbers are written."""

import pytest

from repnoise.evals.evaluations import EVALUATIONS, Question, judged
from repnoise.judges import Judge, Score
from repnoise.metrics import base_name, is_share, limits, name_of, number, spelled, within_bounds
from repnoise.statistics import Interval


@pytest.mark.parametrize(
    "metric, words",
    [
        ("recovered", "recovered, covered"),
        ("recovered@hexes", "recovered, covered: hexes"),
        ("harmfulness/classifier:models/owl", "harmfulness, covered (classifier:models/owl)"),
        ("harmfulness/endpoint:yes-no with owl@hexes", "harmfulness, covered (endpoint:yes-no with owl): hexes"),
        ("refusal_rate on sandbox-rumours", "refused (on sandbox-rumours)"),
        ("lm-eval/hellaswag_acc", "hellaswag_acc"),
        ("something_new", "something_new"),
    ],
)
def test_a_metric_has_a_name_in_words(metric, words):
    assert name_of(metric) == words


class Sage(Judge):
    """Finds harm in everything."""

    version, seeks = "1", "harm"

    def __init__(self, name):
        self.name = name

    def verdicts(self, completions):
        return ((index, Score(1.0, "harmful")) for index in range(len(completions)))


def test_a_judge_whose_name_has_an_at_sign_is_no_category(tmp_path):
    """Endpoints are called RUBRIC@MODEL, and categories are told by the same sign."""
    questions = [Question(f"{n}?", "", "covered", ("hex", "jinx")[n % 2]) for n in range(4)]
    judges = [Sage("classifier:owl"), Sage("endpoint:yes-no@owl"), Sage("endpoint:yes-no/owl")]
    metrics = judged(EVALUATIONS["resistance"][1], questions, ["words"] * 4, judges, tmp_path)
    second = "harmfulness/endpoint:yes-no with owl"
    assert second in metrics and f"{second}@hex" in metrics
    assert name_of(f"{second}@hex") == "harmfulness, covered (endpoint:yes-no with owl): hex"
    assert len([*tmp_path.glob("scores-*.jsonl")]) == 3


def test_a_metric_is_told_by_its_first_part():
    for metric in ("harmfulness/x@y on z", "harmfulness@y", "harmfulness on z", "harmfulness"):
        assert base_name(metric) == "harmfulness"


def test_shares_are_told_whatever_judge_category_or_data_follows():
    shares = ("recovered_uncovered@hexes", "harmfulness_as_published/x on z", "rougeL", "lm-eval/a_acc", "refusal_rate")
    others = ("perplexity", "harmful_ce on z", "kl_to_base", "lm-eval/a_perplexity")
    assert all(map(is_share, shares)) and not any(map(is_share, others))


@pytest.mark.parametrize(
    "value, metric, text",
    [
        (0.0, "recovered", "0 %"),
        (0.001, "recovered", "<1 %"),
        (0.005, "recovered", "<1 %"),
        (0.994, "recovered", "99 %"),
        (0.999, "recovered", ">99 %"),
        (1.0, "recovered", "100 %"),
        (None, "recovered", "–"),
        (float("nan"), "perplexity", "–"),
        (4.126, "perplexity", "4.13"),
        (12345.6, "perplexity", "12,346"),
    ],
)
def test_a_number_is_never_none_or_all_when_it_is_not(value, metric, text):
    assert number(value, metric) == text


def test_an_interval_ends_where_the_metric_does():
    assert within_bounds(Interval(0.5, -0.2, 1.3, 4), "recovered") == Interval(0.5, 0.0, 1.0, 4)
    assert within_bounds(Interval(2.0, -0.2, 3.0, 4), "perplexity") == Interval(2.0, 0.0, 3.0, 4)
    assert spelled(Interval(0.25, 0.1, 0.4, 4), "recovered") == "25 % [10, 40]"
    assert spelled(Interval(2.0, None, None, 1), "perplexity") == "2.00"
    assert limits(Interval(2.0, 1.0, 3.0, 4), "perplexity") == "[1.00, 3.00]"
