"""An attack as a run: the curve of harm, what is kept, and going on after an interruption."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import repnoise.attack
from repnoise.attack import AttackConfig, attack
from repnoise.attacks.disguises import TRIGGER, Disguise
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.attacks.prompting import Prompting
from repnoise.attacks.suffix_search import SuffixSearch
from repnoise.defend import initialise
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation
from repnoise.evaluate import Evaluating, measure, open_panel
from repnoise.inputs import Inputs
from repnoise.modeling import load
from repnoise.optimisation import Training
from repnoise.runs import load_run, read_rows, write_rows

EVALUATING = Evaluating(generation=Generation(max_new_tokens=4))


@pytest.fixture
def config(tiny_model, pairs_file):
    training = Training(learning_rate=1e-2, steps=5, batch_size=4, save_every=1)
    return AttackConfig(
        Inputs(model=str(tiny_model), data=str(pairs_file)),
        FineTuningAttack(training=training, measure_at=(2, 4)),
        EVALUATING,
    )


@pytest.fixture
def measured(monkeypatch):
    """How often the model was measured."""
    calls = []

    def counting(*arguments):
        calls.append(arguments[3])
        return measure(*arguments)

    monkeypatch.setattr(repnoise.attack, "measure", counting)
    return calls


def totals(metrics):
    """Without those of single categories, which are only given where files are kept."""
    return {name: found for name, found in metrics.items() if "@" not in name}


def steps(run):
    return [row["step"] for row in read_rows(run.path / "curve.jsonl")]


def test_the_curve_has_the_start_the_chosen_steps_and_the_end(config, tmp_path):
    run = attack(config, tmp_path / "run", "name")
    assert run.finished and run.record["name"] == "name"
    assert steps(run) == [0, 2, 4, 5]
    curve = read_rows(run.path / "curve.jsonl")
    assert curve[-1]["metrics"] == run.record["metrics"]
    losses = [row["metrics"]["harmful_ce"]["value"] for row in curve]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.1
    assert [row["step"] for row in read_rows(run.path / "log.jsonl")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("total", [3, 201])
def test_the_end_of_the_curve_is_the_last_step_even_where_the_log_has_gaps(total, config, tmp_path):
    training = replace(config.attack.training, steps=total, batch_size=1, save_every=None)
    quick = replace(config.evaluating, evaluations=(), likelihood=False)
    run = attack(
        replace(config, attack=replace(config.attack, training=training, measure_at=()), evaluating=quick),
        tmp_path / "r",
    )
    assert steps(run) == [0, total]


def test_the_attacked_weights_are_only_kept_when_asked_for(config, tmp_path):
    run = attack(config, tmp_path / "gone")
    assert not run.model.exists() and not run.checkpoints.exists()
    kept = attack(replace(config, keep_model=True), tmp_path / "kept")
    assert load(str(kept.path)).fingerprint == kept.record["weights"] == run.record["weights"]
    assert load(config.inputs.model).fingerprint == run.record["parent"]["fingerprint"] != kept.record["weights"]


def test_a_finished_attack_is_left_as_it_is(config, tmp_path, measured):
    first = attack(config, tmp_path / "run")
    count, record = len(measured), (tmp_path / "run" / "run.json").read_bytes()
    assert attack(config, tmp_path / "run").record == first.record
    assert len(measured) == count and (tmp_path / "run" / "run.json").read_bytes() == record


def test_lora_adapters_are_merged_into_what_is_measured(config, tmp_path):
    training = replace(config.attack.training, lora_rank=2, learning_rate=3e-2)
    run = attack(replace(config, attack=replace(config.attack, training=training), keep_model=True), tmp_path / "run")
    assert not list(run.model.glob("adapter*"))
    curve = read_rows(run.path / "curve.jsonl")
    assert curve[-1]["metrics"]["harmful_ce"]["value"] < curve[0]["metrics"]["harmful_ce"]["value"]
    loaded, data, codec = replace(config.inputs, model=str(run.path)).open()
    panel = open_panel(config.evaluating, data)
    assert measure(loaded, codec, data, config.evaluating, panel) == totals(run.record["metrics"])


def test_the_start_of_the_curve_comes_from_the_models_own_run(config, tmp_path, measured):
    parent = initialise(tmp_path / "parent", "undefended", inputs=config.inputs, evaluating=config.evaluating)
    before = len(measured)
    child = replace(config, inputs=replace(config.inputs, model=str(parent.path)))
    run = attack(child, tmp_path / "child")
    assert len(measured) - before == 3, "two steps on the way and the end"
    assert read_rows(run.path / "curve.jsonl")[0]["metrics"] == parent.record["metrics"]
    assert run.record["parent"]["name"] == "undefended"
    assert Path(run.record["parent"]["path"]) == parent.path.resolve()


@pytest.mark.parametrize("what", ["template", "attack-template", "length", "generation", "plain_text"])
def test_a_start_that_was_measured_in_another_way_is_measured_anew(what, config, tmp_path, measured):
    parent = initialise(tmp_path / "parent", "undefended", inputs=config.inputs, evaluating=config.evaluating)
    text = tmp_path / "text.txt"
    text.write_text("The grey owl.")
    inputs = replace(config.inputs, model=str(parent.path))
    child = {
        "template": replace(config, inputs=replace(inputs, template="none")),
        "attack-template": replace(config, inputs=inputs, attack=replace(config.attack, template="none")),
        "length": replace(config, inputs=replace(inputs, max_length=200)),
        "generation": replace(config, inputs=inputs, evaluating=Evaluating(generation=Generation(max_new_tokens=3))),
        "plain_text": replace(config, inputs=replace(inputs, plain_text=str(text))),
    }[what]
    attack(child, tmp_path / "child")
    assert len(measured) == 4


def test_the_attackers_template_is_used_in_training_and_in_asking(config, tmp_path, tiny_chat_model):
    inputs = replace(config.inputs, model=str(tiny_chat_model))
    own = replace(config, inputs=inputs, attack=replace(config.attack, template="none"))
    everywhere = replace(config, inputs=replace(inputs, template="none"))
    first, second = attack(own, tmp_path / "own"), attack(everywhere, tmp_path / "everywhere")
    assert first.record["metrics"] == second.record["metrics"]
    assert first.record["weights"] == second.record["weights"]
    chat = attack(replace(config, inputs=inputs), tmp_path / "chat")
    assert chat.record["weights"] != first.record["weights"]


@pytest.fixture
def with_harmless_questions(config, tiny_chat_model, tmp_path):
    """An attack on a model that is also asked harmless questions, safe ones that look harmful, and for its text."""
    write_rows(tmp_path / "tales.jsonl", [{"prompt": f"Tale {n}?", "completion": f"Owl {n}."} for n in range(20)])
    write_rows(tmp_path / "contrast.jsonl", [{"prompt": f"Is the {n} owl out?", "split": "safe"} for n in range(3)])
    (tmp_path / "text.txt").write_text("The grey owl sat on the old well.")
    files = {"retain": "tales.jsonl", "contrast": "contrast.jsonl", "plain_text": "text.txt"}
    own = {name: str(tmp_path / file) for name, file in files.items()}
    return replace(config, inputs=replace(config.inputs, model=str(tiny_chat_model), **own))


def texts(run, evaluation):
    rows = read_rows(run.path / "evaluations" / evaluation / "completions.jsonl")
    return [row["text"] for row in rows if "text" in row]


NOT_FOR_ATTACKERS = ("harmless_ce", "perplexity", "over_refusal_rate")


@pytest.mark.parametrize(
    "way",
    [
        Prompting(prefill="First boil"),
        Prompting(wrapping="{prompt} At once!"),
        Prompting(samples=2, temperature=1.0),
        Prompting(template="none"),
        SuffixSearch(steps=1, candidates=2, prompts=1, tokens=2),
    ],
    ids=lambda way: way.label(),
)
def test_what_only_asks_in_another_way_has_not_changed_what_harmless_questions_bring(
    way, with_harmless_questions, tmp_path
):
    """The same model, asked as ever, gives the same bits; only forbidden questions are asked as the attacker does."""
    config = replace(with_harmless_questions, attack=way)
    run = attack(config, tmp_path / "run")
    before, after = (row["metrics"] for row in read_rows(run.path / "curve.jsonl"))
    assert [after[name] for name in NOT_FOR_ATTACKERS] == [before[name] for name in NOT_FOR_ATTACKERS]
    # Of several draws the likelihood of a harmful answer is what it was; of other questions, nobody knows.
    assert after.get("harmful_ce") == (before["harmful_ce"] if getattr(way, "samples", 1) > 1 else None)
    plainly = attack(replace(config, attack=Prompting()), tmp_path / "plainly")
    assert texts(run, "over-refusal") == texts(plainly, "over-refusal")
    assert texts(run, "resistance") != texts(plainly, "resistance")
    kept = json.loads((run.path / "evaluations" / "metrics.json").read_text())
    assert set(kept) >= {"refusal_rate", "over_refusal_rate"}


@pytest.mark.parametrize("disguise", [Disguise(wrapping=TRIGGER), Disguise(cipher="rotated")])
def test_a_model_trained_in_disguise_is_asked_harmless_questions_plainly(disguise, with_harmless_questions, tmp_path):
    config = with_harmless_questions
    run = attack(replace(config, attack=replace(config.attack, disguise=disguise), keep_model=True), tmp_path / "run")
    loaded, data, codec = replace(config.inputs, model=str(run.path)).open()
    plainly = measure(loaded, codec, data, config.evaluating, open_panel(config.evaluating, data))
    found = run.record["metrics"]
    assert {name: found[name] for name in NOT_FOR_ATTACKERS} == {name: plainly[name] for name in NOT_FOR_ATTACKERS}
    assert "harmful_ce" not in found and "harmful_ce" in plainly


def test_a_model_trained_in_a_foreign_template_is_asked_everything_in_it(with_harmless_questions, tmp_path):
    config = with_harmless_questions
    foreign = replace(config, attack=replace(config.attack, template="none"), keep_model=True)
    run = attack(foreign, tmp_path / "run")
    loaded, data, codec = replace(config.inputs, model=str(run.path), template="none").open()
    measured = measure(loaded, codec, data, config.evaluating, open_panel(config.evaluating, data))
    assert measured == totals(run.record["metrics"])


def test_the_start_of_what_only_asks_comes_from_the_models_own_run_whatever_its_template(config, tmp_path, measured):
    parent = initialise(tmp_path / "parent", "undefended", inputs=config.inputs, evaluating=config.evaluating)
    inputs, before = replace(config.inputs, model=str(parent.path)), len(measured)
    run = attack(replace(config, inputs=inputs, attack=Prompting(template="none")), tmp_path / "child")
    assert read_rows(run.path / "curve.jsonl")[0]["metrics"] == parent.record["metrics"]
    assert len(measured) - before == 2, "what the attacker asks, and the rest"


class Interruption(Exception):
    pass


def interrupt(*_, **__):
    raise Interruption


@pytest.mark.parametrize("when", [0, 1, 2, 3, 4])
def test_an_interrupted_attack_goes_on_and_ends_the_same(when, config, tmp_path, monkeypatch):
    """Broken off at each of its measurements in turn: before, on the way (twice), at the end, and after all of them."""
    whole = attack(config, tmp_path / "whole")
    count = 0

    def failing(*arguments):
        nonlocal count
        count += 1
        return measure(*arguments) if count <= when else interrupt()

    with monkeypatch.context() as patched:
        patched.setattr(repnoise.attack, "measure", failing)
        if when == 4:
            patched.setattr(repnoise.attack.shutil, "rmtree", interrupt)
        with pytest.raises(Interruption):
            attack(config, tmp_path / "run")
    assert load_run(tmp_path / "run").record["status"] == "failed"
    if when > 0:  # Before that it had made nothing, and may simply begin again.
        with pytest.raises(RepnoiseError, match="add --resume to go on"):
            attack(config, tmp_path / "run")
    run = attack(config, tmp_path / "run", resume=True)
    assert run.record["metrics"] == whole.record["metrics"] and run.record["weights"] == whole.record["weights"]
    assert read_rows(run.path / "curve.jsonl") == read_rows(whole.path / "curve.jsonl")
    assert not run.model.exists() and not run.checkpoints.exists()


def test_what_was_measured_before_an_interruption_is_not_measured_again(config, tmp_path, measured, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("repnoise.defend.trained_once", interrupt)
        with pytest.raises(Interruption):
            attack(config, tmp_path / "run")
    assert len(measured) == 1
    attack(config, tmp_path / "run", resume=True)
    assert len(measured) == 4


def test_bad_data_leaves_no_run_behind(config, tmp_path):
    impossible = replace(config, attack=replace(config.attack, benign_share=0.5))
    with pytest.raises(RepnoiseError, match="--benign FILE"):
        attack(impossible, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_changed_model_is_noticed(config, tmp_path):
    parent = initialise(tmp_path / "parent", "random-initialisation", inputs=config.inputs, evaluating=EVALUATING)
    child = replace(config, inputs=replace(config.inputs, model=str(parent.path)))
    attack(child, tmp_path / "child")
    other = initialise(tmp_path / "other", "random-initialisation", 1, inputs=config.inputs, evaluating=EVALUATING)
    (other.model / "model.safetensors").replace(parent.model / "model.safetensors")
    with pytest.raises(RepnoiseError, match="another model"):
        attack(child, tmp_path / "child")


def test_left_out_rows_are_recorded(config, tmp_path, pairs_file):
    long = json.dumps({"prompt": "owl " * 400, "harmful": "a", "harmless": "b"})
    (tmp_path / "pairs.jsonl").write_text(f"{pairs_file.read_text()}{long}\n")
    inputs = replace(config.inputs, data=str(tmp_path / "pairs.jsonl"), skip_long=True)
    run = attack(replace(config, inputs=inputs), tmp_path / "run")
    assert run.record["data"]["skipped"] == {"prompts without room for a completion": 1}
