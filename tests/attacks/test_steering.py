"""Steering: a vector is added behind one layer of a copy that shares the weights, and nowhere else."""

import pytest
import torch
from tiny_setting import CODEC, MODELS, TOKENIZER, attacked, fresh, looked_at, same, small_data, weights

from repnoise.attack import AttackConfig, attack
from repnoise.attacks.refusal_direction import Contrast
from repnoise.attacks.steering import Steering, sharing_weights, shift_behind, shifted
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation, generate
from repnoise.hidden_states import captured, find_decoder
from repnoise.inputs import Inputs
from repnoise.modeling import LoadedModel
from repnoise.runs import plain, restored
from test_hidden_states import MODELS as ARCHITECTURES
from test_hidden_states import ROWS, WIDTH, batch, build, hooks


@pytest.fixture
def data(pairs_file):
    return small_data(pairs_file)


def residual(model, layers, inputs):
    with torch.no_grad(), captured(find_decoder(model).modules_at("residual", layers), rows=ROWS) as states:
        model(**inputs, use_cache=False)
    return states


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_neox", "opt", "bloom", "mixtral", "gpt_oss"])
def test_the_vector_is_added_at_every_token_behind_one_layer(name):
    model, shift = build(name).eval(), torch.arange(WIDTH) / 8
    before = residual(model, [0, 1], batch())
    with shifted(model, 1, shift):
        after = residual(model, [0, 1], batch())
    seen = batch()["attention_mask"].bool()
    assert torch.equal(after[0][seen], before[0][seen])
    torch.testing.assert_close(after[1][seen], (before[1] + shift)[seen], rtol=1e-5, atol=1e-5)
    assert hooks(model) == 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_copy_shares_every_weight_and_none_of_the_hooks(name):
    model = build(name).eval()
    before = model(**batch()).logits
    copied = sharing_weights(model)
    ours, theirs = dict(model.named_parameters()), dict(copied.named_parameters())
    assert ours.keys() == theirs.keys() and all(ours[key] is theirs[key] for key in ours)
    assert torch.equal(copied(**batch()).logits, before)
    shift_behind(copied, 1, torch.ones(WIDTH))
    assert torch.equal(model(**batch()).logits, before) and hooks(model) == 0
    assert not torch.equal(copied(**batch()).logits, before)


@pytest.mark.parametrize("name", MODELS)
def test_the_mean_of_harmful_prompts_comes_to_lie_where_that_of_harmless_ones_was(name, data, tmp_path):
    start = fresh(name)
    before = weights(start.model)
    steered = Steering(contrast=Contrast(layer=0, projected=False)).apply(start, data, CODEC, tmp_path).model

    def mean(model, rows):
        ids = [torch.tensor([CODEC.prompt_ids(row.prompt)]) for row in rows]
        found = []
        for one in ids:
            with torch.no_grad(), captured(find_decoder(model).modules_at("residual", [0])) as states:
                model(one)
            found.append(states[0][0, -1])
        return torch.stack(found).mean(0)

    harmless = mean(start.model, data.benign)
    torch.testing.assert_close(mean(steered, data.pairs["attack"]), harmless, rtol=1e-4, atol=1e-5)
    assert same(weights(start.model), before) and hooks(start.model) == 0 and hooks(steered) == 1


def test_the_layer_is_the_one_that_leaves_refusals_the_least_likely(data, tmp_path):
    logs = [attacked(Steering(contrast=Contrast(layer=layer)), data, tmp_path).log[0] for layer in range(2)]
    best = attacked(Steering(contrast=Contrast()), data, tmp_path).log
    assert [row["step"] for row in best] == [1]
    assert best[0] == min(logs, key=lambda row: row["refusal_lead"])


def test_it_steers_generation_with_a_cache_as_without(data, tmp_path):
    steered = LoadedModel(attacked(Steering(strength=3.0), data, tmp_path).model, TOKENIZER, "", 256)
    prompts = [pair.prompt for pair in data.pairs["attack"][:3]]
    texts = generate(steered, CODEC, prompts, Generation(max_new_tokens=6))
    for prompt, text in zip(prompts, texts, strict=True):
        ids = CODEC.prompt_ids(prompt)
        for _ in range(6):
            with torch.no_grad():
                ids = [*ids, steered.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item()]
        assert TOKENIZER.decode(ids[len(CODEC.prompt_ids(prompt)) :], skip_special_tokens=True) == text
    assert texts != generate(fresh(), CODEC, prompts, Generation(max_new_tokens=6))


def test_it_sees_the_attackers_split_and_harmless_prompts_and_nothing_else(data, tmp_path):
    splits, parts = looked_at(Steering(), data, tmp_path)
    assert splits == {"attack"} and {"pairs", "benign"} <= parts <= {"pairs", "benign", "groups", "name"}


@pytest.mark.parametrize("strength", [0.0, float("nan"), float("inf")])
def test_impossible_strengths_are_told(strength):
    with pytest.raises(RepnoiseError, match="strength must be a finite number other than 0"):
        Steering(strength=strength)


def test_it_comes_back_from_what_a_run_stores():
    found = Steering(contrast=Contrast(layer=1), strength=0.75)
    assert restored(plain(found), [found]) == found and found.label() == "steering-0.75-layer-1"
    assert Steering().label() == "steering-1-plain" and not found.changes_weights


@pytest.mark.slow
def test_it_makes_the_undefended_sandbox_answer(tmp_path):
    run = attack(AttackConfig(Inputs("sandbox"), Steering(strength=0.75)), tmp_path / "run")
    assert run.record["metrics"]["recovered"]["value"] > 0.5 and not run.model.exists()
