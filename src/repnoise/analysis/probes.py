"""Can a small classifier tell harmful from harmless by the states alone (paper, Figures 5 and 6)? What is that worth
beside the same classifier on shuffled labels, and beside the words themselves?"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from repnoise.data.tokenization import Row
from repnoise.errors import RepnoiseError
from repnoise.statistics import Interval, seed_interval

Kind = Literal["linear", "mlp"]
HIDDEN, MLP_STEPS, LINEAR_STEPS = 16, 60, 300
"""Units and most steps of the small network, most steps of the linear probe: all are budgets, not convergence."""


@dataclass(frozen=True)
class Probe:
    """Accuracies of one kind of probe on the states of one layer, or on the words.

    Attributes:
        kind: "linear" or "mlp"; of the words, "words".
        layer: None for the words.
        accuracy: on the held-out prompts, over the seeds of the split. The splits share examples, so the interval is
            narrower than it should be (Nadeau and Bengio 2003).
        shuffled: the same after training and testing on labels that were shuffled: what chance gives here.
        memorised: accuracy on the shuffled labels that it was trained on: how much the probe can learn by heart.
        selectivity: `accuracy` less `shuffled`, seed by seed (after Hewitt and Liang 2019, arXiv:1909.03368, whose
            control labels belong to word types that recur in the test; prompts do not).
    """

    kind: str
    layer: int | None
    accuracy: Interval
    shuffled: Interval
    memorised: Interval
    selectivity: Interval


def probe_layers(
    states: Tensor, labels: Sequence[bool], prompts: Sequence[str], layers: Sequence[int], kind: Kind, seeds: int = 10
) -> list[Probe]:
    """A probe for each layer of the states (n, L, D), on four fifths of the prompts, tested on the last fifth.

    Raises RepnoiseError where there are too few prompts to divide.
    """
    values = states.double().numpy()
    return [_probed(values[:, i], labels, prompts, kind, layer, seeds) for i, layer in enumerate(layers)]


def probe_words(rows: Sequence[Row], labels: Sequence[bool], prompts: Sequence[str], seeds: int = 10) -> Probe:
    """The baseline that needs no model: a linear probe on which tokens an example has, prompt included, and its
    length. What it can tell, a probe of states that tells as much has not shown the model to know."""
    ids = sorted({token for row in rows for token in row["input_ids"]})
    column = {token: i for i, token in enumerate(ids)}
    values = np.zeros((len(rows), len(ids) + 1))
    for i, row in enumerate(rows):
        values[i, [column[token] for token in row["input_ids"]]] = 1
        values[i, -1] = len(row["input_ids"])
    return _probed(values, labels, prompts, "words", None, seeds)


def splits(
    prompts: Sequence[str], labels: Sequence[bool], seeds: int, share: float = 0.2
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each seed the indices of training and test, `share` of the prompts of each class being tested; no prompt is
    on both sides."""
    classes = {prompt: (label, not label) for prompt, label in zip(prompts, labels, strict=True)}
    for prompt, label in zip(prompts, labels, strict=True):
        if classes[prompt][0] != label:  # Has an example of each.
            classes[prompt] = (True, True)
    strata: dict[Any, list[str]] = {}
    for prompt in dict.fromkeys(prompts):
        strata.setdefault(classes[prompt], []).append(prompt)
    for seed in range(seeds):
        generator, tested = np.random.default_rng(seed), set()
        for found in strata.values():
            count = max(1, round(share * len(found)))
            tested |= {found[i] for i in generator.permutation(len(found))[:count]}
        held_out = np.array([prompt in tested for prompt in prompts])
        yield np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _probed(
    values: np.ndarray, labels: Sequence[bool], prompts: Sequence[str], kind: str, layer: int | None, seeds: int
) -> Probe:
    given = np.asarray(labels, dtype=int)
    found: list[tuple[float, float, float]] = []
    for seed, (train, test) in enumerate(splits(prompts, labels, seeds)):
        if len(train) < 4 or len(set(given[train])) < 2 or len(set(given[test])) < 2:
            raise RepnoiseError("A probe needs at least five harmful and five harmless prompts: give more data.")
        mixed = np.random.default_rng(seed).permutation(given)
        accuracy, _ = _fitted(kind, values, given, train, test, seed)
        # Of so few labels, all the drawn ones may be of one class.
        shuffled, learned = (
            _fitted(kind, values, mixed, train, test, seed) if len(set(mixed[train])) == 2 else (np.nan, np.nan)
        )
        found.append((accuracy, shuffled, learned))
    accuracy, shuffled, memorised = (list(column) for column in zip(*found, strict=True))
    gained = [a - b for a, b in zip(accuracy, shuffled, strict=True)]
    return Probe(kind, layer, *(seed_interval(column) for column in (accuracy, shuffled, memorised, gained)))


def _fitted(
    kind: str, values: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int
) -> tuple[float, float]:
    """Balanced accuracy on what was held out, and on what was trained on."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network = MLPClassifier((HIDDEN,), solver="lbfgs", alpha=1.0, max_iter=MLP_STEPS, random_state=seed)
    classifier = network if kind == "mlp" else LogisticRegression(max_iter=LINEAR_STEPS)
    probe = make_pipeline(StandardScaler(), classifier)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # With shuffled labels the few tested ones may all be of one class.
        warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
        probe.fit(values[train], labels[train])
        tested, trained = (balanced_accuracy_score(labels[part], probe.predict(values[part])) for part in (test, train))
    return float(tested), float(trained)
