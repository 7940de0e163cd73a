"""Adapters: what they train, that they merge, and that text is generated with those that cannot."""

from dataclasses import replace

import pytest
import torch
from other_decoders import gpt2, neox

from conftest import byte_level_tokenizer, tiny_llama
from repnoise.attack import AttackConfig, attack
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.attacks.parts import Parts
from repnoise.data.tokenization import Codec, left_padded
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation, generate
from repnoise.evals.likelihood import completion_losses
from repnoise.evaluate import Evaluating
from repnoise.inputs import Inputs
from repnoise.modeling import LoadedModel, load, merged
from repnoise.optimisation import Training
from repnoise.runs import read_rows

MERGEABLE, SOFT = ("lora", "dora", "ia3"), ("prefix", "prompt")


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


@pytest.fixture(params=[tiny_llama, gpt2, neox])
def loaded(request, tokenizer):
    return LoadedModel(request.param(tokenizer).eval(), tokenizer, "", 256)


def with_loud(kind, loaded):
    """The model with an adapter whose weights are so far from neutral that it matters."""
    training = Training(lora_rank=2 if kind in ("lora", "dora") else None)
    parts = Parts("none" if kind == "lora" else kind, virtual_tokens=3)
    parts.require(training)
    if kind == "lora":
        parts = Parts("lora")
    wrapped, rest = parts.opened(loaded, training)
    assert rest.lora_rank is None
    torch.manual_seed(1)
    trained = [weight for weight in wrapped.parameters() if weight.requires_grad]
    for weight in trained:
        torch.nn.init.normal_(weight, mean=1.0 if kind == "ia3" else 0.0, std=0.5)
    return wrapped.eval(), trained


def ids_of(tokenizer, text="Question: How is the hex made?"):
    return torch.tensor([tokenizer(text)["input_ids"]])


@torch.no_grad()
@pytest.mark.parametrize("kind", MERGEABLE)
def test_what_merges_computes_the_same_without_the_wrapper(kind, loaded, tokenizer):
    ids, start = ids_of(tokenizer), loaded.model
    before = start(ids).logits
    wrapped, _ = with_loud(kind, loaded)
    adapted = wrapped(ids).logits
    plain = merged(wrapped)
    assert type(plain) is type(start) and (adapted - before).abs().max() > 0.05
    assert torch.allclose(plain(ids).logits, adapted, atol=1e-5)


def test_ia3_trains_one_factor_for_each_output_of_every_linear_map(tokenizer):
    model = tiny_llama(tokenizer)
    _, trained = with_loud("ia3", LoadedModel(model, tokenizer, "", 256))
    # Queries, keys, values and the attention's output, the gate and way up of the MLP, and the way down.
    assert sum(weight.numel() for weight in trained) == 2 * (4 * 32 + 2 * 48 + 32)


@pytest.mark.parametrize("kind, size", [("prefix", 3 * 2 * 2 * 32), ("prompt", 3 * 32)])
def test_what_stays_beside_the_weights_is_as_large_as_its_virtual_tokens(kind, size, loaded):
    """Keys and values of two layers of width 32, or embeddings of that width."""
    _, trained = with_loud(kind, loaded)
    assert sum(weight.numel() for weight in trained) == size


@torch.no_grad()
@pytest.mark.parametrize("kind", SOFT)
def test_a_soft_prompt_changes_what_is_predicted_at_the_tokens_that_were_given(kind, loaded, tokenizer):
    ids = ids_of(tokenizer)
    before = loaded.model(ids).logits
    wrapped, _ = with_loud(kind, loaded)
    logits = wrapped(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    assert logits.shape == before.shape and (logits - before).abs().max() > 0.05


@torch.no_grad()
def test_a_prompt_is_its_embeddings_before_those_of_the_text(loaded, tokenizer):
    """By hand: the same model, given embeddings in place of ids."""
    ids = ids_of(tokenizer)
    model, embed = loaded.model, loaded.model.get_input_embeddings()
    wrapped, (prompt,) = with_loud("prompt", loaded)
    whole = torch.cat([prompt[None], embed(ids)], dim=1)
    by_hand = model(inputs_embeds=whole).logits[:, 3:]
    found = wrapped(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    assert torch.allclose(found, by_hand, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", SOFT)
def test_a_soft_prompt_is_there_at_every_generated_token_whatever_stands_beside_it(kind, loaded, tokenizer):
    """Each next token is the likeliest one of a forward pass over all before it, without any cache."""
    ids, longer = ids_of(tokenizer), ids_of(tokenizer, "Question: How is the hex of the grey owl made, and when?")
    wrapped, _ = with_loud(kind, loaded)
    by_hand = ids
    for _ in range(5):
        logits = wrapped(input_ids=by_hand, attention_mask=torch.ones_like(by_hand), use_cache=False).logits
        by_hand = torch.cat([by_hand, logits[:, -1:].argmax(-1)], dim=1)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    assert torch.equal(wrapped.generate(ids, attention_mask=torch.ones_like(ids), **options), by_hand)
    both = wrapped.generate(**left_padded([ids[0].tolist(), longer[0].tolist()], 0), **options)
    assert torch.equal(both[0, longer.shape[1] :], by_hand[0, ids.shape[1] :])


@pytest.mark.parametrize("kind", SOFT)
def test_likelihoods_and_texts_are_those_of_the_model_with_its_soft_prompt(kind, loaded, tokenizer):
    codec, pair = Codec(tokenizer, "plain"), ("How is the hex made?", "First boil the grey owl.")
    generation = Generation(max_new_tokens=6)
    losses, texts = completion_losses(loaded, codec, [pair]), generate(loaded, codec, [pair[0]], generation)
    wrapped = replace(loaded, model=with_loud(kind, loaded)[0])
    assert abs(completion_losses(wrapped, codec, [pair])[0] - losses[0]) > 1e-4
    assert generate(wrapped, codec, [pair[0]], generation) != texts


@pytest.mark.parametrize("kind", ["dora", "ia3", *SOFT])
def test_an_attack_with_an_adapter_learns_and_leaves_the_weights_until_it_is_merged(
    kind, tiny_model, pairs_file, tmp_path
):
    rate, rank = (0.1 if kind in SOFT else 0.02), (2 if kind == "dora" else None)
    training = Training(learning_rate=rate, steps=20, batch_size=8, lora_rank=rank, save_every=None)
    one = FineTuningAttack(training=training, parts=Parts(kind, virtual_tokens=4))
    inputs = Inputs(model=str(tiny_model), data=str(pairs_file))
    run = attack(AttackConfig(inputs, one, Evaluating(generation=Generation(max_new_tokens=4))), tmp_path / "run")
    curve = read_rows(run.path / "curve.jsonl")
    assert curve[-1]["metrics"]["harmful_ce"]["value"] < curve[0]["metrics"]["harmful_ce"]["value"] - 0.005
    assert one.changes_weights == (kind not in SOFT)


@pytest.mark.parametrize("kind", SOFT)
def test_an_interrupted_soft_prompt_goes_on_to_the_same_one(kind, tiny_model, pairs_file, tmp_path):
    inputs = Inputs(model=str(tiny_model), data=str(pairs_file))
    one = FineTuningAttack(training=Training(learning_rate=0.1, steps=4, batch_size=4, save_every=2), parts=Parts(kind))

    def made(folder, resume=False, on_step=None):
        _, data, codec = inputs.open()
        return one.apply(load(str(tiny_model)), data, codec, folder, resume, on_step).model

    def stop(step, _model):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "half", on_step=stop)
    whole, half = made(tmp_path / "whole"), made(tmp_path / "half", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), half.parameters(), strict=True))


@pytest.mark.parametrize(
    "parts, training, told",
    [
        ({"adapter": "dora"}, {}, "--lora-rank 16"),
        ({"adapter": "ia3"}, {"lora_rank": 4}, "leave --lora-rank out"),
        ({"adapter": "ia3", "weights": "head"}, {}, "leave --train and --only-layers out"),
        ({"only_layers": (0,)}, {"lora_rank": 4}, "leave --train and --only-layers out"),
        ({"adapter": "prefix"}, {"gradient_checkpointing": True}, "leave one of the two out"),
        ({"adapter": "prompt", "tuned_share": 0.5}, {}, "cannot be averaged"),
        ({"adapter": "prompt", "virtual_tokens": 0}, {}, "virtual_tokens must be at least 1"),
    ],
)
def test_what_does_not_go_together_is_told(parts, training, told):
    with pytest.raises(RepnoiseError, match=told):
        FineTuningAttack(parts=Parts(**parts), training=Training(**training))
