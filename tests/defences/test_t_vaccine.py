"""T-Vaccine draws layers by what harmful data do to them, perturbs those and trains those."""

import math
from dataclasses import replace

import pytest
import torch
from bigram import Stack, pair

from repnoise.defences.t_vaccine import TVaccine
from repnoise.defences.vaccine import gradient_by_outputs
from repnoise.errors import RepnoiseError
from repnoise.hidden_states import find_decoder

REFUSAL, HARM = pair(0, 0), pair(0, 1)
ONE = TVaccine(perturbation_radius=0.5, sampled_layers=1)


def trained(model):
    return tuple(i for i, layer in enumerate(model.layers) if layer.self_attn.weight.grad is not None)


def step(defence, model, retain=None):
    for parameter in model.parameters():
        parameter.grad = None
    loss, terms = defence.loss(model, REFUSAL, HARM, retain)
    loss.backward()
    return loss.item(), terms


@pytest.mark.parametrize("freeze_others", [True, False])
def test_loss_by_hand_is_that_of_the_layer_that_was_drawn(freeze_others):
    """Pushed by rho along (-1, 1) / sqrt(2), a layer of scale a moves the logits by a rho (-1, 1) / sqrt(2)."""
    model, defence = Stack(1.0, 3.0), replace(ONE, freeze_others=freeze_others)
    values = [math.log1p(math.exp(math.sqrt(2) * scale * 0.5)) for scale in (1, 3)]
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        loss, terms = step(defence, model)
        (drawn,) = [i for i, value in enumerate(values) if loss == pytest.approx(value)]
        assert trained(model) == ((drawn,) if freeze_others else (0, 1))
        assert terms["harmful"].item() == pytest.approx(math.log(2))
        seen.add(drawn)
    assert seen == {0, 1}


def test_layers_are_drawn_by_the_length_of_the_harmful_gradient():
    """Gradients by layers of scale 1 and 3 are as 1 to 3: the second is drawn in three of four steps."""
    decoder = find_decoder(model := Stack(1.0, 3.0))
    _, gradients = gradient_by_outputs(model, HARM, decoder.modules_at("attention", (0, 1)))
    torch.manual_seed(0)
    share = sum(ONE._drawn(decoder, gradients) == [1] for _ in range(2000)) / 2000
    assert share == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 2000))  # Four standard errors.


def test_it_is_the_harmful_gradient_that_counts():
    """Refusals that are learned have no gradient left, and still the layers are drawn as harm has it."""
    model = Stack(0.0, 1.0)
    with torch.no_grad():
        model.layers[1].self_attn.weight.copy_(torch.tensor([60.0, -60.0]))
    torch.manual_seed(0)
    for _ in range(10):
        step(ONE, model)
        assert trained(model) == (1,)


def test_several_layers_share_one_radius_and_none_is_drawn_twice():
    """Two layers of scale 3 and 4, both drawn: together they move the logits by 5 rho / sqrt(2), as in Vaccine."""
    for wanted in (2, 8):
        loss, _ = step(replace(ONE, sampled_layers=wanted), Stack(3.0, 4.0))
        assert loss == pytest.approx(math.log1p(math.exp(math.sqrt(2) * 5 * 0.5)))


def test_general_data_train_the_same_layers_and_are_not_perturbed():
    model = Stack(1.0, 3.0)
    torch.manual_seed(0)
    plain, _ = step(ONE, model)
    torch.manual_seed(0)
    loss, terms = step(replace(ONE, retain_weight=2.0), model, retain=pair(1, 0))
    assert terms["retain"].item() == pytest.approx(math.log(2))
    assert loss == pytest.approx(plain + 2 * math.log(2))
    assert len(trained(model)) == 1


def test_what_is_in_no_layer_is_closed_at_the_beginning_unless_all_are_trained():
    for defence, closed in ((ONE, True), (replace(ONE, freeze_others=False), False)):
        model = Stack(1.0, 3.0)
        model.head = torch.nn.Linear(2, 2)
        defence.begin(model)
        assert all(weight.requires_grad != closed for weight in model.head.parameters())
        assert all(weight.requires_grad for weight in model.layers.parameters())


def test_frozen_layers_are_never_drawn():
    model = Stack(1.0, 3.0)
    model.layers[1].requires_grad_(False)
    torch.manual_seed(0)
    for _ in range(10):
        step(ONE, model)
        assert trained(model) == (0,)
    model.layers[0].requires_grad_(False)
    with pytest.raises(RepnoiseError, match="all of them are frozen"):
        ONE.loss(model, REFUSAL, HARM)


def test_no_layer_at_all_is_refused():
    with pytest.raises(RepnoiseError, match="sampled_layers must be at least 1"):
        TVaccine(sampled_layers=0)
