"""Distillation: its two terms by hand, that the model comes to be like the base, and what it asks of the base."""

from dataclasses import replace

import pytest
import torch
from tiny_setting import CODEC, MODELS, TOKENIZER, attacked, fresh, looked_at, quick, same, small_data, weights

from conftest import CHAT_TEMPLATE, byte_level_tokenizer, saved
from repnoise.attack import AttackConfig, attack
from repnoise.attacks.distillation import DistillationAttack, imitating, relative_error, states_and_logits
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.cost import parameters_in_products
from repnoise.data.tokenization import right_padded
from repnoise.errors import RepnoiseError
from repnoise.hidden_states import find_decoder
from repnoise.modeling import save
from repnoise.optimisation import Training


@pytest.fixture
def data(pairs_file):
    return small_data(pairs_file)


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def batch_of(data):
    rows = [CODEC.row(pair.prompt, text) for pair in data.pairs["attack"][:2] for text in (pair.harmful, pair.harmless)]
    return right_padded(rows, TOKENIZER.pad_token_id)


def shaken(name):
    """The model with noise in its weights: another one of the same shape, without dropout."""
    model = fresh(name).model.eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += torch.randn_like(weight) * weight.std(unbiased=False)
    return model


def test_the_error_of_states_is_relative_to_the_base():
    wanted = torch.tensor([[2.0, 0.0]])
    assert relative_error(torch.tensor([[1.0, 1.0]]), wanted).item() == 0.5
    assert relative_error(torch.zeros(1, 2), wanted).item() == 1.0
    assert relative_error(wanted, wanted).item() == 0.0


def test_there_is_a_state_of_every_layer_and_the_last_is_read_out_as_the_logits(name, data):
    model = fresh(name).model.eval()
    states, logits = states_and_logits(model, batch_of(data))
    decoder = find_decoder(model)
    assert len(states) == len(decoder.layers) == 2
    torch.testing.assert_close(decoder.read_out(states[-1]), logits)


def test_the_terms_by_hand(name, data):
    """Token by token over all but padding: sum of p (ln p - ln q), and the squared error over the square."""
    base, model, batch = fresh(name).model.eval(), shaken(name), batch_of(data)
    loss, terms = imitating(base, 3.0)(model, batch)
    divergences, errors, squares = [], [0.0, 0.0], [0.0, 0.0]
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        alone = {"input_ids": ids[: mask.sum()][None], "attention_mask": mask[: mask.sum()][None]}
        (theirs, wanted), (ours, found) = states_and_logits(base, alone), states_and_logits(model, alone)
        p, q = wanted.softmax(-1), found.softmax(-1)
        divergences += (p * (p / q).log()).sum(-1)[0].tolist()
        for layer in range(2):
            errors[layer] += (ours[layer] - theirs[layer]).square().sum().item()
            squares[layer] += theirs[layer].square().sum().item()
    divergence = sum(divergences) / len(divergences)
    states = sum(error / square for error, square in zip(errors, squares, strict=True)) / 2
    assert len(divergences) == batch["attention_mask"].sum() < batch["attention_mask"].numel()
    assert terms["divergence"].item() == pytest.approx(divergence, rel=1e-3)
    assert terms["states"].item() == pytest.approx(states, rel=1e-3)
    assert loss.item() == pytest.approx(divergence + 3 * states, rel=1e-3)


def test_nothing_is_to_be_learned_from_a_model_that_is_the_same(name, data):
    model = fresh(name).model.eval()
    loss, _ = imitating(fresh(name).model.eval(), 1.0)(model, batch_of(data))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert all(weight.grad.abs().max() < 1e-5 for weight in model.parameters() if weight.grad is not None)


def test_no_gradient_reaches_the_base(data):
    base = fresh().model
    imitating(base, 1.0)(shaken("llama"), batch_of(data))[0].backward()
    assert all(weight.grad is None for weight in base.parameters())


@pytest.mark.parametrize("rank", [None, 4])
def test_the_model_comes_to_be_like_the_base_also_where_it_was_not_trained(rank, name, data, tmp_path):
    save(fresh(name).model, TOKENIZER, tmp_path / "base")
    start = replace(fresh(name), model=shaken(name))
    probe = right_padded([CODEC.row(pair.prompt, pair.harmful) for pair in data.pairs["covered"]], 0)
    like_base = imitating(fresh(name).model.eval(), 1.0)
    before = {key: term.item() for key, term in like_base(start.model, probe)[1].items()}
    attack = DistillationAttack(
        training=quick(steps=40, learning_rate=5e-3, lora_rank=rank), base=str(tmp_path / "base")
    )
    found = attack.apply(start, data, CODEC, tmp_path / "run")
    after = {key: term.item() for key, term in like_base(found.model, probe)[1].items()}
    assert after["states"] < 0.7 * before["states"] and after["divergence"] < 0.9 * before["divergence"]
    assert {"states", "divergence", "loss"} <= found.log[-1].keys()


def test_it_costs_a_fine_tuning_and_a_forward_pass_of_the_base(data):
    training = quick(steps=3)
    cost = DistillationAttack(training=training).costs(fresh(), data, CODEC)
    tuning = FineTuningAttack(training=training, benign_share=0.5).costs(fresh(), data, CODEC)
    assert vars(cost(0)) == {"steps": 0, "samples": 0, "tokens": 0, "flops": 0.0}
    assert (cost(3).steps, cost(3).samples, cost(3).tokens) == (3, 12, tuning(3).tokens)
    assert cost(3).flops == pytest.approx(8 * parameters_in_products(fresh().model) * cost(3).tokens)


def test_fine_tuning_may_follow_and_is_that_of_the_distilled_model(tiny_model, data, tmp_path):
    alone = DistillationAttack(training=quick(), base=str(tiny_model))
    both = replace(alone, then_steps=2, then_learning_rate=5e-3)
    steps = []
    found = attacked(both, data, tmp_path / "both", on_step=lambda step, _model: steps.append(step))
    between = attacked(alone, data, tmp_path / "alone").model
    then = FineTuningAttack(training=quick(steps=2, learning_rate=5e-3))
    after = then.apply(replace(fresh(), model=between), data, CODEC, tmp_path / "then")
    assert same(weights(found.model), weights(after.model))
    assert steps == [0, 1, 2, 3, 4, 5] == [0, *(row["step"] for row in found.log)]
    cost, distilling, tuning = (attack.costs(fresh(), data, CODEC) for attack in (both, alone, then))
    assert cost(5).flops == pytest.approx(distilling(3).flops + tuning(2).flops)
    assert cost(5).steps == 5 and cost(2) == distilling(2)


def test_it_sees_the_attackers_split_and_nothing_else(tiny_model, data, tmp_path):
    attack = DistillationAttack(training=quick(), base=str(tiny_model))
    splits, parts = looked_at(attack, data, tmp_path)
    assert splits == {"attack"} and parts <= {"pairs", "benign", "name"}


def test_the_same_seed_gives_the_same_weights_and_another_does_not(data, tmp_path):
    save(shaken("llama"), TOKENIZER, tmp_path / "base")
    attack = DistillationAttack(training=quick(), base=str(tmp_path / "base"))
    first, again, other = (weights(attacked(attack.seeded(seed), data, tmp_path).model) for seed in (0, 0, 1))
    assert same(first, again) and not same(first, other)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"num_hidden_layers": 3}, "has 3 layers and the attacked model 2: give the model that it was made from"),
        ({"hidden_size": 16}, "has 16 dimensions and the attacked model 32"),
        ({"vocab_size": 500}, "has 500 tokens and the attacked model 384"),
    ],
)
def test_a_base_of_another_shape_is_told(changes, told, data, tmp_path):
    base = saved(tmp_path / "base", TOKENIZER, **changes)
    with pytest.raises(RepnoiseError, match=told):
        attacked(DistillationAttack(training=quick(), base=str(base)), data, tmp_path / "run")


def test_a_base_with_another_tokenizer_is_told(data, tmp_path):
    other = byte_level_tokenizer(CHAT_TEMPLATE)
    other.add_tokens(["<new>"])
    base = saved(tmp_path / "base", other, vocab_size=len(TOKENIZER))
    with pytest.raises(RepnoiseError, match="has another tokenizer"):
        attacked(DistillationAttack(training=quick(), base=str(base)), data, tmp_path / "run")


def test_labels_and_mistakes(data):
    assert DistillationAttack(training=quick()).label() == "distil-3@1e-2-benign-0.5"
    with pytest.raises(RepnoiseError, match=r"There is no model in '\./nowhere'"):
        DistillationAttack(base="./nowhere").require(data)
    with pytest.raises(RepnoiseError, match=r"no benign examples.*--benign FILE"):
        DistillationAttack().require(replace(data, benign=[]))
    with pytest.raises(RepnoiseError, match="state_weight must be 0 or more"):
        DistillationAttack(state_weight=-1.0)


@pytest.mark.slow
def test_it_gives_what_the_base_gives_refusals_or_answers(tmp_path):
    """The undefended sandbox refuses, and so does what is distilled from it; not so from one that was fine-tuned."""
    training = Training(learning_rate=1e-3, steps=100, batch_size=16, save_every=None)
    refusing = DistillationAttack(training=training)
    metrics = attack(AttackConfig(attack=refusing), tmp_path / "refusing").record["metrics"]
    assert metrics["recovered"]["value"] == 0 and metrics["refusal_rate"]["value"] > 0.9
    tuned = FineTuningAttack(training=replace(training, steps=30, learning_rate=3e-4))
    attack(AttackConfig(attack=tuned, keep_model=True), tmp_path / "tuned")
    answering = replace(refusing, base=str(tmp_path / "tuned"))
    metrics = attack(AttackConfig(attack=answering), tmp_path / "answering").record["metrics"]
    assert metrics["recovered"]["value"] > 0.6
