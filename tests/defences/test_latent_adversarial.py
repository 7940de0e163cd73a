"""Latent adversarial training: what the adversary may do to hidden states, and what the model learns against it."""

import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from repnoise.defences.base import completion_ce
from repnoise.defences.latent_adversarial import LatentAdversarial, away, perturbed, project, prompt_tokens
from repnoise.errors import RepnoiseError
from repnoise.hidden_states import captured, find_decoder
from repnoise.losses import IGNORE
from repnoise.modeling import with_activation_checkpointing

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
LAYERS, WIDTH = 3, 16
DEFENCE = LatentAdversarial(
    layers=(0, 1),
    epsilon=0.5,
    inner_steps=3,
    inner_rate=0.1,
    refusal_weight=3.0,
    away_weight=2.0,
    retain_weight=1.5,
    stability_weight=0.5,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
    )
    return LlamaForCausalLM(config)


def batch(seed, completion=4):
    """Prompts of 3, 3 and 2 tokens, the same for every seed, each with as many tokens of completion."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.full((3, 3 + completion), 1)
    labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    for row, prompt in enumerate(([10, 11, 12], [13, 14, 15], [16, 17])):
        tail = torch.randint(4, 40, (completion,), generator=draw)
        length = len(prompt) + completion
        ids[row, :length] = torch.cat([torch.tensor(prompt), tail])
        labels[row, len(prompt) : length] = tail
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


HARMLESS, HARMFUL, RETAIN = batch(1, completion=2), batch(2), batch(3)


def logits(model, batch):
    return model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def adversary(defence, model):
    return defence._adversary(model, defence._places(model), HARMLESS, HARMFUL)


def test_vectors_longer_than_epsilon_are_scaled_down_to_it_and_others_left():
    delta = torch.tensor([[[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]])
    project(delta, 2.5)
    assert torch.allclose(delta, torch.tensor([[[1.5, 2.0], [0.3, 0.4], [0.0, 0.0]]]))


def test_away_by_hand():
    """Probabilities 3/4, e^-6 (unlearnt, counts as 0) and one so near 1 that 1 - p is 0 in fp32."""
    logits = torch.tensor([[[math.log(3), 0.0], [math.log(math.expm1(6)), 0.0], [50.0, 0.0], [0.0, 0.0]]])
    logits.requires_grad_()
    labels = torch.tensor([[IGNORE, 0, 1, 0]])
    loss = away(logits, labels)
    assert loss.item() == pytest.approx((math.log(4) + 0 + 50) / 3, rel=1e-5)
    loss.backward()
    assert logits.grad.isfinite().all()
    # d -log(1 - p) / d logit of the token = p.
    assert logits.grad[0, :3, 0].tolist() == pytest.approx([0.75 / 3, 0.0, 1 / 3], abs=1e-6)


def test_prompts_end_where_labels_begin():
    assert prompt_tokens(HARMFUL).tolist() == [[True, True, True], [True, True, True], [True, True, False]]
    assert prompt_tokens(HARMLESS).equal(prompt_tokens(HARMFUL))


def test_a_perturbation_is_added_behind_its_layer_and_gone_afterwards(model):
    layers = find_decoder(model).modules_at("residual", [1])
    delta = torch.randn(3, 3, WIDTH)

    def states():
        with captured(layers) as found:
            logits(model, HARMFUL)
        return found[0]

    before = states()
    with perturbed(layers, [delta]):
        after = states()
    expected = torch.nn.functional.pad(delta, (0, 0, 0, 4))
    assert torch.allclose(after - before, expected, atol=1e-6)
    assert torch.equal(states(), before)


def test_the_adversarys_first_step_is_down_the_sign_of_its_gradient(model):
    """Adam's first step is its rate times the gradient's sign, unless the gradient is tiny."""
    defence = replace(DEFENCE, inner_steps=1, epsilon=100.0)
    zeros = [torch.zeros(3, 3, WIDTH, requires_grad=True) for _ in range(2)]
    with perturbed(defence._places(model), zeros):
        gradients = torch.autograd.grad(completion_ce(model, HARMFUL), zeros)
    for delta, gradient in zip(adversary(defence, model), gradients, strict=True):
        clear = (gradient.abs() > 1e-5) & prompt_tokens(HARMFUL)[..., None]
        assert clear[0].any() and torch.allclose(delta[clear], -0.1 * gradient[clear].sign(), rtol=1e-2)
        assert (delta[2, 2] == 0).all()  # No prompt stands there.


@pytest.mark.parametrize("epsilon", [0.01, 0.3])
def test_no_vector_is_longer_than_epsilon_and_some_are_as_long(model, epsilon):
    for delta in adversary(replace(DEFENCE, epsilon=epsilon, inner_steps=8), model):
        longest = delta.norm(dim=-1).max().item()
        assert longest == pytest.approx(epsilon, rel=1e-4)


def test_the_adversary_makes_harmful_completions_likelier(model):
    def harm(defence):
        return defence.loss(model, HARMLESS, HARMFUL)[1]["attacked"].item()

    calm = completion_ce(model, HARMFUL).item()
    few, many = harm(replace(DEFENCE, inner_steps=1)), harm(replace(DEFENCE, inner_steps=10))
    assert many < few < calm
    assert harm(replace(DEFENCE, inner_steps=10, layers=(), embeddings=True)) < calm


def test_an_adversary_that_pushes_away_from_refusals_makes_them_less_likely(model):
    only_towards, pushing = (
        replace(DEFENCE, inner_steps=10, adversary_away_weight=weight).loss(model, HARMLESS, HARMFUL)[1]["refusal"]
        for weight in (0.0, 50.0)
    )
    assert pushing > only_towards


def outer(defence, model):
    """The outer loss in one graph, with its terms."""
    with perturbed(defence._places(model), adversary(defence, model)):
        attacked = logits(model, HARMFUL)
        terms = {"refusal": completion_ce(model, HARMLESS), "away": away(attacked, HARMFUL["labels"])}
    terms |= {"stability": completion_ce(model, HARMLESS), "retain": completion_ce(model, RETAIN)}
    weights = {"refusal": 3.0, "away": 2.0, "stability": 0.5, "retain": 1.5}
    return sum(weights[name] * term for name, term in terms.items()), terms


def test_loss_and_gradient_are_those_of_the_outer_problem_under_the_perturbation(model):
    expected, parts = outer(DEFENCE, model)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss, terms = DEFENCE.loss(model, HARMLESS, HARMFUL, RETAIN)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert {name: terms[name].item() for name in parts} == pytest.approx(
        {name: part.item() for name, part in parts.items()}, rel=1e-5
    )
    loss.backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_the_perturbation_holds_where_activations_are_recomputed(model):
    model.train()
    gradients = []
    for recomputed in (False, True):
        model.zero_grad()
        with with_activation_checkpointing(model, recomputed):
            DEFENCE.loss(model, HARMLESS, HARMFUL, RETAIN)[0].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-6) for pair in zip(*gradients, strict=True))


def test_training_keeps_refusing_under_the_perturbation(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(20):
        optimizer.zero_grad()
        DEFENCE.loss(model, HARMLESS, HARMFUL, RETAIN)[0].backward()
        optimizer.step()
    terms = DEFENCE.loss(model, HARMLESS, HARMFUL, RETAIN)[1]
    assert terms["refusal"] < 0.5 and terms["retain"] < 0.5 and terms["attacked"] > 4


def test_adapters_learn_and_nothing_else(model):
    loss = replace(DEFENCE, embeddings=True).begin(model)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    loss(wrapped, HARMLESS, HARMFUL, RETAIN)[0].backward()
    trained = {name for name, weight in wrapped.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert len([name for name in trained if "mlp.down_proj.lora_B" in name]) == LAYERS
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_under_autocast_terms_are_nearly_the_same(model, architecture):
    if architecture == "gpt2":
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=WIDTH, n_layer=3, n_head=2, n_inner=24)).eval()
    defence = replace(DEFENCE, embeddings=True, adversary_away_weight=1.0)
    expected = {name: term.item() for name, term in defence.loss(model, HARMLESS, HARMFUL, RETAIN)[1].items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, terms = defence.loss(model, HARMLESS, HARMFUL, RETAIN)
    loss.backward()
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(epsilon=0.0),
        dict(epsilon=math.nan),
        dict(inner_steps=0),
        dict(inner_rate=-1.0),
        dict(away_weight=-1.0),
        dict(refusal_weight=math.inf),
        dict(layers=()),
    ],
    ids=lambda wrong: f"{wrong}",
)
def test_impossible_settings_are_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(RepnoiseError, match=name):
        LatentAdversarial(**wrong)
