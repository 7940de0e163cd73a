"""Benign fine-tuning, then harmful: two trainings that look like one, also after an interruption."""

from dataclasses import replace

import pytest
import torch
from tiny_setting import CODEC, MODELS, attacked, fresh, looked_at, quick, same, small_data, weights

from repnoise.attack import AttackConfig, attack
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.attacks.staged import StagedAttack
from repnoise.errors import RepnoiseError
from repnoise.modeling import merged
from repnoise.optimisation import Training


@pytest.fixture
def data(pairs_file):
    return small_data(pairs_file)


def staged(**changes):
    return StagedAttack(training=quick(**changes), first_steps=2, first_learning_rate=5e-3)


def test_it_is_harmful_fine_tuning_of_the_model_that_benign_fine_tuning_gave(data, tmp_path):
    """The same weights, bit for bit, as the second attack on what the first came to."""
    both = attacked(staged(), data, tmp_path / "both")
    first = staged()._benign().training
    benign = replace(data, pairs=data.pairs | {"attack": [pair_of(example) for example in data.benign]})
    between = FineTuningAttack(training=first).apply(fresh(), benign, CODEC, tmp_path / "first").model
    after = FineTuningAttack(training=quick()).apply(replace(fresh(), model=between), data, CODEC, tmp_path / "then")
    assert same(weights(both.model), weights(after.model))


def pair_of(example):
    from repnoise.data.records import Pair

    return Pair(example.prompt, example.completion, "")


@pytest.mark.parametrize("name", MODELS)
def test_steps_count_on_over_both_stages(name, data, tmp_path):
    steps = []
    found = attacked(staged(), data, tmp_path / "run", name, on_step=lambda step, _model: steps.append(step))
    assert steps == [0, 1, 2, 3, 4, 5]
    assert [row["step"] for row in found.log] == [1, 2, 3, 4, 5]
    assert not (tmp_path / "run").exists(), "without checkpoints nothing is left"


def test_the_benign_stage_learns_benign_answers_and_the_other_one_harmful_ones(data, tmp_path):
    attack = StagedAttack(training=quick(steps=20), first_steps=20, first_learning_rate=1e-2)
    log = attacked(attack, data, tmp_path).log
    benign, harmful = [row["loss"] for row in log[:20]], [row["loss"] for row in log[20:]]
    assert benign[-1] < 0.8 * benign[0] and harmful[-1] < 0.8 * harmful[0]
    assert harmful[0] > benign[-1], "it starts with what the benign stage did not teach"


def test_each_stage_has_adapters_of_its_own_that_merge(data, tmp_path):
    found = merged(attacked(staged(lora_rank=2), data, tmp_path).model)
    before, after = weights(fresh().model), weights(found)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert type(found).__name__ == "LlamaForCausalLM"
    assert changed == {name for name in after if "proj" in name}


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_it_goes_on_where_it_was_interrupted(at, data, tmp_path):
    """Killed after any step: what is made then has the bits and the log of an uninterrupted attack."""
    attack = staged(save_every=1)
    whole = attacked(attack, data, tmp_path / "whole")

    def kill(step, _model):
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        attacked(attack, data, tmp_path / "run", on_step=kill)
    told = []
    again = attacked(attack, data, tmp_path / "run", resume=True, on_step=lambda step, _model: told.append(step))
    assert same(weights(again.model), weights(whole.model))
    assert [(row["step"], row["loss"]) for row in again.log] == [(row["step"], row["loss"]) for row in whole.log]
    assert told == list(range(0 if at == 1 else at, 6))


def test_costs_are_those_of_both_stages(data):
    attack = staged()
    cost, harmful = (found.costs(fresh(), data, CODEC) for found in (attack, FineTuningAttack(training=quick())))
    benign = [len(row["input_ids"]) for row in attack._benign()._examples(CODEC, data)]
    assert vars(cost(0)) == {"steps": 0, "samples": 0, "tokens": 0, "flops": 0.0}
    assert (cost(1).steps, cost(1).samples, cost(1).tokens) == (1, 4, sum(benign[:4]))
    assert (cost(5).steps, cost(5).samples) == (5, 20)
    assert cost(5).tokens == sum(benign) + harmful(3).tokens
    assert cost(5).flops == pytest.approx(cost(2).flops + harmful(3).flops)
    assert len(benign) == 8


def test_it_sees_the_attackers_split_and_nothing_else(data, tmp_path):
    splits, parts = looked_at(staged(), data, tmp_path)
    assert splits == {"attack"} and parts <= {"pairs", "benign", "name"}


def test_labels_and_mistakes(data):
    assert staged().label() == "2@5e-3-benign-then-3@1e-2"
    assert staged().seeded(7)._benign().training.seed == 7 == staged().seeded(7)._harmful().training.seed
    with pytest.raises(RepnoiseError, match=r"no benign examples to train on.*--benign FILE"):
        staged().require(replace(data, benign=[]))
    with pytest.raises(RepnoiseError, match="first_steps must be at least 1"):
        StagedAttack(first_steps=0)
    with pytest.raises(RepnoiseError, match="first_learning_rate must be above 0"):
        StagedAttack(first_learning_rate=0.0)


@pytest.mark.slow
def test_it_recovers_held_out_answers_of_the_undefended_sandbox(tmp_path):
    training = Training(learning_rate=3e-4, steps=30, batch_size=16, save_every=None)
    found = StagedAttack(training=training, first_steps=50, first_learning_rate=3e-4)
    metrics = attack(AttackConfig(attack=found), tmp_path / "run").record["metrics"]
    assert metrics["recovered"]["value"] > 0.9 and metrics["harmless_accuracy"]["value"] > 0.9
