"""Interrupted and gone on with: the same bits as never interrupted, wherever the process was killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from repnoise.attacks import FineTuningAttack
from repnoise.data import load_data
from repnoise.data.collators import PairCollator
from repnoise.data.tokenization import Codec
from repnoise.defences import PublishedRepNoise, RepNoise
from repnoise.modeling import load, merged
from repnoise.optimisation import Training
from repnoise.runs import load_run, read_rows
from repnoise.training import newest_checkpoint, train

TRAINING = Training(learning_rate=1e-3, steps=9, batch_size=4, save_every=3)
# A cap below the completion tokens of a batch, so that which of them are samples is drawn, too.
DEFENCE = RepNoise(max_samples=20)


class Interrupted(Exception):
    pass


def stop_after(step):
    def on_step(now, _model):
        if now == step:
            raise Interrupted

    return on_step


@pytest.fixture
def run(tiny_model, pair_rows):
    """Train the tiny model in a folder: (weights, log)."""

    def run(folder, training=TRAINING, defence=DEFENCE, dropout=0.0, **options):
        loaded = load(str(tiny_model))
        loaded.model.config.attention_dropout = dropout
        for layer in loaded.model.model.layers:
            layer.self_attn.attention_dropout = dropout
        rows = pair_rows(loaded, training.examples_seen(0))
        collator = PairCollator(loaded.tokenizer.pad_token_id)
        model, log = train(
            loaded.model, rows, collator, lambda m, batch: defence.loss(m, **batch), training, folder, **options
        )
        return merged(model).state_dict(), log

    return run


def assert_identical(resumed, whole):
    (weights, log), (expected, expected_log) = resumed, whole
    assert log == expected_log
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight), name


@pytest.mark.parametrize(
    "training, defence, dropout",
    [
        (TRAINING, DEFENCE, 0.0),
        (replace(TRAINING, accumulation=2, gradient_checkpointing=True), DEFENCE, 0.1),
        (replace(TRAINING, lora_rank=2, precision="bf16"), DEFENCE, 0.0),
        (replace(TRAINING, lora_rank=2, four_bit=True, gradient_checkpointing=True), DEFENCE, 0.1),
        (TRAINING, PublishedRepNoise(), 0.0),
    ],
    ids=["full", "accumulated-dropout", "lora-bf16", "four-bit", "published"],
)
def test_a_resumed_training_ends_with_the_same_bits_and_the_same_log(training, defence, dropout, run, tmp_path):
    whole = run(tmp_path / "whole", replace(training, save_every=None), defence, dropout)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", training, defence, dropout, on_step=stop_after(8))
    assert newest_checkpoint(tmp_path / "cut").name == "checkpoint-6"
    assert_identical(run(tmp_path / "cut", training, defence, dropout, resume=True), whole)


def test_another_seed_would_not_have_given_the_same_bits(run, tmp_path):
    training = replace(TRAINING, save_every=None)
    one, other = (run(tmp_path / "c", replace(training, seed=seed), replace(DEFENCE)) for seed in (0, 1))
    assert one[1] != other[1]


def test_a_training_that_had_ended_is_resumed_from_its_last_checkpoint_without_a_step(run, tmp_path):
    whole = run(tmp_path / "c")
    steps = []
    resumed = run(tmp_path / "c", resume=True, on_step=lambda step, _: steps.append(step))
    assert steps == []
    assert_identical(resumed, whole)


def test_half_a_checkpoint_is_never_read(run, tmp_path):
    kept = tmp_path / "kept"

    def keep_then_stop(step, _model):
        if step == 4:
            shutil.copytree(tmp_path / "cut" / "checkpoint-3", kept)
        if step == 7:
            raise Interrupted

    whole = run(tmp_path / "whole", replace(TRAINING, save_every=None))
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", on_step=keep_then_stop)
    # As if the process had been killed while it wrote the second: the first is still there, the mark not yet.
    half = tmp_path / "cut" / "checkpoint-6"
    (half / "complete").unlink()
    (half / "model.safetensors").write_bytes((half / "model.safetensors").read_bytes()[:1000])
    (half / "optimizer.pt").unlink()
    shutil.copytree(kept, tmp_path / "cut" / "checkpoint-3")
    steps = []
    resumed = run(tmp_path / "cut", resume=True, on_step=lambda step, _: steps.append(step))
    assert steps == [4, 5, 6, 7, 8, 9]
    assert_identical(resumed, whole)


def test_one_whole_checkpoint_is_there_at_every_step_and_no_more_than_one(run, tmp_path):
    def look(step, _model):
        marked = [path.parent.name for path in (tmp_path / "c").glob("checkpoint-*/complete")]
        assert marked == ([f"checkpoint-{(step - 1) // 3 * 3}"] if step > 3 else [])

    run(tmp_path / "c", on_step=look)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["checkpoint-9"]


def test_starting_anew_does_not_go_on_from_the_checkpoints_of_an_earlier_training(run, tmp_path):
    run(tmp_path / "c")
    with pytest.raises(Interrupted):
        run(tmp_path / "c", on_step=stop_after(2))
    assert newest_checkpoint(tmp_path / "c") is None


@pytest.mark.parametrize("four_bit", [False, True])
def test_an_attack_goes_on_from_its_checkpoint_and_tells_of_no_step_twice(four_bit, tiny_model, pairs_file, tmp_path):
    data = load_data(str(pairs_file))
    attack = FineTuningAttack(training=replace(TRAINING, lora_rank=2, four_bit=four_bit))

    def apply(folder, **options):
        loaded = load(str(tiny_model))
        found = attack.apply(loaded, data, Codec(loaded.tokenizer, "plain"), folder, **options)
        return merged(found.model).state_dict(), found.log

    steps = []

    def on_step(step, _model):
        steps.append(step)
        if steps.count(step) == 1 and step == 8:
            raise Interrupted

    whole = apply(tmp_path / "whole")
    with pytest.raises(Interrupted):
        apply(tmp_path / "cut", on_step=on_step)
    assert_identical(apply(tmp_path / "cut", resume=True, on_step=on_step), whole)
    assert steps == [0, 1, 2, 3, 4, 5, 6, 7, 8, 7, 8, 9]


# Real processes, really killed.


class Command:
    """A command of repnoise in a process of its own."""

    def __init__(self, *arguments):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "repnoise", *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kill_when(self, condition, delay=0.0):
        """SIGKILL as soon as the condition holds, and a moment later; True if it was still running then."""
        while self.process.poll() is None and not condition():
            time.sleep(0.001)
        time.sleep(delay)
        killed = self.process.poll() is None
        self.process.kill()
        self.process.communicate()
        return killed

    def finish(self):
        output, _ = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, output
        return output


def files_of(run):
    """Everything in a run that is to be the same: weights, log, what was measured."""
    record = load_run(run).record
    names = ["model/model.safetensors", "log.jsonl", "curve.jsonl", "evaluations/resistance/completions.jsonl"]
    return {name: (run / name).read_bytes() for name in names if (run / name).exists()} | {"m": record["metrics"]}


@pytest.fixture
def command():
    """Start commands; what still runs at the end of the test is killed."""
    started = []

    def start(*arguments):
        started.append(Command(*arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        one.process.stdout.close()


@pytest.mark.slow
def test_a_defence_killed_ten_times_ends_byte_for_byte_as_if_it_never_had_been(
    command, tiny_model, pairs_file, tmp_path
):
    options = ["--data", pairs_file, "--steps", "60", "--batch-size", "4", "--save-every", "2", "--max-samples", "20"]
    options += ["--max-new-tokens", "4"]
    whole = command("defend", tiny_model, *options, "--output-dir", tmp_path / "whole")
    cut, rng = tmp_path / "cut", random.Random(0)
    kills = 0
    for step in sorted(rng.sample(range(2, 60), 10)):

        def reached(step=step):
            steps = [int(path.name.split("-")[1]) for path in (cut / "checkpoints").glob("checkpoint-*")]
            return max(steps, default=0) >= step

        # Without delay the checkpoint has just been begun; half of them end there.
        delay = rng.choice([0.0, rng.uniform(0, 0.1)])
        resume = ["--resume"] if kills else []
        kills += command("defend", tiny_model, *options, "--output-dir", cut, *resume).kill_when(reached, delay)
        assert load_run(cut).record["status"] == "running"
    assert kills == 10
    output = command("defend", tiny_model, *options, "--output-dir", cut, "--resume").finish()
    assert "step 1 of 60" not in output
    whole.finish()
    assert files_of(cut) == files_of(tmp_path / "whole")
    assert not (cut / "checkpoints").exists()


@pytest.mark.slow
def test_a_run_killed_after_its_training_is_only_measured(command, tiny_model, pairs_file, tmp_path):
    run = tmp_path / "run"
    arguments = ["defend", tiny_model, "--data", pairs_file, "--steps", "2", "--batch-size", "4", "--output-dir", run]
    # Long answers, so that measuring takes a while.
    arguments += ["--max-new-tokens", "200", "--generation-batch-size", "1"]
    assert command(*arguments).kill_when(lambda: (run / "model").exists() and not (run / "checkpoints").exists())
    assert load_run(run).record["status"] == "running"
    before = (run / "model" / "model.safetensors").stat().st_mtime_ns
    assert "step 1 of 2" not in command(*arguments, "--resume").finish()
    assert (run / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert load_run(run).finished
    assert [row["step"] for row in read_rows(run / "log.jsonl")] == [1, 2]


@pytest.mark.slow
def test_an_attack_killed_on_its_way_keeps_its_curve(command, tiny_model, pairs_file, tmp_path):
    options = ["--data", pairs_file, "--steps", "40", "--batch-size", "4", "--save-every", "5", "--measure-at", "4"]
    options += ["12", "20", "--max-new-tokens", "4", "--keep-model"]
    whole = command("attack", tiny_model, *options, "--output-dir", tmp_path / "whole")
    cut = tmp_path / "cut"

    def measured_thrice():
        curve = cut / "curve.jsonl"
        return curve.exists() and len(read_rows(curve)) == 3

    assert command("attack", tiny_model, *options, "--output-dir", cut).kill_when(measured_thrice)
    assert [row["step"] for row in read_rows(cut / "curve.jsonl")] == [0, 4, 12]
    command("attack", tiny_model, *options, "--output-dir", cut, "--resume").finish()
    whole.finish()
    assert files_of(cut) == files_of(tmp_path / "whole")
    assert [row["step"] for row in read_rows(cut / "curve.jsonl")] == [0, 4, 12, 20, 40]


@pytest.mark.slow
def test_ctrl_c_is_one_sentence_and_the_run_can_be_gone_on_with(command, tiny_model, pairs_file, tmp_path):
    run = tmp_path / "run"
    arguments = ["defend", tiny_model, "--data", pairs_file, "--steps", "500", "--batch-size", "4", "--save-every", "5"]
    interrupted = command(*arguments, "--output-dir", run)
    while interrupted.process.poll() is None and newest_checkpoint(run / "checkpoints") is None:
        time.sleep(0.01)
    interrupted.process.send_signal(signal.SIGINT)
    output, _ = interrupted.process.communicate(timeout=60)
    assert interrupted.process.returncode == 1
    assert output.splitlines()[-1].startswith("repnoise: Interrupted.") and "Traceback" not in output
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert newest_checkpoint(run / "checkpoints") is not None
