"""Several processes, really started and talking through gloo: what they compute is what one process computes."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from conftest import saved
from repnoise.data.collators import PairCollator
from repnoise.defences import DEFENCES, PublishedRepNoise, RepNoise, TVaccine
from repnoise.defend import DefendConfig, require_shared
from repnoise.distributed import processes as distributed
from repnoise.errors import RepnoiseError
from repnoise.hidden_states import find_decoder
from repnoise.modeling import load, merged, save_whole
from repnoise.optimisation import Training
from repnoise.runs import load_run, read_rows
from repnoise.training import newest_checkpoint, train

STEPS = Training(
    learning_rate=0.05, steps=3, batch_size=4, optimizer="sgd", schedule="constant", warmup=0, save_every=None
)
# A cap below the completion tokens of a batch, so that which of them are samples is drawn, too.
DEFENCE = RepNoise(max_samples=20)
STILL = RepNoise(noise_weight=0)
# One preset of each class; T-Vaccine leaves layers without a gradient, and self-degradation needs general data.
METHODS = ("repnoise", "safety-training", "gradient-ascent", "adversarial-loss", "vaccine", "rmu", "npo", "simnpo")
METHODS += ("representation-rerouting", "latent-adversarial", "tar", "booster", "repnoise-published")
LAUNCH = Path(__file__).parents[1] / "examples" / "launch"
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def work(rank, size, port, folder, environment, task):
    """In a process of its own: do the task together with the others, and leave what came of it in the folder."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), **environment}
    torch.set_num_threads(1)
    try:
        with distributed.together():
            found = task()
        torch.save(found, folder / f"{rank}.pt")
    except RepnoiseError as error:
        (folder / f"{rank}.error").write_text(str(error))
    except Exception:
        (folder / f"{rank}.bug").write_text(traceback.format_exc())


@pytest.fixture
def together(tmp_path):
    """(how many, what) to what each of so many processes found, in the order of their ranks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["repnoise.training", "repnoise.defend", __name__])
    count = iter(range(10))

    def run(size, task, **environment):
        folder = tmp_path / f"processes-{next(count)}"
        folder.mkdir()
        # As a launcher does: what the processes know of one another outlives any of them.
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        started = [
            context.Process(target=work, args=(rank, size, store.port, folder, environment, task))
            for rank in range(size)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(500)
        bugs = [path.read_text() for path in sorted(folder.glob("*.bug"))]
        assert not bugs, bugs[0]
        errors = {int(path.stem): path.read_text() for path in folder.glob("*.error")}
        return errors or [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]

    return run


def trained(model, rows, folder, training=STEPS, defence=DEFENCE, resume=False, stop_after=None, killed=None):
    """Weights and log of a training of the tiny model, and what share of its layers this process held during it."""
    loaded = load(str(model))
    total = sum(weight.numel() for weight in loaded.model.model.layers.parameters())
    shares, calls = [], []

    def objective(model, batch):
        layers = find_decoder(model).layers
        weights = [weight for layer in layers for name, weight in layer.named_parameters() if "lora" not in name]
        here = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights]
        shares.append(sum(weight.numel() for weight in here) / total)
        calls.append(1)
        if stop_after is not None and len(calls) > stop_after:
            raise RepnoiseError("Stopped.")
        if killed is not None and distributed.processes() > 1 and torch.distributed.get_rank() == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return defence.loss(model, **batch)

    collator = PairCollator(loaded.tokenizer.pad_token_id)
    model, log = train(loaded.model, rows, collator, objective, training, folder, resume)
    if distributed.first():
        save_whole(merged(model), loaded.tokenizer, folder.with_name("saved"))
    return ({name: value for name, value in model.state_dict().items() if not value.is_meta}, log, shares)


@pytest.fixture
def alike(tiny_model, pair_rows, together, tmp_path):
    """Train in one process and in several, and compare weights, log and the saved model."""

    def compare(size, training, defence=DEFENCE, **environment):
        rows = pair_rows(load(str(tiny_model)), training.examples_seen(0))
        options = {"training": training, "defence": defence}
        weights, log, _ = trained(tiny_model, rows, tmp_path / "one" / "c", **options)
        several = together(size, partial(trained, tiny_model, rows, tmp_path / "some" / "c", **options), **environment)
        found, found_log, _ = several[0]
        for row, expected in zip(found_log, log, strict=True):
            drawn = {} if defence.noise_weight else {"noise": row["noise"]}  # By each process for itself.
            assert row == pytest.approx(expected | drawn, rel=1e-4)
        assert_close(found, weights)
        saved = [load(str(tmp_path / which / "saved")).model.state_dict() for which in ("one", "some")]
        assert_close(*saved)
        return several

    return compare


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(
            found[name], weight, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_processes_that_share_a_batch_follow_one_process_noise_included(alike):
    several = alike(2, STEPS)
    assert several[0][0].keys() == several[1][0].keys()
    assert all(torch.equal(several[0][0][name], several[1][0][name]) for name in several[0][0])


def test_processes_that_share_the_losses_of_a_step_follow_one_process(alike):
    alike(2, replace(STEPS, accumulation=2), STILL)


def test_sharded_weights_follow_whole_ones_and_each_process_holds_its_part(alike):
    for _, _, shares in alike(2, STEPS, **FSDP):
        assert shares == [0.5] * 3


@pytest.mark.slow
def test_sharded_adapters_with_checkpointing_follow_whole_ones(alike):
    training = replace(STEPS, lora_rank=2, accumulation=2, gradient_checkpointing=True, max_grad_norm=0.1)
    for _, _, shares in alike(2, training, STILL, **FSDP):
        assert shares == [0.5] * 3


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, FSDP], ids=["whole", "sharded"])
def test_four_processes_follow_one(environment, alike):
    alike(4, STEPS, **environment)


def test_an_interrupted_training_goes_on_in_one_process_or_several(tiny_model, pair_rows, together, tmp_path):
    training = replace(STEPS, steps=4, save_every=2)
    rows = pair_rows(load(str(tiny_model)), training.examples_seen(0))
    whole, log, _ = trained(tiny_model, rows, tmp_path / "whole" / "c", replace(training, save_every=None), STILL)
    there = partial(trained, tiny_model, rows, tmp_path / "run" / "c", training, STILL)
    assert [*together(2, partial(there, stop_after=3)).values()] == ["Stopped."]
    assert newest_checkpoint(tmp_path / "run" / "c").name == "checkpoint-2"
    found, found_log, _ = there(resume=True)
    assert [row["step"] for row in found_log] == [row["step"] for row in log]
    assert_close(found, whole)


@pytest.mark.slow
def test_sharded_checkpoints_are_read_by_another_number_of_processes(tiny_model, pair_rows, together, tmp_path):
    training = replace(STEPS, optimizer="adamw_torch_fused", learning_rate=1e-3, steps=4, save_every=2)
    rows = pair_rows(load(str(tiny_model)), training.examples_seen(0))
    whole, _, _ = trained(tiny_model, rows, tmp_path / "whole" / "c", replace(training, save_every=None), STILL)
    there = partial(trained, tiny_model, rows, tmp_path / "run" / "c", training, STILL)
    assert [*together(2, partial(there, stop_after=3), **FSDP).values()] == ["Stopped."]
    with pytest.raises(RepnoiseError, match="was written with FSDP"):
        there(resume=True)
    assert_close(together(4, partial(there, resume=True), **FSDP)[0][0], whole)


def one_step_of_each(model, rows, folder):
    """Weights after a step of each method, by its name."""
    found, training = {}, replace(STEPS, steps=1, accumulation=2)
    for name in METHODS:
        defence, loaded = DEFENCES[name][1], load(str(model))
        torch.manual_seed(0)
        loss = defence.begin(loaded.model)
        collator = PairCollator(loaded.tokenizer.pad_token_id)
        objective = partial(lambda loss, model, batch: loss(model, **batch), loss)
        weights, _ = train(loaded.model, rows, collator, objective, training, folder / name)
        found[name] = weights.state_dict()
    return found


def test_a_defence_that_leaves_weights_without_gradient_is_stopped(tiny_model, pair_rows, together, tmp_path):
    rows, training = pair_rows(load(str(tiny_model)), 24), replace(STEPS, accumulation=2)
    said = together(2, partial(trained, tiny_model, rows, tmp_path / "c", training, TVaccine(sampled_layers=1)))
    assert "gets no gradient" in next(iter(said.values()))


@pytest.mark.slow
def test_every_method_keeps_the_weights_of_processes_alike(tiny_model, pair_rows, together, tmp_path):
    deep = saved(tmp_path / "deep", load(str(tiny_model)).tokenizer, num_hidden_layers=6)
    rows = pair_rows(load(str(deep)), 8)
    found = together(2, partial(one_step_of_each, deep, rows, tmp_path))
    assert len(found) == 2, found
    start = load(str(deep)).model.state_dict()
    for name in METHODS:
        one, other = (weights[name] for weights in found)
        assert all(torch.equal(one[key], other[key]) for key in start), name
        assert any(not torch.equal(one[key], start[key]) for key in start), name


def test_one_killed_process_ends_the_others_with_one_message(tiny_model, pair_rows, together, tmp_path):
    rows = pair_rows(load(str(tiny_model)), STEPS.examples_seen(0))
    training = replace(STEPS, accumulation=3)
    said = together(3, partial(trained, tiny_model, rows * 3, tmp_path / "c", training, killed=1))
    assert list(said.values()) == [distributed.ENDED]


def test_what_processes_cannot_share_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(distributed, "processes", lambda: 3)
    with pytest.raises(RepnoiseError, match=r"3 processes can share neither 1 losses a step .* nor the 4 rows"):
        distributed.share_of(STEPS)
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    for defence in (PublishedRepNoise(), RepNoise(samples="sequences"), DEFENCES["booster"][1]):
        with pytest.raises(RepnoiseError, match="let --accumulation be a multiple of the number of processes"):
            require_shared(DefendConfig(defence=defence, training=STEPS))
        require_shared(DefendConfig(defence=defence, training=replace(STEPS, accumulation=2)))


def launch(folder, processes, *arguments, file="4-gpus.yaml"):
    """`accelerate launch -m repnoise` on the tiny model with so many processes."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
    command += [str(LAUNCH / file), "--num_processes", str(processes)]
    command += ["--main_process_port", str(free_port()), "-m", "repnoise", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_launched_commands_write_one_run_each_and_say_how_the_work_was_shared(tiny_model, pairs_file, tmp_path):
    common = ("--data", pairs_file, "--steps", 2, "--batch-size", 4, "--max-new-tokens", 4)
    done = launch(tmp_path, 2, "defend", tiny_model, *common, "--output-dir", "defended", "--retain-weight", 0)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Run: defended") == 1
    record = load_run(tmp_path / "defended").record
    assert record["status"] == "finished"
    share = {"processes": 2, "batch_size": 2, "accumulation": 1, "pooled": True, "sharded": False}
    assert record["shared"] == [share]
    assert len(read_rows(tmp_path / "defended" / "log.jsonl")) == 2

    done = launch(tmp_path, 2, "attack", "defended", *common[2:], "--measure-at", 1, "--output-dir", "attacked")
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in read_rows(tmp_path / "attacked" / "curve.jsonl")] == [0, 1, 2]


@pytest.mark.slow
def test_the_launched_commands_run_sharded(tiny_model, pairs_file, tmp_path):
    common = ("--steps", 2, "--batch-size", 4, "--max-new-tokens", 4, "--output-dir")
    start = ("defend", tiny_model, "--data", pairs_file, *common, "defended")
    attacks = [
        ("attack", "defended", "--measure-at", *common, name, *more)
        for name, more in (("a", ()), ("b", ("--lora-rank", 2)))
    ]
    for command, name in zip((start, *attacks), ("defended", "a", "b"), strict=True):
        done = launch(tmp_path, 2, *command, file="4-gpus-fsdp.yaml")
        assert done.returncode == 0, done.stderr
        record = load_run(tmp_path / name).record
        assert record["status"] == "finished"
        assert record["shared"][0]["sharded"]
        assert record["metrics"]


@pytest.mark.slow
def test_a_launched_command_that_fails_says_so_once(tiny_model, pairs_file, tmp_path):
    done = launch(tmp_path, 2, "defend", tiny_model, "--data", pairs_file, "--learning-rate", 1e30, "--batch-size", 4)
    assert done.returncode != 0
    assert done.stderr.count("not finite") == 1
    assert distributed.ENDED not in done.stderr
