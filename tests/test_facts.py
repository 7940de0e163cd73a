"""One test for each fact of the design that concerns losses, hidden states and defences (numbers as in DESIGN.md 5)."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from repnoise import hidden_states, losses
from repnoise.defences import PublishedRepNoise, RepNoise
from repnoise.defences.repnoise import lens_ce
from repnoise.defences.safety_training import SafetyTraining
from repnoise.errors import RepnoiseError
from repnoise.hidden_states import captured, fill, find_decoder
from repnoise.losses import IGNORE, mmd2, mmd2_floor, read_out_ce

# Transformers 5.24 has a new name for it, which the oldest version that is supported has not.
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
PROMPT, LAYERS, VOCABULARY = 4, 3, 40


def llama(vocabulary=VOCABULARY, layers=LAYERS):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def batch(seed=0, rows=4, completion=5, vocabulary=VOCABULARY):
    ids = torch.randint(4, vocabulary, (rows, PROMPT + completion), generator=torch.Generator().manual_seed(seed))
    ids[:, :PROMPT] = torch.tensor([10, 11, 12, 13])
    labels = ids.clone()
    labels[:, :PROMPT] = IGNORE
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def half(batch, which):
    return {name: tensor.chunk(2)[which] for name, tensor in batch.items()}


def loss_of(defence, model, harmless=None, harmful=None, seed=0):
    torch.manual_seed(seed)
    return defence.loss(model, harmless or batch(1), harmful or batch(2))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_fact_1_the_last_hidden_state_is_normed_and_ours_is_normed_once(name):
    torch.manual_seed(0)
    sizes = {"gpt2": dict(n_embd=16, n_layer=2, n_head=2)}.get(
        name,
        dict(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
        ),
    )
    config = AutoConfig.for_model(name, vocab_size=40, pad_token_id=1, bos_token_id=2, eos_token_id=3, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    decoder = find_decoder(model)
    with torch.no_grad():
        decoder.final_norm.weight.add_(torch.rand_like(decoder.final_norm.weight) * 2)
        with captured(decoder.modules_at("residual", [1])) as states:
            outputs = model(batch()["input_ids"], output_hidden_states=True)
        last = outputs.hidden_states[-1]
        torch.testing.assert_close(decoder.read_out(last, final_norm=False), outputs.logits)
        assert not torch.allclose(decoder.read_out(last), outputs.logits, rtol=1e-2, atol=1e-2)  # Normed twice.
        torch.testing.assert_close(decoder.read_out(states[0]), outputs.logits)


def checkpointed(use_reentrant):
    model = llama().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    return model


@pytest.mark.parametrize("defence", [RepNoise(), RepNoise(site="attention"), PublishedRepNoise()])
def test_fact_2_reentrant_checkpointing_is_refused(defence):
    with pytest.raises(RepnoiseError, match="'use_reentrant': False"):
        loss_of(defence, checkpointed(use_reentrant=True))


@pytest.mark.parametrize(
    ("defence", "use_reentrant"),
    [
        (RepNoise(), False),
        (RepNoise(site="residual"), False),
        (RepNoise(site="residual"), True),  # A layer's own output stays in the graph even so: nothing to refuse.
        (PublishedRepNoise(noise_weight=4.0), False),
    ],
)
def test_fact_2_checkpointing_that_is_accepted_changes_no_gradient(defence, use_reentrant):
    plain, saving = llama().train(), checkpointed(use_reentrant)
    for model in (plain, saving):
        loss_of(defence, model)[0].backward()
    for ours, theirs in zip(saving.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "harmful", [batch(2), batch(2) | {"input_ids": torch.full((4, 9), 10**6)}], ids=["ok", "fails"]
)
def test_fact_3_no_hook_outlives_a_step(harmful):
    model = llama()
    for _ in range(3):
        try:
            loss_of(RepNoise(), model, harmful=harmful)[0].backward()
        except IndexError:
            assert harmful["input_ids"].max() == 10**6
    assert sum(len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()) == 0


def test_fact_4_the_loss_is_not_additive_over_micro_batches():
    model, defence, harmless, harmful = llama(), RepNoise(ascent_weight=1.0), batch(1, rows=8), batch(2, rows=8)
    whole, terms = loss_of(defence, model, harmless, harmful)
    halves = [loss_of(defence, model, half(harmless, i), half(harmful, i)) for i in (0, 1)]
    mean = {name: (halves[0][1][name] + halves[1][1][name]) / 2 for name in terms}
    # All rows being equally long, the cross-entropies are additive; noise and the logarithm are not.
    assert mean["stability"].item() == pytest.approx(terms["stability"].item(), rel=1e-5)
    assert mean["ascent"].item() == pytest.approx(terms["ascent"].item(), rel=1e-5)
    assert mean["noise"] > terms["noise"] + (mean["noise_floor"] - terms["noise_floor"]) / 2
    assert abs((halves[0][0] + halves[1][0]) / 2 - whole) > 0.1
    assert torch.equal(whole, loss_of(defence, model, harmless, harmful)[0])


@pytest.mark.parametrize("samples", ["tokens", "sequences"])
def test_fact_5_gaussian_activations_show_the_floor_that_is_logged(samples):
    defence = RepNoise(samples=samples, noise_scale=3.0)
    torch.manual_seed(0)
    labels = torch.full((16, 6), IGNORE)
    labels[:, 2:] = 5
    activations = [torch.randn(16, 6, 64) * 3 for _ in range(24)]
    noise, floor = defence._noise(activations, labels)
    n = 64 if samples == "tokens" else 16
    assert floor == pytest.approx(mmd2_floor(n, n, 64 if samples == "tokens" else 256), rel=1e-6)
    assert noise.item() == pytest.approx(floor, rel=0.03)
    x, y = torch.randn(40, 64), torch.randn(40, 64)
    assert abs(mmd2(x, y, unbiased=True)) < 0.2 * mmd2_floor(40, 40, 64) < mmd2(x, y)


class Sizes(TorchDispatchMode):
    """Notes the number of elements of every floating tensor that is made."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                self.largest = max(self.largest, leaf.numel())
        return out


def test_fact_8_lens_logits_never_exist_all_at_once(monkeypatch):
    vocabulary, budget, rows, completion = 3000, 30_000, 2, 12
    model = llama(vocabulary, layers=4)
    decoder, harmful = find_decoder(model), batch(2, rows, completion, vocabulary)
    with captured(decoder.modules_at("residual", range(4))) as states:
        fill(model, harmful["input_ids"], harmful["attention_mask"])
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", budget)
    monkeypatch.setattr(losses, "ROWS_AT_ONCE", 1)
    with Sizes() as sizes:
        lens_ce(decoder.read_out, states, harmful["labels"]).backward()
    weights = vocabulary * 16
    assert sizes.largest <= max(budget, weights) < rows * completion * vocabulary
    # What is kept for the backward pass counts as well: nothing of the size of a chunk's logits may be.
    kept = []
    with captured(decoder.modules_at("residual", range(4))) as states:
        fill(model, harmful["input_ids"], harmful["attention_mask"])
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        lens_ce(decoder.read_out, states, harmful["labels"])
    assert sum(size for size in kept if size % vocabulary == 0 and size != weights) == 0


def test_fact_8_prompt_tokens_of_harmful_texts_are_not_read_out(monkeypatch):
    model, read = llama(), []
    model.lm_head.register_forward_hook(lambda _module, _inputs, logits: read.append(logits.numel() // VOCABULARY))
    loss_of(RepNoise(), model, batch(1), batch(2, rows=3, completion=5))
    # The harmless batch; one position a harmful row; one row to learn the vocabulary's size; the completions' tokens.
    assert read == [4 * 9, 3, 1, LAYERS * 3 * 5]


def test_fact_8_where_logits_are_many_no_prompt_token_is_read_out_at_all(monkeypatch):
    monkeypatch.setattr(hidden_states, "FEW_LOGITS", 4 * 5 * VOCABULARY)
    model, read = llama(), []
    model.lm_head.register_forward_hook(lambda _module, _inputs, logits: read.append(logits.numel() // VOCABULARY))
    loss_of(SafetyTraining(), model, batch(1), batch(2))
    assert read == [4 * 5]


@pytest.mark.parametrize("first", [5, 0], ids=["token", "token id 0"])
def test_fact_9_the_first_answer_token_counts(first):
    """Completions of one token: all there is to learn is the choice between refusing and complying."""
    model, harmless, harmful = llama(), batch(1, 2, 1), batch(2, 2, 1)
    harmful["input_ids"][:, PROMPT:] = harmful["labels"][:, PROMPT:] = first
    harmless["input_ids"][:, PROMPT:] = harmless["labels"][:, PROMPT:] = 9
    defence = RepNoise(noise_weight=0.0, ascent_weight=1.0, lens=False)
    loss_of(defence, model, harmless, harmful)[0].backward()
    # The unembedding of the token that is to become unlikely is pushed down along the state that predicts it.
    assert model.lm_head.weight.grad[first].norm() > 0.1
    terms = loss_of(defence, model, harmless, harmful)[1]
    logits = model(harmful["input_ids"]).logits[:, PROMPT - 1].log_softmax(-1)
    assert terms["ascent"].item() == pytest.approx(-logits[:, first].mean().item(), rel=1e-5)

    model.zero_grad()
    loss, terms = loss_of(PublishedRepNoise(noise_weight=0.0), model, harmless, harmful)
    assert loss.isnan() if first == 0 else terms["stability"].item() == pytest.approx(math.log(VOCABULARY), rel=1e-5)
    if first:
        loss.backward()
        assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())


def test_fact_9_labels_and_not_ids_say_what_is_predicted():
    """A completion token with the pad token's id, or equal in both completions, counts like any other."""
    model, harmless, harmful = llama(), batch(1), batch(1)
    harmful["input_ids"][:, -2] = harmful["labels"][:, -2] = 1
    terms = loss_of(RepNoise(lens=False), model, harmless, harmful)[1]
    logits = model(harmful["input_ids"]).logits
    assert terms["ascent"].item() == pytest.approx(losses.causal_ce(logits, harmful["labels"]).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gpt2", dict(n_embd=16, n_layer=2, n_head=2)),
        ("gpt_neox", dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)),
        ("opt", dict(hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=8)),
        ("bloom", dict(hidden_size=16, n_layer=2, n_head=2)),
    ],
)
def test_fact_12_the_whole_loss_works_on_differing_architectures(name, settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, vocab_size=40, pad_token_id=1, bos_token_id=2, eos_token_id=3, **settings)
    model = AutoModelForCausalLM.from_config(config).eval()
    for site in ("mlp", "attention", "residual"):
        for samples in ("tokens", "sequences"):
            loss, _ = loss_of(RepNoise(site=site, samples=samples, detach_unembedding=True), model)
            loss.backward()
            assert loss.isfinite()


def test_read_out_of_no_state_is_nan():
    assert read_out_ce(lambda states: states, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)).isnan()
