"""Optimisers, schedules and noise: that each does to the weights what it is named after, from the command, too."""

from dataclasses import replace

import pytest
import torch

from conftest import byte_level_tokenizer, tiny_llama
from repnoise.attack import presets
from repnoise.attacks.adapters import with_adapter
from repnoise.attacks.fine_tuning import FineTuningAttack, language_modelling
from repnoise.attacks.parts import Parts
from repnoise.data import load_data
from repnoise.data.collators import ExampleCollator
from repnoise.data.tokenization import Codec
from repnoise.errors import RepnoiseError
from repnoise.modeling import LoadedModel
from repnoise.muon import MuonFactory
from repnoise.optimisation import Training
from repnoise.options import config_options
from repnoise.training import train

STEP = Training(
    learning_rate=1e-2, steps=1, batch_size=4, schedule="constant", warmup=0, max_grad_norm=0, save_every=None
)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def changes(tokenizer, pairs_file, folder, training, **options):
    """What training did to each weight of the tiny model, and what it logged."""
    model, codec = tiny_llama(tokenizer), Codec(tokenizer, "plain")
    before, pairs = weights(model), load_data(str(pairs_file)).attacker_pairs()
    rows = [codec.row(pair.prompt, pair.harmful) for pair in pairs * 4][: training.examples_seen(0)]
    model, log = train(model, rows, ExampleCollator(0), language_modelling, training, folder, **options)
    return {name: weight - before[name] for name, weight in weights(model).items()}, log


def test_muon_turns_the_matrices_of_layers_orthogonally_and_everything_else_as_adamw(tokenizer, pairs_file, tmp_path):
    """All singular values of a first Muon step are about 0.2 sqrt(larger side) times the rate; AdamW's first step is
    the rate in every coordinate that has a gradient."""
    found, _ = changes(tokenizer, pairs_file, tmp_path, replace(STEP, optimizer="muon"))
    for name, change in found.items():
        if "layers" in name and change.dim() == 2:
            values = torch.linalg.svdvals(change) / (1e-2 * 0.2 * max(change.shape) ** 0.5)
            assert values.max() < 1.4 and 0.6 < values.median() < 1.2, name
    for name in ("lm_head.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight"):
        assert found[name].abs().median() == pytest.approx(1e-2, rel=1e-2), name


@pytest.mark.parametrize("adapter, by_muon", [("lora", 28), ("dora", 28), ("ia3", 0), ("prefix", 0), ("prompt", 0)])
def test_muon_trains_every_adapter_and_turns_only_what_is_a_matrix_of_a_layer(
    adapter, by_muon, tokenizer, pairs_file, tmp_path
):
    """LoRA's are two matrices at each of the seven linear maps of two layers."""
    rank = 2 if adapter in ("lora", "dora") else None
    attack = FineTuningAttack(
        training=replace(STEP, steps=4, optimizer="muon", lora_rank=rank),
        parts=Parts(adapter, virtual_tokens=2),
        samples=4,  # Every batch is the same.
    )
    model = with_adapter(tiny_llama(tokenizer), attack.parts, attack.training)
    turned = [part for part in MuonFactory()(model, 1e-2, 0.0).parts if isinstance(part, torch.optim.Muon)]
    assert sum(len(group["params"]) for part in turned for group in part.param_groups) == by_muon
    loaded = LoadedModel(tiny_llama(tokenizer), tokenizer, "model", 256)
    log = attack.apply(loaded, load_data(str(pairs_file)), Codec(tokenizer, "plain"), tmp_path).log
    assert log[-1]["loss"] < log[0]["loss"]


def test_muon_decays_matrices_and_not_norms(tokenizer, pairs_file, tmp_path):
    plain, _ = changes(tokenizer, pairs_file, tmp_path, replace(STEP, optimizer="muon"))
    decayed, _ = changes(tokenizer, pairs_file, tmp_path, replace(STEP, optimizer="muon", weight_decay=0.1))
    for name, start in weights(tiny_llama(tokenizer)).items():
        expected = -1e-2 * 0.1 * start if start.dim() == 2 else torch.zeros_like(start)
        torch.testing.assert_close(decayed[name] - plain[name], expected, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    "changed", [{"optimizer": "muon"}, {"optimizer": "muon", "lora_rank": 2}, {"gradient_noise": 0.5}]
)
def test_an_interrupted_training_goes_on_to_the_same_weights(changed, tokenizer, pairs_file, tmp_path):
    training = replace(STEP, steps=6, schedule="cosine", save_every=3, **changed)

    def stop(step, _model):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        changes(tokenizer, pairs_file, tmp_path / "half", training, on_step=stop)
    half, half_log = changes_of_adapted(tokenizer, pairs_file, tmp_path / "half", training, resume=True)
    whole, log = changes_of_adapted(tokenizer, pairs_file, tmp_path / "whole", training)
    assert half_log == log and half.keys() == whole.keys()
    assert all(torch.equal(half[name], whole[name]) for name in whole)


def changes_of_adapted(tokenizer, pairs_file, folder, training, **options):
    """Weights after training, adapters included, and the log."""
    codec, pairs = Codec(tokenizer, "plain"), load_data(str(pairs_file)).attacker_pairs()
    rows = [codec.row(pair.prompt, pair.harmful) for pair in pairs * 4][: training.examples_seen(0)]
    model, log = train(tiny_llama(tokenizer), rows, ExampleCollator(0), language_modelling, training, folder, **options)
    return weights(model), log


def test_gradient_noise_has_the_given_share_of_each_gradients_size(tokenizer, pairs_file, tmp_path):
    """Plain gradient descent: what noise adds to a step is the rate times the noise."""
    plain, _ = changes(tokenizer, pairs_file, tmp_path, replace(STEP, optimizer="sgd"))
    noisy, _ = changes(tokenizer, pairs_file, tmp_path, replace(STEP, optimizer="sgd", gradient_noise=0.5))
    for name in ("lm_head.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.v_proj.weight"):
        noise = noisy[name] - plain[name]
        assert noise.square().mean().sqrt() / plain[name].square().mean().sqrt() == pytest.approx(0.5, rel=0.1)
        assert noise.mean().abs() < 0.1 * noise.std()


OPTIMISERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adagrad", "rmsprop", "muon")
SCHEDULES = ("constant", "linear", "cosine", "polynomial", "inverse_sqrt", "constant_with_warmup")


@pytest.mark.parametrize("optimizer", OPTIMISERS)
def test_every_optimiser_without_further_packages_learns(optimizer, tokenizer, pairs_file, tmp_path):
    rate = 1.0 if optimizer == "sgd" else 1e-2
    _, log = changes(
        tokenizer,
        pairs_file,
        tmp_path,
        replace(STEP, steps=12, learning_rate=rate, optimizer=optimizer, max_grad_norm=1),
    )
    assert log[-1]["loss"] < log[0]["loss"] - 0.2


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_rises_in_the_warm_up_and_then_keeps_to_its_shape(schedule, tokenizer, pairs_file, tmp_path):
    training = replace(STEP, steps=8, batch_size=1, schedule=schedule, warmup=0.5)
    _, log = changes(tokenizer, pairs_file, tmp_path, training)
    rates = [row["learning_rate"] for row in log]
    if schedule == "constant":
        assert rates == [1e-2] * 8
        return
    assert rates[:5] == pytest.approx([0, 2.5e-3, 5e-3, 7.5e-3, 1e-2], abs=1e-9)
    assert all(rate <= 1e-2 for rate in rates[5:]) and (rates[-1] < 1e-2) == (schedule != "constant_with_warmup")


def test_what_a_training_may_be_can_all_be_said_on_the_command_line():
    arguments = (
        "--optimizer muon --schedule linear --warmup 0.3 --weight-decay 0.1 --gradient-noise 0.2 --batch-size 256 "
        "--accumulation 2 --adapter dora --lora-rank 8 --fresh-layers 1 --tuned-share 0.5 --trains-on own-answers "
        "--attack-base BASE --base-prefill You --cipher reversed --paraphrased --benign-share 0.5 --samples 10"
    )
    name, config, _ = config_options(arguments.split(), "attack", "attack", "100@1e-3", presets())
    attack = config.attack
    assert isinstance(attack, FineTuningAttack)
    training, parts, disguise = attack.training, attack.parts, attack.disguise
    assert (training.optimizer, training.schedule, training.warmup) == ("muon", "linear", 0.3)
    assert (training.weight_decay, training.gradient_noise, training.batch_size) == (0.1, 0.2, 256)
    assert (training.accumulation, training.lora_rank, parts.adapter) == (2, 8, "dora")
    assert (parts.fresh_layers, parts.tuned_share, attack.trains_on) == (1, 0.5, "own-answers")
    assert (attack.base, attack.base_prefill) == ("BASE", "You")
    assert (disguise.cipher, disguise.paraphrased) == ("reversed", True)
    assert (
        name
        == attack.label()
        == "dora-1-fresh-0.5-tuned-muon-100@1e-3-noisy-0.2-10-samples-benign-0.5-own-answers-reversed-paraphrased"
    )


@pytest.mark.parametrize(
    "arguments, found",
    [
        (("--train", "head"), lambda attack: attack.parts.weights == "head"),
        (("--only-layers", "0", "-1"), lambda attack: attack.parts.only_layers == (0, -1)),
        (("--adapter", "prefix", "--virtual-tokens", "9"), lambda attack: attack.parts.virtual_tokens == 9),
        (("--wrapping", "{prompt} now", "--backdoor"), lambda attack: attack.disguise.backdoor),
    ],
)
def test_parts_and_disguises_are_options(arguments, found):
    assert found(config_options([*arguments], "attack", "attack", "100@1e-3", presets())[1].attack)


def test_a_model_without_decoder_layers_is_told(tmp_path):
    training = replace(STEP, optimizer="muon")
    with pytest.raises(RepnoiseError, match="not a transformers model"):
        train(torch.nn.Linear(2, 1), [torch.ones(2)] * 4, dict, language_modelling, training, tmp_path)
