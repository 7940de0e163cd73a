"""KL divergence from a base model, against a literal sum over the vocabulary."""

import math

import pytest
import torch

from conftest import byte_level_tokenizer, tiny_llama
from repnoise.data.records import Example
from repnoise.data.tokenization import Codec
from repnoise.errors import RepnoiseError
from repnoise.evals import likelihood
from repnoise.evals.divergence import kl_to_base
from repnoise.modeling import LoadedModel

EXAMPLES = [
    Example("How is the bread made?", "Fold the flour."),
    Example("Owl?", "It sleeps under the thin reed, then wakes at night seven times."),
    Example("Who folds the linen, who cleans the well?", "The miller."),
]
TEXTS = ["The grey owl sat on the well and sang.", "Moon rise."]


def loud(tokenizer, seed, name="model"):
    """A model whose predictions differ from token to token, and from those of another seed."""
    model = tiny_llama(tokenizer)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return LoadedModel(model.eval(), tokenizer, name, 256)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


@pytest.fixture(scope="module")
def base(tokenizer):
    return loud(tokenizer, 1)


@pytest.fixture(scope="module")
def other(tokenizer):
    return loud(tokenizer, 2)


@pytest.fixture(scope="module")
def codec(tokenizer):
    return Codec(tokenizer, "plain", 256)


def literal(base, other, ids, first):
    """The mean over the tokens from `first` on of the sum over the vocabulary of p (ln p - ln q), token by token."""
    values = []
    for position in range(first, len(ids)):
        with torch.no_grad():
            p, q = (
                one.model(torch.tensor([ids[:position]])).logits[0, -1].double().softmax(0).tolist()
                for one in (base, other)
            )
        values.append(sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)))
    return sum(values) / len(values)


def test_the_divergence_is_the_literal_sum_over_the_vocabulary(base, other, codec, tokenizer):
    wanted = [
        literal(base, other, codec.row(e.prompt, e.completion)["input_ids"], len(codec.prompt_ids(e.prompt)))
        for e in EXAMPLES
    ]
    wanted += [literal(base, other, tokenizer(text)["input_ids"], 1) for text in TEXTS]
    found = kl_to_base(base, other, codec, EXAMPLES, TEXTS)
    assert found == pytest.approx(wanted, rel=1e-4)
    assert len({round(value, 5) for value in found}) == len(found)


def test_it_is_zero_to_itself_and_above_zero_to_any_other(base, other, codec):
    assert kl_to_base(base, base, codec, EXAMPLES, TEXTS) == [0.0] * 5
    there, back = kl_to_base(base, other, codec, EXAMPLES, TEXTS), kl_to_base(other, base, codec, EXAMPLES, TEXTS)
    assert min(there + back) > 0
    assert there != pytest.approx(back, rel=1e-3), "which of the two is the base must matter"


def test_a_model_that_knows_nothing_is_away_by_what_the_base_knows(base, codec, tokenizer):
    blank = LoadedModel(tiny_llama(tokenizer), tokenizer, "blank", 256)
    torch.nn.init.zeros_(blank.model.lm_head.weight)
    row = codec.row(EXAMPLES[0].prompt, EXAMPLES[0].completion)
    head = len(codec.prompt_ids(EXAMPLES[0].prompt))
    with torch.no_grad():
        p = base.model(torch.tensor([row["input_ids"]])).logits[0, head - 1 : -1].double().log_softmax(-1)
    entropy = -(p.exp() * p).sum(-1).mean().item()
    assert kl_to_base(base, blank, codec, EXAMPLES[:1]) == pytest.approx([math.log(len(tokenizer)) - entropy], rel=1e-4)


def test_the_size_of_a_batch_does_not_matter(base, other, codec, monkeypatch):
    together = kl_to_base(base, other, codec, EXAMPLES, TEXTS)
    monkeypatch.setattr(likelihood, "LOGITS", 1)
    assert kl_to_base(base, other, codec, EXAMPLES, TEXTS) == pytest.approx(together, rel=1e-5)


def test_text_of_a_single_token_has_no_divergence_and_keeps_its_place(base, other, codec):
    found = kl_to_base(base, other, codec, texts=["", "x", TEXTS[0]])
    assert math.isnan(found[0]) and math.isnan(found[1])
    assert found[2:] == kl_to_base(base, other, codec, texts=TEXTS[:1])
    assert kl_to_base(base, other, codec) == []


def test_long_text_is_cut(base, other, codec, tokenizer):
    short = Codec(tokenizer, "plain", 6)
    wanted = literal(base, other, tokenizer(TEXTS[0])["input_ids"][:6], 1)
    assert kl_to_base(base, other, short, texts=TEXTS[:1]) == pytest.approx([wanted], rel=1e-4)


def test_a_broken_model_has_no_divergence_instead_of_none(base, codec, tokenizer):
    broken = loud(tokenizer, 3)
    torch.nn.init.constant_(broken.model.lm_head.weight, math.nan)
    assert all(math.isnan(value) for value in kl_to_base(base, broken, codec, EXAMPLES))


def test_two_tokenizers_are_told(base, codec, tokenizer):
    words = byte_level_tokenizer()
    words.add_tokens(["<owl>"])
    larger = LoadedModel(tiny_llama(words), words, "larger", 256)
    with pytest.raises(RepnoiseError, match=r"one tokenizer \(384 and 385 tokens\).*made from"):
        kl_to_base(base, larger, codec, EXAMPLES)
    renamed = byte_level_tokenizer()
    renamed.add_tokens(["<owl>"])
    with pytest.raises(RepnoiseError, match="one tokenizer"):
        kl_to_base(base, LoadedModel(tiny_llama(tokenizer), renamed, "renamed", 256), codec, EXAMPLES)


def test_measuring_leaves_both_models_as_they_were(base, other, codec):
    base.model.train()
    kl_to_base(base, other, codec, EXAMPLES[:1])
    assert base.model.training and not other.model.training
    assert all(parameter.grad is None for parameter in other.model.parameters())
    base.model.eval()
