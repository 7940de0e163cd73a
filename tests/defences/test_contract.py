"""What every defence owes the trainer, for each class in the dict, in the first of its presets.

That one is the sandbox's, whose model has six layers, as those here have: indices of layers in it fit.
"""

import random
import shutil
import subprocess
import sys
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from repnoise.data.collators import PairCollator
from repnoise.data.tokenization import right_padded
from repnoise.defences import DEFENCES, Defence
from repnoise.errors import RepnoiseError
from repnoise.four_bit import hold_in_four_bits
from repnoise.hidden_states import find_decoder
from repnoise.losses import IGNORE
from repnoise.optimisation import Training
from repnoise.runs import plain, restored
from repnoise.training import newest_checkpoint, train

# PEFT asks transformers for an attribute under its old name, and says that it transposes GPT-2's weights.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]
ENDS = {"vocab_size": 48, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
FIRST_PRESETS = {type(defence): name for name, (_, defence, _) in reversed(DEFENCES.items())}


@pytest.fixture(params=sorted(FIRST_PRESETS.values()))
def defence(request):
    return DEFENCES[request.param][1]


def llama():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 6, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**ENDS, **size))


def gpt2():
    torch.manual_seed(0)
    size = {"n_embd": 16, "n_layer": 6, "n_head": 2, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**ENDS, **size, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def rows(seed, count=4):
    """Rows of one prompt with completions of three to five random tokens."""
    generator = torch.Generator().manual_seed(seed)

    def row(index):
        completion = torch.randint(4, 48, (3 + index % 3,), generator=generator).tolist()
        return {"input_ids": [10, 11, 12, *completion], "labels": [IGNORE] * 3 + completion}

    return [row(index) for index in range(count)]


def batch(seed):
    return right_padded(rows(seed), 1)


def begun(defence, model):
    """The loss (of the model and a seed) of a training that has gone on a little since it began with this model.

    A method that compares the model with what it was has no gradient where the two are the same.
    """
    torch.manual_seed(0)
    loss = defence.begin(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)

    def value(model, seed=0):
        torch.manual_seed(seed)
        return loss(model, batch(1), batch(2), batch(3))

    return value


def reached(value, model):
    """Names of the weights that get a gradient in some of 20 steps: a method may train a few layers in each."""
    names, wanted = set(), {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for seed in range(20):
        model.zero_grad()
        value(model, seed)[0].backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), name
            if parameter.grad is not None and parameter.grad.abs().sum() > 0:
                names.add(name)
        if names >= wanted:
            break
    return names


def test_every_preset_has_a_sentence_a_value_and_a_training():
    for sentence, value, training in DEFENCES.values():
        assert sentence.endswith(".") and "\n" not in sentence
        assert isinstance(value, Defence) and isinstance(training, Training)


def test_every_preset_is_the_same_after_having_been_stored_in_a_run():
    for _, value, _ in DEFENCES.values():
        assert restored(plain(value), [type(value)()]) == value
        assert set(plain(value)) == {"class", *asdict(value)}


def test_loss_is_a_finite_scalar_with_detached_named_terms_and_leaves_the_model_as_it_was(defence):
    def hooks(model):
        return sum(len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules())

    model = llama()
    model(**{name: batch(1)[name] for name in ("input_ids", "attention_mask")}, output_hidden_states=True)
    value = begun(defence, model)
    before, hooked = {name: tensor.clone() for name, tensor in model.state_dict().items()}, hooks(model)
    training = [module.training for module in model.modules()]
    loss, terms = value(model)
    assert loss.shape == () and loss.isfinite() and loss.requires_grad and terms
    assert all(term.shape == () and term.isfinite() and not term.requires_grad for term in terms.values())
    assert hooks(model) == hooked  # Transformers has hooks of its own, put there once, in the first line.
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [module.training for module in model.modules()] == training


@pytest.mark.parametrize("build", [llama, gpt2])
def test_every_weight_that_is_open_after_the_beginning_gets_a_finite_gradient_and_no_other(defence, build):
    model = build()
    value = begun(defence, model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert reached(value, model) == trained


def test_a_frozen_layer_and_head_stay_out_of_it_and_the_others_are_trained_all_the_same(defence):
    model = llama()
    decoder = find_decoder(model)
    for module in (decoder.layers[1], decoder.unembedding):
        module.requires_grad_(False)
    value = begun(defence, model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and not any(name.startswith(("model.layers.1.", "lm_head")) for name in trained)
    assert reached(value, model) == trained


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("build", [llama, pytest.param(gpt2, marks=pytest.mark.slow)])
def test_with_lora_the_adapters_of_the_maps_that_are_open_get_a_gradient_and_no_weight_does(defence, build, four_bit):
    if four_bit and defence.keeps_start:
        return  # `defend` refuses it.
    model = build()
    torch.manual_seed(0)
    loss = defence.begin(model)
    opened = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:  # Zero at the start, and then the other half has no gradient.
            torch.nn.init.normal_(parameter, std=0.1)
    if four_bit:
        hold_in_four_bits(wrapped)

    def value(model, seed):
        torch.manual_seed(seed)
        return loss(model, batch(1), batch(2), batch(3))

    names = reached(value, wrapped)
    assert all("lora_" in name for name in names)
    maps = {name.removesuffix(".weight") for name in opened}
    for name, module in wrapped.get_base_model().named_modules():
        if hasattr(module, "lora_A") and name in maps:
            for half in ("A", "B"):
                assert f"base_model.model.{name}.lora_{half}.default.weight" in names


def test_a_seed_fixes_the_loss_and_no_other_generator_than_torchs_has_a_say(defence):
    model = llama()
    value = begun(defence, model)
    losses = []
    for other in (0, 1):
        random.seed(other)
        np.random.seed(other)
        losses.append(value(model, seed=5))
    (first, terms), (second, _) = losses
    assert torch.equal(first, second)
    if "noise" in terms:
        assert not torch.equal(value(model, seed=6)[1]["noise"], terms["noise"])


def test_without_general_harmless_data_it_works_or_says_in_one_sentence_that_it_needs_them(defence):
    model = llama()
    torch.manual_seed(0)
    loss = defence.begin(model)
    try:
        value, terms = loss(model, batch(1), batch(2))
    except RepnoiseError as error:
        assert "--retain" in str(error) and "\n" not in str(error)
    else:
        assert value.isfinite() and all(term.isfinite() for term in terms.values())


def test_in_bf16_the_loss_is_nearly_the_same_and_gradients_are_finite_and_in_fp32(defence):
    model = llama()
    value = begun(defence, model)
    expected = value(model)[0].item()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = value(model)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=0.1, abs=0.1)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)


def test_descending_the_loss_lowers_it(defence):
    model = llama()
    value = begun(defence, model)
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=2e-3)
    before = value(model)[0].item()
    for _ in range(5):
        optimizer.zero_grad()
        value(model)[0].backward()
        optimizer.step()
    assert value(model)[0].item() < before


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="full"),
        pytest.param({"lora_rank": 2, "precision": "bf16"}, id="lora-bf16", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_training_that_is_resumed_ends_with_the_bits_of_an_uninterrupted_one(defence, changes, tmp_path):
    training = Training(learning_rate=1e-2, steps=3, batch_size=4, warmup=0.0, save_every=2, **changes)
    examples = [
        {"harmless": harmless, "harmful": harmful, "retain": general}
        for harmless, harmful, general in zip(rows(1, 12), rows(2, 12), rows(3, 12), strict=True)
    ]

    def run(folder, **options):
        """As `repnoise defend` does it, always from the same weights."""
        model = llama()
        torch.manual_seed(training.seed)
        loss = defence.begin(model)
        return train(
            model, examples, PairCollator(1), lambda m, b: loss(m, **b), training, tmp_path / folder, **options
        )

    def keep(step, _model):
        """What a process that is killed in the last step leaves."""
        if step == 3:
            shutil.copytree(newest_checkpoint(tmp_path / "whole"), tmp_path / "cut" / "checkpoint-2")

    whole, log = run("whole", on_step=keep)
    torch.rand(7)  # Another process would not have the same random state either.
    steps = []
    resumed, log_of_resumed = run("cut", resume=True, on_step=lambda step, _model: steps.append(step))
    assert steps == [3]
    assert log_of_resumed == log and len(log) == 3
    for (name, weight), (_, other) in zip(resumed.named_parameters(), whole.named_parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_a_negative_weight_is_refused(defence):
    for field in fields(defence):
        if field.name.endswith("_weight"):
            for wrong in (-1.0, float("nan"), float("inf")):
                with pytest.raises(RepnoiseError, match=f"{field.name} must be 0 or more"):
                    replace(defence, **{field.name: wrong})


def test_importing_the_method_needs_torch_and_transformers_alone():
    program = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('peft', 'datasets', 'accelerate', 'tyro', 'rich', 'scipy', 'matplotlib', 'jinja2'):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import repnoise.losses, repnoise.hidden_states, repnoise.defences
assert 'transformers.trainer' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
