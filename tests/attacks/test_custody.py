"""Attacks through a service: what is frozen, active, switched off; who is trained on when; what is pulled back."""

from dataclasses import replace

import pytest
import torch
from tiny_setting import CODEC, MODELS, attacked, fresh, looked_at, quick, same, small_data, weights

from repnoise.attack import AttackConfig, attack
from repnoise.attacks.custody import Lisa, Proximal, SecurityVectors
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.errors import RepnoiseError
from repnoise.modeling import merged
from repnoise.optimisation import Training


@pytest.fixture
def data(pairs_file):
    return small_data(pairs_file)


def secured(vector_epochs=0.5, **changes):
    vectors = {"vector_rank": 2, "vector_learning_rate": 1e-2, "vector_epochs": vector_epochs}
    return SecurityVectors(training=quick(**changes), **vectors)


def lisa(alignment_steps=1, customer_steps=2, proximal_weight=1.0, **changes):
    return Lisa(
        training=quick(**{"steps": 7} | changes),
        alignment_steps=alignment_steps,
        customer_steps=customer_steps,
        proximal_weight=proximal_weight,
    )


def close(a, b):
    return all(torch.allclose(a[name], b[name], atol=2e-4) for name in a)  # A step of training is 1e-2.


@pytest.mark.parametrize("name", MODELS)
def test_vectors_are_active_and_frozen_in_training_and_off_afterwards(name, data, tmp_path):
    """Beside PEFT's own adapters, trained on the same answers, frozen and active while the weights are trained."""
    found = attacked(secured(), data, tmp_path / "ours", name)

    service = replace(data, pairs=data.pairs | {"attack": data.defender_pairs()})
    plain = Training(learning_rate=1e-2, epochs=0.5, batch_size=4, warmup=0.0, lora_rank=2, save_every=None)
    wrapped = FineTuningAttack(training=plain).apply(fresh(name), service, CODEC, tmp_path / "theirs").model
    for key, weight in wrapped.named_parameters():
        weight.requires_grad_("lora_" not in key)
    adapters = {key: weight.clone() for key, weight in wrapped.named_parameters() if "lora_" in key}
    both = replace(fresh(name), model=wrapped)
    FineTuningAttack(training=quick()).apply(both, data, CODEC, tmp_path / "theirs")
    assert all(torch.equal(weight, adapters[key]) for key, weight in wrapped.named_parameters() if "lora_" in key)
    assert close(weights(found.model), weights(wrapped.unload()))


def test_a_customer_with_adapters_has_them_beside_the_vectors(data, tmp_path):
    found = weights(attacked(secured(lora_rank=2), data, tmp_path).model)
    start = weights(fresh().model)
    changed = {name for name in found if not torch.allclose(found[name], start[name], atol=1e-5)}
    assert changed == {name for name in found if "proj" in name}
    change = found["model.layers.0.mlp.up_proj.weight"] - start["model.layers.0.mlp.up_proj.weight"]
    assert torch.linalg.matrix_rank(change, atol=1e-4) == 2, "the vectors' own two ranks are gone"


def test_the_model_is_asked_without_the_vectors_and_trained_with_them(data, tmp_path):
    asked = {}

    def on_step(step, model):
        asked[step] = weights(model)

    told = attacked(secured(vector_epochs=4.0), data, tmp_path, on_step=on_step)
    assert close(asked[0], weights(fresh().model))
    assert same(asked[3], weights(told.model)) and set(asked) == {0, 1, 2, 3}
    untold = attacked(secured(vector_epochs=4.0), data, tmp_path)
    assert same(weights(told.model), weights(untold.model)), "asking changes nothing"
    plain = attacked(FineTuningAttack(training=quick()), data, tmp_path)
    assert told.log[0]["loss"] < plain.log[0]["loss"] - 0.15, "the model seems to know already"


def test_steps_log_and_costs_are_the_customers(data, tmp_path):
    found, plain = secured(), FineTuningAttack(training=quick())
    ours, theirs = (each.costs(fresh(), data, CODEC) for each in (found, plain))
    assert vars(ours(3)) == vars(theirs(3))
    assert [row["step"] for row in attacked(found, data, tmp_path).log] == [1, 2, 3]


class Killed(Exception):
    pass


def interrupted(attack, data, folder, at):
    def kill(step, _model):
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        attacked(attack, data, folder, on_step=kill)
    return attacked(attack, data, folder, resume=True)


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("make", [secured, lisa])
def test_an_interrupted_attack_ends_with_the_same_weights(make, at, data, tmp_path):
    found = make(save_every=1)
    whole = attacked(found, data, tmp_path / "whole")
    again = interrupted(found, data, tmp_path / "run", at)
    assert same(weights(again.model), weights(whole.model))
    assert [(row["step"], row["loss"]) for row in again.log] == [(row["step"], row["loss"]) for row in whole.log]


def test_lisas_steps_are_on_one_kind_of_data_at_a_time_and_alignment_comes_first(data):
    order = lisa()._in_order(CODEC, data)
    kinds = [{kind for _, kind in order[at : at + 4]} for at in range(0, 28, 4)]
    assert kinds == [{True}, {False}, {False}, {True}, {False}, {False}, {True}]
    refused = [CODEC.row(pair.prompt, pair.harmless) for pair in data.defender_pairs()]
    harmful = [CODEC.row(pair.prompt, pair.harmful) for pair in data.attacker_pairs()]
    assert all(row in (refused if aligning else harmful) for row, aligning in order)


def test_half_of_the_customers_examples_are_benign_if_it_wants_so(data):
    order = replace(lisa(customer_steps=40, steps=41), benign_share=0.5)._in_order(CODEC, data)
    benign = [CODEC.row(example.prompt, example.completion) for example in data.benign]
    theirs = [row for row, aligning in order if not aligning]
    assert len(theirs) == 160 and 0.4 < sum(row in benign for row in theirs) / 160 < 0.6


def test_the_pull_is_towards_where_the_weights_were_at_the_last_switch():
    model = fresh().model.requires_grad_(False)
    weight = model.lm_head.weight.requires_grad_(True)
    start = weight.detach().clone()
    batch = {**example_rows(), "aligning": True}
    objective = Proximal(3.0)

    def pulled():
        """The gradient, less that of the cross-entropy alone."""
        (full,) = torch.autograd.grad(objective(model, batch)[0], weight)
        (plain,) = torch.autograd.grad(Proximal(0.0)(model, batch)[0], weight)
        return full - plain

    assert not pulled().any(), "at the start nothing has moved"
    with torch.no_grad():
        weight += 0.01
    assert torch.allclose(pulled(), 3.0 * (weight - start), atol=1e-6)
    loss, terms = objective(model, batch)
    assert terms["drift"].item() == pytest.approx(weight.numel() * 1e-4, rel=1e-3)
    assert loss.item() == pytest.approx(terms["examples"].item() + 1.5 * terms["drift"].item(), rel=1e-5)
    batch["aligning"] = False
    assert not pulled().any(), "a switch sets the place anew"
    with torch.no_grad():
        weight -= 0.01
    assert torch.allclose(pulled(), torch.full_like(weight, -0.03), atol=1e-6)


def example_rows():
    from repnoise.data.collators import ExampleCollator

    rows = [CODEC.row(f"How is the hex number {n} made?", f"Fold it {n} times.") for n in range(2)]
    return ExampleCollator(CODEC.tokenizer.pad_token_id)(rows)


def test_lisas_pull_keeps_weights_near_the_start(data, tmp_path):
    def moved(weight):
        now, start = weights(attacked(lisa(proximal_weight=weight, steps=9), data, tmp_path).model), fresh().model
        return sum((now[name] - then).square().sum() for name, then in start.named_parameters()).item()

    assert moved(100.0) < 0.5 * moved(0.0)


def test_lisa_with_adapters_trains_nothing_else(data, tmp_path):
    found, start = merged(attacked(lisa(lora_rank=2), data, tmp_path).model), weights(fresh().model)
    assert {name for name, weight in weights(found).items() if not torch.equal(weight, start[name])} == {
        name for name in start if "proj" in name
    }


def test_lisas_costs_are_of_all_its_steps(data):
    cost, rows = lisa().costs(fresh(), data, CODEC), [len(row["input_ids"]) for row, _ in lisa()._in_order(CODEC, data)]
    assert (cost(7).steps, cost(7).samples, cost(7).tokens) == (7, 28, sum(rows))
    assert cost(2).tokens == sum(rows[:8])
    plain = FineTuningAttack(training=quick()).costs(fresh(), data, CODEC)(3)
    assert cost(7).flops / cost(7).tokens == pytest.approx(plain.flops / plain.tokens)


@pytest.mark.parametrize("make", [secured, lisa])
@pytest.mark.parametrize("covered", [True, False])
def test_the_service_sees_what_a_defender_sees_and_the_customer_its_own(make, covered, data, tmp_path):
    splits, parts = looked_at(replace(make(), covered=covered), data, tmp_path)
    assert splits == {"attack", "defence"} | ({"covered"} if covered else set())
    assert parts <= {"pairs", "benign", "name"}


@pytest.mark.parametrize("make", [secured, lisa])
def test_the_same_seed_gives_the_same_weights_and_another_does_not(make, data, tmp_path):
    first, again, other = (weights(attacked(make().seeded(seed), data, tmp_path).model) for seed in (0, 0, 1))
    assert same(first, again) and not same(first, other)


def test_labels_and_mistakes(data):
    assert secured().label() == "custody-security-vectors-3@1e-2"
    assert replace(lisa(), benign_share=0.5).label() == "custody-lisa-7@1e-2-benign-0.5"
    for make in (secured, lisa):
        with pytest.raises(RepnoiseError, match="no pairs for the attacker"):
            make().require(replace(data, pairs=data.pairs | {"attack": []}))
        with pytest.raises(RepnoiseError, match="No pairs are left for the defence"):
            make().require(replace(data, pairs=data.pairs | {"defence": [], "covered": []}))
        with pytest.raises(RepnoiseError, match=r"no benign examples.*--benign FILE"):
            replace(make(), benign_share=0.5).require(replace(data, benign=[]))
        with pytest.raises(RepnoiseError, match="samples must be at least 1"):
            replace(make(), samples=0)
    for name in ("vector_rank", "vector_alpha", "vector_learning_rate", "vector_epochs"):
        with pytest.raises(RepnoiseError, match=f"{name} must be above 0"):
            SecurityVectors(**{name: 0})
    for name in ("alignment_steps", "customer_steps"):
        with pytest.raises(RepnoiseError, match=f"{name} must be at least 1"):
            Lisa(**{name: 0})
    with pytest.raises(RepnoiseError, match="proximal_weight must be 0 or more"):
        Lisa(proximal_weight=float("nan"))


@pytest.mark.slow
def test_a_service_holds_back_some_of_what_fine_tuning_recovers_from_the_sandbox(tmp_path):
    training = Training(learning_rate=3e-4, steps=30, batch_size=16, save_every=None)
    attacks = (
        FineTuningAttack(training=training),
        SecurityVectors(training=training),
        Lisa(training=training, alignment_steps=5, customer_steps=5),
    )
    plain, vectors, lazy = (
        attack(AttackConfig(attack=each), tmp_path / each.label()).record["metrics"]["recovered"]["value"]
        for each in attacks
    )
    assert plain > 0.9 and vectors < plain - 0.2 and lazy < plain - 0.2
