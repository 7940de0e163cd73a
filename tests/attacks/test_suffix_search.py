"""Suffix search: the gradient, what it may choose from, that it only gets better, and what is asked in the end."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from conftest import CHAT_TEMPLATE, byte_level_tokenizer, tiny_llama
from repnoise.attack import AttackConfig, attack
from repnoise.attacks.suffix_search import Search, SuffixSearch, allowed_tokens
from repnoise.cost import parameters_in_products
from repnoise.data import load_data
from repnoise.data.tokenization import Codec
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation
from repnoise.evaluate import Evaluating
from repnoise.inputs import Inputs
from repnoise.modeling import LoadedModel, load
from repnoise.runs import plain, read_rows, restored

TOKENIZER = byte_level_tokenizer(CHAT_TEMPLATE)
CODEC = Codec(TOKENIZER, "chat", 256)
QUICK = SuffixSearch(tokens=3, steps=6, candidates=12, top_k=8, prompts=4, target_tokens=5)


def tiny_gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=2, n_positions=256))


MODELS = {"llama": lambda: tiny_llama(TOKENIZER), "gpt2": tiny_gpt2}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]().eval()


@pytest.fixture
def data(pairs_file):
    return load_data(str(pairs_file))


def search_of(model, data, codec=CODEC):
    return Search(model, codec, QUICK.pairs(data), QUICK.target_tokens)


def fresh():
    return LoadedModel(tiny_llama(TOKENIZER), TOKENIZER, "model", 256)


def by_hand(model, codec, pairs, wrapping, target_tokens):
    """Mean loss of the first tokens of the answers, one row at a time, from the text that is asked."""
    total, count = 0.0, 0
    for pair in pairs:
        head = TOKENIZER(f"<|user|>{wrapping.replace('{prompt}', pair.prompt)}<|assistant|>")["input_ids"]
        target = TOKENIZER(pair.harmful)["input_ids"][:target_tokens]
        with torch.no_grad():
            logits = model(torch.tensor([head + target])).logits[0].log_softmax(-1)
        for at, token in enumerate(target, start=len(head)):
            total, count = total - logits[at - 1, token].item(), count + 1
    return total / count


def test_the_loss_is_that_of_the_first_answer_tokens_behind_the_text_that_is_asked(model, data):
    search = search_of(model, data)
    suffix = search.drawn(3, random.Random(0))
    expected = by_hand(model, CODEC, QUICK.pairs(data), f"{{prompt}} {TOKENIZER.decode(suffix).strip()}", 5)
    assert search.losses([suffix])[0] == pytest.approx(expected, rel=1e-4)


def test_the_gradient_is_the_finite_difference_on_one_hot_vectors(model, data):
    model.double()
    search = search_of(model, data)
    suffix = search.drawn(3, random.Random(0))
    rows, gradient = search.rows(suffix), search.gradient(suffix)
    embedding = model.get_input_embeddings()
    assert gradient.shape == (3, embedding.weight.shape[0])

    def loss(at, token, step):
        """With `step` added to one entry of the one-hot vector of one suffix token, in every row."""

        def moved(_module, _inputs, output):
            output = output.clone()
            for row, (_, start) in enumerate(rows):
                output[row, start + at] += step * embedding.weight[token]
            return output

        handle = embedding.register_forward_hook(moved)
        sums, counts = search._summed([row for row, _ in rows])
        handle.remove()
        return (sums.sum() / counts.sum()).item()

    for at in range(3):
        # The steepest, up and down, stand out from the rounding of a loss in fp32.
        for token in (int(gradient[at].argmax()), int(gradient[at].argmin())):
            difference = (loss(at, token, 0.05) - loss(at, token, -0.05)) / 0.1
            assert gradient[at, token].item() == pytest.approx(difference, rel=0.02)


def test_no_hook_stays_behind_and_no_weight_has_a_gradient(model, data):
    search = search_of(model, data)
    search.gradient(search.drawn(2, random.Random(0)))
    assert not model.get_input_embeddings()._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


def test_candidates_differ_in_one_of_the_most_promising_tokens_and_keep_their_tokens_as_text(model, data):
    search = search_of(model, data)
    suffix = search.drawn(3, random.Random(0))
    gradient = search.gradient(suffix)
    found = search.candidates(suffix, 10, 4, random.Random(1))
    assert 1 <= len(found) <= 10 and len(set(map(tuple, found))) == len(found)
    for changed in found:
        (at,) = [i for i in range(3) if changed[i] != suffix[i]]
        best = sorted(search.allowed, key=lambda token: gradient[at, token].item())[:4]
        assert changed[at] in best
        assert TOKENIZER(f"Why? {TOKENIZER.decode(changed).strip()}")["input_ids"][-3:] == changed


def test_a_suffix_whose_text_becomes_other_tokens_is_worth_nothing(data):
    search = search_of(tiny_llama(TOKENIZER), data)
    whole = TOKENIZER(" the")["input_ids"]
    pieces = TOKENIZER.convert_tokens_to_ids(["Ġ", "t", "h", "e"])
    assert len(whole) == 1 and search.rows(pieces) is None
    assert search.losses([pieces, whole])[0] == float("inf") > search.losses([whole])[0]


def test_special_and_unprintable_tokens_are_left_out():
    allowed = allowed_tokens(TOKENIZER)
    texts = [TOKENIZER.decode([token]) for token in allowed]
    assert not {*allowed} & {TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.pad_token_id}
    assert len(allowed) > 90 and all(text.strip() and text.isprintable() for text in texts)


def test_the_loss_never_goes_up_and_ends_below_that_of_random_suffixes(data):
    loaded = fresh()
    found = QUICK.apply(loaded, data, CODEC, None)
    losses = [row["loss"] for row in found.log]
    assert [row["step"] for row in found.log] == list(range(1, 7))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    search = search_of(loaded.model, data)
    draws = [search.drawn(3, random.Random(seed)) for seed in range(20)]
    assert losses[-1] < min(search.losses(draws))


def test_the_suffix_is_asked_behind_every_question_and_the_model_is_as_it_was(data):
    loaded = fresh()
    before = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    found = QUICK.apply(loaded, data, CODEC, None)
    assert found.asking.wrapping == f"{{prompt}} {found.log[-1]['suffix']}" and found.asking.prefill == ""
    assert all(torch.equal(found.model.state_dict()[name], weight) for name, weight in before.items())
    asked = by_hand(loaded.model, CODEC, QUICK.pairs(data), found.asking.wrapping, 5)
    assert found.log[-1]["loss"] == pytest.approx(asked, rel=1e-4)


def test_the_same_seed_finds_the_same_suffix_and_another_does_not(data):
    def suffix(seed):
        return QUICK.seeded(seed).apply(fresh(), data, CODEC, None).log[-1]["suffix"]

    assert suffix(0) == suffix(0) != suffix(1)


def test_the_cost_counts_a_backward_pass_and_a_forward_pass_for_every_candidate(data):
    loaded = fresh()
    cost = QUICK.costs(loaded, data, CODEC)(2)
    tokens = sum(len(CODEC.prompt_ids(pair.prompt)) + 3 + 5 for pair in QUICK.pairs(data))
    assert (cost.steps, cost.samples, cost.tokens) == (2, 2 * 13 * 4, 2 * 13 * tokens)
    assert cost.flops == 2 * (4 + 2 * 12) * parameters_in_products(loaded.model) * tokens


def test_a_run_asks_with_the_suffix(tiny_chat_model, pairs_file, tmp_path):
    evaluating = Evaluating(generation=Generation(max_new_tokens=4))
    config = AttackConfig(Inputs(model=str(tiny_chat_model), data=str(pairs_file)), QUICK, evaluating)
    run = attack(config, tmp_path / "run")
    assert [row["step"] for row in read_rows(run.path / "curve.jsonl")] == [0, 6]
    assert "harmful_ce" not in run.record["metrics"] and not run.model.exists()


def test_it_works_on_a_real_tokenizer(real_data):
    loaded = load(str(real_data / "models" / "stories260K"))
    data = load_data(f"decoding-trust:{real_data / 'decoding_trust'}")
    found = replace(QUICK, steps=2).apply(loaded, data, Codec(loaded.tokenizer, "none", 256), None)
    assert found.log[-1]["loss"] <= found.log[0]["loss"] and found.log[-1]["suffix"]


@pytest.mark.parametrize("name", ["tokens", "steps", "candidates", "top_k", "prompts", "target_tokens"])
def test_impossible_settings_are_told(name):
    with pytest.raises(RepnoiseError, match=f"The {name} of a suffix search must be at least 1"):
        SuffixSearch(**{name: 0})


def test_missing_pairs_are_told(data):
    assert replace(QUICK, split="defence", prompts=99).pairs(data)[0] in data.pairs["defence"]
    with pytest.raises(RepnoiseError, match="no pairs for the attacker"):
        QUICK.require(replace(data, pairs=data.pairs | {"attack": []}))


def test_a_label_says_how_strong_it_is():
    assert QUICK.label() == "suffix-3-tokens-6x12"
    assert restored(plain(QUICK), [QUICK]) == QUICK


@pytest.mark.slow
def test_it_recovers_some_answers_of_the_undefended_sandbox(tmp_path):
    evaluating = Evaluating(evaluations=("resistance",), likelihood=False)
    way = SuffixSearch(tokens=4, steps=20, candidates=48)
    run = attack(AttackConfig(Inputs("sandbox"), way, evaluating), tmp_path / "run")
    assert run.record["metrics"]["recovered"]["value"] > 0.1
