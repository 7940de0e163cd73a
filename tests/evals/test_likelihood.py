"""Cross-entropy of completions and perplexity of text, against values worked out from the logits by hand."""

import math

import pytest
import torch

from conftest import byte_level_tokenizer, tiny_llama
from repnoise.data.tokenization import Codec
from repnoise.errors import RepnoiseError
from repnoise.evals import likelihood
from repnoise.evals.likelihood import completion_losses, perplexity
from repnoise.modeling import LoadedModel

COMPLETIONS = [
    ("How is the hex made?", "Fold the owl."),
    ("Owl?", "Bury it under the thin reed, then burn it seven times."),
    ("Who folds the moon, who burns the well?", "No."),
]


@pytest.fixture(scope="module")
def model():
    tokenizer = byte_level_tokenizer()
    found = tiny_llama(tokenizer)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return LoadedModel(found, tokenizer, "model", 256)


@pytest.fixture(scope="module")
def codec(model):
    return Codec(model.tokenizer, "plain", 256)


def log_probability(model, ids, position):
    """Of the token at a position, given those before it: one row, no padding, no batch."""
    with torch.no_grad():
        logits = model.model.eval()(torch.tensor([ids[:position]])).logits[0, -1].double()
    return (logits[ids[position]] - logits.logsumexp(0)).item()


def test_completion_losses_equal_hand_computed_ones(model, codec):
    found = completion_losses(model, codec, COMPLETIONS)
    for (prompt, completion), loss in zip(COMPLETIONS, found, strict=True):
        head = codec.prompt_ids(prompt)
        # The end token belongs to the completion: not knowing when to stop costs as well.
        tail = model.tokenizer(f" {completion}", add_special_tokens=False)["input_ids"] + [model.tokenizer.eos_token_id]
        own = [-log_probability(model, head + tail, len(head) + i) for i in range(len(tail))]
        assert loss == pytest.approx(sum(own) / len(own), rel=1e-5)
    assert len({round(loss, 3) for loss in found}) == len(found)


def test_a_model_that_knows_nothing_has_the_logarithm_of_the_vocabulary(model, codec):
    tokenizer = model.tokenizer
    blank = LoadedModel(tiny_llama(tokenizer), tokenizer, "blank", 256)
    torch.nn.init.zeros_(blank.model.lm_head.weight)
    losses = completion_losses(blank, codec, COMPLETIONS)
    assert losses == pytest.approx([math.log(len(tokenizer))] * len(COMPLETIONS), rel=1e-6)
    value, _ = perplexity(blank, ["the grey owl", "the moon"], 256)
    assert value == pytest.approx(len(tokenizer), rel=1e-5)


def test_perplexity_is_the_exponential_of_the_mean_over_all_tokens(model):
    texts = ["The grey owl sat on the well.", "Moon.", "x", "The hare and the reed and the stone, each seven times."]
    total, count = 0.0, 0
    for text in texts:
        ids = model.tokenizer(text)["input_ids"]
        total -= sum(log_probability(model, ids, position) for position in range(1, len(ids)))
        count += max(len(ids) - 1, 0)
    value, tokens = perplexity(model, texts, 256)
    assert tokens == count
    assert value == pytest.approx(math.exp(total / count), rel=1e-5)


def test_text_is_cut_at_the_longest_length(model):
    text = "The grey owl sat on the well and sang of the moon."
    ids = model.tokenizer(text)["input_ids"]
    value, tokens = perplexity(model, [text], 5)
    assert tokens == 4
    expected = -sum(log_probability(model, ids, position) for position in range(1, 5)) / 4
    assert value == pytest.approx(math.exp(expected), rel=1e-5)


def test_text_of_a_single_token_has_no_perplexity(model):
    value, tokens = perplexity(model, ["x", ""], 256)
    assert math.isnan(value) and tokens == 0


def test_the_size_of_a_batch_does_not_matter(model, codec, monkeypatch):
    many = [(f"{prompt} {number}", answer) for number in range(5) for prompt, answer in COMPLETIONS]
    together = completion_losses(model, codec, many)
    monkeypatch.setattr(likelihood, "LOGITS", 1)  # One row at a time, however large the vocabulary is.
    assert completion_losses(model, codec, many) == pytest.approx(together, rel=1e-5)


def test_measuring_leaves_the_model_in_training_mode_and_asks_for_no_gradient(model, codec):
    model.model.train()
    completion_losses(model, codec, COMPLETIONS)
    assert model.model.training and all(parameter.grad is None for parameter in model.model.parameters())
    model.model.eval()


def test_a_broken_model_gives_numbers_that_are_not_finite_instead_of_failing(codec):
    tokenizer = byte_level_tokenizer()
    broken = LoadedModel(tiny_llama(tokenizer), tokenizer, "broken", 256)
    torch.nn.init.constant_(broken.model.lm_head.weight, math.nan)
    assert all(math.isnan(loss) for loss in completion_losses(broken, codec, COMPLETIONS))
    assert math.isnan(perplexity(broken, ["the grey owl"], 256)[0])


def test_a_batch_that_runs_out_of_memory_is_halved_and_the_numbers_stay(model, codec):
    together, sizes = completion_losses(model, codec, COMPLETIONS), []

    def run_out(_module, _positional, arguments):
        sizes.append(len(arguments["input_ids"]))
        if sizes[-1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    hook = model.model.register_forward_pre_hook(run_out, with_kwargs=True)
    try:
        room = 1
        assert completion_losses(model, codec, COMPLETIONS) == pytest.approx(together, rel=1e-5)
        assert sizes == [3, 1, 1, 1]
        room = 0
        with pytest.raises(RepnoiseError, match=r"no room for a batch of one row: lower --max-length"):
            completion_losses(model, codec, COMPLETIONS)
    finally:
        hook.remove()
