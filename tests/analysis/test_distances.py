"""Theorems about kernel alignment, and distances that are 0 where they should be."""

import pytest
import torch
from scipy.stats import ortho_group

from repnoise.analysis.distances import base_similarity, group_distance, linear_cka, noise_distance

LAYERS = [0, 1]


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("unbiased", [False, True])
def test_turning_scaling_and_shifting_do_not_change_the_alignment(unbiased):
    x, other = draws(30, 8), draws(30, 8, seed=2) + 0.5 * draws(30, 8)
    turn = torch.tensor(ortho_group.rvs(8, random_state=1))
    assert linear_cka(x, 3 * x @ turn + 5, unbiased) == pytest.approx(1)
    assert linear_cka(x, other @ turn, unbiased) == pytest.approx(linear_cka(x, other, unbiased))
    assert linear_cka(x, other, unbiased) == pytest.approx(linear_cka(other, x, unbiased))
    assert linear_cka(x, other, unbiased) < 0.9


def test_the_alignment_is_the_paper_s_formula():
    """Kornblith et al. 2019, equation 3, with the centring matrix H = I - 11'/n."""
    x, y = draws(12, 3), draws(12, 5, seed=1)
    h = torch.eye(12, dtype=torch.float64) - 1 / 12

    def hsic(k, m):
        return torch.trace(k @ h @ m @ h) / 11**2

    k, m = x @ x.T, y @ y.T
    assert linear_cka(x, y) == pytest.approx((hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()).item())


def test_the_unbiased_estimate_is_song_s_formula():
    """Song et al. 2012, equation 5, as it is written there."""
    x, y = draws(9, 3), draws(9, 5, seed=1)
    x, y, one = x - x.mean(0), y - y.mean(0), torch.ones(9, dtype=torch.float64)

    def hsic(k, m):
        k, m = k - k.diag().diag(), m - m.diag().diag()
        total = torch.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / (8 * 7) - 2 / 7 * (one @ k @ m @ one)
        return total / (9 * 6)

    k, m = x @ x.T, y @ y.T
    wanted = (hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()).item()
    assert linear_cka(x, y, unbiased=True) == pytest.approx(wanted)


def test_states_that_have_nothing_to_do_with_each_other_are_aligned_only_by_the_biased_estimate():
    pairs = [(draws(20, 200, seed=2 * i), draws(20, 200, seed=2 * i + 1)) for i in range(20)]
    biased, unbiased = (sum(linear_cka(x, y, u) for x, y in pairs) / 20 for u in (False, True))
    assert biased > 0.8 and abs(unbiased) < 0.05


def test_what_does_not_vary_has_no_alignment():
    assert torch.tensor(linear_cka(torch.ones(5, 3), draws(5, 3))).isnan()
    with pytest.raises(ValueError, match="four examples"):
        linear_cka(draws(3, 3), draws(3, 3), unbiased=True)


def test_a_model_is_like_itself_and_its_opposite_has_cosine_minus_1():
    means = draws(10, 2, 4)
    means[:, 1] *= 7
    same, opposite = base_similarity("any", means, means, LAYERS), base_similarity("any", -means, means, LAYERS)
    assert same.cka == pytest.approx((1, 1)) and [c.mean for c in same.cosine] == pytest.approx([1, 1])
    assert opposite.cka == pytest.approx((1, 1)) and [c.mean for c in opposite.cosine] == pytest.approx([-1, -1])


def test_noise_is_at_the_floor_and_anything_else_above_it():
    tokens = torch.stack([draws(200, 8, seed=9), 3 * draws(200, 8, seed=9), draws(200, 8, seed=9) + 1]).float()
    found = noise_distance("any", tokens, [0, 1, 2])
    assert abs(found.mmd[0]) < 2 * found.floor < 0.1 and min(found.mmd[1:]) > 0.1
    assert found.size[:2] == pytest.approx((1, 3), rel=0.1)
    assert noise_distance("any", tokens, [0, 1, 2], scale=3.0).mmd[1] < 0.05 < found.mmd[1]


def test_groups_of_one_kind_are_at_the_floor_and_others_above_it():
    first, second = draws(40, 2, 6).float(), draws(50, 2, 6, seed=1).float()
    second[:, 1] += 2
    found = group_distance(("harmful", "harmless"), first, second, LAYERS)
    assert found.mmd[0] < 3 * found.floor[0] and found.mmd[1] > 10 * found.floor[1] > 0
