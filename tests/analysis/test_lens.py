"""The lens reads what the model computes, and a trained one reads it better without touching the model."""

import copy

import pytest
import torch
from small_models import REFUSALS, fresh, rows

from repnoise import losses
from repnoise.analysis.lens import Reader, lens, read_log_probabilities, trained_reader
from repnoise.losses import IGNORE


def log_probability(logits, row):
    """The mean log-probability of a row's completion under logits (T, V)."""
    told = logits.log_softmax(-1)
    return sum(told[t - 1, label] for t, label in enumerate(row["labels"]) if label != IGNORE) / sum(
        label != IGNORE for label in row["labels"]
    )


@pytest.mark.parametrize("at_once", [losses.LOGITS_AT_ONCE, 1000])
def test_it_reads_each_layer_as_norm_and_unembedding_do(monkeypatch, at_once):
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", at_once)
    monkeypatch.setattr(losses, "ROWS_AT_ONCE", 1)
    loaded, given = fresh(), rows(5)
    totals, counts = read_log_probabilities(loaded, given, [0, 1])
    for i, row in enumerate(given):
        with torch.no_grad():
            own = loaded.model(input_ids=torch.tensor([row["input_ids"]]), output_hidden_states=True)
            middle = loaded.model.lm_head(loaded.model.model.norm(own.hidden_states[1][0]))
            wanted = torch.stack([log_probability(middle, row), log_probability(own.logits[0], row)])
        torch.testing.assert_close((totals[i] / counts[i]).float(), wanted, rtol=1e-4, atol=1e-4)


def test_groups_are_read_apart_with_an_interval_and_every_example_of_the_last_layer():
    found = lens(fresh(), {"harmful": rows(5), "harmless": rows(4, REFUSALS)})
    assert [(r.group, r.lens, r.layers, len(r.last)) for r in found] == [
        ("harmful", "raw", (0, 1), 5),
        ("harmless", "raw", (0, 1), 4),
    ]
    one = found[0]
    assert one.log_probability[1].mean == pytest.approx(sum(one.last) / 5)
    assert one.log_probability[1].low < one.log_probability[1].mean < one.log_probability[1].high


def test_a_reader_is_an_affine_map_of_the_state():
    reader = Reader({1: (torch.tensor([[0.0, 2.0], [0.0, 0.0]]), torch.tensor([0.5, -1.0]))})
    states = torch.tensor([[1.0, 10.0]])
    assert reader(1, states).tolist() == [[21.5, 9.0]]
    assert reader(0, states) is states


@pytest.mark.parametrize("target", ["model", "tokens"])
def test_an_untrained_reader_is_the_raw_lens(target):
    loaded, given = fresh(), rows(4)
    raw, _ = read_log_probabilities(loaded, given, [0, 1])
    untrained, _ = read_log_probabilities(loaded, given, [0, 1], trained_reader(loaded, given, target, steps=0))
    assert torch.equal(raw, untrained)


def test_the_tuned_lens_comes_nearer_to_what_the_model_says_and_leaves_it_alone():
    loaded, given = fresh(initializer_range=0.3), rows(16)
    before = copy.deepcopy(loaded.model.state_dict())
    reader = trained_reader(loaded, given, "model", steps=60)
    assert set(reader.maps) == {0}  # After the last layer, it is the model.
    own, counts = read_log_probabilities(loaded, given, [1])
    raw, tuned = (read_log_probabilities(loaded, given, [0], one)[0] for one in (Reader(), reader))
    assert ((tuned - own) / counts[:, None]).abs().mean() < 0.7 * ((raw - own) / counts[:, None]).abs().mean()
    assert all(torch.equal(before[name], value) for name, value in loaded.model.state_dict().items())
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_a_lens_that_is_trained_on_texts_reads_them_from_a_model_that_cannot_say_them():
    loaded, given = fresh(initializer_range=0.3), rows(16)
    reader = trained_reader(loaded, given, "tokens", steps=60)
    assert set(reader.maps) == {0, 1}
    raw, own = (read_log_probabilities(loaded, given, [0, 1], one)[0] for one in (Reader(), reader))
    assert (own.mean(0) > 0.7 * raw.mean(0)).all()
