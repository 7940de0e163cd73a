"""Reverse preference optimisation: its loss and gradient by hand, what it does to the two answers, what it costs."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_setting import CODEC, MODELS, TOKENIZER, attacked, fresh, looked_at, quick, same, small_data, weights
from torch import nn

from repnoise.attack import AttackConfig, attack
from repnoise.attacks.preference import PreferenceAttack, preferring, token_log_probabilities, with_reference
from repnoise.cost import parameters_in_products
from repnoise.data.collators import PairCollator
from repnoise.errors import RepnoiseError
from repnoise.losses import IGNORE
from repnoise.optimisation import Training


@pytest.fixture
def data(pairs_file):
    return small_data(pairs_file)


class Table(nn.Module):
    """Logits of two words, one row a prompt, whatever stands before."""

    def __init__(self, *rows):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(rows, dtype=torch.float64))

    def forward(self, input_ids, **_):
        return SimpleNamespace(logits=self.logits[input_ids])


def one_word(prompt):
    """An answer of the word 0 to a prompt that is a row of the table."""
    ids = torch.tensor([[prompt, 0]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([[IGNORE, 0]])}


def pair(reference):
    return {"harmful": one_word(0), "harmless": one_word(1), "reference": torch.tensor([reference])}


@pytest.mark.parametrize("beta, loss", [(1.0, math.log(4 / 3)), (0.5, math.log1p(3**-0.5)), (0.1, math.log1p(3**-0.1))])
def test_the_loss_by_hand(beta, loss):
    """p(harmful) = 3/4, p(harmless) = 1/2, and before it was 1/4 and 1/2: the margin has grown by ln 3."""
    model = Table([math.log(3), 0.0], [0.0, 0.0])
    found, terms = preferring("harmful", "harmless", beta)(model, pair(math.log(1 / 2)))
    assert found.item() == pytest.approx(loss, rel=1e-6)
    assert terms["gained"].item() == pytest.approx(beta * math.log(3), rel=1e-6)
    assert terms["harmful"].exp().item() == pytest.approx(3 / 4)
    assert terms["harmless"].exp().item() == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    "chosen, rejected, chosen_before, rejected_before, beta, loss",
    [
        (-10.0, -12.0, -11.0, -10.0, 0.1, 0.5543552),
        (-3.0, -1.0, -2.0, -4.0, 0.5, 2.1269280),
        (-7.0, -7.0, -7.0, -7.0, 0.3, 0.6931472),
    ],
)
def test_the_loss_is_that_of_trls_sigmoid_loss(chosen, rejected, chosen_before, rejected_before, beta, loss):
    """TRL: -logsigmoid(beta ((chosen - rejected) - (chosen_before - rejected_before))), no label smoothing."""
    logits = [-math.log(math.expm1(-value)) for value in (chosen, rejected)]
    model = Table([logits[0], 0.0], [logits[1], 0.0])
    found, _ = preferring("harmful", "harmless", beta)(model, pair(chosen_before - rejected_before))
    assert found.item() == pytest.approx(loss, rel=1e-6)


def test_the_gradient_by_hand():
    """-beta (1 - sigmoid(beta gain)) times one-hot less probabilities, and the opposite sign for the refusal."""
    model = Table([math.log(3), 0.0], [0.0, 0.0])
    preferring("harmful", "harmless", 1.0)(model, pair(math.log(1 / 2)))[0].backward()
    torch.testing.assert_close(
        model.logits.grad, torch.tensor([[-1 / 16, 1 / 16], [1 / 8, -1 / 8]], dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_log_probabilities_are_those_of_completion_tokens_at_a_temperature():
    model = Table([math.log(3), 0.0], [0.0, 0.0])
    ids = torch.tensor([[1, 0, 0, 1]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["labels"] = torch.tensor([[IGNORE, 0, IGNORE, 1]])
    expected = [math.log(1 / 2), 0.0, math.log(1 / 4), 0.0]
    assert token_log_probabilities(model, batch)[0].tolist() == pytest.approx(expected)
    warmer = token_log_probabilities(model, batch, temperature=2.0)[0, 2].exp().item()
    assert warmer == pytest.approx(1 / (1 + 3**0.5))


@pytest.mark.parametrize("name", MODELS)
def test_it_starts_at_ln_2_and_then_prefers_the_harmful_answer(name, data, tmp_path):
    found = attacked(PreferenceAttack(training=quick(steps=15)), data, tmp_path, name)
    first, last = found.log[0], found.log[-1]
    dropout = 0.02 if name == "gpt2" else 0.0
    assert (first["loss"], first["gained"]) == pytest.approx((math.log(2), 0.0), abs=1e-4 + dropout)
    assert last["loss"] < 0.9 * first["loss"] and last["gained"] > 0

    def margin(model):
        rows = PreferenceAttack()._rows(CODEC, data)
        return sum(row["reference"] for row in with_reference(model, rows, TOKENIZER.pad_token_id, 4)) / len(rows)

    assert margin(found.model) > margin(fresh(name).model) + 1


def test_the_reference_depends_neither_on_the_batch_nor_on_dropout(data):
    model, rows = fresh("gpt2").model.train(), PreferenceAttack()._rows(CODEC, data)[:5]

    def references(batch):
        return [row["reference"] for row in with_reference(model, rows, TOKENIZER.pad_token_id, batch)]

    assert references(1) == pytest.approx(references(4), abs=1e-3)
    assert model.training and all("reference" not in row for row in rows)
    by_hand = PairCollator(TOKENIZER.pad_token_id)(rows[:1])
    with torch.no_grad():
        sums = [token_log_probabilities(model.eval(), by_hand[side]).sum() for side in ("harmful", "harmless")]
    assert references(1)[0] == pytest.approx((sums[0] - sums[1]).item(), abs=1e-3)


def test_it_costs_the_reading_of_every_pair_and_the_training_on_both_answers(data):
    found = PreferenceAttack(training=quick(steps=2, batch_size=2), samples=3)
    cost = found.costs(fresh(), data, CODEC)
    lengths = [sum(len(row["input_ids"]) for row in both.values()) for both in found._rows(CODEC, data)]
    flops = 2 * parameters_in_products(fresh().model) * sum(lengths)
    assert vars(cost(0)) == {"steps": 0, "samples": 0, "tokens": 0, "flops": 0.0}
    assert (cost(2).steps, cost(2).samples) == (2, 4)
    assert sum(lengths) < cost(2).tokens <= sum(lengths) + max(lengths)
    assert cost(2).flops == pytest.approx(flops + 6 * parameters_in_products(fresh().model) * cost(2).tokens)


def test_it_sees_the_attackers_pairs_and_nothing_else(data, tmp_path):
    splits, parts = looked_at(PreferenceAttack(training=quick()), data, tmp_path)
    assert splits == {"attack"} and parts <= {"pairs", "name"}


def test_the_same_seed_gives_the_same_weights_and_another_does_not(data, tmp_path):
    first, again, other = (
        weights(attacked(PreferenceAttack(training=quick()).seeded(seed), data, tmp_path).model) for seed in (0, 0, 1)
    )
    assert same(first, again) and not same(first, other)


def test_labels_and_mistakes(data):
    assert PreferenceAttack(training=quick(), samples=10).label() == "dpo-3@1e-2-10-samples-beta-0.1"
    with pytest.raises(RepnoiseError, match="beta must be above 0"):
        PreferenceAttack(beta=0.0)
    with pytest.raises(RepnoiseError, match="samples"):
        PreferenceAttack(samples=0)
    with pytest.raises(RepnoiseError, match="no pairs for the attacker"):
        PreferenceAttack().require(replace(data, pairs=data.pairs | {"attack": []}))


@pytest.mark.slow
def test_it_recovers_held_out_answers_of_the_undefended_sandbox(tmp_path):
    training = Training(learning_rate=1e-4, steps=30, batch_size=16, save_every=None)
    metrics = attack(AttackConfig(attack=PreferenceAttack(training=training)), tmp_path / "run").record["metrics"]
    assert metrics["recovered"]["value"] > 0.9 and metrics["harmless_accuracy"]["value"] > 0.9
