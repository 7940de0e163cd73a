"""Booster: its gradient by hand on a model that is one row of logits, and that real models come back as they were."""

import pytest
import torch
from one_row import OneRow, batch_of, shares
from tiny_decoders import DECODERS, example_batch, weights_of

from repnoise.defences.base import completion_ce
from repnoise.defences.booster import Booster
from repnoise.defences.inner_steps import gradients_of, moved_for_a_while, open_parameters
from repnoise.errors import RepnoiseError
from repnoise.modeling import with_activation_checkpointing, with_lora

HARMLESS, HARMFUL, RETAIN = [[0, 1, 1]], [[2, 2, 3], [3, 2, 2]], [[1, 1]]


def test_the_gradient_by_hand():
    """grad f + lambda (grad h(w) - grad h(w - alpha g / |g|)); the gradient of a cross-entropy is p - shares."""
    model = OneRow([0.3, -0.2, 0.5, 0.0])
    loss, terms = Booster(2.0, 0.7, retain_weight=3.0).loss(
        model, batch_of(HARMLESS), batch_of(HARMFUL), batch_of(RETAIN)
    )
    loss.backward()
    w, f, h, r = model.start, shares(HARMLESS), shares(HARMFUL), shares(RETAIN)
    here = w.softmax(0) - h
    moved = w - 0.7 * here / here.norm()
    there = moved.softmax(0) - h
    expected = (w.softmax(0) - f) + 3 * (w.softmax(0) - r) + 2 * (here - there)
    assert torch.allclose(model.row.grad, expected, atol=1e-6)
    gained = (w.logsumexp(0) - w @ h) - (moved.logsumexp(0) - moved @ h)
    assert terms["gained"].item() == pytest.approx(gained.item(), abs=1e-6)
    assert terms["harmful"].item() == pytest.approx((w.logsumexp(0) - w @ h).item(), abs=1e-6)
    kept = (w.logsumexp(0) - w @ f) + 3 * (w.logsumexp(0) - w @ r)
    assert loss.item() == pytest.approx((kept + 2 * gained).item(), abs=1e-5)


def test_a_small_step_gains_its_length_times_the_gradients_norm():
    model = OneRow([0.3, -0.2, 0.5, 0.0])
    _, terms = Booster(step_size=1e-2).loss(model, batch_of(HARMLESS), batch_of(HARMFUL))
    norm = (model.start.softmax(0) - shares(HARMFUL)).norm().item()
    assert terms["gained"].item() == pytest.approx(1e-2 * norm, rel=1e-2)


@pytest.mark.parametrize("name", DECODERS)
def test_weights_and_gradients_that_were_there_stay_as_they_were(name):
    """A loss of an accumulated batch must leave the gradients of the one before alone."""
    model = DECODERS[name]()
    Booster().loss(model, example_batch(1), example_batch(2))[0].backward()
    before, gradients = weights_of(model), [parameter.grad.clone() for parameter in model.parameters()]
    loss, _ = Booster().loss(model, example_batch(1), example_batch(2))
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(model), strict=True))
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    loss.backward()
    assert all(torch.allclose(p.grad, 2 * g) for p, g in zip(model.parameters(), gradients, strict=True))


@pytest.mark.parametrize("name", DECODERS)
def test_frozen_weights_do_not_move_and_adapters_do(name):
    torch.manual_seed(0)
    model = with_lora(DECODERS[name](), 2, 4)
    _, terms = Booster(step_size=1.0).loss(model, example_batch(1), example_batch(2))
    assert terms["gained"] > 0
    assert all("lora_" in key for key, weight in model.named_parameters() if weight.requires_grad)


def test_moved_weights_are_seen_under_autocast():
    """Which keeps copies of the weights in 16 bits, of before they moved."""
    model = DECODERS["llama"]()
    expected = Booster(step_size=3.0).loss(model, example_batch(1), example_batch(2))[1]["gained"].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**{key: example_batch(1)[key] for key in ("input_ids", "attention_mask")})  # Fills its cache.
        loss, terms = Booster(step_size=3.0).loss(model, example_batch(1), example_batch(2))
        assert completion_ce(model, example_batch(2)).item() == pytest.approx(terms["harmful"].item(), rel=1e-3)
    loss.backward()
    assert terms["gained"].item() == pytest.approx(expected, rel=0.1) and expected > 0.1


def test_checkpointed_activations_are_made_again_from_the_moved_weights():
    found = []
    for checkpointed in (False, True):
        model = DECODERS["llama"]().train()
        with with_activation_checkpointing(model, checkpointed):
            Booster(step_size=3.0).loss(model, example_batch(1), example_batch(2))[0].backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.allclose(plain, again, atol=1e-6) for plain, again in zip(*found, strict=True))


def test_weights_come_back_after_an_error():
    model = DECODERS["llama"]()
    before = weights_of(model)
    with pytest.raises(ZeroDivisionError), moved_for_a_while(open_parameters(model)):
        for parameter in model.parameters():
            parameter.data.zero_()
        _ = 1 / 0
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(model), strict=True))


def test_a_weight_that_the_loss_does_not_depend_on_has_no_gradient():
    used, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    here, nowhere = gradients_of((3 * used).sum(), [used, unused])
    assert here is not None and here.tolist() == [3, 3] and nowhere is None and used.grad is None


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_steps_are_refused(wrong):
    with pytest.raises(RepnoiseError, match="step_size must be above 0"):
        Booster(step_size=wrong)
