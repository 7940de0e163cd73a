"""Principal components agree with scikit-learn's, and say of a point that it is one."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from repnoise.analysis.pca import principal_components


def cloud(n, seed, scale=1.0, shift=0.0):
    return scale * torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, 7) + shift


def test_they_are_those_of_scikit_learn_up_to_their_signs():
    groups = {"harmful": cloud(20, 0, shift=5.0), "harmless": cloud(30, 1)}
    found = principal_components(groups, 3)
    joint = torch.cat(list(groups.values())).double().numpy()
    other = PCA(svd_solver="full").fit(joint)
    assert found.layer == 3
    np.testing.assert_allclose(found.explained, other.explained_variance_ratio_, rtol=1e-9)
    ours = np.abs(np.concatenate([found.coordinates["harmful"], found.coordinates["harmless"]]))
    np.testing.assert_allclose(ours, np.abs(other.transform(joint)[:, :2]), atol=1e-9)


def test_points_on_a_line_have_one_component():
    line = torch.arange(5)[:, None] * torch.tensor([[3.0, 4.0, 0.0]])
    found = principal_components({"all": line}, 0)
    assert found.explained == pytest.approx((1, 0, 0), abs=1e-12) and found.spread == {"all": pytest.approx(1)}
    assert [abs(x) for x, _ in found.coordinates["all"]] == pytest.approx([10, 5, 0, 5, 10])


def test_a_group_that_fell_into_a_point_has_no_spread():
    found = principal_components({"harmful": torch.ones(8, 6), "harmless": cloud(8, 1)}, 0)
    assert found.spread["harmful"] == 0 and found.spread["harmless"] > 0.5


def test_states_that_are_all_equal_and_single_examples():
    assert set(principal_components({"all": torch.ones(3, 4)}, 0).explained) == {0.0}
    with pytest.raises(ValueError, match="two examples"):
        principal_components({"all": torch.ones(1, 4)}, 0)
