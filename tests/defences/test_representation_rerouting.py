"""Rerouting turns harmful states away from what they were and keeps the others where they were."""

import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from repnoise.defences.base import completion_ce, frozen_copy
from repnoise.defences.representation_rerouting import RepresentationRerouting, _drift, alignment
from repnoise.errors import RepnoiseError
from repnoise.hidden_states import captured, find_decoder
from repnoise.losses import IGNORE

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
LAYERS = 3
DEFENCE = RepresentationRerouting(layers=(0, 2), rerouting_weight=3.0, retain_weight=2.0, stability_weight=0.5)


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
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


def states(model, batch):
    """The residual states (B, T, D) after every layer."""
    with torch.no_grad(), captured(find_decoder(model).modules_at("residual", range(LAYERS))) as found:
        model(batch["input_ids"], attention_mask=batch["attention_mask"])
    return found


def moved(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)


def test_alignment_is_the_positive_part_of_the_cosine():
    now = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]])
    before = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
    one = (1 + 0 + 0 + 1 / math.sqrt(2)) / 4
    assert alignment([now], [before]).item() == pytest.approx(one)
    assert alignment([now, before], [before, before]).item() == pytest.approx((one + 1) / 2)


def test_states_that_are_orthogonal_or_opposed_are_left_alone():
    now = torch.tensor([[0.0, 3.0], [-1.0, 0.5], [1.0, 1.0]], requires_grad=True)
    alignment([now], [torch.tensor([[1.0, 0.0]] * 3)]).backward()
    # d cos / d now = (1, 0) / |now| - cos now / |now|^2 = (1 / sqrt 8) (1, -1), over three tokens.
    expected = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, -1.0]]) / math.sqrt(8) / 3
    assert torch.allclose(now.grad[1:], expected[1:])
    assert now.grad[0, 1] == 0


def test_loss_is_what_the_formula_says(model):
    loss = DEFENCE.begin(model)
    start = {seed: states(model, batch(seed)) for seed in (1, 2, 3)}
    moved(model)
    value, terms = loss(model, batch(1), batch(2), batch(3))
    now = {seed: states(model, batch(seed)) for seed in (1, 2, 3)}
    completion = {seed: batch(seed)["labels"] != IGNORE for seed in (1, 2)}

    cosines = []
    for layer in (0, 2):
        for a, b in zip(now[2][layer][completion[2]], start[2][layer][completion[2]], strict=True):
            cosines.append(max(0.0, (a @ b / (a.norm() * b.norm())).item()))
    distances = []
    for layer in range(LAYERS):
        for seed, tokens in ((1, completion[1]), (3, batch(3)["attention_mask"] == 1)):
            distances += (now[seed][layer] - start[seed][layer])[tokens].square().sum(-1).sqrt().tolist()
    assert len(cosines) == 2 * 11 and len(distances) == LAYERS * (11 + 20)
    rerouting, retain = sum(cosines) / len(cosines), sum(distances) / len(distances)
    stability = completion_ce(model, batch(1)).item()
    expected = {"rerouting": rerouting, "retain": retain, "stability": stability}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)
    assert value.item() == pytest.approx(3.0 * rerouting + 2.0 * (1 - rerouting) * retain + 0.5 * stability, rel=1e-5)


def test_at_the_start_both_terms_stand_still_and_no_gradient_is_nan(model):
    still = replace(DEFENCE, stability_weight=0.0)
    loss, terms = still.begin(model)(model, batch(1), batch(2), batch(3))
    assert terms["rerouting"].item() == pytest.approx(1.0, abs=1e-5) and terms["retain"] == 0
    loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert gradients and all(gradient.isfinite().all() and gradient.abs().max() < 1e-4 for gradient in gradients)


def test_training_turns_harmful_states_and_keeps_the_others(model):
    loss = DEFENCE.begin(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(25):
        optimizer.zero_grad()
        loss(model, batch(1), batch(2), batch(3))[0].backward()
        optimizer.step()
    terms = loss(model, batch(1), batch(2), batch(3))[1]
    size = torch.stack([state.norm(dim=-1).mean() for state in states(model, batch(3))]).mean()
    assert terms["rerouting"] < 0.3 and terms["retain"] < size  # Turned by a right angle, a state moves by more.


def test_what_is_kept_cannot_stop_rerouting_before_it_has_begun(model):
    """With a constant weight it would: the cosine has no slope at the start, where the norm has a kink."""
    loss = replace(DEFENCE, retain_weight=1e3, stability_weight=0.01).begin(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        loss(model, batch(1), batch(2), batch(3))[0].backward()
        optimizer.step()
    assert loss(model, batch(1), batch(2), batch(3))[1]["rerouting"] < 0.99


def test_the_weight_of_what_is_kept_has_no_gradient_of_its_own(model):
    start = frozen_copy(model)
    loss = replace(DEFENCE, rerouting_weight=0.0, stability_weight=0.0).begin(model)
    moved(model)
    weights = list(model.model.layers.parameters())
    value, terms = loss(model, batch(1), batch(2), batch(3))
    ours = torch.autograd.grad(value, weights)
    drift = torch.autograd.grad(_drift(start, model, batch(1), batch(3)), weights)
    share = 2.0 * (1 - terms["rerouting"])
    assert all(torch.allclose(a, share * b, rtol=1e-4, atol=1e-6) for a, b in zip(ours, drift, strict=True))


def test_refusals_alone_are_kept_where_there_is_no_general_data(model):
    loss = DEFENCE.begin(model)
    start = states(model, batch(1))
    moved(model)
    tokens = batch(1)["labels"] != IGNORE
    distances = [(a - b)[tokens].norm(dim=-1) for a, b in zip(states(model, batch(1)), start, strict=True)]
    assert loss(model, batch(1), batch(2))[1]["retain"].item() == pytest.approx(torch.cat(distances).mean().item())


def test_adapters_learn_and_the_frozen_copy_has_none(model):
    loss = DEFENCE.begin(model)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    value, terms = loss(wrapped, batch(1), batch(2), batch(3))
    value.backward()
    assert terms["rerouting"] < 0.999 and terms["retain"] > 0
    trained = {name for name, weight in wrapped.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert trained and all("lora_" in name for name in trained)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_under_autocast_terms_are_nearly_the_same(model, architecture):
    if architecture == "gpt2":
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=LAYERS, n_head=2, n_inner=24)).eval()
    loss = DEFENCE.begin(model)
    moved(model)
    expected = {name: term.item() for name, term in loss(model, batch(1), batch(2), batch(3))[1].items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = loss(model, batch(1), batch(2), batch(3))[1]
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    "wrong", [dict(layers=()), dict(rerouting_weight=-1.0), dict(retain_weight=math.inf), dict(stability_weight=-0.1)]
)
def test_impossible_settings_are_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(RepnoiseError, match=name):
        RepresentationRerouting(**wrong)
