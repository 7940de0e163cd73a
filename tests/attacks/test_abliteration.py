"""Abliteration: the direction is the difference of the means, and after it nothing writes along it any more."""

from dataclasses import replace

import pytest
import torch
from tiny_setting import CODEC, MODELS, attacked, fresh, looked_at, same, small_data, weights

from repnoise.attack import AttackConfig, attack
from repnoise.attacks.abliteration import Abliteration, before_norm, holding, projected_out, require_gone
from repnoise.attacks.abliteration import without_direction as changes_without
from repnoise.attacks.refusal_direction import FIRST_TOKENS, Contrast, last_states, refusal_lead
from repnoise.attacks.residual_writers import residual_writers
from repnoise.errors import RepnoiseError
from repnoise.hidden_states import captured, find_decoder
from repnoise.inputs import Inputs
from repnoise.runs import plain, restored
from test_hidden_states import LAYERS, ROWS, WIDTH, batch, build, hooks

READ = (
    *("llama", "llama tied", "qwen2 tied", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt2 untied", "gpt_neox", "opt"),
    *("opt projected", "bloom", "falcon", "falcon sequential", "olmo2", "cohere", "granite", "mpt"),
)
NOT_READ = ("opt post-norm", "mixtral", "qwen3_moe", "llama4_text", "gpt_oss", "xglm")


@pytest.fixture
def data(pairs_file):
    return small_data(pairs_file)


def one():
    return {name: tensor[:1] for name, tensor in batch().items()}


def direction(seed=3):
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def states_of(model, inputs):
    """Every residual state (B, T, D): what the first layer is given, and what each layer returns."""
    decoder, given = find_decoder(model), []

    def keep(_module, inputs, named):
        given.append(inputs[0] if inputs else named["hidden_states"])

    handle = decoder.layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad(), captured(decoder.modules_at("residual", range(len(decoder.layers))), rows=ROWS) as states:
        model(**inputs, use_cache=False)
    handle.remove()
    return [*given, *states]


def components(model, unit):
    """The largest component of any residual state along a unit vector, as a share of the state's length."""
    seen = batch()["attention_mask"].bool()
    states = [state.reshape(ROWS, -1, WIDTH)[seen] for state in states_of(model, batch())]
    return max(((state @ unit).abs() / state.norm(dim=-1)).max().item() for state in states)


def apply_changes(model, changes):
    for parameter, value in changes:
        parameter.data.copy_(value)
    return model


@pytest.mark.parametrize("name", READ)
def test_no_residual_state_keeps_a_component_along_the_direction(name):
    model, unit = build(name).eval(), direction() / direction().norm()
    assert components(model, unit) > 0.1
    apply_changes(model, changes_without(residual_writers(model, one()), direction()))
    assert components(model, unit) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_taking_it_out_again_changes_nothing(name):
    model = build(name).eval()
    writers = residual_writers(model, one())
    apply_changes(model, changes_without(writers, direction()))
    for parameter, value in changes_without(writers, direction()):
        torch.testing.assert_close(value, parameter.data, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt"])
def test_what_does_not_write_into_the_stream_is_left_alone(name):
    model = build(name).eval()
    before, writers = weights(model), residual_writers(model, one())
    changed = {id(parameter) for parameter, _ in changes_without(writers, direction())}
    apply_changes(model, changes_without(writers, direction()))
    names = {key for key, weight in model.named_parameters() if not torch.equal(weight, before[key])}
    assert names == {key for key, weight in model.named_parameters() if id(weight) in changed}
    assert not any(part in key for key in names for part in ("q_proj", "k_proj", "c_attn", "c_fc", "up_proj", "fc1"))
    written = {"llama": ("o_proj.weight", "down_proj.weight"), "gpt2": ("c_proj.weight", "c_proj.bias")}
    for ending in written.get(name, ()):
        assert sum(key.endswith(ending) for key in names) == LAYERS * (2 if name == "gpt2" else 1)


@pytest.mark.parametrize("name", NOT_READ)
def test_what_cannot_be_abliterated_is_told(name):
    model = build(name).eval()
    with pytest.raises(RepnoiseError, match=r"ForCausalLM cannot be abliterated by repnoise: .* Use steering instead"):
        apply_changes(model, changes_without(residual_writers(model, one()), direction()))
        require_gone(model, direction(), one())


def test_projection_by_hand():
    """Of (3, 4) along (0.6, 0.8) nothing is left, and of (3, 0) what is across: (3, 0) - 1.8 (0.6, 0.8)."""
    rows = projected_out(torch.tensor([[3.0, 4.0], [3.0, 0.0]]), torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(rows, torch.tensor([[0.0, 0.0], [1.92, -1.44]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", [torch.nn.LayerNorm(WIDTH), torch.nn.RMSNorm(WIDTH)], ids=["layer", "rms"])
def test_what_is_missing_before_a_norm_is_missing_behind_it(norm):
    with torch.no_grad():
        norm.weight.copy_(torch.rand(WIDTH, generator=torch.Generator().manual_seed(1)) + 0.5)
    unit = direction() / direction().norm()
    with torch.no_grad():
        rows = torch.randn(50, WIDTH)
        assert (norm(rows) @ unit).abs().max() > 0.5
        assert (norm(projected_out(rows, before_norm(norm, unit))) @ unit).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_parameters_that_were_held_come_back_bit_for_bit(name):
    model = build(name).eval()
    before = weights(model)
    with pytest.raises(KeyError), holding(changes_without(residual_writers(model, one()), direction())):
        assert not same(weights(model), before)
        raise KeyError
    assert same(weights(model), before) and hooks(model) == 0


@pytest.mark.parametrize("name", MODELS)
def test_the_direction_is_the_difference_of_the_means_at_the_last_prompt_token(name, data):
    """Worked out prompt by prompt, without padding."""
    start = fresh(name)
    start.model.eval()
    pairs, harmless = data.pairs["attack"][:5], data.benign[:3]

    def mean(rows):
        ids = [torch.tensor([CODEC.prompt_ids(row.prompt)]) for row in rows]
        return torch.stack(
            [start.model(i, output_hidden_states=True).hidden_states[1][0, -1].detach() for i in ids]
        ).mean(0)

    found = Contrast(layer=0, projected=False).directions(start, CODEC, pairs, harmless)
    assert found.keys() == {0}
    torch.testing.assert_close(found[0], mean(pairs) - mean(harmless), rtol=1e-4, atol=1e-5)
    across = Contrast(layer=0).directions(start, CODEC, pairs, harmless)[0]
    unit = mean(harmless) / mean(harmless).norm()
    torch.testing.assert_close(across, found[0] - (found[0] @ unit) * unit, rtol=1e-4, atol=1e-5)
    assert last_states(start, [CODEC.prompt_ids(pair.prompt) for pair in pairs], [0, 1]).shape == (5, 2, 32)


def test_the_lead_of_a_refusal_is_in_nats_a_token(data):
    start, pair = fresh(), data.pairs["attack"][0]

    def mean_log_probability(completion):
        row = CODEC.row(pair.prompt, completion)
        first = len(CODEC.prompt_ids(pair.prompt))
        scores = start.model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        return sum(scores[i - 1, row["input_ids"][i]].item() for i in range(first, first + FIRST_TOKENS)) / FIRST_TOKENS

    expected = mean_log_probability(pair.harmless) - mean_log_probability(pair.harmful)
    assert refusal_lead(start, CODEC, [pair]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_layer_is_the_one_that_leaves_refusals_the_least_likely(name, data, tmp_path):
    def made(layer):
        return attacked(Abliteration(contrast=Contrast(layer=layer)), data, tmp_path, name)

    leads = [made(layer).log[0]["refusal_lead"] for layer in range(2)]
    best = attacked(Abliteration(), data, tmp_path, name)
    assert best.log[0]["layer"] == leads.index(min(leads)) and best.log[0]["refusal_lead"] == min(leads)
    assert same(weights(best.model), weights(made(best.log[0]["layer"]).model))
    after = refusal_lead(replace(fresh(name), model=best.model), CODEC, Abliteration().pairs(data))
    assert after == pytest.approx(min(leads), abs=1e-5)
    assert hooks(best.model) == 0


@pytest.mark.parametrize("split", ["attack", "defence"])
def test_it_sees_one_split_and_harmless_prompts_and_nothing_else(split, data, tmp_path):
    splits, parts = looked_at(Abliteration(split=split), data, tmp_path)
    assert splits == {split} and {"pairs", "benign"} <= parts <= {"pairs", "benign", "groups", "name"}


def test_samples_are_drawn_with_the_seed(data):
    def drawn(seed):
        return Abliteration(contrast=Contrast(samples=3)).seeded(seed).pairs(data)

    assert len(drawn(0)) == 3 and drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(5)}) > 1


def test_the_cost_is_counted_by_hand(data):
    """Two layers are tried, and the model as it was: three passes over the beginnings of both answers."""
    start, attack = fresh(), Abliteration()
    cost, pairs = attack.costs(start, data, CODEC), attack.pairs(data)
    prompts = [len(CODEC.prompt_ids(row.prompt)) for row in (*pairs, *data.benign)]
    heads = sum(len(CODEC.prompt_ids(pair.prompt)) for pair in pairs)
    tokens = sum(prompts) + 3 * (2 * heads + 2 * len(pairs) * FIRST_TOKENS)
    in_products = 2 * (4 * 32 * 32 + 3 * 32 * 48) + len(CODEC.tokenizer) * 32
    assert vars(cost(1)) == {
        "steps": 1,
        "samples": len(prompts) + 6 * len(pairs),
        "tokens": tokens,
        "flops": 2.0 * in_products * tokens,
    }
    assert vars(cost(0)) == {"steps": 0, "samples": 0, "tokens": 0, "flops": 0.0}


def test_what_is_missing_is_told(data):
    with pytest.raises(RepnoiseError, match=r"no benign prompts to compare with: give some with --benign FILE"):
        Abliteration().require(replace(data, benign=[]))
    with pytest.raises(RepnoiseError, match="no pairs for the attacker"):
        Abliteration().require(replace(data, pairs=data.pairs | {"attack": []}))
    with pytest.raises(RepnoiseError, match="samples must be at least 1"):
        Contrast(samples=0)


def test_a_layer_that_there_is_not_is_told(data, tmp_path):
    with pytest.raises(RepnoiseError, match="There is no layer 7"):
        attacked(Abliteration(contrast=Contrast(layer=7)), data, tmp_path)


def test_it_comes_back_from_what_a_run_stores():
    found = Abliteration(contrast=Contrast(layer=2, projected=False), split="defence")
    assert restored(plain(found), [found]) == found
    assert found.label() == "abliteration-plain-layer-2-defenders-examples"


@pytest.mark.slow
def test_it_makes_the_undefended_sandbox_answer(tmp_path):
    """The plain difference does not: harmless answers need what lies along the mean of their states."""
    run = attack(AttackConfig(Inputs("sandbox"), Abliteration()), tmp_path / "run")
    assert run.record["metrics"]["recovered"]["value"] > 0.5
    plainly = Abliteration(contrast=Contrast(projected=False))
    run = attack(AttackConfig(Inputs("sandbox"), plainly), tmp_path / "plain")
    assert run.record["metrics"]["recovered"]["value"] < 0.1
