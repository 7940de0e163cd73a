"""Metrics of a judge, against values worked out by hand and scikit-learn's."""

import math

import numpy as np
import pytest

from repnoise.judges.quality import confusion, quality, reliability

TRUTH = [True, True, True, False, False, False]
VALUES = [0.9, 0.6, 0.2, 0.4, 0.55, 0.1]
PROMPTS = list("abcdef")


def measured(truth=TRUTH, values=VALUES, prompts=PROMPTS):
    return quality(prompts, truth, values, [value >= 0.5 for value in values])


def test_every_metric_of_a_small_case_is_what_the_hand_says():
    found = {name: metric["value"] for name, metric in measured().items()}
    assert found["precision"] == pytest.approx(2 / 3) and found["recall"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 / 3) and found["accuracy"] == pytest.approx(4 / 6)
    assert found["auroc"] == pytest.approx(7 / 9)  # Of nine pairs 0.2 loses two.
    assert found["brier"] == pytest.approx((0.01 + 0.16 + 0.64 + 0.16 + 0.3025 + 0.01) / 6)
    assert found["ece"] == pytest.approx((0.1 + 0.4 + 0.8 + 0.4 + 0.55 + 0.1) / 6)


def test_auroc_counts_ties_half_as_scikit_learn_does():
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    truth, values = random.random(80) < 0.3, random.integers(5, size=80) / 4
    assert measured(truth, values, [str(i) for i in range(80)])["auroc"]["value"] == pytest.approx(
        roc_auc_score(truth, values)
    )


def test_intervals_are_over_prompts_so_that_copies_add_nothing():
    few = measured()["accuracy"]
    copies = measured(TRUTH * 20, VALUES * 20, PROMPTS * 20)["accuracy"]
    rows = measured(TRUTH * 20, VALUES * 20, [str(i) for i in range(120)])["accuracy"]
    assert copies["high"] - copies["low"] == pytest.approx(few["high"] - few["low"])
    assert rows["high"] - rows["low"] < 0.5 * (few["high"] - few["low"])
    assert few["low"] <= few["value"] <= few["high"]


def test_unscored_values_are_left_out_and_counted():
    found = measured([*TRUTH, True], [*VALUES, math.nan], [*PROMPTS, "g"])
    assert found["f1"] == measured()["f1"] | {"unscored": 1} and found["f1"]["n"] == 6


@pytest.mark.parametrize("truth", [[False] * 6, [True] * 6])
def test_what_cannot_be_computed_is_none(truth):
    found = measured(truth)
    assert found["auroc"]["value"] is None and found["brier"]["value"] is not None
    assert measured([], [], [])["f1"]["value"] is None


def test_reliability_compares_mean_values_with_shares():
    assert reliability([True, False, True], [0.25, 0.21, 1.0]) == [
        {"from": 0.2, "to": 0.3, "n": 2, "predicted": pytest.approx(0.23), "observed": 0.5},
        {"from": 0.9, "to": 1.0, "n": 1, "predicted": 1.0, "observed": 1.0},
    ]


def test_the_confusion_table_keeps_incoherent_text_apart():
    table = confusion([True, True, False], ["harmful", "incoherent", "safe"])
    assert table == {"harmful": {"harmful": 1, "incoherent": 1}, "safe": {"safe": 1}}
