"""States of examples and tokens are those that the model itself reports, whatever the batches."""

import pytest
import torch
from small_models import fresh, hooks, rows

from repnoise.analysis import states
from repnoise.analysis.states import example_means, sampled_tokens, streamed
from repnoise.losses import IGNORE


def own_states(loaded, row, layer):
    """The model's states after a layer of one row by itself, and which of them are the completion's."""
    with torch.no_grad():
        found = loaded.model(input_ids=torch.tensor([row["input_ids"]]), output_hidden_states=True).hidden_states
    return found[layer + 1][0], torch.tensor(row["labels"]) != IGNORE


def test_the_mean_of_an_example_is_over_its_completion_alone(monkeypatch):
    monkeypatch.setattr(states, "ROWS", 4)
    loaded, given = fresh(), rows(7)
    means = example_means(loaded, given, [0])
    assert means.shape == (7, 1, 32)
    for row, mean in zip(given, means, strict=True):
        own, completion = own_states(loaded, row, 0)
        torch.testing.assert_close(mean[0], own[completion].mean(0), rtol=1e-4, atol=1e-5)


def test_sampled_tokens_are_completion_tokens_and_the_same_in_every_layer(monkeypatch):
    monkeypatch.setattr(states, "ROWS", 2)
    loaded, given = fresh(), rows(3)
    tokens = sampled_tokens(loaded, given, 10_000, [0])[0]
    every = torch.cat([own[completion] for own, completion in (own_states(loaded, row, 0) for row in given)])
    nearest = torch.cdist(tokens, every).min(1)
    assert len(tokens) == len(every) and nearest.values.max() < 1e-3 and len(nearest.indices.unique()) == len(every)
    few = sampled_tokens(loaded, given, 5)
    assert few.shape == (2, 5, 32)
    torch.testing.assert_close(few[0], sampled_tokens(loaded, given, 5, [0])[0])


def test_no_more_than_one_batch_is_read_at_a_time(monkeypatch):
    monkeypatch.setattr(states, "ROWS", 2)
    loaded = fresh()
    sizes = [len(seen.places) for seen in streamed(loaded, rows(5), [0, 1])]
    assert sizes == [2, 2, 1] and hooks(loaded.model) == 0


@pytest.mark.parametrize("training", [True, False])
def test_reading_leaves_the_model_as_it_was(training):
    loaded = fresh(attention_dropout=0.5)
    loaded.model.train(training)
    first, second = (example_means(loaded, rows(2)) for _ in range(2))
    assert torch.equal(first, second) and loaded.model.training is training
