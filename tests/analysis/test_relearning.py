"""One layer at a time is trained, as a plain loop would train it, and nothing of that is left."""

import copy

import pytest
import torch
from small_models import REFUSALS, fresh, rows

from repnoise.analysis.lens import read_log_probabilities
from repnoise.analysis.relearning import BATCH, LEARNING_RATE, only_trained, relearning
from repnoise.data.mixtures import epochs
from repnoise.data.tokenization import right_padded
from repnoise.defences.base import completion_ce
from repnoise.hidden_states import find_decoder

STEPS = 8
ATTACKER, HELD_OUT = rows(40), rows(6, REFUSALS)


def trained_by_hand(layer, steps):
    """The mean log-probability after an optimiser that was told of one layer (all layers for None) alone."""
    loaded = fresh()
    layers = find_decoder(loaded.model).layers
    chosen = layers if layer is None else [layers[layer]]
    optimizer = torch.optim.AdamW([w for part in chosen for w in part.parameters()], LEARNING_RATE, weight_decay=0.0)
    order = epochs(ATTACKER, STEPS * BATCH, 0)
    for step in range(steps):
        loaded.model.zero_grad()
        completion_ce(loaded.model, right_padded(order[step * BATCH : (step + 1) * BATCH], 0)).backward()
        optimizer.step()
    totals, counts = read_log_probabilities(loaded, HELD_OUT, [1])
    return (totals[:, 0] / counts).mean().item()


def test_each_layer_is_trained_alone_and_all_together():
    found = relearning(fresh(), ATTACKER, HELD_OUT, STEPS)
    assert found.layers == (0, 1) and found.steps == (0, 2, 4, 8)
    for layer, points in [*zip(found.layers, found.log_probability, strict=True), (None, found.together)]:
        by_hand = [trained_by_hand(layer, step) for step in found.steps]
        assert [point.mean for point in points] == pytest.approx(by_hand, rel=1e-5)
    starts = {points[0].mean for points in (*found.log_probability, found.together)}
    assert len(starts) == 1 and found.together[-1].low > found.together[0].mean


def test_afterwards_the_model_is_as_it_was_and_as_open():
    loaded = fresh()
    loaded.model.lm_head.weight.requires_grad_(False)
    before = copy.deepcopy(loaded.model.state_dict())
    relearning(loaded, ATTACKER, HELD_OUT, 2)
    torch.testing.assert_close(loaded.model.state_dict(), before, rtol=0, atol=0)
    closed = [name for name, weight in loaded.model.named_parameters() if not weight.requires_grad]
    assert closed == ["lm_head.weight"] and all(weight.grad is None for weight in loaded.model.parameters())


def test_an_interrupted_training_leaves_nothing_either():
    model = fresh().model
    before, layer = copy.deepcopy(model.state_dict()), find_decoder(model).layers[1]
    with pytest.raises(KeyboardInterrupt), only_trained(model, [layer]) as weights:
        assert {id(w) for w in weights} == {id(w) for w in model.parameters() if w.requires_grad}
        with torch.no_grad():
            weights[0].add_(1)
        raise KeyboardInterrupt
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
