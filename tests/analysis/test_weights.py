"""Changes of weights agree with numpy, and with what is known of simple changes."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from small_models import changed, fresh

from repnoise.analysis.weights import effective_rank, weight_changes
from repnoise.errors import RepnoiseError
from repnoise.runs import plain


def test_a_model_equal_to_its_base_is_at_distance_0():
    model = fresh().model
    found = weight_changes(model, copy.deepcopy(model))
    assert all(t.distance == t.relative == 0 and t.effective_rank in (0.0, None) for t in found.tensors)
    assert [layer.layer for layer in found.layers] == [0, 1, None]
    json.dumps(plain(found), allow_nan=False)


def test_distances_and_spectra_are_those_that_numpy_finds():
    base = fresh()
    model = changed(base).model
    found = weight_changes(model, base.model)
    name = "mlp.up_proj.weight"
    one = next(t for t in found.tensors if (t.layer, t.name) == (1, name))
    old, new = (dict(m.model.layers[1].named_parameters())[name].detach().numpy() for m in (base.model, model))
    singular = np.linalg.svd(new - old, compute_uv=False)
    share = singular / singular.sum()
    assert one.distance == pytest.approx(np.linalg.norm(new - old), rel=1e-5)
    assert one.relative == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-5)
    assert one.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)
    assert dict(one.shares)[8] == pytest.approx((singular[:8] ** 2).sum() / (singular**2).sum(), rel=1e-4)
    whole = [torch.nn.utils.parameters_to_vector(m.model.layers[1].parameters()) for m in (base.model, model)]
    layer = next(at for at in found.layers if at.layer == 1)
    assert layer.distance == pytest.approx((whole[1] - whole[0]).norm().item(), rel=1e-5)
    assert layer.relative == pytest.approx(((whole[1] - whole[0]).norm() / whole[0].norm()).item(), rel=1e-5)
    assert next(at for at in found.layers if at.layer is None).distance == 0


def test_a_change_in_one_direction_has_effective_rank_1():
    base = fresh().model
    model = copy.deepcopy(base)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.add_(torch.outer(torch.randn(48), torch.randn(32)))
    one = next(t for t in weight_changes(model, base).tensors if t.distance)
    assert (one.layer, one.name) == (0, "mlp.up_proj.weight")
    assert one.effective_rank == pytest.approx(1, abs=1e-3) and dict(one.shares)[1] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("values, rank", [([1, 1, 1, 1], 4), ([3, 0], 1), ([0, 0], 0), ([3, 1], 4 / 3**0.75)])
def test_effective_ranks_worked_out_by_hand(values, rank):
    """(3, 1): shares 3/4 and 1/4, so exp of the entropy is 4 / 3^(3/4)."""
    assert effective_rank(torch.tensor(values).float()) == pytest.approx(rank)


def test_tied_weights_count_once_and_vectors_have_no_spectrum():
    base = fresh(tie_word_embeddings=True).model
    outside = [t for t in weight_changes(base, copy.deepcopy(base)).tensors if t.layer is None]
    assert [t.name for t in outside] == ["model.embed_tokens.weight", "model.norm.weight"]
    assert outside[1].effective_rank is None


def test_without_the_spectrum_only_distances_are_told():
    base = fresh()
    found = weight_changes(changed(base).model, base.model, spectrum=False)
    assert {t.effective_rank for t in found.tensors} == {None} and math.isfinite(found.layers[0].distance)


def test_a_base_of_another_shape_is_refused_in_one_sentence():
    with pytest.raises(RepnoiseError, match="--base"):
        weight_changes(fresh().model, fresh(num_hidden_layers=1).model)
