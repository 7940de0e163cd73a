"""Adversarial loss lowers one cross-entropy and raises the other."""

import math

import pytest
import torch
from bigram import Bigram, pair

from repnoise.defences.adversarial_loss import AdversarialLoss

REFUSAL, HARM, GENERAL = pair(0, 1), pair(0, 2), pair(1, 2)
TABLE = [[0.0, math.log(2), 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
"""Token 1 follows token 0 with probability 1/2 (and each other with 1/4); all is alike after token 1."""


def test_loss_by_hand():
    defence = AdversarialLoss(ascent_weight=0.5, retain_weight=2.0)
    loss, terms = defence.loss(Bigram(TABLE), REFUSAL, HARM, GENERAL)
    assert loss.item() == pytest.approx(math.log(2) + 2 * math.log(3) - 0.5 * math.log(4))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"stability": math.log(2), "retain": math.log(3), "ascent": math.log(4)}
    )


def test_gradient_by_hand_pulls_refusals_up_and_pushes_harm_down():
    model = Bigram(TABLE)
    AdversarialLoss(ascent_weight=0.5, retain_weight=0.0).loss(model, REFUSAL, HARM)[0].backward()
    # (p - refusal) - 0.5 (p - harm) with p = (1/4, 1/2, 1/4): it sums to 0, and only the prompt's row has any.
    assert torch.allclose(model.table.grad[0], torch.tensor([0.125, -0.75, 0.625]))
    assert torch.equal(model.table.grad[1:], torch.zeros(2, 3))


def test_it_has_no_bound_below():
    """What is known of it: the loss falls for ever, by the weight of ascent for each nat."""
    values = []
    for logit in (-100.0, -200.0):
        model = Bigram([[0.0, 0.0, logit], [0.0] * 3, [0.0] * 3])
        values.append(AdversarialLoss(ascent_weight=0.1).loss(model, REFUSAL, HARM)[0].item())
    assert values[1] - values[0] == pytest.approx(-10.0, rel=1e-5)
