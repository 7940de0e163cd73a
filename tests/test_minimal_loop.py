"""The example that shows the method without the Trainer, and the library: one trajectory."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from repnoise.data.collators import PairCollator
from repnoise.defences import DEFENCES
from repnoise.modeling import load
from repnoise.training import train

EXAMPLE = Path(__file__).parents[1] / "examples" / "minimal_loop.py"
STEPS = 12


@pytest.fixture(scope="module")
def minimal_loop():
    spec = importlib.util.spec_from_file_location("minimal_loop", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_is_short():
    assert len(EXAMPLE.read_text().splitlines()) < 80


def test_trainer_and_plain_loop_end_with_the_same_bits(minimal_loop, tiny_model, pair_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(minimal_loop, "LEARNING_RATE", 1e-3)  # Far enough for a difference to grow.
    _, defence, paper = DEFENCES["repnoise-paper"]
    training = replace(paper, steps=STEPS, learning_rate=1e-3, save_every=None)
    assert (defence.noise_weight, defence.ascent_weight) == (minimal_loop.NOISE_WEIGHT, minimal_loop.ASCENT_WEIGHT)
    assert training.batch_size == minimal_loop.BATCH_SIZE

    ours, plain = load(str(tiny_model)), load(str(tiny_model))
    rows, pad = pair_rows(ours, training.examples_seen(0)), ours.tokenizer.pad_token_id

    losses = minimal_loop.defend(plain.model, rows, pad)
    _, log = train(
        ours.model, rows, PairCollator(pad), lambda model, batch: defence.loss(model, **batch), training, tmp_path / "c"
    )
    assert [row["loss"] for row in log] == losses
    start = load(str(tiny_model)).model.state_dict()
    for name, weight in ours.model.state_dict().items():
        assert torch.equal(weight, plain.model.state_dict()[name]), name
        assert not torch.equal(weight, start[name]), name


@pytest.mark.slow
def test_the_example_runs_on_the_sandbox():
    done = subprocess.run([sys.executable, EXAMPLE, "sandbox", "sandbox", "3"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["1", "2", "3"]
