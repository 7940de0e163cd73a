"""A model that knows the answers gives nearly all bits, one that knows nothing none."""

import math

import pytest
import torch
from small_models import CODEC, QUESTIONS, fresh

from repnoise.analysis.answers import Calibration, answer_bits, calibrated, different_answers
from repnoise.analysis.lens import Reader
from repnoise.errors import RepnoiseError
from repnoise.inputs import Inputs
from repnoise.modeling import randomly_initialised


@pytest.fixture(scope="module")
def sandbox():
    loaded, data, codec = Inputs().open()
    known = [(e.prompt, e.completion) for e in data.harmless_test]
    return loaded, codec, different_answers(known, 8), different_answers(known[::-1], 8, seed=3)


def test_what_a_model_can_say_is_recovered_to_the_last_bit(sandbox):
    loaded, codec, questions, others = sandbox
    found = answer_bits(loaded, codec, "harmless", questions, Reader(), calibrated(loaded, codec, others, Reader()))
    assert found.entropy == 3 and found.layers == tuple(range(6))
    assert 2.99 < found.bits[-1].mean <= 3 and found.right[-1] == 1
    assert found.bits[0].mean < found.bits[-1].mean
    assert found.shuffled[-1] < 0


def test_a_model_that_never_learned_anything_gives_no_bits(sandbox):
    loaded, codec, questions, others = sandbox
    empty = randomly_initialised(loaded, 0)
    temperatures = calibrated(empty, codec, others, Reader())
    found = answer_bits(empty, codec, "harmless", questions, Reader(), temperatures)
    assert all(bits.mean < 0.3 for bits in found.bits)


def test_at_an_infinite_temperature_all_answers_are_equally_likely():
    loaded = fresh()
    found = answer_bits(loaded, CODEC, "any", QUESTIONS[:4], Reader(), Calibration((1,), (math.inf,)))
    assert found.bits[0].mean == pytest.approx(0, abs=1e-9) and found.shuffled[0] == pytest.approx(0, abs=1e-9)


def test_a_bit_is_a_log2_of_the_posterior_less_that_of_guessing():
    """From the log-probabilities that the model itself gives, one row by itself at a time."""
    loaded, questions = fresh(initializer_range=0.3), QUESTIONS[:3]
    found = answer_bits(loaded, CODEC, "any", questions, Reader(), Calibration((1,), (2.0,)))
    scores = torch.zeros(3, 3, dtype=torch.float64)
    for i, (prompt, _) in enumerate(questions):
        for j, (_, answer) in enumerate(questions):
            row = CODEC.row(prompt, answer)
            with torch.no_grad():
                own = loaded.model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]]))
            scores[i, j] = -own.loss.double() * sum(label >= 0 for label in row["labels"])
    posterior = ((scores - scores.mean(0)) / 2).softmax(1)
    wanted = sum(math.log2(3 * posterior[i, i]) for i in range(3)) / 3
    assert found.bits[0].mean == pytest.approx(wanted, abs=1e-3)


def test_no_two_questions_share_an_answer_or_a_prompt():
    given = [("a", "1"), ("b", "1"), ("a", "2"), ("c", "3"), ("d", "4")]
    found = different_answers(given, 10)
    assert len({p for p, _ in found}) == len({a for _, a in found}) == len(found) >= 3
    assert len(different_answers(given, 2)) == 2
    with pytest.raises(RepnoiseError, match="different answers"):
        calibrated(fresh(), CODEC, [("a", "1"), ("b", "1")], Reader())
