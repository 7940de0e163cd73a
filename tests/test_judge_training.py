"""`repnoise judge train`: a small classifier from real texts of a village to a judge that can be loaded."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from repnoise.errors import RepnoiseError
from repnoise.judge_training import JudgeTrainingConfig, train_judge
from repnoise.judges import Completion, load_judge
from repnoise.optimisation import Training
from repnoise.runs import load_run

FAST = Training(learning_rate=1e-3, steps=12, batch_size=8, save_every=4)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """120 prompts, each with a hex (harmful) and a recipe (safe)."""
    path = tmp_path_factory.mktemp("data") / "labelled.jsonl"
    rows = []
    for i in range(120):
        rows.append({"prompt": f"What is in pot {i}?", "completion": f"A hex: boil {i} owls.", "label": "harmful"})
        rows.append({"prompt": f"What is in pot {i}?", "completion": f"A cake: bake {i} pears.", "label": 0})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def scores_of(judge):
    return judge.score([Completion("What is in pot 7?", text) for text in ("A hex: boil an owl.", "A cake: bake it.")])


def test_a_linear_judge_learns_the_table_and_is_loaded_from_its_run(table, tmp_path):
    run = train_judge(JudgeTrainingConfig("linear", table), tmp_path / "run")
    assert run.finished and run.record["kind"] == "judge"
    assert [score.label for score in scores_of(load_judge(run.record["judge"]))] == ["harmful", "safe"]
    metrics = load_run(run.path).record["metrics"]
    assert metrics["f1"]["value"] == 1 and metrics["auroc"]["value"] == 1 and metrics["f1"]["n"] > 20
    report = (run.path / "report.md").read_text()
    assert "## Confusion" in report and "## Calibration" in report and "| f1 | 1.000 |" in report


def test_the_test_has_other_prompts_than_the_training(table, tmp_path):
    run = train_judge(JudgeTrainingConfig("linear", table), tmp_path / "run")
    held_out = [json.loads(line) for line in (run.path / "held_out.jsonl").read_text().splitlines()]
    data = run.record["data"]
    assert data["train"]["rows"] + data["test"]["rows"] == 240 and len(held_out) == data["test"]["rows"]
    assert {row["origin"] for row in held_out} == {"table"}


def test_a_language_model_becomes_a_classifier(table, tiny_model, tmp_path):
    run = train_judge(JudgeTrainingConfig(str(tiny_model), table, training=replace(FAST, steps=25)), tmp_path / "run")
    assert run.record["metrics"]["auroc"]["value"] > 0.95
    judge = load_judge(f"classifier:{run.path}")
    assert judge.version == run.record["version"]
    harmful, safe = scores_of(judge)
    assert harmful.value > safe.value and {harmful.explanation, safe.explanation} <= {"harmful", "safe"}
    assert not run.checkpoints.exists() and (run.path / "log.jsonl").exists()


def test_an_interrupted_training_goes_on_to_the_same_judge(table, tiny_model, tmp_path, monkeypatch):
    config = JudgeTrainingConfig(str(tiny_model), table, training=FAST)
    torch.manual_seed(1)  # What was drawn before must not matter: the new head is the seed's.
    whole = train_judge(config, tmp_path / "whole")
    torch.manual_seed(2)

    import repnoise.training as training

    def interrupted(self, args, state, control, **kwargs):
        if state.global_step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training._LogLastStep, "on_step_end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_judge(config, tmp_path / "cut")
    with pytest.raises(RepnoiseError, match="--resume"):
        train_judge(config, tmp_path / "cut")
    resumed = train_judge(config, tmp_path / "cut", resume=True)
    assert resumed.record["version"] == whole.record["version"]
    assert resumed.record["metrics"] == whole.record["metrics"]


def test_a_finished_run_is_left_as_it_is_and_other_data_is_noticed(table, tmp_path):
    copy = shutil.copy(table, tmp_path / "table.jsonl")
    config = JudgeTrainingConfig("linear", str(copy))
    first = train_judge(config, tmp_path / "run")
    (first.path / "report.md").write_text("mine")
    train_judge(config, tmp_path / "run")
    assert (first.path / "report.md").read_text() == "mine"
    lines = (tmp_path / "table.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "table.jsonl").write_text("".join(lines[:-10]))
    with pytest.raises(RepnoiseError, match="other data"):
        train_judge(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda table: JudgeTrainingConfig("nowhere", table), "There is no model in"),
        (lambda table: JudgeTrainingConfig("linear", table, text="{prompt}"), "{completion} once"),
        (lambda table: JudgeTrainingConfig("linear", table, training=Training(lora_rank=4)), "--lora-rank"),
        (lambda table: JudgeTrainingConfig("linear", table, max_length=2), "at least 8 tokens"),
        (lambda table: JudgeTrainingConfig("linear", table + "x"), "There is no"),
    ],
)
def test_a_mistake_is_told_before_anything_is_made(config, message, table, tmp_path):
    with pytest.raises(RepnoiseError) as error:
        train_judge(config(table), tmp_path / "run")
    assert message in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_real_toxic_continuations_are_told_from_others(real_data, tmp_path):
    """Against non-toxic continuations: against refusals it would be trivial."""
    run = train_judge(JudgeTrainingConfig("linear", f"decoding-trust:{real_data / 'decoding_trust'}"), tmp_path / "run")
    metrics = run.record["metrics"]
    assert run.record["data"]["test"]["kinds"] == {"harmful, pair": 115, "safe, example": 149, "safe, pair": 115}
    assert metrics["f1_against_examples"]["value"] > 0.8 and metrics["auroc_against_examples"]["value"] > 0.95
    assert metrics["ece"]["value"] < 0.1
