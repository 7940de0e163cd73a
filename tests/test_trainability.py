"""Can a model still learn a harmless task? The curve, what is kept, and what a user is told."""

import json
from dataclasses import replace

import pytest

import repnoise.trainability
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation
from repnoise.inputs import Inputs
from repnoise.optimisation import Training
from repnoise.options import config_options
from repnoise.runs import load_run, read_rows, write_rows
from repnoise.trainability import TrainabilityConfig, presets, trainability


def rows(count, split, start=0, words=1):
    return [
        {"prompt": f"Name bird {start + n}{' owl' * words}:", "completion": f"bird {start + n}", "split": split}
        for n in range(count)
    ]


@pytest.fixture
def config(tiny_model, pairs_file, tmp_path):
    write_rows(tmp_path / "birds.jsonl", rows(16, "train") + rows(6, "test", 16))
    return TrainabilityConfig(
        Inputs(model=str(tiny_model), data=str(pairs_file)),
        task=str(tmp_path / "birds.jsonl"),
        training=Training(learning_rate=1e-3, steps=4, batch_size=4, save_every=2),
        generation=Generation(max_new_tokens=3),
        measure_at=(2, 4),
    )


def curve(run):
    return read_rows(run.path / "curve.jsonl")


def test_rouge_is_measured_at_the_start_the_chosen_steps_and_the_end(config, tmp_path):
    run = trainability(config, tmp_path / "run")
    assert [row["step"] for row in curve(run)] == [0, 2, 4] and run.record["name"] == "birds"
    assert {*run.record["metrics"]} == {"rouge1", "rouge2", "rougeL"} and run.record["metrics"]["rouge1"]["n"] == 6
    assert curve(run)[-1]["metrics"] == run.record["metrics"]


def test_the_values_of_every_test_example_are_kept_even_where_the_last_step_is_a_chosen_one(config, tmp_path):
    run = trainability(replace(config, tested=5), tmp_path / "run")
    values = read_rows(run.path / "evaluations" / "task" / "values.jsonl")
    assert [row["prompt"] for row in values] == [row["prompt"] for row in rows(5, "test", 16)]
    mean = sum(row["values"]["rouge1"] for row in values) / 5
    assert run.record["metrics"]["rouge1"]["value"] == pytest.approx(mean) and "text" in values[0]


def test_the_trained_weights_are_dropped_unless_they_are_to_be_kept(config, tmp_path):
    assert not trainability(config, tmp_path / "a").model.exists()
    kept = replace(config, keep_model=True)
    assert (trainability(kept, tmp_path / "b").model / "model.safetensors").exists()
    assert (trainability(kept, tmp_path / "b").model / "model.safetensors").exists()


def test_an_interrupted_training_goes_on_to_the_same_curve_and_weights(config, tmp_path, monkeypatch):
    whole, measure = trainability(config, tmp_path / "whole"), repnoise.trainability._Curve.measure

    def stops(self, step, model, folder=None):
        if step == 4:
            raise KeyboardInterrupt
        return measure(self, step, model, folder)

    with monkeypatch.context() as patched:
        patched.setattr(repnoise.trainability._Curve, "measure", stops)
        with pytest.raises(KeyboardInterrupt):
            trainability(config, tmp_path / "run")
    assert [row["step"] for row in curve(load_run(tmp_path / "run"))] == [0, 2]
    with pytest.raises(RepnoiseError, match="unfinished run of this: add --resume"):
        trainability(config, tmp_path / "run")
    run = trainability(config, tmp_path / "run", resume=True)
    assert curve(run) == curve(whole) and run.record["weights"] == whole.record["weights"]


def test_a_finished_run_is_left_as_it_is_and_other_data_is_noticed(config, tmp_path):
    first = trainability(config, tmp_path / "run")
    assert trainability(config, tmp_path / "run").record == first.record
    write_rows(tmp_path / "birds.jsonl", rows(15, "train") + rows(6, "test", 16))
    with pytest.raises(RepnoiseError, match="the same settings, but other data"):
        trainability(config, tmp_path / "run")


def test_long_prompts_are_told_or_left_out_and_counted(config, tmp_path):
    long = rows(2, "train", 50, 400) + rows(1, "test", 60, 400)
    write_rows(tmp_path / "birds.jsonl", rows(16, "train") + rows(6, "test", 16) + long)
    with pytest.raises(RepnoiseError, match=r"3 prompts of .*birds\.jsonl leave no room .* --skip-long"):
        trainability(config, tmp_path / "run")
    skipping = replace(config, inputs=replace(config.inputs, skip_long=True))
    run = trainability(skipping, tmp_path / "run")
    assert run.record["data"]["skipped"] == {"prompts without room for an answer": 3}
    assert run.record["data"]["task"]["rows"] == 16


def test_a_task_of_long_prompts_alone_is_told_before_anything_is_made(config, tmp_path):
    write_rows(tmp_path / "birds.jsonl", rows(4, "train") + rows(3, "test", 16, 400))
    skipping = replace(config, inputs=replace(config.inputs, skip_long=True))
    with pytest.raises(RepnoiseError, match="leave no room for an answer: raise --max-length"):
        trainability(skipping, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_task_that_there_is_none_of_is_told_with_those_of_the_data(config, tmp_path):
    with pytest.raises(RepnoiseError, match=r"trad.*Tasks of sandbox: trade, order\."):
        trainability(replace(config, task="trad", inputs=replace(config.inputs, data="sandbox")), tmp_path / "run")


def test_a_task_without_anything_to_test_is_told(config, tmp_path):
    (tmp_path / "one.jsonl").write_text(json.dumps({"prompt": "Name it.", "completion": "owl"}) + "\n")
    with pytest.raises(RepnoiseError, match="examples to train on and examples to test: give it more rows"):
        trainability(replace(config, task=str(tmp_path / "one.jsonl")), tmp_path / "run")


@pytest.mark.parametrize("tested", [0, -3])
def test_a_number_of_test_examples_that_is_none_is_told(tested):
    with pytest.raises(RepnoiseError, match="--tested is the most test examples"):
        TrainabilityConfig(tested=tested)


def test_the_presets_are_options_of_the_command_line():
    def parsed(*arguments):
        return config_options([*arguments], "trainability", "trainability", "sandbox", presets())[1]

    assert parsed() == presets()["sandbox"]
    paper = parsed("--preset", "paper", "--task", "viggo:folder", "--tested", "7", "--max-new-tokens", "9")
    assert (paper.training.learning_rate, paper.training.epochs, paper.training.steps) == (8e-5, 1, None)
    assert (paper.task, paper.tested, paper.generation.max_new_tokens) == ("viggo:folder", 7, 9)
    assert parsed("--preset", "paper").tested is None
