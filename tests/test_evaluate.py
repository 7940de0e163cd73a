"""An evaluation as a run, and the model and data that every command starts from."""

import json
import re
from dataclasses import replace

import pytest

import repnoise.evaluate
from repnoise.defend import initialise
from repnoise.errors import RepnoiseError
from repnoise.evals import evaluations, generation
from repnoise.evals.generation import Generation
from repnoise.evaluate import EvaluateConfig, Evaluating, evaluate
from repnoise.inputs import Inputs
from repnoise.runs import load_run


@pytest.fixture
def config(tiny_model, pairs_file):
    inputs = Inputs(model=str(tiny_model), data=str(pairs_file))
    return EvaluateConfig(inputs, Evaluating(generation=Generation(max_new_tokens=4)))


@pytest.fixture
def files(tmp_path):
    """A harmless file, and plain text."""
    retain, text = tmp_path / "retain.jsonl", tmp_path / "text.txt"
    rows = [{"prompt": f"What is {n} times owl?", "completion": f"Owl {n}."} for n in range(40)]
    retain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text.write_text("The grey owl sat on the well.\n\nThe moon rose.\n")
    return {"retain": str(retain), "plain_text": str(text)}


def test_an_evaluation_is_a_run_with_metrics_and_changes_no_weights(config, tmp_path, files):
    run = evaluate(replace(config, inputs=replace(config.inputs, **files)), tmp_path / "run")
    metrics = run.record["metrics"]
    assert {"refusal_rate", "incoherent_rate", "harmful_ce", "harmless_ce", "perplexity"} == set(metrics)
    assert metrics["harmful_ce"]["low"] < metrics["harmful_ce"]["value"] < metrics["harmful_ce"]["high"]
    assert metrics["refusal_rate"]["n"] == metrics["harmful_ce"]["n"] > 5
    assert not (tmp_path / "run" / "model").exists()


def test_an_evaluation_shows_what_is_generated_and_how_fast(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # As in a terminal.
    monkeypatch.setattr(generation, "PATIENCE", 0.0)
    evaluate(config, tmp_path / "quiet")
    assert capsys.readouterr().err == ""
    evaluate(config, tmp_path / "shown", progress=True)
    assert re.search(r"resistance.*tokens/s", capsys.readouterr().err, re.DOTALL)


def test_a_finished_evaluation_is_left_as_it_is(config, tmp_path, monkeypatch):
    first = evaluate(config, tmp_path / "run")
    monkeypatch.setattr(repnoise.evaluate, "measure", None)
    assert evaluate(config, tmp_path / "run").record == first.record


def test_an_interrupted_evaluation_goes_on_without_generating_again(config, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(repnoise.evaluate, "likelihoods", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate(config, tmp_path / "run")
    assert load_run(tmp_path / "run").record["status"] == "failed"
    monkeypatch.setattr(evaluations, "generate", None)
    assert evaluate(config, tmp_path / "run", resume=True).finished


def test_changed_data_is_noticed(config, tmp_path, pairs_file):
    path = tmp_path / "pairs.jsonl"
    path.write_text(pairs_file.read_text())
    own = replace(config, inputs=replace(config.inputs, data=str(path)))
    evaluate(own, tmp_path / "run")
    path.write_text(path.read_text().replace("owl", "elk"))
    with pytest.raises(RepnoiseError, match=r"the same settings, but .*data: choose"):
        evaluate(own, tmp_path / "run")


def test_nothing_to_measure_is_told(config, tmp_path):
    nothing = replace(config, evaluating=Evaluating(evaluations=("stability",), likelihood=False))
    with pytest.raises(RepnoiseError, match="Nothing to measure"):
        evaluate(nothing, tmp_path / "run")


def test_an_unknown_evaluation_is_told():
    with pytest.raises(RepnoiseError, match="no evaluation 'charm': choose from resistance, stability, over-refusal"):
        Evaluating(evaluations=("charm",))


def long_data(folder, pairs_file, lengths=(400, 900)):
    rows = [json.dumps({"prompt": "owl " * n, "harmful": "boil it", "harmless": "no"}) for n in lengths]
    path = folder / "long.jsonl"
    path.write_text(pairs_file.read_text() + "\n".join(rows) + "\n")
    return str(path)


def test_prompts_without_room_are_told_with_their_number(config, tmp_path, pairs_file):
    inputs = replace(config.inputs, data=long_data(tmp_path, pairs_file), max_length=200)
    with pytest.raises(RepnoiseError) as told:
        inputs.open()
    message = str(told.value)
    assert message.startswith("2 of 50 prompts in ")
    assert "within 200 tokens (the longest has 9" in message
    assert message.endswith("raise --max-length, or shorten them, or leave them out with --skip-long.")


def test_raising_the_length_is_not_advised_where_the_context_is_the_limit(config, tmp_path, pairs_file):
    inputs = replace(config.inputs, data=long_data(tmp_path, pairs_file), max_length=10_000)
    with pytest.raises(RepnoiseError, match="256 tokens, the context of the model") as told:
        inputs.open()
    assert "--max-length" not in str(told.value)


def test_prompts_without_room_are_left_out_when_asked_for_and_counted(config, tmp_path, pairs_file):
    inputs = replace(config.inputs, data=long_data(tmp_path, pairs_file), skip_long=True)
    _, data, codec = inputs.open()
    prompts = [pair.prompt for pairs in [*data.pairs.values(), *data.held_out.values()] for pair in pairs]
    assert len(set(prompts)) == 48 and all(len(codec.prompt_ids(prompt)) < codec.max_length for prompt in prompts)
    assert data.skipped == {"prompts without room for a completion": 2}
    _, whole, _ = replace(config.inputs, skip_long=True).open()
    assert whole.skipped == {} and whole.pairs == data.pairs


def test_leaving_out_everything_is_no_remedy(config, tmp_path):
    path = tmp_path / "all.jsonl"
    path.write_text(json.dumps({"prompt": "owl " * 400, "harmful": "boil it", "harmless": "no"}) + "\n")
    with pytest.raises(RepnoiseError, match="1 of 1 prompts") as told:
        replace(config.inputs, data=str(path), skip_long=True).open()
    assert "--skip-long" not in str(told.value)


@pytest.mark.parametrize("length", [0, 1, -5])
def test_a_length_without_room_for_anything_is_told(length):
    with pytest.raises(RepnoiseError, match="max_length must be at least 2"):
        Inputs(max_length=length)


@pytest.mark.parametrize(
    "given, own, chosen", [("auto", "auto", "plain"), ("auto", "none", "none"), ("none", "plain", "none")]
)
def test_the_template_of_the_caller_comes_before_that_of_the_inputs(given, own, chosen, config):
    _, _, codec = replace(config.inputs, template=own).open(given)
    assert codec.template == chosen


def test_the_model_of_a_run_is_known_by_its_run(config, tmp_path):
    parent = initialise(tmp_path / "p", "random-initialisation", inputs=config.inputs, evaluating=config.evaluating)
    run = evaluate(replace(config, inputs=replace(config.inputs, model=str(tmp_path / "p"))), tmp_path / "run")
    assert run.record["parent"] == {
        "name": "random-initialisation",
        "path": str((tmp_path / "p").resolve()),
        "fingerprint": parent.record["weights"],
    }
    assert run.record["metrics"] == parent.record["metrics"]
