"""TAR: the inner attack and its first-order gradient by hand, and each term beside transformers' own hidden states."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from one_row import OneRow, batch_of, shares
from tiny_decoders import DECODERS, example_batch, weights_of

from repnoise.defences.base import completion_ce
from repnoise.defences.tar import TAR, directions_for, log_probability, mapping, negative_entropy, state_distance
from repnoise.errors import RepnoiseError
from repnoise.losses import IGNORE
from repnoise.modeling import with_lora

HARMLESS = [[0, 1], [1, 1], [0, 0], [1, 0]]
HARMFUL = [[2, 2], [3, 2], [2, 3], [3, 3]]  # Two rows to attack with, two to measure on.
SECOND = TAR(mapping_weight=0.0, tamper_weight=2.0, inner_steps=3, tamper_every=1, decay=0.5, inner_optimiser="sgd")
SECOND = replace(SECOND, inner_learning_rates=(0.4,), inner_batch_size=1)


def attacked(start, steps=3, rate=0.4):
    """The weights after each SGD step, one row at a time: w - rate (softmax(w) - shares of the row)."""
    w, path = start, []
    for step in range(steps):
        w = w - rate * (w.softmax(0) - shares([HARMFUL[step % 2]]))
        path.append(w)
    return path


def entropy_gradient(w):
    """The derivative of sum p ln p by the logits: p (ln p - sum p ln p)."""
    p, log_p = w.softmax(0), w.log_softmax(0)
    return p * (log_p - (p * log_p).sum())


def tampered(defence):
    """What tamper resistance adds to the gradient, and its value: the rest is a cross-entropy."""
    model = OneRow([0.3, -0.2, 0.5, 0.0])
    loss, terms = defence.loss(model, batch_of(HARMLESS), batch_of(HARMFUL))
    loss.backward()
    stability = model.start.softmax(0) - shares(HARMLESS)
    assert torch.equal(model.row.detach(), model.start)
    return model, model.row.grad - stability, loss.item() - terms["stability"].item(), terms


def test_entropy_at_every_attacked_point_by_hand():
    model, gradient, value, terms = tampered(SECOND)
    path = attacked(model.start)
    weights = [math.exp(-0.5 * (3 - k)) for k in (1, 2, 3)]
    entropies = [(w.softmax(0) * w.log_softmax(0)).sum() for w in path]
    expected = sum(weight * entropy_gradient(w) for weight, w in zip(weights, path, strict=True))
    assert torch.allclose(gradient, 2 * expected, atol=1e-6)
    total = sum(weight * entropy for weight, entropy in zip(weights, entropies, strict=True))
    assert value == pytest.approx(2 * total.item(), abs=1e-5)
    assert terms["tamper"].item() == pytest.approx(entropies[-1].item(), abs=1e-6)
    # The row whose turn it is in the third step is the first, at the weights after two.
    inner = path[1].logsumexp(0) - path[1] @ shares([HARMFUL[0]])
    assert terms["inner"].item() == pytest.approx(inner.item(), abs=1e-6)


def test_cross_entropy_is_that_of_the_rows_held_out():
    model, gradient, _, _ = tampered(replace(SECOND, tamper="cross-entropy", decay=0.0))
    expected = sum(shares(HARMFUL[2:]) - w.softmax(0) for w in attacked(model.start))
    assert torch.allclose(gradient, 2 * expected, atol=1e-6)


def test_preference_is_dpo_of_the_rows_held_out_against_the_start():
    """-ln sigmoid(beta m), m = the log-ratio of the two answers at w_k less that at the start; its derivative by m."""
    model, gradient, _, _ = tampered(replace(SECOND, tamper="preference", preference_strength=0.3, decay=0.0))
    expected = torch.zeros(4)
    for w in attacked(model.start):
        for chosen, rejected in zip(HARMLESS[2:], HARMFUL[2:], strict=True):
            slope = 2 * (shares([chosen]) - shares([rejected]))  # Of m: two tokens a row, and ln Z cancels.
            m = slope @ (w - model.start)
            expected += -0.3 * torch.sigmoid(-0.3 * m) * slope / 2
    assert torch.allclose(gradient, 2 * expected, atol=1e-6)


def test_it_measures_after_every_so_many_steps():
    model, gradient, _, _ = tampered(replace(SECOND, inner_steps=5, tamper_every=2))
    path = attacked(model.start, 5)
    expected = math.exp(-1.5) * entropy_gradient(path[1]) + math.exp(-0.5) * entropy_gradient(path[3])
    assert torch.allclose(gradient, 2 * expected, atol=1e-6)


def test_adamw_moves_each_weight_by_its_rate_at_first():
    model, gradient, _, _ = tampered(
        replace(SECOND, inner_optimiser="adamw", inner_steps=1, inner_learning_rates=(0.05,))
    )
    sign = (model.start.softmax(0) - shares([HARMFUL[0]])).sign()
    moved = model.start * (1 - 0.05 * 0.01) - 0.05 * sign  # PyTorch's weight decay is 0.01.
    assert torch.allclose(gradient, 2 * entropy_gradient(moved), atol=1e-5)


def test_one_of_the_learning_rates_is_drawn():
    found = set()
    for seed in range(20):
        torch.manual_seed(seed)
        _, gradient, _, _ = tampered(replace(SECOND, inner_steps=1, inner_learning_rates=(0.1, 0.4)))
        found.add(round(gradient[0].item(), 5))
    both = [2 * entropy_gradient(attacked(torch.tensor([0.3, -0.2, 0.5, 0.0]), 1, rate)[0])[0] for rate in (0.1, 0.4)]
    assert sorted(found) == pytest.approx(sorted(value.item() for value in both), abs=2e-5)


def test_negative_entropy_is_that_of_positions_which_predict_the_completion():
    logits = torch.zeros(1, 4, 5)
    logits[0, 0, 1] = logits[0, 3, 2] = 50.0  # A prompt's position and the last one, which predicts nothing.
    labels = torch.tensor([[IGNORE, IGNORE, 3, 4]])
    assert negative_entropy(logits, labels).item() == pytest.approx(-math.log(5), rel=1e-6)


@pytest.mark.parametrize("name", DECODERS)
def test_log_probabilities_are_sums_over_the_completion(name):
    model, batch = DECODERS[name](), example_batch(2)
    found = log_probability(model, batch)
    for i in range(4):
        length = int(batch["attention_mask"][i].sum())
        ids = batch["input_ids"][i : i + 1, :length]
        log_p = model(ids).logits[0].log_softmax(-1)
        expected = sum(log_p[t - 1, ids[0, t]] for t in range(3, length))
        assert found[i].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_the_mapping_is_towards_a_direction_for_each_token(name):
    model, batch = DECODERS[name](), example_batch(2)
    directions = directions_for(model)
    assert torch.equal(directions, directions_for(model)) and directions.shape == (48, 16)
    states = model.transformer if name == "gpt2" else model.model
    found = []
    for block in states.h if name == "gpt2" else states.layers:
        block.register_forward_hook(lambda _m, _i, out: found.append(out[0] if isinstance(out, tuple) else out))
    model(batch["input_ids"], attention_mask=batch["attention_mask"])
    completion = batch["labels"] != IGNORE
    wanted = directions[batch["input_ids"][completion]]
    cosines = [F.cosine_similarity(state[completion], wanted, dim=-1).abs().mean().item() for state in found]
    assert mapping(model, batch, directions).item() == pytest.approx(1 - sum(cosines) / 2, rel=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_the_first_phase_turns_states_towards_the_directions(name):
    defence, model = TAR(tamper_weight=0.0, mapping_weight=1.0), DECODERS[name]()
    loss, optimiser, log = defence.begin(model), torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(30):
        optimiser.zero_grad()
        value, terms = loss(model, example_batch(1), example_batch(2), example_batch(3))
        value.backward()
        optimiser.step()
        log.append(terms)
    assert set(log[0]) == {"stability", "retain", "mapping"}
    assert log[-1]["mapping"] < 0.6 * log[0]["mapping"] and log[-1]["stability"] < log[0]["stability"]


@pytest.mark.parametrize("name", DECODERS)
def test_the_distance_of_states_is_their_mean_length_over_real_tokens(name):
    start, model, batch = DECODERS[name](), DECODERS[name](), example_batch(3)
    assert state_distance(model, start, batch) == 0
    block = model.transformer.h[1] if name == "gpt2" else model.model.layers[1]
    block.register_forward_hook(lambda _m, _i, out: (out[0] + 0.5, *out[1:]) if isinstance(out, tuple) else out + 0.5)
    # The first layer is the same; in the second each of 16 numbers is off by a half.
    assert state_distance(model, start, batch).item() == pytest.approx(math.sqrt(16 * 0.25) / 2, rel=1e-4)
    assert state_distance(model, start, {**batch, "attention_mask": batch["attention_mask"]}).requires_grad


def test_states_are_those_of_the_general_data_or_else_of_the_harmless():
    defence = TAR(mapping_weight=0.0, tamper_weight=0.0, retain_weight=3.0, representation_weight=2.0)
    model = DECODERS["llama"]()
    loss, start = defence.begin(model), DECODERS["llama"]()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.add_(0.1)
    for retain, batch, weight in ((example_batch(3), example_batch(3), 3), (None, example_batch(1), 1)):
        value, terms = loss(model, example_batch(1), example_batch(2), retain)
        distance = state_distance(model, start, batch).item()
        kept = completion_ce(model, example_batch(1)) + (3 * completion_ce(model, retain) if retain else 0)
        assert terms["representation"].item() == pytest.approx(distance, rel=1e-5) and distance > 0
        assert value.item() == pytest.approx(kept.item() + weight * 2 * distance, rel=1e-5)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("tamper", ["entropy", "cross-entropy", "preference"])
def test_whole_weights_and_adapters_come_back_and_have_gradients(name, tamper):
    defence = TAR(inner_steps=2, tamper_every=1, tamper=tamper, representation_weight=1.0)
    for adapted in (False, True):
        model = DECODERS[name]()
        loss = defence.begin(model)
        if adapted:
            model = with_lora(model, 2, 4)
        before = weights_of(model)
        value, _ = loss(model, example_batch(1), example_batch(2), example_batch(3))
        assert all(torch.equal(a, b) for a, b in zip(before, weights_of(model), strict=True))
        value.backward()
        for key, weight in model.named_parameters():
            assert (weight.grad is not None) == (not adapted or "lora_" in key), key
            assert weight.grad is None or weight.grad.isfinite().all(), key


def test_attacked_weights_are_seen_under_autocast():
    """Whose copies of the weights in 16 bits would make every inner step look like the first."""
    defence = TAR(mapping_weight=0.0, inner_steps=6, tamper_every=6, inner_learning_rates=(1e-2,))
    model = DECODERS["llama"]()
    expected = defence.loss(model, example_batch(1), example_batch(2))[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = defence.loss(model, example_batch(1), example_batch(2))[1]
    start = completion_ce(model, {key: tensor[:2] for key, tensor in example_batch(2).items()})
    assert found["inner"].item() == pytest.approx(expected["inner"].item(), rel=0.02)
    assert found["inner"] < start - 0.3


def test_the_inner_attack_learns_less_of_a_model_that_was_trained_against_it():
    """On rows that change, entropy after the attack goes up, which plain training would not do."""
    defence = TAR(mapping_weight=0.0, tamper_weight=4.0, inner_steps=4, tamper_every=2, inner_learning_rates=(1e-2,))
    model = DECODERS["llama"]()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # Sure of itself, so that there is entropy to gain.
    optimiser, log = torch.optim.Adam(model.parameters(), lr=1e-2), []
    loss = defence.begin(model)
    for seed in range(25):
        optimiser.zero_grad()
        value, terms = loss(model, example_batch(1), example_batch(100 + seed))
        value.backward()
        optimiser.step()
        log.append(terms["tamper"].item())
    assert sum(log[-5:]) / 5 < sum(log[:5]) / 5 - 0.3


def test_mistakes_are_refused_at_once_and_by_name():
    one = {key: tensor[:1] for key, tensor in example_batch(2).items()}
    with pytest.raises(RepnoiseError, match="raise --batch-size to 2"):
        TAR().loss(DECODERS["llama"](), one, one)
    for wrong in (
        {"tamper": "loss"},
        {"inner_optimiser": "muon"},
        {"inner_steps": 0},
        {"inner_batch_size": 0},
        {"tamper_every": 0},
        {"inner_learning_rates": ()},
        {"inner_learning_rates": (1e-3, 0.0)},
        {"preference_strength": 0.0},
        {"decay": -1.0},
    ):
        with pytest.raises(RepnoiseError, match=next(iter(wrong))):
            TAR(**wrong)
    with pytest.raises(RepnoiseError, match="tamper_every must not be above inner_steps"):
        TAR(inner_steps=2, tamper_every=3)
