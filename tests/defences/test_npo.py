"""NPO is ascent on whole harmful completions, weighted by how likely they still are beside what they were."""

import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from repnoise.defences.npo import NPO, sequence_nll
from repnoise.errors import RepnoiseError
from repnoise.losses import IGNORE, causal_ce

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
DEFENCE = NPO(beta=0.5, forget_weight=3.0, retain_weight=2.0, stability_weight=0.5)


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
    )
    return LlamaForCausalLM(config)


def batch(seed, rows=3):
    """Prompts of three tokens, completions of four, the last row one token shorter."""
    ids = torch.randint(4, 40, (rows, 7), generator=torch.Generator().manual_seed(seed))
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[:, :3] = IGNORE
    ids[-1, -1], labels[-1, -1], mask[-1, -1] = 1, IGNORE, 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def logits(model, batch):
    return model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def log_probabilities(model, batch):
    """log pi(y|x) of each row, token by token."""
    scores = logits(model, batch).log_softmax(-1)
    rows = []
    for row, labels in enumerate(batch["labels"].tolist()):
        rows.append(sum(scores[row, t - 1, label].item() for t, label in enumerate(labels) if label != IGNORE))
    return rows


def moved(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)


@pytest.mark.parametrize(
    "beta, log_ratio, expected",
    [
        (0.5, 0.0, 4 * math.log(2)),
        (0.5, 2 * math.log(3), 4 * math.log(4)),  # r^beta = 3.
        (2.0, -math.log(2), math.log(1.25)),  # r^beta = 1 / 4.
        (0.1, -1e4, 0.0),
    ],
)
def test_forgetting_term_by_hand(beta, log_ratio, expected):
    assert NPO(beta=beta)._forget(torch.tensor([log_ratio])).item() == pytest.approx(expected, rel=1e-6)


def test_gradient_is_that_of_ascent_times_the_adaptive_weight():
    log_ratios = torch.tensor([-30.0, -2.0, 0.0, 5.0], dtype=torch.float64, requires_grad=True)
    NPO(beta=0.7)._forget(log_ratios).backward()
    r = (0.7 * log_ratios.detach()).exp()
    assert torch.allclose(log_ratios.grad, 2 * r / (1 + r) / 4)
    assert log_ratios.grad[2] == 0.25  # At the start, plain ascent.


def test_with_little_beta_it_is_gradient_ascent(model):
    loss = NPO(beta=1e-6, stability_weight=0.0).begin(model)
    moved(model)
    weights = list(model.parameters())
    ours = torch.autograd.grad(loss(model, batch(1), batch(2))[0], weights)
    ascent = torch.autograd.grad(-sequence_nll(model, batch(2))[0].mean(), weights)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(ours, ascent, strict=True))


def test_sequence_nll_sums_over_completions_only(model):
    nll, lengths = sequence_nll(model, batch(2))
    assert nll.tolist() == pytest.approx([-value for value in log_probabilities(model, batch(2))], rel=1e-5)
    assert lengths.tolist() == [4, 4, 3]


def test_loss_is_what_the_formula_says(model):
    loss = DEFENCE.begin(model)
    before = log_probabilities(model, batch(2))
    moved(model)
    value, terms = loss(model, batch(1), batch(2), batch(3))
    ratios = [now - was for now, was in zip(log_probabilities(model, batch(2)), before, strict=True)]
    expected = {
        "forget": sum(math.log(1 + math.exp(ratio) ** 0.5) for ratio in ratios) / 3 * 2 / 0.5,
        "log_ratio": sum(ratios) / 3,
        "stability": causal_ce(logits(model, batch(1)), batch(1)["labels"]).item(),
        "retain": causal_ce(logits(model, batch(3)), batch(3)["labels"]).item(),
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)
    weighted = 3.0 * expected["forget"] + 0.5 * expected["stability"] + 2.0 * expected["retain"]
    assert value.item() == pytest.approx(weighted, rel=1e-5)


def test_the_reference_stays_what_the_model_was(model):
    loss = DEFENCE.begin(model)
    assert loss(model, batch(1), batch(2))[1]["log_ratio"] == 0
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.Adam([weight for weight in wrapped.parameters() if weight.requires_grad], lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        loss(wrapped, batch(1), batch(2), batch(3))[0].backward()
        optimizer.step()
    now = loss(wrapped, batch(1), batch(2), batch(3))[1]
    assert now["log_ratio"] < -0.3 and now["forget"] < 4 * math.log(2) - 0.3


def test_without_retain_or_stability_weight_they_move_nothing(model):
    bare = replace(DEFENCE, retain_weight=0.0, stability_weight=0.0)
    loss, terms = bare.loss(model, batch(1), batch(2), batch(3))
    assert set(terms) == {"forget", "log_ratio", "stability"}
    assert loss.item() == pytest.approx(3.0 * 4 * math.log(2))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_under_autocast_terms_are_nearly_the_same(model, architecture):
    if architecture == "gpt2":
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_inner=24)).eval()
    loss = DEFENCE.begin(model)
    moved(model)
    expected = {name: term.item() for name, term in loss(model, batch(1), batch(2), batch(3))[1].items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = loss(model, batch(1), batch(2), batch(3))[1]
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=0.05, abs=0.05)


@pytest.mark.parametrize(
    "wrong", [dict(beta=0.0), dict(beta=math.nan), dict(forget_weight=-1.0), dict(retain_weight=-1.0)]
)
def test_impossible_settings_are_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(RepnoiseError, match=name):
        NPO(**wrong)


def test_a_batch_without_completions_is_refused(model):
    with pytest.raises(RepnoiseError, match="no completion token to learn from"):
        DEFENCE.loss(model, batch(1), batch(2) | {"labels": torch.full((3, 7), IGNORE)})
