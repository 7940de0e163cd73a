"""Vaccine perturbs attention outputs along the gradient, by rho in all layers together, and trains under that."""

import math
from types import SimpleNamespace

import pytest
import torch
from bigram import Stack, pair
from transformers import LlamaConfig, LlamaForCausalLM

from repnoise.defences.safety_training import SafetyTraining
from repnoise.defences.vaccine import Vaccine, gradient_by_outputs, scaled, shifted
from repnoise.hidden_states import find_decoder
from repnoise.losses import IGNORE, causal_ce
from repnoise.modeling import with_activation_checkpointing

REFUSAL, HARM = pair(0, 0), pair(0, 1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=40, pad_token_id=1, bos_token_id=2, eos_token_id=3, **size)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def batch(seed, rows=3, prompt=3, completion=4):
    ids = torch.randint(4, 40, (rows, prompt + completion), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, :prompt] = IGNORE
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def attention(model):
    decoder = find_decoder(model)
    return decoder.modules_at("attention", range(len(decoder.layers)))


def terms_of(defence, model):
    loss, terms = defence.loss(model, batch(1), batch(2), batch(3))
    return loss, SimpleNamespace(**{name: term.item() for name, term in terms.items()})


@pytest.mark.parametrize("rho", [0.5, 2.0])
def test_loss_by_hand_on_layers_that_add_up(rho):
    """Logits (0, 0), right answer 0: the gradient by each of four layers is (-1/2, 1/2). All four have norm sqrt(2), so
    each is pushed by rho / sqrt(2) times that, and the logits are rho sqrt(2) (-1, 1)."""
    loss, terms = Vaccine(perturbation_radius=rho).loss(Stack(1.0, 1.0, 1.0, 1.0), REFUSAL, HARM)
    assert terms["stability"].item() == pytest.approx(math.log(2))
    assert loss.item() == pytest.approx(math.log1p(math.exp(2 * math.sqrt(2) * rho)))


def test_gradient_by_hand_is_taken_under_the_perturbation_that_counts_as_constant():
    model = Stack(1.0, 1.0, 1.0, 1.0)
    Vaccine(perturbation_radius=1.0).loss(model, REFUSAL, HARM)[0].backward()
    wrong = 1 / (1 + math.exp(-2 * math.sqrt(2)))  # The probability of the wrong answer under the perturbation.
    for layer in model.layers:
        assert torch.allclose(layer.self_attn.weight.grad, torch.tensor([-wrong, wrong]))


def test_a_layer_that_matters_more_is_pushed_further():
    """Scales 3 and 4: gradients (3, 4) (-1/2, 1/2), together 5 / sqrt(2) long; the logits move by 5 rho / sqrt(2)."""
    loss, _ = Vaccine(perturbation_radius=0.5).loss(Stack(3.0, 4.0), REFUSAL, HARM)
    assert loss.item() == pytest.approx(math.log1p(math.exp(math.sqrt(2) * 5 * 0.5)))


def test_the_perturbation_of_all_layers_together_is_rho_long_and_one_of_nothing_is_nothing(model):
    _, gradients = gradient_by_outputs(model, batch(1), attention(model))
    eps = scaled(gradients, 3.0)
    assert torch.cat([part.flatten() for part in eps]).norm().item() == pytest.approx(3.0, rel=1e-5)
    zeros = [torch.zeros(2, 3), torch.zeros(4)]
    assert all(torch.equal(part, zero) for part, zero in zip(scaled(zeros, 3.0), zeros, strict=True))


def test_gradient_is_that_by_the_attention_outputs(model):
    """A shift of one coordinate changes the cross-entropy by what the gradient says."""
    ce, gradients = gradient_by_outputs(model, batch(1), attention(model))
    for layer, place in ((0, (0, 1, 2)), (2, (2, 4, 7))):
        shifts = [torch.zeros_like(gradient) for gradient in gradients]
        shifts[layer][place] = 1e-2
        with torch.no_grad(), shifted(attention(model), shifts):
            moved = causal_ce(model(batch(1)["input_ids"]).logits, batch(1)["labels"])
        assert (moved - ce).item() / 1e-2 == pytest.approx(gradients[layer][place].item(), rel=0.05, abs=1e-4)


def test_no_other_direction_of_that_length_raises_the_loss_as_much(model):
    _, gradients = gradient_by_outputs(model, batch(1), attention(model))
    rho = 0.05
    worst = terms_of(Vaccine(perturbation_radius=rho), model)[1]
    length = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    assert worst.perturbed - worst.stability == pytest.approx(rho * length, rel=0.1)
    for seed in range(10):
        torch.manual_seed(seed)
        other = scaled([torch.randn_like(gradient) for gradient in gradients], rho)
        with torch.no_grad(), shifted(attention(model), other):
            assert causal_ce(model(batch(1)["input_ids"]).logits, batch(1)["labels"]).item() < worst.perturbed


def gradients_of(defence, model):
    model.zero_grad()
    defence.loss(model, batch(1), batch(2), batch(3))[0].backward()
    return [weight.grad.clone() for weight in model.parameters()]


def close(these, those):
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(these, those, strict=True))


def test_with_no_radius_it_is_safety_training_and_otherwise_not(model):
    expected = gradients_of(SafetyTraining(retain_weight=0.5), model)
    assert close(gradients_of(Vaccine(perturbation_radius=0.0, retain_weight=0.5), model), expected)
    assert not close(gradients_of(Vaccine(perturbation_radius=1.0, retain_weight=0.5), model), expected)


def test_general_data_are_added_by_weight_and_not_perturbed(model):
    loss, terms = terms_of(Vaccine(perturbation_radius=2.0, retain_weight=3.0), model)
    assert loss.item() == pytest.approx(terms.perturbed + 3 * terms.retain, rel=1e-5)
    general = causal_ce(model(batch(3)["input_ids"]).logits, batch(3)["labels"])
    assert terms.retain == pytest.approx(general.item(), rel=1e-5)


def test_recomputed_activations_are_perturbed_too(model):
    """A trainer's backward pass comes when no hook is there any more."""
    expected = gradients_of(Vaccine(perturbation_radius=5.0), model)
    with with_activation_checkpointing(model.train(), True):
        assert close(gradients_of(Vaccine(perturbation_radius=5.0), model), expected)
