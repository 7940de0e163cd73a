"""Edits of the weights: each does the arithmetic that it says to the weights that it says, and to no others."""

from dataclasses import replace

import pytest
import torch
from tiny_setting import CODEC, MODELS, TOKENIZER, attacked, fresh, same, small_data, weights
from torch import nn

from repnoise.attack import AttackConfig, attack
from repnoise.attacks.merging import DeltaStrip, Interpolation, truncated
from repnoise.attacks.weight_edits import Pruning, Quantisation, WeightEdit, WeightNoise, rounded_to
from repnoise.errors import RepnoiseError
from repnoise.inputs import Inputs
from repnoise.modeling import load, save
from repnoise.runs import plain, read_rows, restored

EDITS = [Interpolation(share=0.3), DeltaStrip(rank=2), WeightNoise(0.1), Quantisation(4), Pruning(0.25)]
OWN = [edit for edit in EDITS if not hasattr(edit, "base")]


@pytest.fixture
def data(pairs_file):
    return small_data(pairs_file)


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def base(name, tmp_path):
    """Weights and folder of a model like the attacked one, moved at random."""
    model = MODELS[name]()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save(model, TOKENIZER, tmp_path / "base")
    return weights(load(str(tmp_path / "base")).model), str(tmp_path / "base")


def edited(edit, data, folder, name):
    before = weights(MODELS[name]())
    found = attacked(WeightEdit(edit=edit), data, folder, name)
    return before, weights(found.model), found.log


def is_matrix_of_a_layer(name, weight):
    return weight.dim() == 2 and (".layers." in name or ".h." in name)


@pytest.mark.parametrize("share", [0.25, -0.5, 1.5, 1.0])
def test_interpolation_goes_a_share_of_the_way_to_the_base(share, base, data, tmp_path, name):
    other, folder = base
    before, after, _ = edited(Interpolation(folder, share), data, tmp_path, name)
    assert after.keys() == before.keys()
    for key, weight in after.items():
        torch.testing.assert_close(weight, before[key] + share * (other[key] - before[key]), rtol=1e-5, atol=1e-6)


def test_what_a_change_of_low_rank_leaves_is_the_base(base, data, tmp_path, name):
    """The attacked model is the base plus a change of rank 2 of each matrix: stripped of rank 2, it is the base."""
    other, folder = base
    start, generator = fresh(name), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, weight in start.model.named_parameters():
            sides = [torch.randn(size, 2, generator=generator) for size in weight.shape]
            weight.copy_(other[key] + (sides[0] @ sides[1].T if weight.dim() == 2 else sides[0][:, 0]))
    stripped = WeightEdit(edit=DeltaStrip(folder, 2)).apply(start, data, CODEC, tmp_path).model
    for key, weight in weights(stripped).items():
        torch.testing.assert_close(weight, other[key], rtol=1e-4, atol=1e-4)


def test_a_strip_of_all_ranks_gives_the_base_and_of_one_the_best_approximation(base, data, tmp_path, name):
    other, folder = base
    _, after, _ = edited(DeltaStrip(folder, 1000), data, tmp_path, name)
    for key, weight in after.items():
        torch.testing.assert_close(weight, other[key], rtol=1e-4, atol=1e-5)
    assert torch.equal(truncated(torch.diag(torch.tensor([1.0, 5.0, 3.0])), 2), torch.diag(torch.tensor([0, 5.0, 3.0])))
    stack = torch.stack([torch.diag(torch.tensor([1.0, 2.0])), torch.diag(torch.tensor([4.0, 3.0]))])
    assert truncated(stack, 1).tolist() == [[[0, 0], [0, 2]], [[4, 0], [0, 0]]]


@pytest.mark.parametrize("edit", OWN, ids=lambda edit: edit.label())
def test_only_matrices_of_the_layers_change(edit, data, tmp_path, name):
    before, after, _ = edited(edit, data, tmp_path, name)
    for key, weight in after.items():
        assert torch.equal(weight, before[key]) != is_matrix_of_a_layer(key, weight), key


def test_noise_is_in_units_of_each_matrix(data, tmp_path, name):
    before, after, _ = edited(WeightNoise(0.2), data, tmp_path, name)
    for key, weight in after.items():
        if is_matrix_of_a_layer(key, weight):
            noise = (weight - before[key]) / before[key].std()
            assert noise.std().item() == pytest.approx(0.2, rel=0.1) and abs(noise.mean().item()) < 0.03


def test_noise_of_a_seed_is_the_same_and_of_another_is_not(data, tmp_path):
    def drawn(seed):
        return edited(WeightEdit(edit=WeightNoise()).seeded(seed).edit, data, tmp_path, "llama")[1]

    assert same(drawn(0), drawn(0)) and not same(drawn(0), drawn(1))


@pytest.mark.parametrize("bits, most", [(8, 127), (4, 7)])
def test_every_output_channel_has_a_step_of_its_own(bits, most, data, tmp_path, name):
    """GPT-2 keeps its matrices with the inputs first: there the channels are columns."""
    before, after, _ = edited(Quantisation(bits), data, tmp_path, name)
    model = MODELS[name]()
    for key, weight in after.items():
        if not is_matrix_of_a_layer(key, weight):
            continue
        transposed = not isinstance(model.get_submodule(key.removesuffix(".weight")), nn.Linear)
        channels, was = (weight.T, before[key].T) if transposed else (weight, before[key])
        step = was.abs().amax(1, keepdim=True) / most
        levels = channels / step
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
        assert levels.abs().max().round().item() == most
        assert ((channels - was).abs() <= step * 0.501).all()


def test_rounding_by_hand():
    rows = torch.tensor([[7.0, -3.4, 0.6, -7.0], [0.7, 0.34, 0.06, 0.0], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[7.0, -3.0, 1.0, -7.0], [0.7, 0.3, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(rounded_to(rows, 4), expected)


def test_pruning_zeroes_the_smallest_of_each_matrix(data, tmp_path, name):
    before, after, _ = edited(Pruning(0.25), data, tmp_path, name)
    for key, weight in after.items():
        if is_matrix_of_a_layer(key, weight):
            gone = weight == 0
            assert gone.sum().item() == weight.numel() // 4
            assert before[key][gone].abs().max() <= before[key][~gone].abs().min()
            assert torch.equal(weight[~gone], before[key][~gone])


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.label())
def test_tied_embeddings_stay_tied(edit, tmp_path, data):
    start = fresh("gpt2")
    if hasattr(edit, "base"):
        save(MODELS["gpt2"](), TOKENIZER, tmp_path / "base")
        edit = replace(edit, base=str(tmp_path / "base"))
    model = WeightEdit(edit=edit).apply(start, data, CODEC, tmp_path).model
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()


@pytest.mark.parametrize("edit", OWN, ids=lambda edit: edit.label())
def test_they_look_at_no_example(edit, data, tmp_path):
    attack, nothing = WeightEdit(edit=edit), object()
    attack.require(nothing)
    attack.costs(fresh(), nothing, CODEC)
    assert len(attack.apply(fresh(), nothing, CODEC, tmp_path).log) == 1
    assert attack.pairs(data) == []


@pytest.mark.parametrize(
    "edit, of_a_matrix",
    [
        (Interpolation(), 3 * 32 * 48),
        (DeltaStrip(rank=4), 6 * 48 * 32**2 + 20 * 32**3 + 2 * 48 * 32 * 4),
        (WeightNoise(), 5 * 32 * 48),
        (Quantisation(), 3 * 32 * 48),
        (Pruning(), 32 * 48),
    ],
)
def test_the_cost_is_that_of_the_arithmetic(edit, of_a_matrix, data):
    start = fresh()
    assert edit.operations(start.model.model.layers[0].mlp.up_proj.weight) == of_a_matrix
    cost = WeightEdit(edit=edit).costs(start, data, CODEC)
    assert vars(cost(0)) == {"steps": 0, "samples": 0, "tokens": 0, "flops": 0.0}
    assert cost(1).steps == 1 and cost(1).samples == cost(1).tokens == 0
    assert cost(1).flops == sum(edit.operations(weight) for weight in edit.weights(start.model))


def test_the_log_says_how_far_the_weights_were_moved(data, tmp_path):
    *_, log = edited(WeightNoise(0.2), data, tmp_path, "llama")
    assert [row["step"] for row in log] == [1] and log[0]["moved"] == pytest.approx(0.2, rel=0.05)


def test_a_base_that_does_not_fit_is_told(data, tmp_path, tiny_model):
    attack = WeightEdit(edit=DeltaStrip(str(tiny_model)))
    with pytest.raises(RepnoiseError, match=r"is not built like the attacked model \(.* differs\): give the model"):
        attack.apply(fresh("gpt2"), data, CODEC, tmp_path)
    with pytest.raises(RepnoiseError, match=r"There is no model in '\./nowhere'"):
        WeightEdit(edit=Interpolation("./nowhere")).require(data)


@pytest.mark.parametrize(
    "kind, settings, message",
    [
        (Interpolation, {"share": 0.0}, "leaves the attacked model as it is"),
        (Interpolation, {"share": float("inf")}, "must be a finite number"),
        (DeltaStrip, {"rank": 0}, "rank must be at least 1"),
        (WeightNoise, {"scale": 0.0}, "scale must be above 0"),
        (WeightNoise, {"scale": float("nan")}, "must be a finite number"),
        (Pruning, {"share": 1.0}, "share of the weights between 0 and 1"),
    ],
)
def test_impossible_settings_are_told(kind, settings, message):
    with pytest.raises(RepnoiseError, match=message):
        kind(**settings)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.label())
def test_they_come_back_from_what_a_run_stores(edit):
    attack = WeightEdit(edit=edit)
    assert restored(plain(attack), [attack]) == attack and attack.seeded(0) == attack


@pytest.mark.slow
@pytest.mark.parametrize("edit", OWN, ids=lambda edit: edit.label())
def test_none_of_them_makes_the_undefended_sandbox_answer(edit, tmp_path):
    """Known not to: the sandbox's refusals are as robust as its knowledge."""
    run = attack(AttackConfig(Inputs("sandbox"), WeightEdit(edit=edit)), tmp_path / "run")
    assert run.record["metrics"]["recovered"]["value"] == 0
    assert [row["step"] for row in read_rows(run.path / "curve.jsonl")] == [0, 1]
