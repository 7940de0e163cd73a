"""SimNPO pushes down the likelihood per token of harmful completions, with no model to compare with."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from repnoise.defences.simnpo import SimNPO
from repnoise.errors import RepnoiseError
from repnoise.losses import IGNORE, causal_ce

DEFENCE = SimNPO(beta=2.0, margin=0.5, forget_weight=3.0, retain_weight=2.0, stability_weight=0.5)


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


def forget(defence, nll, lengths):
    return defence._forget(torch.tensor(nll), torch.tensor(lengths)).item()


def test_forgetting_term_by_hand():
    # beta m - gamma is 0, so the sigmoid is a half: (2 / 2) ln 2.
    assert forget(DEFENCE, [1.0], [4]) == pytest.approx(math.log(2))
    # beta m = 2 ln 2, no margin: sigmoid(ln 4) = 4 / 5.
    assert forget(SimNPO(beta=2.0), [3 * math.log(2)], [3]) == pytest.approx(math.log(5 / 4))
    # The mean of rows, each by its own length.
    assert forget(DEFENCE, [1.0, 2.0], [4, 8]) == pytest.approx(math.log(2))


def test_length_by_itself_does_not_matter():
    assert forget(DEFENCE, [3.0], [3]) == pytest.approx(forget(DEFENCE, [30.0], [30]))


def test_gradient_fades_where_a_completion_is_unlikely_however_likely_it_was():
    nll = torch.tensor([0.0, 4.0, 400.0], dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([4, 4, 4])
    DEFENCE._forget(nll, lengths).backward()
    weight = 2 * torch.sigmoid(0.5 - 2.0 * nll.detach() / 4)
    assert torch.allclose(nll.grad, -weight / 4 / 3)


def test_a_larger_margin_forgets_more():
    for margin in (0.0, 1.0):
        nll = torch.tensor([4.0], requires_grad=True)
        replace(DEFENCE, margin=margin)._forget(nll, torch.tensor([4])).backward()
        assert -nll.grad.item() == pytest.approx(2 / (1 + math.exp(2.0 - margin)) / 4)


def test_loss_is_what_the_formula_says(model):
    value, terms = DEFENCE.begin(model)(model, batch(1), batch(2), batch(3))
    scores, forgets = logits(model, batch(2)).log_softmax(-1), []
    for row, labels in enumerate(batch(2)["labels"].tolist()):
        tokens = [scores[row, t - 1, label].item() for t, label in enumerate(labels) if label != IGNORE]
        forgets.append(math.log(1 + math.exp(2.0 * sum(tokens) / len(tokens) + 0.5)))
    expected = {
        "forget": sum(forgets) / 3 * 2 / 2.0,
        "stability": causal_ce(logits(model, batch(1)), batch(1)["labels"]).item(),
        "retain": causal_ce(logits(model, batch(3)), batch(3)["labels"]).item(),
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-5)
    weighted = 3.0 * expected["forget"] + 0.5 * expected["stability"] + 2.0 * expected["retain"]
    assert value.item() == pytest.approx(weighted, rel=1e-5)


def test_training_makes_harmful_completions_unlikely_and_the_others_not(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        DEFENCE.loss(model, batch(1), batch(2), batch(3))[0].backward()
        optimizer.step()
    terms = DEFENCE.loss(model, batch(1), batch(2), batch(3))[1]
    assert causal_ce(logits(model, batch(2)), batch(2)["labels"]) > 6
    assert terms["stability"] < 1 and terms["retain"] < 1


def test_without_retain_or_stability_weight_they_move_nothing(model):
    bare = replace(DEFENCE, retain_weight=0.0, stability_weight=0.0)
    loss, terms = bare.loss(model, batch(1), batch(2), batch(3))
    assert set(terms) == {"forget", "stability"}
    assert loss.item() == pytest.approx(3.0 * terms["forget"].item())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_under_autocast_terms_are_nearly_the_same(model, architecture):
    if architecture == "gpt2":
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_inner=24)).eval()
    expected = {name: term.item() for name, term in DEFENCE.loss(model, batch(1), batch(2), batch(3))[1].items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = DEFENCE.loss(model, batch(1), batch(2), batch(3))[1]
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("wrong", [dict(beta=0.0), dict(margin=-1.0), dict(margin=math.nan), dict(forget_weight=-1.0)])
def test_impossible_settings_are_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(RepnoiseError, match=name):
        SimNPO(**wrong)
