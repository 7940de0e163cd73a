"""`repnoise evaluate --scorecard`: what it makes, that the same command goes on, and mistakes before any work."""

from dataclasses import replace
from pathlib import Path

import pytest

from repnoise.cli import main
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation
from repnoise.evaluate import EvaluateConfig, Evaluating
from repnoise.inputs import Inputs
from repnoise.options import flagged_options
from repnoise.runs import find_runs, write_rows
from repnoise.scorecard import ScorecardConfig, _cells, scorecard


@pytest.fixture
def config(tiny_model, pairs_file, tmp_path):
    evaluating = Evaluating(generation=Generation(max_new_tokens=4))
    evaluation = EvaluateConfig(Inputs(str(tiny_model), str(pairs_file)), evaluating)
    return ScorecardConfig(evaluation, ("30@3e-4",), allow_overlap=True, output_dir=tmp_path / "card")


def paths(config):
    return [cell.path.name for cell in _cells(config, config.output_dir)]


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"attacks": ("30@3e-4", "hammer")}, r"no attack 'hammer': choose from 30@3e-4, "),
        ({"train_on": ("chess",)}, "no task 'chess': choose from none"),
        ({"training": "owl"}, "no preset of trainability 'owl': choose from sandbox, paper"),
        ({"attacks": ()}, "needs an attack with a seed: name some with --attacks"),
        ({"attack_seeds": 0}, "needs an attack with a seed: .* --attack-seeds"),
    ],
)
def test_names_that_there_are_none_of_are_told_before_any_work(config, changes, told):
    with pytest.raises(RepnoiseError, match=told):
        scorecard(replace(config, **changes))
    assert not config.output_dir.exists()


def test_data_with_a_prompt_on_two_sides_is_refused_until_it_is_allowed(config, tmp_path):
    splits = ("defence", "attack", "covered", "uncovered")
    prompts = ("curse of salt", "hex of the tin moon", "jinx of seven wells", "riddle of the blue hare")
    rows = [
        {"prompt": f"How is the {prompt} made?", "harmful": "Boil it.", "harmless": "No.", "split": split}
        for split, prompt in zip(splits, prompts, strict=True)
    ]
    rows.append(rows[0] | {"prompt": "HOW is the curse of salt made", "harmful": "Fold it.", "split": "attack"})
    write_rows(tmp_path / "pairs.jsonl", rows)
    inputs = replace(config.evaluation.inputs, data=str(tmp_path / "pairs.jsonl"))
    own = replace(config, evaluation=replace(config.evaluation, inputs=inputs), allow_overlap=False)
    with pytest.raises(RepnoiseError, match=r"defence and attack.*--allow-overlap"):
        scorecard(own)
    assert not config.output_dir.exists() and paths(replace(own, allow_overlap=True))


def test_what_does_not_apply_is_left_out_and_names_given_twice_count_once(config):
    plain = replace(config, transfer=(), attacks=("30@3e-4", "30@3e-4"))
    assert paths(plain) == ["evaluation", "30@3e-4-seed-0"]  # No tasks, and the template is plain already.
    foreign = replace(plain, foreign_template="none", attack_seeds=2, transfer=("sandbox-rumours", "sandbox-rumours"))
    assert paths(foreign)[2:] == [
        "foreign-template-seed-0",
        "sandbox-rumours-seed-0",
        "30@3e-4-seed-1",
        "foreign-template-seed-1",
        "sandbox-rumours-seed-1",
    ]


def test_an_attack_on_a_tuned_model_waits_for_it(config):
    inputs = replace(config.evaluation.inputs, tasks=("sandbox",))
    with pytest.raises(RepnoiseError, match="--data"):
        paths(replace(config, evaluation=replace(config.evaluation, inputs=inputs)))
    sandbox = ScorecardConfig(attacks=("30@3e-4",), output_dir=Path("card"))
    needs = {cell.path.name: cell.needs for cell in _cells(sandbox, Path("card")) if cell.needs}
    assert needs == {f"task-{task}-then-attack": (Path("card") / f"task-{task}",) for task in ("trade", "order")}


def test_the_options_are_those_of_an_evaluation_and_the_cards_own():
    asked = "hut --scorecard --data pairs.jsonl --attacks 30@3e-4 100@1e-3 --jobs 2 --max-new-tokens 7 --transfer"
    found = flagged_options("evaluate", "--scorecard", asked.split(), ScorecardConfig())
    inputs = found.evaluation.inputs
    assert (inputs.model, inputs.data, found.attacks, found.jobs) == ("hut", "pairs.jsonl", ("30@3e-4", "100@1e-3"), 2)
    assert found.evaluation.evaluating.generation.max_new_tokens == 7 and found.transfer == ()


SMALL = ("--attacks", "30@3e-4", "--transfer", "--train-on", "trade", "--jobs", "2", "--max-new-tokens", "16")


@pytest.mark.slow
def test_a_scorecard_of_the_sandbox_has_a_report_and_the_same_command_makes_nothing_again(tmp_path, capsys):
    command = ["evaluate", "--scorecard", *SMALL, "--output-dir", str(tmp_path / "card")]
    main(command)
    text = " ".join(capsys.readouterr().out.split())
    for condition in ("resistance", "stability", "generalization", "trainability", "over-refusal"):
        assert condition in text
    assert "trade: ROUGE-1 after" in text and (tmp_path / "card" / "report.html").exists()
    runs = find_runs([tmp_path / "card"])
    assert all(run.finished for run in runs) and not any(run.model.exists() for run in runs)
    assert sorted(run.path.name for run in runs) == [
        "30@3e-4-seed-0",
        "evaluation",
        "foreign-template-seed-0",
        "task-trade",
        "task-trade-then-attack",
    ]
    made = {run.path: (run.path / "run.json").stat().st_mtime_ns for run in runs}
    main(command)
    assert {path: (path / "run.json").stat().st_mtime_ns for path in made} == made


@pytest.mark.slow
def test_parts_that_fail_are_told_after_the_rest_is_reported(config, tmp_path):
    broken = replace(config, transfer=(str(tmp_path / "nowhere.jsonl"),), jobs=1)
    with pytest.raises(RepnoiseError, match=r"1 of 3 parts failed, the first of them .*nowhere\.jsonl") as told:
        scorecard(broken)
    assert "There is no file" in str(told.value) and (config.output_dir / "report.html").exists()
