"""Gradient ascent: pure or not, at the output or at every layer, and the same as RepNoise without noise."""

import math
from dataclasses import replace

import pytest
import torch
from bigram import Bigram, pair
from transformers import LlamaConfig, LlamaForCausalLM

from repnoise.defences import RepNoise
from repnoise.defences.gradient_ascent import GradientAscent
from repnoise.errors import RepnoiseError
from repnoise.losses import IGNORE

REFUSAL, HARM, GENERAL = pair(0, 1), pair(0, 2), pair(1, 2)
TABLE = [[0.0, math.log(2), 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
"""Token 1 follows token 0 with probability 1/2 (and each other with 1/4); all is alike after token 1."""
PURE = GradientAscent(stability_weight=0.0, retain_weight=0.0, log_ascent=False)


@pytest.fixture
def model():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, pad_token_id=1, bos_token_id=2, eos_token_id=3, **size))


def batch(seed, rows=3, prompt=3, completion=4):
    ids = torch.randint(4, 40, (rows, prompt + completion), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, :prompt] = IGNORE
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def test_pure_ascent_by_hand():
    model = Bigram(TABLE)
    loss, terms = PURE.loss(model, REFUSAL, HARM, GENERAL)
    assert set(terms) == {"ascent"} and loss.item() == pytest.approx(-math.log(4))
    loss.backward()
    # Minus the gradient of learning it, in the row of the prompt.
    assert torch.allclose(model.table.grad, torch.tensor([[-0.25, -0.5, 0.75], [0.0] * 3, [0.0] * 3]))


def test_logarithm_divides_the_gradient_by_one_more_than_ascent():
    model = Bigram(TABLE)
    loss, _ = replace(PURE, log_ascent=True).loss(model, REFUSAL, HARM, GENERAL)
    assert loss.item() == pytest.approx(-math.log(1 + math.log(4)))
    loss.backward()
    assert torch.allclose(model.table.grad[0], torch.tensor([-0.25, -0.5, 0.75]) / (1 + math.log(4)))


def test_what_is_kept_is_added_by_its_weights():
    defence = replace(PURE, stability_weight=2.0, retain_weight=3.0)
    loss, terms = defence.loss(Bigram(TABLE), REFUSAL, HARM, GENERAL)
    assert loss.item() == pytest.approx(2 * math.log(2) + 3 * math.log(3) - math.log(4))
    assert set(terms) == {"ascent", "stability", "retain"}


def test_lens_is_the_mean_over_layers_of_what_their_states_say_by_hand(model):
    """With zero layers every state is the embedding, and with a zero head every cross-entropy is ln V."""
    torch.nn.init.zeros_(model.lm_head.weight)
    assert replace(PURE, lens=True).loss(model, batch(1), batch(2))[0].item() == pytest.approx(-math.log(40))


def test_lens_moves_early_layers_by_a_way_of_its_own(model):
    """Without MLP and attention above the first layer, all depths read the same state: lens and output agree."""
    for layer in model.model.layers[1:]:
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    values = [replace(PURE, lens=lens).loss(model, batch(1), batch(2))[0].item() for lens in (False, True)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    torch.nn.init.normal_(model.model.layers[2].mlp.down_proj.weight)
    values = [replace(PURE, lens=lens).loss(model, batch(1), batch(2))[0].item() for lens in (False, True)]
    assert abs(values[0] - values[1]) > 1e-3


@pytest.mark.parametrize("lens", [False, True])
def test_it_is_repnoise_without_noise(model, lens):
    ours = GradientAscent(stability_weight=1.0, retain_weight=0.5, lens=lens)
    theirs = RepNoise(noise_weight=0.0, ascent_weight=1.0, retain_weight=0.5, lens=lens)
    gradients = []
    for defence in (ours, theirs):
        model.zero_grad()
        loss, _ = defence.loss(model, batch(1), batch(2), batch(3))
        loss.backward()
        gradients.append([loss.detach(), *(weight.grad.clone() for weight in model.parameters())])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("lens", [False, True])
def test_a_batch_without_completions_is_refused(model, lens):
    empty = batch(2) | {"labels": torch.full((3, 7), IGNORE)}
    with pytest.raises(RepnoiseError, match="no completion token to learn from"):
        GradientAscent(lens=lens).loss(model, batch(1), empty)
