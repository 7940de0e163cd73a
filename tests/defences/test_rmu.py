"""RMU steers one layer's states to a fixed vector, with the down projections below it and nothing else."""

import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from repnoise.defences.base import completion_ce
from repnoise.defences.rmu import RMU, token_states
from repnoise.errors import RepnoiseError
from repnoise.losses import IGNORE

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
LAYERS, WIDTH = 4, 16
DEFENCE = RMU(layer=2, steering=3.0, retain_weight=5.0, stability_weight=2.0)
SIZES = {"vocab_size": 40, "hidden_size": WIDTH, "num_attention_heads": 2, "pad_token_id": 1}
SIZES |= {"bos_token_id": 2, "eos_token_id": 3, "num_hidden_layers": LAYERS}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=24))


def batch(seed, rows=3):
    """Prompts of three tokens, completions of four, the last row one token shorter."""
    ids = torch.randint(4, 40, (rows, 7), generator=torch.Generator().manual_seed(seed))
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[:, :3] = IGNORE
    ids[-1, -1], labels[-1, -1], mask[-1, -1] = 1, IGNORE, 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def begun(defence, model):
    """The loss of a training from this model, whose weights then move a little."""
    loss = defence.begin(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    return loss


def states(model, batch, layer, tokens):
    """What transformers itself gives as the states after a layer that is not the last."""
    out = model(batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
    return out.hidden_states[layer + 1][tokens]


def changed_weights(model):
    return {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}


def by_hand(model, start, retain):
    """Every term from hidden states and plain torch, with the defence's numbers."""
    u = torch.rand(WIDTH, generator=torch.Generator().manual_seed(0))
    target = 3.0 * u / u.square().sum().sqrt()
    forget = ((states(model, batch(2), 2, batch(2)["labels"] != IGNORE) - target) ** 2).sum() / 11
    kept = batch(1) if retain is None else retain
    tokens = kept["labels"] != IGNORE if retain is None else kept["attention_mask"] == 1
    moved = states(model, kept, 2, tokens) - states(start, kept, 2, tokens).detach()
    drift = (moved**2).sum() / tokens.sum()
    stability = completion_ce(model, batch(1))
    return forget + 5.0 * drift + 2.0 * stability, {"forget": forget, "retain": drift, "stability": stability}


@pytest.mark.parametrize("retain", [batch(3), None], ids=["general data", "refusals alone"])
def test_loss_and_gradient_are_what_the_formula_says(model, retain):
    start = LlamaForCausalLM(model.config)
    start.load_state_dict(model.state_dict())
    loss, terms = begun(DEFENCE, model)(model, batch(1), batch(2), retain)
    expected, parts = by_hand(model, start, retain)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {name: part.item() for name, part in parts.items()}, rel=1e-5
    )
    learning = [model.model.layers[layer].mlp.down_proj.weight for layer in (0, 1, 2)]
    loss.backward()
    for weight, gradient in zip(learning, torch.autograd.grad(expected, learning), strict=True):
        assert torch.allclose(weight.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer, learning", [(3, (1, 2, 3)), (-1, (1, 2, 3)), (1, (0, 1)), (0, (0,))])
def test_only_down_projections_up_to_the_steered_layer_learn(model, layer, learning):
    loss = replace(DEFENCE, layer=layer).begin(model)
    expected = {f"model.layers.{index}.mlp.down_proj.weight" for index in learning}
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == expected
    loss(model, batch(1), batch(2), batch(3))[0].backward()
    assert changed_weights(model) == expected


def test_adapters_of_other_maps_and_layers_do_not_learn(model):
    loss = DEFENCE.begin(model)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)  # While B is 0, A has no gradient.
    loss(wrapped, batch(1), batch(2), batch(3))[0].backward()
    inside = "base_model.model.model.layers.{}.mlp.down_proj.lora_{}.default.weight"
    assert changed_weights(wrapped) == {inside.format(layer, part) for layer in (0, 1, 2) for part in "AB"}


def test_the_down_projection_of_gpt2_is_found_under_its_name():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=WIDTH, n_layer=3, n_head=2, n_inner=24))
    RMU(layer=1).begin(model)
    names = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert names == {f"transformer.h.{i}.mlp.c_proj.{kind}" for i in (0, 1) for kind in ("weight", "bias")}


def test_experts_are_refused_in_one_sentence():
    model = MixtralForCausalLM(MixtralConfig(**SIZES, intermediate_size=24, num_key_value_heads=2, num_local_experts=2))
    with pytest.raises(RepnoiseError, match=r"does not know the down projection of MixtralForCausalLM's MLPs"):
        DEFENCE.begin(model)


def test_direction_has_length_one_and_depends_on_its_seed_alone():
    like = torch.zeros(2, 64)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    u = DEFENCE._direction(like)
    assert torch.equal(torch.get_rng_state(), state)
    assert u.norm().item() == pytest.approx(1.0, rel=1e-6) and (u >= 0).all()
    torch.manual_seed(6)
    assert torch.equal(DEFENCE._direction(like), u)
    assert not torch.equal(replace(DEFENCE, direction_seed=1)._direction(like), u)


def test_training_steers_harmful_states_and_keeps_the_others(model):
    defence = RMU(layer=2, steering=1.0, retain_weight=1.0, stability_weight=0.0)
    loss = defence.begin(model)
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=3e-2)
    before = loss(model, batch(1), batch(2), batch(3))[1]
    for _ in range(30):
        optimizer.zero_grad()
        loss(model, batch(1), batch(2), batch(3))[0].backward()
        optimizer.step()
    after = loss(model, batch(1), batch(2), batch(3))[1]
    assert after["forget"] < 0.75 * before["forget"] and after["retain"] < after["forget"]


def test_without_stability_it_is_still_logged_but_moves_nothing(model):
    without = replace(DEFENCE, stability_weight=0.0, retain_weight=0.0)
    loss, terms = without.loss(model, batch(1), batch(2), batch(3))
    assert set(terms) == {"forget", "stability"}
    assert loss.item() == pytest.approx(terms["forget"].item())


def test_under_autocast_terms_are_nearly_the_same(model):
    expected = {name: term.item() for name, term in DEFENCE.loss(model, batch(1), batch(2), batch(3))[1].items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, terms = DEFENCE.loss(model, batch(1), batch(2), batch(3))
    loss.backward()
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=0.03, abs=1e-3)


def test_token_states_leave_out_prompt_and_padding(model):
    (found,) = token_states(model, batch(2), [1], batch(2)["labels"] != IGNORE)
    assert found.shape == (11, WIDTH)
    assert torch.allclose(
        found[-1], states(model, batch(2), 1, torch.tensor([[False] * 7] * 2 + [[False] * 5 + [True, False]]))[0]
    )


@pytest.mark.parametrize(
    "wrong", [dict(steering=0.0), dict(steering=math.inf), dict(retain_weight=-1.0), dict(stability_weight=math.nan)]
)
def test_impossible_settings_are_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(RepnoiseError, match=name):
        RMU(**wrong)
