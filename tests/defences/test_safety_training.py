"""Additional safety training is the cross-entropy of what is to be kept, and of nothing else."""

import math

import pytest
import torch
from bigram import Bigram, pair

from repnoise.defences.safety_training import SafetyTraining

REFUSAL, HARM, GENERAL = pair(0, 1), pair(0, 2), pair(1, 2)
TABLE = [[0.0, math.log(2), 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
"""Token 1 follows token 0 with probability 1/2 (and each other with 1/4); all is alike after token 1."""


def test_loss_is_the_weighted_sum_by_hand():
    loss, terms = SafetyTraining(retain_weight=3.0).loss(Bigram(TABLE), REFUSAL, HARM, GENERAL)
    assert loss.item() == pytest.approx(math.log(2) + 3 * math.log(3))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"stability": math.log(2), "retain": math.log(3)}
    )


@pytest.mark.parametrize("defence, retain", [(SafetyTraining(retain_weight=0.0), GENERAL), (SafetyTraining(), None)])
def test_without_general_data_or_weight_there_are_refusals_alone(defence, retain):
    loss, terms = defence.loss(Bigram(TABLE), REFUSAL, HARM, retain)
    assert loss.item() == pytest.approx(math.log(2)) and set(terms) == {"stability"}


def test_gradient_by_hand_is_that_of_refusals_and_harm_is_not_looked_at():
    model = Bigram(TABLE)
    SafetyTraining(retain_weight=0.0).loss(model, REFUSAL, HARM, None)[0].backward()
    # Probabilities less the refusal's token, in the row of the prompt.
    assert torch.allclose(model.table.grad, torch.tensor([[0.25, -0.5, 0.25], [0.0] * 3, [0.0] * 3]))
