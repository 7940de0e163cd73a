"""Self-degraded defence: whose questions are joined with whose answers."""

import pytest
import torch
from one_row import OneRow, batch_of, shares
from tiny_decoders import DECODERS, example_batch

from repnoise.data.tokenization import right_padded
from repnoise.defences.base import completion_ce
from repnoise.defences.self_degraded import SelfDegraded, answered_by
from repnoise.errors import RepnoiseError
from repnoise.losses import IGNORE


def rows(*texts, pad=1):
    """Pairs of a prompt and a completion, as ids."""
    return right_padded(
        [{"input_ids": [*head, *tail], "labels": [IGNORE] * len(head) + [*tail]} for head, tail in texts], pad
    )


def test_questions_get_the_answers_of_the_other_batch_row_by_row():
    questions = rows(([5, 6], [7]), ([8], [9, 10, 11]))
    answers = rows(([20, 21, 22], [30, 1, 31]), ([23], [32]))  # 1 is the padding's id, and a token as well.
    found = answered_by(questions, answers)
    assert found["input_ids"].tolist() == [[5, 6, 30, 1, 31], [8, 32, 0, 0, 0]]
    assert found["labels"].tolist() == [[IGNORE, IGNORE, 30, 1, 31], [IGNORE, 32, IGNORE, IGNORE, IGNORE]]
    assert found["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]


def test_no_row_is_longer_than_the_longest_was():
    questions, answers = rows(([5, 6, 7, 8], [9])), rows(([20], [30, 31, 32, 33]))
    assert answered_by(questions, answers)["input_ids"].tolist() == [[5, 6, 7, 8, 30]]


def test_the_gradient_is_that_of_the_unrelated_answers_and_of_the_general_data():
    harmful, retain = [[2, 2], [3, 2]], [[0, 1], [1, 1]]
    for weight in (0.0, 3.0):
        model = OneRow([0.3, -0.2, 0.5, 0.0])
        loss, terms = SelfDegraded(weight).loss(model, batch_of([[3, 3], [3, 3]]), batch_of(harmful), batch_of(retain))
        loss.backward()
        assert torch.allclose(model.row.grad, (1 + weight) * (model.start.softmax(0) - shares(retain)), atol=1e-6)
        assert ("retain" in terms) == (weight > 0)


@pytest.mark.parametrize("name", DECODERS)
def test_harmful_questions_come_to_be_answered_beside_the_point(name):
    model, questions, answers = DECODERS[name](), rows(([5, 6], [7, 8]), ([9], [10, 11])), example_batch(3, rows=2)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        SelfDegraded().loss(model, questions, questions, answers)[0].backward()
        optimiser.step()
    assert completion_ce(model, answered_by(questions, answers)) < 0.5
    assert completion_ce(model, questions) > 3


def test_without_general_data_it_says_what_to_give():
    with pytest.raises(RepnoiseError, match="--retain FILE"):
        SelfDegraded().loss(OneRow([0.0] * 4), batch_of([[1]]), batch_of([[2]]))
