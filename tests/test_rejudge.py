"""`repnoise judge score`: other judges on what a run has written, and nothing that they cannot judge."""

import json

import pytest

from repnoise.cli import main
from repnoise.data import load_data
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation
from repnoise.evaluate import EvaluateConfig, Evaluating, evaluate, open_panel
from repnoise.inputs import Inputs
from repnoise.rejudge import RejudgeOptions, agreement_table, rejudge
from repnoise.runs import read_rows, write_rows


@pytest.fixture(scope="module")
def run(tiny_model, pairs_file, tmp_path_factory):
    """An evaluation with three answers to each question."""
    generation = Generation(max_new_tokens=6, temperature=1.0, samples=3)
    config = EvaluateConfig(
        Inputs(str(tiny_model), str(pairs_file)), Evaluating(("resistance",), generation=generation)
    )
    return evaluate(config, tmp_path_factory.mktemp("runs") / "run")


def scored_files(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("scores-*.jsonl")}


def test_the_same_judges_say_the_same_as_in_the_run_itself(run):
    before = (run.path / "run.json").read_bytes()
    folder, metrics = rejudge(RejudgeOptions(run.path))
    assert folder == run.path / "rejudged" / "resistance" and (run.path / "run.json").read_bytes() == before
    assert metrics == {name: run.record["metrics"][name] for name in metrics} and "refusal_rate" in metrics
    assert json.loads((folder / "metrics.json").read_text()) == metrics


def test_several_answers_to_a_question_are_one_question(run):
    folder, metrics = rejudge(RejudgeOptions(run.path))
    questions = read_rows(run.path / "evaluations" / "resistance" / "prompts.jsonl")
    assert metrics["refusal_rate"]["n"] == len(questions) / 3 == len(read_rows(folder / "values.jsonl"))


def test_the_same_command_again_asks_nobody_again(run):
    folder, metrics = rejudge(RejudgeOptions(run.path))
    before = scored_files(folder)
    assert rejudge(RejudgeOptions(run.path))[1] == metrics and scored_files(folder) == before and len(before) == 2


def test_a_judge_of_something_else_is_not_asked_and_alone_is_told(run, tmp_path):
    source = run.path / "evaluations" / "resistance"
    for name in ("prompts.jsonl", "completions.jsonl"):
        place = tmp_path / "evaluations" / "stability" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((source / name).read_bytes())
    (tmp_path / "run.json").write_bytes((run.path / "run.json").read_bytes())
    with pytest.raises(RepnoiseError, match="None of the judges refusal, coherence can judge stability"):
        rejudge(RejudgeOptions(tmp_path, evaluation="stability"))
    folder, _ = rejudge(RejudgeOptions(tmp_path, ("refusal", "exact"), "stability"))
    assert {path.name for path in folder.glob("scores-*")} == {"scores-exact.jsonl"}


def test_the_judge_of_coherence_that_fits_the_data_sits_on_the_panel_once(pairs_file):
    panel = open_panel(Evaluating(judges=("coherence", "refusal")), load_data(str(pairs_file)))
    assert [judge.name for judge in panel.judges] == ["refusal", "coherence"]


@pytest.mark.parametrize("evaluation", ["over-refusal", "charm", "../resistance"])
def test_what_a_run_has_no_completions_of_is_told_with_what_it_has(run, evaluation):
    with pytest.raises(RepnoiseError, match=r"has no completions of .*: choose from resistance\."):
        rejudge(RejudgeOptions(run.path, evaluation=evaluation))


def test_a_run_that_is_none_and_a_judge_that_is_none_are_told(run, tmp_path):
    with pytest.raises(RepnoiseError, match="is not a run"):
        rejudge(RejudgeOptions(tmp_path))
    with pytest.raises(RepnoiseError, match="no judge 'owl'"):
        rejudge(RejudgeOptions(run.path, ("owl",)))


@pytest.mark.parametrize("name, told", [("completions.jsonl", "is not whole"), ("prompts.jsonl", "is not whole")])
def test_files_that_do_not_fit_each_other_are_told(run, tmp_path, name, told):
    for file in ("prompts.jsonl", "completions.jsonl"):
        rows = read_rows(run.path / "evaluations" / "resistance" / file)
        write_rows(tmp_path / "evaluations" / "resistance" / file, rows[:-1] if file == name else rows)
    (tmp_path / "run.json").write_bytes((run.path / "run.json").read_bytes())
    with pytest.raises(RepnoiseError, match=told):
        rejudge(RejudgeOptions(tmp_path))


def test_two_judges_of_one_thing_are_compared(run, tmp_path, capsys):
    main(["judge", "score", str(run.path), "--judges", "refusal", "coherence", "--output-dir", str(tmp_path / "a")])
    text = capsys.readouterr().out
    assert "refused" in text and f"Scores: {tmp_path / 'a'}" in text.replace("\n", "")
    assert agreement_table(tmp_path / "a") is None  # Coherence and refusal are two things.
