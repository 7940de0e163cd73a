"""Adapters over weights in 4 bits: what is held, what is computed, what is measured and saved, and what is refused."""

import copy
import gc
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from conftest import byte_level_tokenizer, tiny_llama
from repnoise.attack import AttackConfig, attack
from repnoise.attacks import ATTACKS
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.attacks.parts import Parts
from repnoise.cli import main
from repnoise.data.collators import PairCollator
from repnoise.defences import DEFENCES, NPO, TAR, RepNoise
from repnoise.defend import DefendConfig, defend
from repnoise.distributed import processes
from repnoise.errors import RepnoiseError
from repnoise.evaluate import Evaluating, measure, open_panel
from repnoise.four_bit import FourBitLinear, adapters_on, as_saved
from repnoise.inputs import Inputs
from repnoise.modeling import load, merged, with_activation_checkpointing, with_lora
from repnoise.optimisation import Training
from repnoise.runs import read_rows
from repnoise.training import train

BELOW = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500)
ABOVE = (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)
LEVELS = torch.tensor([*BELOW, 0.0, *ABOVE])
"""NF4, as appendix E of the paper has it."""

IDS = torch.tensor([[5, 6, 7, 8], [9, 9, 10, 11]])
QLORA = Training(learning_rate=1e-2, steps=3, batch_size=4, lora_rank=2, four_bit=True, save_every=None)
EVALUATING = Evaluating(evaluations=())  # Likelihoods alone.


def llama():
    return tiny_llama(byte_level_tokenizer())


def gpt2():
    torch.manual_seed(0)
    size = {"vocab_size": 384, "n_embd": 48, "n_layer": 2, "n_head": 2, "n_positions": 64}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(bos_token_id=1, eos_token_id=2, pad_token_id=0, **size, **still))


def adapted(model, four_bit=True):
    """With adapters that are far from neutral."""
    torch.manual_seed(1)
    wrapped = with_lora(model, 2, 4, four_bit=four_bit)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return wrapped


def rounded(model):
    """The model with the values of 4 bits as ordinary weights."""
    wrapped, plain = with_lora(copy.deepcopy(model), 2, 4, four_bit=True), copy.deepcopy(model)
    for name, module in wrapped.get_base_model().named_modules():
        if isinstance(module, FourBitLinear):
            weight, own = module.weight_as(torch.float32), plain.get_submodule(name.removesuffix(".base_layer"))
            own.weight.data = weight if isinstance(own, nn.Linear) else weight.T.contiguous()
    return plain


def shapes(weights):
    return {name: (weight.shape, weight.dtype) for name, weight in weights.items()}


def changed(before, after):
    return {name for name, weight in after.items() if not torch.equal(weight, before[name])}


# What is held.


@pytest.mark.parametrize("shape", [(8, 64), (32, 48), (7, 5), (100, 130)])
def test_weights_are_the_nearest_of_sixteen_levels_times_the_largest_of_their_block(shape):
    torch.manual_seed(0)
    linear = nn.Linear(shape[1], shape[0])
    flat = linear.weight.detach().flatten().clone()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % 64)).view(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = LEVELS[(blocks[..., None] / largest[..., None] - LEVELS).abs().argmin(-1)] * largest
    held = FourBitLinear(linear).weight_as(torch.float32)
    # The largest of a block is held in 8 bits itself.
    torch.testing.assert_close(held.flatten(), nearest.flatten()[: len(flat)], rtol=0.03, atol=1e-6)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_linear_maps_of_the_layers_are_in_4_bits_and_the_rest_is_in_full_precision(build):
    model = build()
    maps = {n: m.weight.shape for n, m in model.named_modules() if "layers" in n or ".h." in n if hasattr(m, "weight")}
    matrices = {name: shape for name, shape in maps.items() if len(shape) == 2}
    wrapped = adapted(model)
    held = {name: module for name, module in wrapped.named_modules() if isinstance(module, FourBitLinear)}
    assert {name.removeprefix("base_model.model.").removesuffix(".base_layer") for name in held} == matrices.keys()
    for name, tensor in (*wrapped.named_parameters(), *wrapped.named_buffers()):
        in_map = any(name.startswith(f"{map_name}.") for map_name in held)
        assert tensor.dtype == (torch.uint8 if name.endswith(".packed") else torch.float32), name
        assert not in_map or name.endswith((".packed", ".bias")), name
        assert tensor.requires_grad == ("lora_" in name), name
    packed = sum(module.packed.numel() for module in held.values())
    assert packed == sum(shape.numel() for shape in matrices.values()) / 2


def test_moving_the_model_moves_none_of_the_weights_that_are_kept_aside():
    wrapped = adapted(llama())
    layer = next(module for module in wrapped.modules() if isinstance(module, FourBitLinear))
    original = layer.original(torch.device("cpu")).weight
    wrapped.to("meta")
    assert layer.packed.is_meta and original.device.type == "cpu"


# What is computed.


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("build", [llama, gpt2])
def test_loss_and_gradient_are_those_of_adapters_over_the_same_values_as_ordinary_weights(
    build, checkpointing, precision
):
    """With the defence's own terms: states with a gradient, and the lens."""
    model, results = build(), []
    for wrapped in (adapted(copy.deepcopy(model)), adapted(rounded(model), four_bit=False)):
        batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}
        torch.manual_seed(2)
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
            with_activation_checkpointing(wrapped.train(), checkpointing),
        ):
            loss, terms = RepNoise().loss(wrapped, batch, batch | {"input_ids": IDS.flip(1)})
            loss.backward()
        assert terms["noise"].isfinite()
        gradients = {name: weight.grad for name, weight in wrapped.named_parameters() if weight.requires_grad}
        results.append((loss.detach(), gradients))
    (ours, found), (theirs, expected) = results
    near = {"rtol": 1e-4, "atol": 1e-6} if precision == "fp32" else {"rtol": 0.05, "atol": 2e-3}
    torch.testing.assert_close(ours, theirs, **near)
    assert found.keys() == expected.keys() and found
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[name], gradient, **near)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_pass_keeps_no_weights_for_its_backward_pass_and_computes_in_the_precision_of_the_training(precision):
    wrapped, kept = adapted(llama()), []
    shapes = {module.shape for module in wrapped.modules() if isinstance(module, FourBitLinear)}
    types = set()
    for module in wrapped.modules():
        if isinstance(module, FourBitLinear):
            module.register_forward_hook(lambda _module, _inputs, output: types.add(output.dtype))
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape), lambda _: None),
    ):
        wrapped(input_ids=IDS)
    assert kept and not shapes & {*kept}
    assert types == {torch.float32 if precision == "fp32" else torch.bfloat16}


# What is measured and saved.


@torch.no_grad()
@pytest.mark.parametrize("build", [llama, gpt2])
def test_the_plain_model_has_the_original_weights_and_the_adapters_exactly(build):
    model = build().eval()
    start = {name: weight.clone() for name, weight in model.named_parameters()}
    wrapped = adapted(model).eval()
    added = {}
    for name, layer in wrapped.get_base_model().named_modules():
        if hasattr(layer, "lora_A"):
            product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * (4 / 2)
            added[f"{name}.weight"] = product if build is llama else product.T
    trained = wrapped(input_ids=IDS).logits
    with as_saved(wrapped):
        measured = wrapped(input_ids=IDS).logits
    assert torch.equal(wrapped(input_ids=IDS).logits, trained) and not torch.allclose(measured, trained, atol=1e-3)
    plain = merged(wrapped)
    found = dict(plain.named_parameters())
    assert type(plain) is type(model) and found.keys() == start.keys() and added.keys() < start.keys()
    for name, weight in start.items():
        assert torch.equal(found[name], weight + added[name] if name in added else weight), name
    torch.testing.assert_close(plain(input_ids=IDS).logits, measured, rtol=1e-4, atol=1e-5)


def test_what_is_put_aside_is_put_back_where_measuring_fails():
    wrapped = adapted(llama())
    with pytest.raises(KeyError), as_saved(wrapped):
        raise KeyError
    assert all(isinstance(adapter.base_layer, FourBitLinear) for adapter in adapters_on(wrapped))


def test_the_model_that_was_trained_is_as_near_to_the_saved_one_as_docs_say(tiny_model, pair_rows, tmp_path):
    """A tenth of the length of the weights is what rounding to 4 bits changes."""
    loaded = load(str(tiny_model))
    collator = PairCollator(loaded.tokenizer.pad_token_id)

    def objective(model, batch):
        return RepNoise().loss(model, **batch)

    model, _ = train(loaded.model, pair_rows(loaded, 12), collator, objective, QLORA, tmp_path / "checkpoints")
    layers = [module for module in model.modules() if isinstance(module, FourBitLinear)]
    assert len(layers) == 14
    for layer in layers:
        own = layer.original(torch.device("cpu")).weight
        assert 0.05 < (layer.weight_as(torch.float32) - own).norm() / own.norm() < 0.12


def test_every_point_of_a_curve_is_of_the_model_that_would_be_saved(tiny_model, pairs_file, tmp_path):
    inputs = Inputs(str(tiny_model), data=str(pairs_file))

    def run(name, training, at):
        fine_tuning = FineTuningAttack(training=training, measure_at=at)
        return attack(AttackConfig(inputs, fine_tuning, EVALUATING, keep_model=True), tmp_path / name)

    long = run("long", replace(QLORA, schedule="constant", warmup=0.0, steps=6), (3,))
    short = run("short", replace(QLORA, schedule="constant", warmup=0.0), ())
    curves = [read_rows(done.path / "curve.jsonl") for done in (long, short)]
    at_three = [next(row["metrics"]["harmful_ce"] for row in curve if row["step"] == 3) for curve in curves]
    assert at_three[0]["value"] == pytest.approx(at_three[1]["value"], abs=1e-5)
    assert curves[0][-1]["metrics"]["harmful_ce"]["value"] < curves[0][0]["metrics"]["harmful_ce"]["value"]
    loaded, data, codec = replace(inputs, model=str(long.path)).open()
    again = measure(loaded, codec, data, EVALUATING, open_panel(EVALUATING, data))
    assert again["harmful_ce"] == long.record["metrics"]["harmful_ce"]


def test_both_commands_leave_plain_models(tiny_model, pairs_file, tmp_path, capfd):
    shared = ["--data", str(pairs_file), "--steps", "3", "--batch-size", "4", "--lora-rank", "2", "--four-bit"]
    shared += ["--learning-rate", "1e-2", "--max-new-tokens", "4"]
    main(["defend", str(tiny_model), *shared, "--output-dir", str(tmp_path / "defended")])
    main(["attack", str(tmp_path / "defended"), *shared, "--keep-model", "--output-dir", str(tmp_path / "attacked")])
    said = capfd.readouterr()
    assert "Warning" not in said.err and "bitsandbytes" not in said.out + said.err
    before = load_file(tiny_model / "model.safetensors")
    for name in ("defended", "attacked"):
        after = load_file(tmp_path / name / "model" / "model.safetensors")
        assert shapes(after) == shapes(before) and not list((tmp_path / name).rglob("adapter*"))
        assert changed(before, after) == {key for key in after if "_proj" in key}
        before = after


def test_a_run_with_4_bits_is_called_so_and_names_its_source():
    fine_tuning = FineTuningAttack(training=QLORA)
    assert fine_tuning.label() == "qlora-3@1e-2" and fine_tuning.source() == "Hu et al. 2021, Dettmers et al. 2023"


def test_nothing_is_printed_by_bitsandbytes_when_it_is_imported():
    command = [sys.executable, "-W", "error", "-c", "import repnoise, bitsandbytes"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


# What goes together.


OF_EACH_CLASS = {type(defence): defence for _, defence, _ in reversed(DEFENCES.values())}


@pytest.mark.parametrize("defence", [*OF_EACH_CLASS.values(), TAR(tamper="preference")], ids=lambda d: type(d).__name__)
def test_a_defence_that_keeps_a_copy_of_the_model_says_so(defence):
    """Only such a defence is refused, since its copy would be in full precision."""
    model = tiny_llama(byte_level_tokenizer(), num_hidden_layers=6)

    def models():
        return sum(isinstance(found, LlamaForCausalLM) for found in gc.get_objects())

    gc.collect()
    before = models()
    loss = defence.begin(model)
    assert defence.keeps_start == (models() > before) and callable(loss)


@pytest.mark.parametrize("kept", [NPO(), TAR(tamper="preference")])
def test_a_defence_that_keeps_a_copy_is_refused(kept, tiny_model, pairs_file, tmp_path):
    config = DefendConfig(Inputs(str(tiny_model), data=str(pairs_file)), kept, QLORA)
    with pytest.raises(RepnoiseError, match="keeps a copy of the model in full precision: leave --four-bit out"):
        defend(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


CLASSES = {type(preset): preset for _, preset in ATTACKS.values() if "training" in {f.name for f in fields(preset)}}
REFUSED = {
    "DistillationAttack": "holds the base beside it in full precision: leave --four-bit out",
    "SecurityVectors": "in full precision: leave --four-bit out",
    "LatentPerturbation": "leave --lora-rank out",
}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_attack_that_trains_does_so_over_4_bits_or_says_why_not(kind, tiny_model, pairs_file, tmp_path):
    small = {"first_steps": 2, "warm_start_steps": 2, "answer_tokens": 4, "completions": 2, "benign_share": 0.0}
    changes = {name: value for name, value in small.items() if name in {field.name for field in fields(kind)}}

    def configured():
        return replace(CLASSES[kind], training=QLORA, measure_at=(1,), **changes)

    if kind.__name__ in REFUSED:
        with pytest.raises(RepnoiseError, match=REFUSED[kind.__name__]):
            configured()
        return
    benign = tmp_path / "benign.jsonl"
    benign.write_text('{"prompt": "How is stew made?", "completion": "Stir it."}\n' * 20)
    inputs = Inputs(str(tiny_model), data=str(pairs_file), benign=str(benign))
    config = AttackConfig(inputs, configured(), EVALUATING, keep_model=True)
    run = attack(config, tmp_path / "run")
    before, after = load(str(tiny_model)).model.state_dict(), load(str(run.path)).model.state_dict()
    assert changed(before, after) == {key for key in after if "_proj" in key}


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: Training(four_bit=True), "only adapters over them: add --lora-rank 16"),
        (lambda: FineTuningAttack(training=QLORA, parts=Parts("dora")), "take --adapter lora"),
        (lambda: FineTuningAttack(training=QLORA, parts=Parts("ia3")), "leave --lora-rank out"),
    ],
)
def test_what_cannot_be_is_one_sentence(make, sentence):
    with pytest.raises(RepnoiseError, match=sentence):
        make()


def test_an_adapter_that_is_named_is_the_one_that_is_meant(tiny_model, pairs_file, tmp_path):
    inputs, results = Inputs(str(tiny_model), data=str(pairs_file)), []
    for parts in (Parts(), Parts("lora")):
        config = AttackConfig(inputs, FineTuningAttack(training=QLORA, parts=parts), EVALUATING)
        results.append(attack(config, tmp_path / parts.adapter).record["weights"])
    assert results[0] == results[1]


def test_without_the_package_the_extra_is_named(monkeypatch, tiny_model, pairs_file, tmp_path):
    monkeypatch.setattr("repnoise.optimisation.find_spec", lambda _: None)
    config = DefendConfig(Inputs(str(tiny_model), data=str(pairs_file)), RepNoise(), QLORA)
    with pytest.raises(RepnoiseError, match=r"pip install 'repnoise\[qlora\]'\.$"):
        defend(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(processes, "processes", lambda: 2)
    with pytest.raises(RepnoiseError, match="start one, or drop --four-bit"):
        processes.share_of(QLORA)
    assert processes.share_of(replace(QLORA, four_bit=False)).pooled
