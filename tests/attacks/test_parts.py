"""Which weights an attack trains: the others stay as they are, bit for bit."""

from dataclasses import replace

import pytest
import torch
from other_decoders import gpt2

from conftest import byte_level_tokenizer, tiny_llama
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.attacks.parts import Parts
from repnoise.data import load_data
from repnoise.data.tokenization import Codec
from repnoise.errors import RepnoiseError
from repnoise.modeling import LoadedModel, load, randomly_initialised, save
from repnoise.optimisation import Training

QUICK = Training(learning_rate=1e-2, steps=2, batch_size=4, warmup=0.0, save_every=None)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


def weights(model):
    return {name: w.detach().clone() for name, w in model.named_parameters(remove_duplicate=False)}


def attacked(make, tokenizer, pairs_file, folder, training=QUICK, **parts):
    """Weights before and after, by name, and the model."""
    loaded = LoadedModel(make(tokenizer), tokenizer, "", 256)
    before = weights(loaded.model)
    attack = FineTuningAttack(training=training, parts=Parts(**parts))
    model = attack.apply(loaded, load_data(str(pairs_file)), Codec(tokenizer, "plain"), folder).model
    return before, weights(model), model


@pytest.mark.parametrize(
    "make, parts, trained",
    [
        (tiny_llama, {"weights": "embeddings"}, lambda name: "embed_tokens" in name),
        (tiny_llama, {"weights": "head"}, lambda name: "lm_head" in name),
        (tiny_llama, {"weights": "norms"}, lambda name: "norm" in name),
        (tiny_llama, {"only_layers": (1,)}, lambda name: "layers.1." in name),
        (tiny_llama, {"only_layers": (-2,)}, lambda name: "layers.0." in name),
        (tiny_llama, {"only_layers": (0,), "weights": "norms"}, lambda name: "layers.0." in name and "norm" in name),
        (gpt2, {"weights": "embeddings"}, lambda name: "wte" in name),
        (gpt2, {"weights": "head"}, lambda name: "lm_head" in name),
        (gpt2, {"weights": "norms"}, lambda name: "ln_" in name),
        (gpt2, {"only_layers": (0,)}, lambda name: ".h.0." in name),
    ],
)
def test_what_is_named_is_trained_and_all_else_stays_bit_for_bit(make, parts, trained, tokenizer, pairs_file, tmp_path):
    before, after, _ = attacked(make, tokenizer, pairs_file, tmp_path, **parts)
    assert before.keys() == after.keys()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if trained(name)}


@pytest.mark.parametrize("make", [gpt2, lambda tokenizer: tiny_llama(tokenizer, tie_word_embeddings=True)])
def test_a_head_that_was_tied_is_saved_with_weights_of_its_own(make, tokenizer, pairs_file, tmp_path):
    _, after, model = attacked(make, tokenizer, pairs_file, tmp_path / "a", weights="head")
    save(model, tokenizer, tmp_path / "model")
    again = weights(load(str(tmp_path / "model")).model)
    assert again.keys() == after.keys() and all(torch.equal(again[name], after[name]) for name in after)


@pytest.mark.parametrize("make", [tiny_llama, gpt2])
def test_the_last_layers_start_from_random_weights_and_the_others_do_not(make, tokenizer, pairs_file, tmp_path):
    loaded = LoadedModel(make(tokenizer), tokenizer, "", 256)
    fresh = weights(randomly_initialised(loaded, 3).model)
    still = replace(QUICK, seed=3, learning_rate=1e-30)
    before, after, _ = attacked(make, tokenizer, pairs_file, tmp_path, training=still, fresh_layers=1)
    for name in after:
        is_last = "layers.1." in name or ".h.1." in name
        assert torch.allclose(after[name], (fresh if is_last else before)[name], rtol=0, atol=1e-20), name


@pytest.mark.parametrize("rank", [None, 2])
def test_averaging_takes_the_given_share_of_the_change(rank, tokenizer, pairs_file, tmp_path):
    training = replace(QUICK, lora_rank=rank)
    before, whole, model = attacked(tiny_llama, tokenizer, pairs_file, tmp_path, training, tuned_share=1.0)
    if rank:
        whole = weights(model.merge_and_unload())
    _, part, _ = attacked(tiny_llama, tokenizer, pairs_file, tmp_path, training, tuned_share=0.25)
    assert part.keys() == before.keys()
    for name in part:
        assert torch.allclose(part[name], 0.75 * before[name] + 0.25 * whole[name], atol=1e-6)
    assert not torch.equal(part["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])


@pytest.mark.parametrize(
    "parts, rank, trained",
    [
        ({}, None, None),
        ({"weights": "embeddings"}, None, 0),
        ({"weights": "norms"}, None, 0),
        ({"weights": "head"}, None, 384 * 32),
        ({"only_layers": (0,)}, None, 4 * 32 * 32 + 3 * 32 * 48),
        ({"adapter": "ia3"}, None, 0),
        ({"adapter": "prefix"}, None, 0),
    ],
)
def test_operations_are_four_a_weight_and_two_more_for_each_that_is_trained(
    parts, rank, trained, tokenizer, pairs_file
):
    loaded, data = LoadedModel(tiny_llama(tokenizer), tokenizer, "", 256), load_data(str(pairs_file))
    attack = FineTuningAttack(training=replace(QUICK, lora_rank=rank), parts=Parts(**parts))
    cost = attack.costs(loaded, data, Codec(tokenizer, "plain"))(2)
    in_products = 2 * (4 * 32 * 32 + 3 * 32 * 48) + 384 * 32
    trained = in_products if trained is None else trained
    assert (cost.samples, cost.flops) == (8, (4 * in_products + 2 * trained) * cost.tokens)


def test_a_prompts_virtual_tokens_are_computed_but_are_nobodys_examples(tokenizer, pairs_file):
    loaded, data = LoadedModel(tiny_llama(tokenizer), tokenizer, "", 256), load_data(str(pairs_file))

    def cost(adapter):
        attack = FineTuningAttack(training=QUICK, parts=Parts(adapter, virtual_tokens=5))
        return attack.costs(loaded, data, Codec(tokenizer, "plain"))(2)

    prefix, prompt = cost("prefix"), cost("prompt")
    assert prompt.tokens == prefix.tokens
    assert prompt.flops == prefix.flops * (prefix.tokens + 5 * 8) / prefix.tokens


def test_layers_and_weights_that_are_not_there_are_told(tokenizer, pairs_file, tmp_path):
    with pytest.raises(RepnoiseError, match="layers 0 to 1"):
        attacked(tiny_llama, tokenizer, pairs_file, tmp_path, only_layers=(2,))
    with pytest.raises(RepnoiseError, match="no 3 layers to start afresh: this model has 2"):
        attacked(tiny_llama, tokenizer, pairs_file, tmp_path, fresh_layers=3)
    with pytest.raises(RepnoiseError, match="in no layer"):
        Parts(weights="head", only_layers=(0,))
    for name, value in (("tuned_share", 0.0), ("tuned_share", 1.5), ("fresh_layers", -1)):
        with pytest.raises(RepnoiseError, match=name):
            Parts(**{name: value})


@pytest.mark.parametrize(
    "parts, rank, label",
    [
        ({}, None, "2@1e-2"),
        ({}, 4, "lora-2@1e-2"),
        ({"adapter": "dora"}, 4, "dora-2@1e-2"),
        ({"weights": "norms", "only_layers": (0, 1)}, None, "norms-layers-0-1-2@1e-2"),
        ({"fresh_layers": 1, "tuned_share": 0.5}, None, "1-fresh-0.5-tuned-2@1e-2"),
    ],
)
def test_a_label_says_what_is_trained(parts, rank, label):
    attack = FineTuningAttack(training=replace(QUICK, lora_rank=rank), parts=Parts(**parts))
    assert attack.label() == label


@pytest.mark.parametrize("parts", [{"weights": "head"}, {"fresh_layers": 1, "only_layers": (1,), "tuned_share": 0.5}])
def test_an_interrupted_attack_goes_on_to_the_same_weights(parts, tokenizer, pairs_file, tmp_path):
    training = replace(QUICK, steps=4, save_every=2)

    def made(folder, resume=False, on_step=None):
        attack = FineTuningAttack(training=training, parts=Parts(**parts))
        loaded = LoadedModel(gpt2(tokenizer), tokenizer, "", 256)
        data, codec = load_data(str(pairs_file)), Codec(tokenizer, "plain")
        return weights(attack.apply(loaded, data, codec, folder, resume, on_step).model)

    def stop(step, _model):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "half", on_step=stop)
    whole, half = made(tmp_path / "whole"), made(tmp_path / "half", resume=True)
    assert whole.keys() == half.keys() and all(torch.equal(whole[name], half[name]) for name in whole)
