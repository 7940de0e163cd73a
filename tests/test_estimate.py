"""What a run is said to take, against what PyTorch counts and what processes came to hold."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, GPT2Config, LlamaConfig, LlamaForCausalLM

from repnoise import hidden_states, losses
from repnoise.attack import AttackConfig
from repnoise.attacks import ATTACKS
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.data.tokenization import right_padded
from repnoise.defences import RepNoise
from repnoise.defences.base import completion_ce
from repnoise.defend import DefendConfig
from repnoise.errors import RepnoiseError
from repnoise.estimate import DEVICES, Rows, estimate, find_device, model_config
from repnoise.estimate.command import EstimateOptions, config_of, estimate_command
from repnoise.evaluate import EvaluateConfig
from repnoise.inputs import Inputs
from repnoise.losses import IGNORE
from repnoise.modeling import with_activation_checkpointing, with_lora
from repnoise.optimisation import Training

ROWS, LENGTH, PROMPT, VOCABULARY = 3, 20, 5, 90


def llama_config(**changes):
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6}
    return LlamaConfig(**sizes | {"num_attention_heads": 2, "pad_token_id": 1} | changes)


def seven_billion(**changes):
    return llama_config(
        **{
            "vocab_size": 32_000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "max_position_embeddings": 4096,
        }
        | changes
    )


def batch(seed):
    ids = torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed)).tolist()
    return right_padded([{"input_ids": row, "labels": [IGNORE] * PROMPT + row[PROMPT:]} for row in ids], 1)


def config_for(defence=None, length=LENGTH, retain=None, **training):
    settings = Training(**{"batch_size": ROWS, "steps": 2} | training)
    inputs = Inputs(max_length=length, data="pairs.jsonl", retain=retain)
    if defence is None:
        return AttackConfig(inputs, FineTuningAttack(training=settings))
    return DefendConfig(inputs, defence, settings)


def counted(config, model, with_retain=False):
    """Operations of one step as PyTorch counts them, attention not fused so that its products are seen."""
    if config.training.lora_rank:
        model = with_lora(model, config.training.lora_rank, 8)
    extra = batch(2) if with_retain else None
    with (
        FlopCounterMode(display=False) as counter,
        with_activation_checkpointing(model, config.training.gradient_checkpointing),
    ):
        config.defence.loss(model.train(), batch(0), batch(1), extra)[0].backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("defence", "retain", "training"),
    [
        (RepNoise(), None, {}),
        (RepNoise(layers=(1, 4), max_samples=7, detach_unembedding=True), "more.jsonl", {}),
        (RepNoise(layers_per_step=99, max_samples=7), None, {}),
        (RepNoise(samples="sequences", lens=False, harmful_tokens="all"), None, {"gradient_checkpointing": True}),
        (RepNoise(), None, {"lora_rank": 4}),
    ],
    ids=["whole", "parts", "all layers", "sequences", "adapters"],
)
@pytest.mark.parametrize("budget", [10**6, 1000], ids=["at once", "in chunks"])
def test_operations_of_a_defence_are_those_that_pytorch_counts(monkeypatch, budget, defence, retain, training):
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", budget)
    monkeypatch.setattr(losses, "ROWS_AT_ONCE", 1)
    monkeypatch.setattr(hidden_states, "FEW_LOGITS", budget)
    config = config_for(defence, retain=retain, **training)
    model = LlamaForCausalLM._from_config(llama_config(), attn_implementation="eager")
    found = estimate(config, llama_config(), Rows(completion=1 - PROMPT / LENGTH))
    # Below the first layer's adapters nothing needs a gradient; what is computed again ends before a layer does.
    tolerance = 0.06 if config.training.lora_rank else 0.05 if config.training.gradient_checkpointing else 1e-9
    assert found.step_flops == pytest.approx(counted(config, model, retain is not None), rel=tolerance)
    assert (found.floor_flops < found.step_flops - 1e6) == config.training.gradient_checkpointing


def test_operations_of_an_attack_are_those_that_pytorch_counts():
    model = LlamaForCausalLM._from_config(llama_config(), attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        completion_ce(model, batch(0)).backward()
    found = estimate(config_for(accumulation=4), llama_config())
    assert found.step_flops == pytest.approx(4 * counter.get_total_flops(), rel=1e-9)
    assert found.flops == 2 * found.step_flops


def test_operations_of_an_evaluation_are_those_that_pytorch_counts():
    model = LlamaForCausalLM._from_config(llama_config(), attn_implementation="eager").eval()
    config = EvaluateConfig(Inputs(max_length=LENGTH))
    generation = replace(config.evaluating.generation, max_new_tokens=6, batch_size=ROWS)
    config = replace(config, evaluating=replace(config.evaluating, generation=generation))
    prompts = torch.randint(3, VOCABULARY, (ROWS, LENGTH - 6))
    ends = {"eos_token_id": VOCABULARY + 1, "pad_token_id": 1, "do_sample": False}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mask = torch.ones_like(prompts)
        model.generate(input_ids=prompts, attention_mask=mask, max_new_tokens=6, **ends)
    found = estimate(config, llama_config(), Rows(examples=2 * ROWS))
    assert found.step_flops == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert found.steps == 2


SHAPES = {
    "activations": ("defend", {"num_hidden_layers": 6}, {"batch_size": 8}, 256),
    "large vocabulary": ("defend", {"vocab_size": 32_000, "num_hidden_layers": 4}, {"batch_size": 4}, 160),
    "attack": ("attack", {"vocab_size": 16_000, "hidden_size": 512, "intermediate_size": 1376}, {"batch_size": 6}, 192),
    "16 bits, checkpointed": (
        "defend",
        {"vocab_size": 8000, "hidden_size": 512, "intermediate_size": 1376},
        {"batch_size": 4, "precision": "bf16", "gradient_checkpointing": True},
        256,
    ),
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process' memory from /proc")
@pytest.mark.parametrize("name", SHAPES)
def test_memory_is_what_a_process_came_to_hold(name):
    what, shape, settings, length = SHAPES[name]
    shape = {"vocab_size": 2000, "hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 4} | shape
    shape = {"num_hidden_layers": 6, "pad_token_id": 1} | shape
    asked = {"what": what, "model": shape, "training": settings, "length": length}
    # The C library would keep freed memory.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    script = Path(__file__).with_name("measured_step.py")
    command = [sys.executable, str(script), json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=True)
    defence = RepNoise() if what == "defend" else None
    retain = "general.jsonl" if what == "defend" else None
    found = estimate(config_for(defence, length, retain, **settings), LlamaConfig(**shape))
    assert found.memory_bytes == pytest.approx(int(done.stdout), rel=0.15)


def test_weights_gradients_and_moments_of_a_large_model_by_hand():
    found = estimate(config_for(RepNoise(), 256, batch_size=8, precision="bf16"), seven_billion())
    weights = 2 * 32_000 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096
    assert found.sizes.weights == found.sizes.trained == weights
    assert found.holds["weights"] == found.holds["gradients"] == 4 * weights
    assert found.holds["optimiser"] == 8 * weights
    # Copies in 16 bits of what is multiplied by, which is all but norms and the embedding.
    assert found.holds["weights in 16 bits"] == pytest.approx(2 * (weights - 32_000 * 4096), rel=0.01)
    assert found.disk_bytes == 4 * weights + 2 * 12 * weights


def test_weights_in_4_bits_of_a_large_model_by_hand():
    """Half a byte each; for every 64 of them one byte more, and for every 256 of these bytes 4."""
    settings = {"batch_size": 8, "precision": "bf16", "gradient_checkpointing": True, "lora_rank": 16}
    plain = estimate(config_for(RepNoise(), 256, **settings), seven_billion())
    found = estimate(config_for(RepNoise(), 256, **settings, four_bit=True), seven_billion())
    maps = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    adapters = 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert found.sizes.four_bit == maps and found.sizes.trained == adapters
    others = 2 * 32_000 * 4096 + 32 * 2 * 4096 + 4096 + adapters
    assert found.holds["weights"] == pytest.approx(4 * others + maps / 2 + maps / 64 + 4 * maps / 64 / 256)
    assert found.holds["gradients"] == 4 * adapters and found.holds["optimiser"] == 8 * adapters
    # They are there in full precision when the model is measured, and not while it is trained.
    assert found.holds["weights in full precision"] == 4 * maps
    training = [moment.bytes for moment in found.moments if "measured" not in moment.name]
    largest = 6 * 4096 * 11008  # A map as it is read: in fp32 and in bf16.
    assert max(training) == pytest.approx(plain.memory_bytes - (4 - 0.5159) * maps + largest, rel=0.01)
    assert found.memory_bytes == pytest.approx(found.holds["weights"] + 4 * maps + 8 * adapters)
    assert found.step_flops == plain.step_flops and found.disk_bytes == plain.disk_bytes
    assert found.devices(DEVICES["4090-24"]) is None  # Several were never tried.


def test_a_pass_over_4_bits_keeps_no_weights_in_16_bits():
    settings = {"precision": "bf16", "lora_rank": 2}
    plain, found = (estimate(config_for(**settings, four_bit=four), llama_config()) for four in (False, True))
    assert found.holds["activations"] < plain.holds["activations"]


def test_a_deep_model_keeps_as_much_a_layer_as_a_shallow_one():
    def kept(layers):
        config = llama_config(num_hidden_layers=layers, hidden_size=64)
        return estimate(config_for(), config).holds["activations"]

    per_layer = kept(9) - kept(8)
    assert kept(30) == pytest.approx(kept(8) + 22 * per_layer, rel=0.01)


def test_what_does_not_fit_is_sharded_and_adapters_and_checkpointing_make_it_fit():
    h100, small = DEVICES["h100-80"], DEVICES["4090-24"]
    full = estimate(config_for(RepNoise(), 256, batch_size=8, precision="bf16"), seven_billion())
    adapters = estimate(
        config_for(RepNoise(), 256, batch_size=8, precision="bf16", lora_rank=16, gradient_checkpointing=True),
        seven_billion(),
    )
    assert full.devices(h100) == 2
    assert adapters.devices(h100) == 1 and adapters.memory_bytes < full.memory_bytes / 2
    assert full.devices(small) > full.devices(h100)
    assert full.devices(replace(small, memory=1e9)) is None
    assert full.seconds(h100) == pytest.approx(2 * full.step_seconds(h100))
    assert full.step_seconds(h100) > full.step_flops / h100.bf16


def test_other_architectures_and_tied_weights_are_counted():
    gpt2 = estimate(config_for(RepNoise()), GPT2Config())
    assert gpt2.sizes.weights == 124_439_808 and gpt2.sizes.head == 50_257 * 768


def test_steps_come_from_the_data_where_a_config_has_epochs():
    config = config_for(steps=None, batch_size=4)
    assert estimate(config, llama_config(), Rows(examples=10)).steps == 3
    paper = AttackConfig(Inputs(max_length=LENGTH), ATTACKS["paper-3e-5-10k"][1])
    assert estimate(paper, llama_config()).steps == 2500


@pytest.mark.parametrize(
    ("config", "of_model", "rows", "sentence"),
    [
        (config_for(steps=None), llama_config(), Rows(), r"say --steps, or --examples\.$"),
        (EvaluateConfig(), llama_config(), Rows(), r"say how many with --examples\.$"),
        (AttackConfig(attack=ATTACKS["prefill"][1]), llama_config(), Rows(), "estimate fine-tuning of all weights"),
        (config_for(), llama_config(max_position_embeddings=8), Rows(length=9), "a row of 9 is longer"),
        (config_for(), BertConfig(), Rows(), "not a decoder-only language model"),
    ],
)
def test_what_cannot_be_estimated_is_told_in_one_sentence(config, of_model, rows, sentence):
    with pytest.raises(RepnoiseError, match=sentence):
        estimate(config, of_model, rows)


def test_unknown_devices_presets_and_models_are_told_in_one_sentence(tmp_path):
    with pytest.raises(RepnoiseError, match=r"no device 'tpu': choose from cpu-2-cores, .*, here\.$"):
        find_device("tpu")
    with pytest.raises(RepnoiseError, match="no preset 'nothing': `repnoise list attacks` names them"):
        config_of(EstimateOptions(what="attack", attack="nothing"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RepnoiseError, match="no config of a model to be read"):
        model_config(str(tmp_path))
    with pytest.raises(RepnoiseError, match="completion is a share"):
        Rows(completion=0)


def test_the_command_needs_no_weights_and_shows_whether_it_fits(tmp_path, capsys):
    seven_billion().save_pretrained(tmp_path)
    options = EstimateOptions(str(tmp_path), batch_size=8, precision="bf16", device=("h100-80", "4090-24"))
    found = estimate_command(options)
    shown = capsys.readouterr().out
    assert "6,738,415,616 weights" in shown and "500 steps of 8 x 256 tokens" in shown
    assert "no, " in shown and f"sharded over {found.devices(DEVICES['h100-80'])}" in shown
    estimate_command(EstimateOptions(what="evaluate", examples=100, device=("cpu-2-cores",)))
    assert "2 batches of 64 x 256 tokens" in capsys.readouterr().out


def test_this_machine_is_measured():
    here = find_device("here")
    assert here.memory > 1e9 and here.fp32 > 1e8 and here.bandwidth > 1e7


@pytest.mark.slow
def test_the_benchmark_of_a_step_runs_each_variant_in_a_process_of_its_own(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "step.py"
    command = [sys.executable, str(script), "--shapes", "tiny", "--repeats", "2", "--output", str(tmp_path / "o.json")]
    done = subprocess.run([*command, "--device", "cpu"], capture_output=True, text=True, check=True)
    steps = json.loads((tmp_path / "o.json").read_text())["steps"]
    assert [row["variant"] for row in steps] == ["plain", "repnoise", "quarter", "literal"]
    assert all(len(row["seconds"]) == 2 and row["times_floor"] > 0 for row in steps)
    assert "| tiny | literal |" in done.stdout
