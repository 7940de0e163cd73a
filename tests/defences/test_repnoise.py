"""Every switch of RepNoise does what it says and leaves the rest alone."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from repnoise.defences import RepNoise
from repnoise.defences.repnoise import on_top_directions
from repnoise.errors import RepnoiseError
from repnoise.hidden_states import captured, fill, find_decoder
from repnoise.losses import IGNORE, causal_ce, mmd2, mmd2_floor
from repnoise.runs import plain, restored

PROMPT, LAYERS, WIDTH = 3, 3, 16
DEFENCE = RepNoise()


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
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def batch(seed, rows=3, completion=4):
    ids = torch.randint(4, 40, (rows, PROMPT + completion), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, :PROMPT] = IGNORE
    # The last row is one token shorter.
    ids[-1, -1], labels[-1, -1] = 1, IGNORE
    mask = torch.ones_like(ids)
    mask[-1, -1] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def terms_of(defence, model, harmful=None, retain=None, seed=0):
    torch.manual_seed(seed)
    loss, terms = defence.loss(model, batch(1), harmful or batch(2), retain)
    return loss, {name: term.item() for name, term in terms.items()}


def changed(defence, model):
    """Names of the terms that another defence gives other values, on the same batch and draws."""
    before, after = terms_of(DEFENCE, model)[1], terms_of(defence, model)[1]
    return {name for name in before if not math.isclose(before[name], after[name], rel_tol=1e-6)}


def states(model, site, layers):
    decoder, harmful = find_decoder(model), batch(2)
    with torch.no_grad(), captured(decoder.modules_at(site, layers)) as found:
        fill(model, harmful["input_ids"], harmful["attention_mask"])
    return found


def test_default_loss_is_what_the_formula_says(model):
    """Every term again, from hidden states and plain torch."""
    loss, terms = terms_of(DEFENCE, model, retain=batch(4))
    harmful, harmless, retain = batch(2), batch(1), batch(4)
    with torch.no_grad():
        stability, general = (
            causal_ce(model(b["input_ids"], attention_mask=b["attention_mask"]).logits, b["labels"]).item()
            for b in (harmless, retain)
        )
        torch.manual_seed(0)
        chosen = harmful["labels"] != IGNORE
        noise = []
        for activation in states(model, "mlp", range(LAYERS)):
            x = activation[chosen]
            noise.append(mmd2(x, torch.randn(x.shape)).item())
        ces = [
            causal_ce(model.lm_head(model.model.norm(state)), harmful["labels"]).item()
            for state in states(model, "residual", range(LAYERS))
        ]
    assert terms["stability"] == pytest.approx(stability, rel=1e-5)
    assert terms["retain"] == pytest.approx(general, rel=1e-5)
    assert terms["noise"] == pytest.approx(sum(noise) / LAYERS, rel=1e-5)
    assert terms["noise_floor"] == pytest.approx(mmd2_floor(11, 11, WIDTH), rel=1e-6)
    assert terms["ascent"] == pytest.approx(sum(ces) / LAYERS, rel=1e-5)
    expected = stability + 4.0 * general + 4.0 * sum(noise) / LAYERS - 0.1 * math.log(1 + sum(ces) / LAYERS)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "weights",
    [dict(noise_weight=0.0), dict(ascent_weight=0.0), dict(noise_weight=2.0, ascent_weight=3.0, retain_weight=0.5)],
)
@pytest.mark.parametrize("log_ascent", [True, False])
def test_loss_is_the_weighted_sum_of_its_logged_terms(model, weights, log_ascent):
    defence = replace(DEFENCE, log_ascent=log_ascent, **weights)
    loss, terms = terms_of(defence, model, retain=batch(4))
    reward = math.log1p(terms["ascent"]) if log_ascent else terms["ascent"]
    expected = (
        terms["stability"]
        + defence.retain_weight * terms["retain"]
        + defence.noise_weight * terms["noise"]
        - defence.ascent_weight * reward
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    _, unweighted = terms_of(DEFENCE, model, retain=batch(4))
    assert terms == pytest.approx(unweighted, rel=1e-6)


def test_loss_by_hand_on_a_model_that_knows_nothing(model):
    """With a zero head every cross-entropy is ln V; with zero MLPs all completion activations are the zero vector."""
    torch.nn.init.zeros_(model.lm_head.weight)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    loss, terms = terms_of(DEFENCE, model)
    torch.manual_seed(0)
    noise = torch.stack([mmd2(torch.zeros(11, WIDTH), torch.randn(11, WIDTH)) for _ in range(LAYERS)]).mean()
    assert terms["stability"] == pytest.approx(math.log(40), rel=1e-6)
    assert terms["ascent"] == pytest.approx(math.log(40), rel=1e-6)
    assert loss.item() == pytest.approx(math.log(40) + 4 * noise.item() - 0.1 * math.log(1 + math.log(40)), rel=1e-5)


def test_layers_choose_what_is_noised_and_read(model):
    _, terms = terms_of(replace(DEFENCE, layers=(1,)), model)
    torch.manual_seed(0)
    x = states(model, "mlp", [1])[0][batch(2)["labels"] != IGNORE]
    assert terms["noise"] == pytest.approx(mmd2(x, torch.randn(x.shape)).item(), rel=1e-5)
    read = model.lm_head(model.model.norm(states(model, "residual", [1])[0]))
    assert terms["ascent"] == pytest.approx(causal_ce(read, batch(2)["labels"]).item(), rel=1e-5)
    assert terms_of(replace(DEFENCE, layers=(-2,)), model)[1] == terms
    assert changed(replace(DEFENCE, layers=(2, 0, 1)), model) == set()
    with pytest.raises(RepnoiseError, match="no layer 7"):
        terms_of(replace(DEFENCE, layers=(7,)), model)


def test_layers_of_a_step_are_drawn_alike_often_and_their_mean_is_that_of_all(model):
    terms = {}
    drawn = []
    for seed in range(60):
        torch.manual_seed(seed)
        _, found = RepNoise(layers_per_step=2, noise_weight=0.0).loss(model, batch(1), batch(2))
        drawn.append(round(found["ascent"].item(), 5))
        terms[drawn[-1]] = found["ascent"].item()
    assert len(terms) == 3  # Pairs of three layers.
    whole = RepNoise(noise_weight=0.0).loss(model, batch(1), batch(2))[1]["ascent"].item()
    assert sum(terms.values()) / 3 == pytest.approx(whole, rel=1e-5)
    assert all(drawn.count(one) > 8 for one in terms)  # 20 in the mean, 3.7 the standard deviation.


def test_as_many_layers_a_step_as_there_are_draw_nothing(model):
    torch.manual_seed(0)
    whole = RepNoise().loss(model, batch(1), batch(2))[0]
    torch.manual_seed(0)
    assert RepNoise(layers_per_step=LAYERS).loss(model, batch(1), batch(2))[0] == whole


@pytest.mark.parametrize("site", ["attention", "residual"])
def test_site_moves_the_noise_and_nothing_else(model, site):
    defence = replace(DEFENCE, site=site)
    assert changed(defence, model) == {"noise"}
    torch.manual_seed(0)
    xs = [state[batch(2)["labels"] != IGNORE] for state in states(model, site, range(LAYERS))]
    expected = sum(mmd2(x, torch.randn(x.shape)).item() for x in xs) / LAYERS
    assert terms_of(defence, model)[1]["noise"] == pytest.approx(expected, rel=1e-5)


def test_sequences_are_whole_rows_with_zeros_off_the_completion(model):
    defence = replace(DEFENCE, samples="sequences")
    assert changed(defence, model) == {"noise", "noise_floor"}
    mask = (batch(2)["labels"] != IGNORE)[..., None]
    torch.manual_seed(0)
    expected = [
        mmd2((state * mask).flatten(1), (torch.randn(state.shape) * mask).flatten(1)).item()
        for state in states(model, "mlp", range(LAYERS))
    ]
    _, terms = terms_of(defence, model)
    assert terms["noise"] == pytest.approx(sum(expected) / LAYERS, rel=1e-5)
    assert terms["noise_floor"] == pytest.approx(2 * (5 - 1.907) / 3, rel=0.02)
    # A cap on token samples has no say here.
    assert terms_of(replace(defence, max_samples=2), model)[1] == terms


@pytest.mark.parametrize("samples", ["tokens", "sequences"])
def test_noise_ignores_prompt_and_padding(model, samples):
    defence, harmful = replace(DEFENCE, samples=samples), batch(2)
    activations = states(model, "mlp", range(LAYERS))
    torch.manual_seed(0)
    before, _ = defence._noise(activations, harmful["labels"])
    torch.manual_seed(0)
    outside = (harmful["labels"] == IGNORE)[..., None]
    after, _ = defence._noise([state + 100.0 * outside for state in activations], harmful["labels"])
    assert torch.equal(before, after)


def test_all_harmful_tokens_are_those_of_the_prompt_too_and_no_padding(model):
    """The paper's "without mask": noise at every token of the row, ascent at every token that has one before it."""
    defence = replace(DEFENCE, harmful_tokens="all")
    assert changed(defence, model) == {"noise", "noise_floor", "ascent"}
    _, terms = terms_of(defence, model)
    harmful = batch(2)
    seen = harmful["attention_mask"].bool()
    assert seen.sum() == 20
    torch.manual_seed(0)
    noise = [mmd2(x[seen], torch.randn(20, WIDTH)).item() for x in states(model, "mlp", range(LAYERS))]
    labels = harmful["input_ids"].masked_fill(~seen, IGNORE)
    lens = [causal_ce(model.lm_head(model.model.norm(x)), labels).item() for x in states(model, "residual", range(3))]
    assert terms["noise"] == pytest.approx(sum(noise) / LAYERS, rel=1e-5)
    assert terms["noise_floor"] == pytest.approx(mmd2_floor(20, 20, WIDTH), rel=1e-6)
    assert terms["ascent"] == pytest.approx(sum(lens) / LAYERS, rel=1e-5)


def test_top_directions_by_hand():
    """Samples 3, 2 and 1 long along the axes: the two longest are kept, whatever their sign, and the third is gone."""
    x = torch.tensor([[3.0, 0, 0], [0, -2.0, 0], [0, 0, 1.0]], requires_grad=True)
    kept = on_top_directions(x, 2)
    assert torch.allclose(kept.abs(), torch.tensor([[3.0, 0], [0, 2.0], [0, 0]]), atol=1e-6)
    kept.square().sum().backward()
    # The square of what is kept, whose gradient knows nothing of the third direction.
    assert torch.allclose(x.grad, torch.tensor([[6.0, 0, 0], [0, -4.0, 0], [0, 0, 0]]), atol=1e-5)


def test_top_directions_change_the_noise_alone_which_is_that_of_the_projection(model):
    defence = replace(DEFENCE, top_directions=2)
    assert changed(defence, model) == {"noise", "noise_floor"}
    _, terms = terms_of(defence, model)
    torch.manual_seed(0)
    expected = []
    for state in states(model, "mlp", range(LAYERS)):
        x = state[batch(2)["labels"] != IGNORE]
        left, sizes, _ = torch.linalg.svd(x, full_matrices=False)
        expected.append(mmd2((left * sizes)[:, :2], torch.randn(11, 2)).item())
    assert terms["noise"] == pytest.approx(sum(expected) / LAYERS, rel=1e-4)
    assert terms["noise_floor"] == pytest.approx(mmd2_floor(11, 11, 2), rel=1e-6)


def test_noise_in_top_directions_leaves_the_others_alone(model):
    labels, defence = batch(2)["labels"], replace(DEFENCE, top_directions=2)
    state = states(model, "mlp", [0])[0].requires_grad_(True)
    defence._noise([state], labels)[0].backward()
    chosen = labels != IGNORE
    directions = torch.linalg.svd(state.detach()[chosen], full_matrices=False).Vh
    moved = state.grad[chosen] @ directions.T
    assert moved[:, :2].abs().max() > 1e-4 and moved[:, 2:].abs().max() < 1e-6


def test_more_directions_than_there_are_is_all_of_them_turned():
    x = torch.randn(11, 5, generator=torch.Generator().manual_seed(0))
    for wanted in (5, 50):
        turned = on_top_directions(x, wanted)
        assert torch.allclose(torch.cdist(turned, turned), torch.cdist(x, x), atol=1e-5)
        assert torch.allclose(turned.norm(dim=1), x.norm(dim=1), atol=1e-5)


def test_top_directions_of_sequences_are_at_most_as_many_as_rows(model):
    _, terms = terms_of(replace(DEFENCE, samples="sequences", top_directions=8), model)
    assert terms["noise_floor"] == pytest.approx(mmd2_floor(3, 3, 3), rel=1e-6)


def test_activations_that_are_not_finite_make_the_noise_so_for_the_trainer_to_tell(model):
    state = states(model, "mlp", [0])[0]
    state[0, PROMPT, 0] = math.nan
    assert replace(DEFENCE, top_directions=2)._noise([state], batch(2)["labels"])[0].isnan()


def test_noise_scale_is_the_target_standard_deviation(model):
    assert changed(replace(DEFENCE, noise_scale=0.5), model) == {"noise"}
    labels = batch(2)["labels"]
    activations = states(model, "mlp", [0])
    torch.manual_seed(0)
    scaled, _ = replace(DEFENCE, noise_scale=0.5)._noise([activations[0] * 0.5], labels)
    torch.manual_seed(0)
    unit, _ = DEFENCE._noise(activations, labels)
    assert scaled.item() == pytest.approx(unit.item(), rel=1e-5)


def test_kernel_multipliers_change_noise_and_its_floor(model):
    assert changed(replace(DEFENCE, kernel_multipliers=(1.0,)), model) == {"noise", "noise_floor"}


def test_max_samples_caps_the_tokens_anew_each_step(model):
    defence = replace(DEFENCE, max_samples=4)
    assert changed(defence, model) == {"noise", "noise_floor"}
    assert terms_of(defence, model)[1]["noise_floor"] == pytest.approx(mmd2_floor(4, 4, WIDTH), rel=1e-6)
    assert (
        changed(replace(DEFENCE, max_samples=11), model) == changed(replace(DEFENCE, max_samples=None), model) == set()
    )
    torch.manual_seed(0)
    picks = {tuple(sorted(defence._pick(batch(2)["labels"] != IGNORE).tolist())) for _ in range(20)}
    assert len(picks) > 5 and all(len(set(pick)) == 4 and max(pick) < 11 for pick in picks)


def test_lens_off_reads_the_last_layer_only(model):
    defence = replace(DEFENCE, lens=False)
    assert changed(defence, model) == {"ascent"}
    harmful = batch(2)
    logits = model(harmful["input_ids"], attention_mask=harmful["attention_mask"]).logits
    expected = causal_ce(logits, harmful["labels"]).item()
    assert terms_of(defence, model)[1]["ascent"] == pytest.approx(expected, rel=1e-5)
    # Noise on chosen layers, ascent at the output all the same.
    assert terms_of(replace(defence, layers=(0,)), model)[1]["ascent"] == pytest.approx(expected, rel=1e-5)


def test_final_norm_off_reads_states_as_they_are(model):
    defence = replace(DEFENCE, final_norm=False, layers=(1,))
    assert changed(replace(DEFENCE, final_norm=False), model) == {"ascent"}
    expected = causal_ce(model.lm_head(states(model, "residual", [1])[0]), batch(2)["labels"]).item()
    assert terms_of(defence, model)[1]["ascent"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("detached", [True, False])
def test_detached_unembedding_is_moved_by_stability_alone(model, detached):
    assert changed(replace(DEFENCE, detach_unembedding=detached), model) == set()
    readers = (model.lm_head.weight, model.model.norm.weight)
    with_ascent, _ = terms_of(RepNoise(noise_weight=0.0, ascent_weight=5.0, detach_unembedding=detached), model)
    without, _ = terms_of(RepNoise(noise_weight=0.0, ascent_weight=0.0), model)
    for ours, stability in zip(
        torch.autograd.grad(with_ascent, readers), torch.autograd.grad(without, readers), strict=True
    ):
        assert torch.allclose(ours, stability, rtol=1e-5, atol=1e-7) == detached


def test_plain_ascent_changes_the_loss_and_no_term(model):
    defence = replace(DEFENCE, log_ascent=False)
    assert changed(defence, model) == set()
    assert terms_of(defence, model)[0] != terms_of(DEFENCE, model)[0]


def test_retain_is_optional_and_changes_no_other_term(model):
    without, with_retain = terms_of(DEFENCE, model)[1], terms_of(DEFENCE, model, retain=batch(4))[1]
    assert set(with_retain) - set(without) == {"retain"}
    assert {name: with_retain[name] for name in without} == without


def test_training_on_noise_alone_approaches_the_floor(model):
    defence = RepNoise(ascent_weight=0.0, noise_weight=10.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    harmful = batch(2, rows=16)
    before = terms_of(defence, model, harmful)[1]
    for step in range(60):
        optimizer.zero_grad()
        terms_of(defence, model, harmful, seed=step)[0].backward()
        optimizer.step()
    after = terms_of(defence, model, harmful)[1]
    assert after["noise"] - after["noise_floor"] < (before["noise"] - before["noise_floor"]) / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("samples", ["tokens", "sequences"])
def test_noise_of_half_precision_activations_is_computed_in_fp32(model, dtype, samples):
    activations = [state.to(dtype) for state in states(model, "mlp", range(LAYERS))]
    labels, defence = batch(2)["labels"], replace(DEFENCE, samples=samples)
    values = []
    for cast in (activations, [activation.float() for activation in activations]):
        torch.manual_seed(0)
        values.append(defence._noise(cast, labels)[0])
    assert values[0].dtype == torch.float32
    assert torch.equal(*values)


def test_autocast_gives_nearly_the_same_terms(model):
    expected = terms_of(DEFENCE, model)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert terms_of(DEFENCE, model)[1] == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("defence", [replace(DEFENCE, samples="sequences"), DEFENCE], ids=["sequences", "tokens"])
def test_a_batch_with_one_sample_is_refused(model, defence):
    one = batch(2, rows=2, completion=1)
    one = {name: tensor[:1] for name, tensor in one.items()}
    with pytest.raises(RepnoiseError, match=f"only 1 of the kind '{defence.samples}': raise --batch-size"):
        defence.loss(model, one, one)


def test_a_batch_without_completions_is_refused(model):
    empty = batch(2) | {"labels": torch.full((3, 7), IGNORE)}
    for batches in ((empty, batch(2)), (batch(1), empty), (batch(1), batch(2), empty)):
        with pytest.raises(RepnoiseError, match="no completion token to learn from"):
            DEFENCE.loss(model, *batches)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(noise_weight=-1.0),
        dict(ascent_weight=-0.1),
        dict(retain_weight=math.nan),
        dict(noise_scale=0.0),
        dict(noise_scale=math.inf),
        dict(max_samples=1),
        dict(kernel_multipliers=()),
        dict(kernel_multipliers=(1.0, 0.0)),
        dict(site="embedding"),
        dict(harmful_tokens="prompt"),
        dict(top_directions=0),
        dict(layers_per_step=0),
        dict(samples="words"),
        dict(layers=()),
    ],
    ids=lambda wrong: f"{wrong}",
)
def test_impossible_settings_are_refused_at_once_and_by_name(wrong):
    (name,) = wrong
    with pytest.raises(RepnoiseError, match=name) as refusal:
        RepNoise(**wrong)
    assert "\n" not in str(refusal.value)


def test_settings_survive_json():
    defence = RepNoise(layers=(0, -1), kernel_multipliers=(0.5, 2.0), max_samples=None)
    stored = json.loads(json.dumps(plain(defence)))
    assert restored(stored, [RepNoise()]) == defence
    assert stored == {"class": "RepNoise"} | json.loads(json.dumps(asdict(defence)))
