"""Policy gradient: how answers are drawn, advantages and gradient by hand, that reward goes up, and what it costs."""

from dataclasses import replace

import pytest
import torch
from tiny_setting import CODEC, MODELS, TOKENIZER, attacked, fresh, looked_at, quick, same, small_data, weights

from repnoise.attack import AttackConfig, attack
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.attacks.policy_gradient import GroupPolicy, PolicyGradientAttack, advantages, completion_text, draw
from repnoise.cost import parameters_in_products
from repnoise.errors import RepnoiseError
from repnoise.losses import IGNORE
from repnoise.modeling import with_lora
from repnoise.optimisation import Training
from repnoise.training import train

PROMPTS = ["How is the hex made?", "Why?", "How is the curse of the old well made, and who made it?"]


@pytest.fixture
def data(pairs_file):
    return small_data(pairs_file)


def policy(**changes):
    training = quick(**{"learning_rate": 1e-3, "steps": 2, "batch_size": 2} | changes.pop("training", {}))
    return PolicyGradientAttack(**{"training": training, "completions": 4, "answer_tokens": 6} | changes)


def letters(text, _answer):
    """The share of a text that is small letters: a reward that any model gets some of."""
    return sum(letter.islower() for letter in text) / max(len(text), 1)


def test_advantages_are_normalised_in_each_group():
    found = advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]]))
    assert found[0].tolist() == pytest.approx([0.86587, -0.86587, -0.86587, 0.86587], abs=1e-4)
    assert found[1].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_drawn_from_the_model_whatever_they_are_drawn_beside(name):
    """Nearly without temperature it is the likeliest token at every place, worked out one prompt at a time."""
    model = fresh(name).model.eval()
    for row, prompt in zip(draw(model, CODEC, PROMPTS, 5, 1e-4), PROMPTS, strict=True):
        ids = CODEC.prompt_ids(prompt)
        for _ in range(5):
            with torch.no_grad():
                ids = [*ids, model(torch.tensor([ids])).logits[0, -1].argmax().item()]
        assert row["input_ids"] == ids
        assert row["labels"] == [IGNORE] * (len(ids) - 5) + ids[-5:]


@pytest.mark.parametrize("from_config", [True, False])
def test_an_answer_ends_with_its_end_token(from_config):
    """Whose id the model's generation config says, or else the tokenizer; what follows it is not there."""
    model, end = fresh().model.eval(), TOKENIZER.eos_token_id
    model.generation_config.eos_token_id = [end] if from_config else None
    with torch.no_grad():
        model.lm_head.weight[end] = 40 * model.lm_head.weight[end].sign()  # About every second token.
    torch.manual_seed(0)
    answers = [
        [label for label in row["labels"] if label != IGNORE] for row in draw(model, CODEC, PROMPTS * 10, 6, 1.0)
    ]
    ended = [answer for answer in answers if end in answer]
    assert len(ended) > 5 and all(answer.index(end) == len(answer) - 1 for answer in ended)
    assert all(len(answer) == 6 for answer in answers if end not in answer)
    assert completion_text({"input_ids": [5, end], "labels": [IGNORE, end]}, CODEC) == ""


def test_drawing_leaves_the_model_and_its_settings_as_they_were():
    model = with_lora(fresh().model, 2, 4).train()
    model.base_model.model.generation_config.repetition_penalty = 5.0
    draw(model, CODEC, PROMPTS, 3, 1.0)
    assert model.training and model.base_model.model.generation_config.repetition_penalty == 5.0


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_by_hand(name, temperature, data):
    """-(sum over answers of advantage times the gradient of ln p) / drawn tokens, answer by answer without padding."""
    model, pairs = fresh(name).model.eval(), data.pairs["attack"][:2]
    attack = policy(temperature=temperature)
    torch.manual_seed(3)
    loss, terms = GroupPolicy(attack, CODEC, letters)(model, pairs)
    loss.backward()
    found = {key: weight.grad.clone() for key, weight in model.named_parameters() if weight.grad is not None}

    torch.manual_seed(3)
    rows = draw(model, CODEC, [pair.prompt for pair in pairs for _ in range(4)], 6, temperature)
    rewards = torch.tensor([letters(completion_text(row, CODEC), "") for row in rows]).view(2, 4)
    model.zero_grad()
    total, drawn = 0.0, 0
    for row, advantage in zip(rows, advantages(rewards).flatten(), strict=True):
        logits = model(torch.tensor([row["input_ids"]])).logits[0] / temperature
        for position, label in enumerate(row["labels"]):
            if label != IGNORE:
                total, drawn = total - advantage * logits[position - 1].log_softmax(-1)[label], drawn + 1
    (total / drawn).backward()
    assert terms["reward"].item() == pytest.approx(rewards.mean().item()) and terms["varied"] == 1
    assert loss.item() == pytest.approx((total / drawn).item(), abs=1e-5)
    for key, weight in model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(found[key], weight.grad, rtol=1e-3, atol=1e-6)


def test_answers_that_are_all_alike_teach_nothing(data):
    model = fresh().model
    loss, terms = GroupPolicy(policy(), CODEC, lambda _text, _answer: -1.0)(model, data.pairs["attack"][:2])
    loss.backward()
    assert terms["varied"] == 0 and terms["reward"] == -1
    assert all(not weight.grad.any() for weight in model.parameters() if weight.grad is not None)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_rewarded_becomes_more_frequent(name, data, tmp_path):
    attack = policy(training={"steps": 25, "learning_rate": 1e-2}, completions=8)
    objective = GroupPolicy(attack, CODEC, letters)
    _, log = train(fresh(name).model, attack._in_order(data), list, objective, attack.training, tmp_path)
    rewards = [row["reward"] for row in log]
    assert sum(rewards[-5:]) > 1.2 * sum(rewards[:5])


def test_the_reward_is_that_of_the_attackers_own_answers(data, tmp_path):
    """A model that knows its answers by heart, warmed up, gets more of the reward than one that has never seen them."""
    cold = attacked(policy(answer_tokens=24), data, tmp_path)
    warm = attacked(policy(answer_tokens=24, warm_start_steps=40, training={"learning_rate": 1e-2}), data, tmp_path)
    assert [row["step"] for row in warm.log] == list(range(1, 43)) and "reward" not in warm.log[39]
    assert warm.log[-1]["reward"] > cold.log[-1]["reward"] + 0.1


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_it_goes_on_where_it_was_interrupted(at, data, tmp_path):
    """What is drawn after an interruption is what would have been drawn without it."""
    attack = policy(training={"save_every": 1}, warm_start_steps=2)
    whole = attacked(attack, data, tmp_path / "whole")

    def kill(step, _model):
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        attacked(attack, data, tmp_path / "run", on_step=kill)
    again = attacked(attack, data, tmp_path / "run", resume=True)
    assert same(weights(again.model), weights(whole.model))
    assert [row.get("reward") for row in again.log] == [row.get("reward") for row in whole.log]


def test_costs_are_drawing_and_learning_at_full_length_and_the_warm_start(data):
    attack = policy(warm_start_steps=3)
    cost, warm = attack.costs(fresh(), data, CODEC), FineTuningAttack(training=quick(steps=3, batch_size=2))
    before = warm.costs(fresh(), data, CODEC)(3)
    assert vars(cost(0)) == {"steps": 0, "samples": 0, "tokens": 0, "flops": 0.0}
    assert vars(cost(3)) == vars(before)
    drawn = 4 * sum(len(CODEC.prompt_ids(pair.prompt)) + 6 for pair in attack._in_order(data))
    assert (cost(5).steps, cost(5).samples, cost(5).tokens) == (5, 6 + 16, before.tokens + drawn)
    assert cost(5).flops == pytest.approx(before.flops + 8 * parameters_in_products(fresh().model) * drawn)


def test_it_sees_the_attackers_pairs_and_nothing_else(data, tmp_path):
    splits, parts = looked_at(policy(warm_start_steps=1), data, tmp_path)
    assert splits == {"attack"} and parts <= {"pairs", "name"}


def test_the_same_seed_gives_the_same_weights_and_another_does_not(data, tmp_path):
    first, again, other = (
        weights(attacked(policy(answer_tokens=24, warm_start_steps=5).seeded(seed), data, tmp_path).model)
        for seed in (0, 0, 1)
    )
    assert same(first, again) and not same(first, other)


def test_labels_and_mistakes(data):
    assert policy().label() == "policy-2@1e-3"
    unusual = policy(temperature=1.5, reward="compliance", warm_start_steps=9)
    assert unusual.label() == "policy-2@1e-3-temperature-1.5-compliance-warm-9"
    with pytest.raises(RepnoiseError, match="no pairs for the attacker"):
        policy().require(replace(data, pairs=data.pairs | {"attack": []}))
    for changes in ({"completions": 1}, {"answer_tokens": 0}, {"warm_start_steps": -1}, {"temperature": 0.0}):
        with pytest.raises(RepnoiseError, match=f"{next(iter(changes))}.* must be"):
            policy(**changes)


@pytest.mark.slow
@pytest.mark.parametrize("reward", ["answer", "compliance"])
def test_it_recovers_held_out_answers_of_the_undefended_sandbox(reward, tmp_path):
    """Without one harmful answer, too: one in a hundred draws is no refusal, and that is enough."""
    training = Training(learning_rate=3e-4, steps=30, batch_size=16, save_every=None)
    found = PolicyGradientAttack(training=training, answer_tokens=48, reward=reward)
    metrics = attack(AttackConfig(attack=found), tmp_path / "run").record["metrics"]
    assert metrics["recovered"]["value"] > 0.9 and metrics["harmless_accuracy"]["value"] > 0.9
