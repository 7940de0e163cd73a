"""Probes find what is there, nothing where nothing is, and never see a prompt on both sides."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from repnoise.analysis.probes import probe_layers, probe_words, splits
from repnoise.errors import RepnoiseError

N = 60
LABELS = [i % 2 == 0 for i in range(N)]
PROMPTS = [f"prompt {i}" for i in range(N)]


def noise(width=4, seed=0):
    return torch.randn(N, width, generator=torch.Generator().manual_seed(seed))


def probe(states, kind="linear", **options):
    return probe_layers(states[:, None], LABELS, PROMPTS, [5], kind, **{"seeds": 4} | options)[0]


def test_a_fifth_of_the_prompts_of_each_class_is_tested_and_no_prompt_is_on_both_sides():
    prompts = [f"prompt {i // 3}" for i in range(60)]  # Three rows each; 10 prompts are harmful, 10 harmless.
    labels = [i // 30 == 0 for i in range(60)]
    found = list(splits(prompts, labels, 5))
    for train, test in found:
        assert sorted([*train, *test]) == list(range(60))
        assert not {prompts[i] for i in train} & {prompts[i] for i in test}
        assert sorted(labels[i] for i in test) == [False] * 6 + [True] * 6
    assert len({tuple(test) for _, test in found}) > 1


def test_a_pair_of_completions_of_one_prompt_stays_together():
    for train, test in splits(PROMPTS[: N // 2] * 2, [True] * 30 + [False] * 30, 3):
        assert {i % 30 for i in train}.isdisjoint({i % 30 for i in test})


def test_what_is_told_apart_by_a_plane_is_told_apart():
    states = noise()
    states[:, 2] += 8 * torch.tensor(LABELS)
    found = probe(states)
    assert (found.layer, found.accuracy.mean, found.accuracy.n) == (5, 1.0, 4)
    assert 0.25 < found.shuffled.mean < 0.75
    assert found.selectivity.mean == pytest.approx(1 - found.shuffled.mean)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_noise_tells_nothing(kind):
    found = probe(noise(), kind, seeds=8)
    assert 0.3 < found.accuracy.mean < 0.7 and abs(found.selectivity.mean) < 0.25


def test_a_small_network_tells_what_no_plane_can():
    states = noise(2, seed=1).sign() + 0.1 * noise(2, seed=2)
    labels = (states[:, 0] * states[:, 1] > 0).tolist()
    linear, network = (probe_layers(states[:, None], labels, PROMPTS, [0], kind, 4)[0] for kind in ("linear", "mlp"))
    assert network.accuracy.mean > 0.95 > 0.75 > linear.accuracy.mean


def test_many_dimensions_are_learned_by_heart():
    """Twice as many dimensions as examples: any labels can be told apart, and nothing of it carries over."""
    found = probe(noise(2 * N))
    assert found.memorised.mean == 1 and found.accuracy.mean < 0.75


def test_the_accuracy_is_that_of_scikit_learn_on_the_same_split():
    states = noise(seed=4)
    states[:, 0] += torch.tensor(LABELS)
    (train, test), values, labels = next(splits(PROMPTS, LABELS, 1)), states.double().numpy(), np.array(LABELS)
    scaler = StandardScaler().fit(values[train])
    fitted = LogisticRegression(max_iter=300).fit(scaler.transform(values[train]), labels[train])
    wanted = balanced_accuracy_score(labels[test], fitted.predict(scaler.transform(values[test])))
    found = probe(states, seeds=1)
    assert found.accuracy.mean == wanted and found.accuracy.low is None


def test_a_word_that_gives_the_label_away_needs_no_model():
    rows = [{"input_ids": [7, 100 + i % 5, 9 if label else 8], "labels": []} for i, label in enumerate(LABELS)]
    found = probe_words(rows, LABELS, PROMPTS, seeds=2)
    assert (found.kind, found.layer, found.accuracy.mean) == ("words", None, 1.0)
    alike = [{"input_ids": [7, 8], "labels": []} for _ in LABELS]
    assert probe_words(alike, LABELS, PROMPTS, seeds=2).accuracy.mean == 0.5


def test_too_few_prompts_are_refused_in_one_sentence():
    with pytest.raises(RepnoiseError, match="at least five"):
        probe_layers(torch.zeros(3, 1, 2), [True, False, True], ["a", "b", "c"], [0], "linear")
