"""The mathematics of the objective: theorems in float64, values worked out by hand, accuracy where fp32 is short."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from repnoise import losses
from repnoise.hidden_states import Decoder
from repnoise.losses import IGNORE, causal_ce, mmd2, mmd2_floor, next_token, read_out_ce, squared_distances

MULTIPLIERS = (0.25, 0.5, 1.0, 2.0, 4.0)


def gaussian(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@st.composite
def two_samples(draw):
    n, m, d = draw(st.integers(2, 7)), draw(st.integers(2, 7)), draw(st.integers(1, 5))
    seed, scale, shift = draw(st.integers(0, 10**6)), draw(st.floats(0.01, 100)), draw(st.floats(-10, 10))
    return gaussian(seed, n, d) * scale + shift, gaussian(seed + 1, m, d)


def naive_bandwidth(x, y):
    both = torch.cat([x, y]).detach()
    pairs = [(a - b).square().sum() for i, a in enumerate(both) for j, b in enumerate(both) if i != j]
    return torch.stack(pairs).mean()


def naive_mmd2(x, y, bandwidth, unbiased=False):
    def mean_similarity(left, right, same):
        similarities = [
            sum(torch.exp(-(a - b).square().sum() / (multiplier * bandwidth)) for multiplier in MULTIPLIERS)
            for i, a in enumerate(left)
            for j, b in enumerate(right)
            if not (same and unbiased and i == j)
        ]
        return torch.stack(similarities).mean()

    return mean_similarity(x, x, True) + mean_similarity(y, y, True) - 2 * mean_similarity(x, y, False)


@settings(deadline=None, max_examples=40)
@given(two_samples())
def test_mmd_is_a_symmetric_divergence(samples):
    x, y = samples
    assert mmd2(x, y) >= -1e-12
    assert mmd2(x, y).item() == pytest.approx(mmd2(y, x).item(), rel=1e-9, abs=1e-12)
    assert mmd2(x, x).item() == pytest.approx(0, abs=1e-12)
    assert mmd2(x, x.flip(0)).item() == pytest.approx(0, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(two_samples(), st.integers(0, 10**6), st.floats(1e-3, 1e3), st.booleans())
def test_mmd_does_not_depend_on_the_frame_of_reference(samples, seed, scale, unbiased):
    x, y = samples
    rotation, _ = torch.linalg.qr(gaussian(seed, x.shape[1], x.shape[1]))
    shift = gaussian(seed + 1, x.shape[1])
    value = mmd2(x, y, unbiased=unbiased).item()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    for moved in ((x + shift, y + shift), (x @ rotation, y @ rotation), (x[order], y), (x * scale, y * scale)):
        assert mmd2(*moved, unbiased=unbiased).item() == pytest.approx(value, rel=1e-7, abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(two_samples(), st.booleans())
def test_mmd_equals_the_double_loop(samples, unbiased):
    x, y = samples
    naive = naive_mmd2(x, y, naive_bandwidth(x, y), unbiased)
    assert mmd2(x, y, unbiased=unbiased).item() == pytest.approx(naive.item(), rel=1e-9, abs=1e-11)


def test_mmd_by_hand_for_two_and_two_points_on_a_line():
    # Squared distances: within x 1, within y 1, between 4, 9, 1, 4. Their mean over the six pairs is 20 / 6.
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    near, middle, far = (math.exp(-d / (20 / 6)) for d in (1, 4, 9))
    within, between = (1 + near) / 2, (2 * middle + far + near) / 4
    assert mmd2(x, y, (1.0,)).item() == pytest.approx(2 * within - 2 * between, rel=1e-6)
    assert mmd2(x, y, (1.0,), unbiased=True).item() == pytest.approx(2 * near - 2 * between, rel=1e-6)


def test_kernels_add_up():
    x, y = gaussian(0, 5, 3), gaussian(1, 6, 3) + 1
    apart = sum(mmd2(x, y, (multiplier,)) for multiplier in MULTIPLIERS)
    assert mmd2(x, y).item() == pytest.approx(apart.item(), rel=1e-12)


def test_unbiased_estimate_has_mean_zero_for_equal_distributions():
    values = torch.stack([mmd2(gaussian(2 * i, 12, 4), gaussian(2 * i + 1, 12, 4), unbiased=True) for i in range(300)])
    assert abs(values.mean()) < 4 * values.std() / 300**0.5
    assert values.min() < 0


@pytest.mark.parametrize(("n", "m", "d"), [(4, 4, 400), (8, 8, 64), (16, 16, 256), (8, 24, 128), (64, 64, 512)])
def test_biased_estimate_has_the_floor_as_mean_for_equal_gaussians(n, m, d):
    repeats = 60
    values = torch.stack([mmd2(gaussian(2 * i, n, d), gaussian(2 * i + 1, m, d)) for i in range(repeats)])
    # Four standard errors, and 1 % because the floor takes the bandwidth at its mean.
    floor = mmd2_floor(n, m, d)
    assert abs(values.mean() - floor) < 4 * values.std() / repeats**0.5 + 0.01 * floor


def test_floor_is_the_published_number():
    """Paper notes: 1.55 at batch 4, 0.77 at 8, 0.39 at 16; 2 (5 - 1.907) / n."""
    assert [round(mmd2_floor(n, n, 10**7), 2) for n in (4, 8, 16)] == [1.55, 0.77, 0.39]


def test_gradient_is_that_of_the_kernel_with_the_bandwidth_held_fixed():
    x, y = gaussian(3, 4, 3).requires_grad_(), (gaussian(4, 5, 3) + 0.5).requires_grad_()
    bandwidth = naive_bandwidth(x, y)
    assert torch.autograd.gradcheck(lambda a, b: naive_mmd2(a, b, bandwidth), (x, y))
    expected = torch.autograd.grad(naive_mmd2(x, y, bandwidth), (x, y))
    for ours, theirs in zip(torch.autograd.grad(mmd2(x, y), (x, y)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_equal_samples_have_value_zero_and_gradient_zero():
    x = torch.ones(3, 4, requires_grad=True)
    value = mmd2(x, torch.ones(3, 4), (0.001, 1.0))  # A narrow kernel: its slope must not overflow.
    value.backward()
    assert value == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_descending_the_gradient_makes_samples_gaussian():
    x, y = (gaussian(5, 16, 4) * 3 + 2).requires_grad_(), gaussian(6, 16, 4)
    before = mmd2(x, y).item()
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        mmd2(x, y).backward()
        optimizer.step()
    assert mmd2(x, y).item() < before / 5


def test_fp32_is_accurate_far_from_the_origin():
    x, y = gaussian(7, 16, 32) + 3000, gaussian(8, 16, 32) + 3000
    exact = mmd2(x.float().double(), y.float().double()).item()
    assert mmd2(x.float(), y.float()).item() == pytest.approx(exact, rel=1e-4)


def test_distances_are_those_of_cdist():
    x, y = gaussian(9, 5, 8), gaussian(14, 7, 8)
    torch.testing.assert_close(squared_distances(x, y), torch.cdist(x, y).square())


def test_distances_are_never_negative():
    x = torch.cat([gaussian(9, 5, 8)] * 2).float() * 1e3
    assert (squared_distances(x, x) >= 0).all()


def test_a_sample_is_perfectly_similar_to_itself_whatever_rounding_says():
    x = (gaussian(9, 6, 8) * 1e3).float()
    assert mmd2(x, x).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_fp32(dtype):
    x, y = (gaussian(10, 8, 64) * 50).to(dtype), gaussian(11, 8, 64).to(dtype)
    value = mmd2(x, y)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(mmd2(x.double(), y.double()).item(), rel=1e-5)


def test_autocast_does_not_reach_the_gram_product():
    x, y = gaussian(12, 16, 64).float() + 5, gaussian(13, 16, 64).float() + 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mmd2(x, y)
    assert inside.dtype == torch.float32
    assert inside.item() == mmd2(x, y).item()


def test_one_sample_is_too_few():
    with pytest.raises(ValueError, match="at least two samples"):
        mmd2(torch.zeros(1, 2), torch.zeros(3, 2))


def test_next_token_moves_labels_to_the_position_that_predicts_them():
    labels = torch.tensor([[IGNORE, IGNORE, 5, 0, IGNORE]])
    assert next_token(labels).tolist() == [[IGNORE, 5, 0, IGNORE, IGNORE]]


def test_causal_ce_by_hand():
    # Prompt of two, completion 1 0, one pad. Position 1 predicts the 1, position 2 the 0; nothing else counts.
    labels = torch.tensor([[IGNORE, IGNORE, 1, 0, IGNORE]])
    logits = torch.full((1, 5, 3), 7.0, requires_grad=True)
    with torch.no_grad():
        logits[0, 1] = torch.tensor([0.0, math.log(2), 0.0])  # P(1) = 1/2
        logits[0, 2] = torch.tensor([math.log(6), 0.0, math.log(1)])  # P(0) = 6/8
    loss = causal_ce(logits, labels)
    assert loss.item() == pytest.approx((math.log(2) + math.log(8 / 6)) / 2, rel=1e-6)
    loss.backward()
    touched = logits.grad.abs().sum(-1)[0] > 0
    assert touched.tolist() == [False, True, True, False, False]


def test_causal_ce_is_a_mean_over_tokens_and_not_over_rows():
    logits, labels = gaussian(14, 2, 4, 6), torch.tensor([[IGNORE, 1, 2, 3], [IGNORE, IGNORE, IGNORE, 4]])
    log_p = logits.log_softmax(-1)
    expected = -(log_p[0, 0, 1] + log_p[0, 1, 2] + log_p[0, 2, 3] + log_p[1, 2, 4]) / 4
    assert causal_ce(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_causal_ce_without_labels_is_nan():
    assert causal_ce(torch.zeros(1, 3, 4), torch.full((1, 3), IGNORE)).isnan()


@pytest.mark.parametrize("budget", [11, 33, 40, 10**6])  # One row at a time, three, three and a bit, all.
def test_read_out_in_chunks_equals_read_out_at_once(monkeypatch, budget):
    states, weight = gaussian(15, 10, 4).requires_grad_(), gaussian(16, 11, 4).requires_grad_()
    targets = torch.tensor([0, 3, 10, 1, 1, 5, 0, 9, 2, 7])
    expected = torch.nn.functional.cross_entropy((states @ weight.T).float(), targets)
    expected_gradients = torch.autograd.grad(expected, (states, weight))
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", budget)
    monkeypatch.setattr(losses, "ROWS_AT_ONCE", 1)
    largest = []

    def read_out(rows):
        logits = rows @ weight.T
        largest.append(logits.numel())
        return logits

    loss = read_out_ce(read_out, states, targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(torch.autograd.grad(loss, (states, weight)), expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    assert max(largest) <= budget
    with torch.no_grad():
        assert read_out_ce(read_out, states, targets).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_read_out_in_chunks_has_the_gradients_of_norm_unembedding_and_cap(monkeypatch, half, detached):
    torch.manual_seed(0)
    norm, unembedding = torch.nn.LayerNorm(6), torch.nn.Linear(6, 40)
    decoder = Decoder("", [], norm, None, unembedding, 0.5, 3.0)
    states = (3 * torch.randn(9, 6)).requires_grad_()
    targets = torch.randint(40, (9,))
    wanted = [states] if detached else [states, *norm.parameters(), *unembedding.parameters()]

    def value_and_gradients(budget):
        monkeypatch.setattr(losses, "LOGITS_AT_ONCE", budget)
        monkeypatch.setattr(losses, "ROWS_AT_ONCE", 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = read_out_ce(lambda rows: decoder.read_out(rows, detached=detached), states, targets)
        return loss.detach(), torch.autograd.grad(2 * loss, wanted)

    whole, in_chunks = value_and_gradients(10**6), value_and_gradients(100)
    tolerance = {"rtol": 0.02, "atol": 2e-3} if half else {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(in_chunks, whole, **tolerance)
    if detached:
        assert losses._leaves(decoder.read_out(torch.zeros(1, 6), detached=True)) == []


def test_logits_of_a_chunk_are_made_once(monkeypatch):
    states, weight = torch.randn(30, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", 400)
    monkeypatch.setattr(losses, "ROWS_AT_ONCE", 1)
    with FlopCounterMode(display=False) as counter:
        read_out_ce(lambda rows: rows @ weight.T, states, torch.zeros(30, dtype=torch.long)).backward()
    # Forward, by the states and by the weights; and a row to learn the vocabulary's size.
    assert counter.get_total_flops() == 3 * 2 * 30 * 8 * 50 + 2 * 8 * 50
