"""Files that lm-eval's own evaluator wrote: the same numbers as when it is run here, and what cannot be taken."""

import json
import re
from pathlib import Path

import pytest
from test_capability import QUESTIONS, TASK, write

from repnoise.cli import main
from repnoise.errors import RepnoiseError
from repnoise.evals.capability import capabilities
from repnoise.evals.capability_results import read_results
from repnoise.evaluate import EvaluateConfig, Evaluating, evaluate
from repnoise.inputs import Inputs
from repnoise.modeling import load
from repnoise.report.command import write_report
from repnoise.runs import load_run, restored

pytest.importorskip("lm_eval", reason="needs lm-eval, of the extra eval")

pytestmark = pytest.mark.usefixtures("datasets_cache")


def measured_by_lm_eval(model, folder, *tasks):
    """The file that `lm-eval run --output_path` writes, by what that command calls."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    tracker = EvaluationTracker(output_path=str(folder / "out"))
    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model)},
        tasks=list(tasks),
        device="cpu",
        batch_size=4,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        evaluation_tracker=tracker,
    )
    found.pop("samples")
    tracker.save_results_aggregated(results=found)
    (path,) = (folder / "out").rglob("results_*.json")
    return path


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A task, and two groups of two more: one with a number of its own, one without."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [question | {"answer": number // 2} for number, question in enumerate(QUESTIONS)]
    for name, part in (
        ("village", rows),
        ("owls", rows[:2]),
        ("hares", rows[2:]),
        ("moths", rows),
        ("reeds", rows[:1]),
    ):
        write(folder, part, name, metric_list=[*TASK["metric_list"], {"metric": "acc_norm"}])
    (folder / "all.yaml").write_text("group: animals\ntask: [owls, hares]\n")
    metrics = "aggregate_metric_list: [{metric: acc, weight_by_size: true}]"
    (folder / "small.yaml").write_text(f"group: small\ntask: [moths, reeds]\n{metrics}\n")
    return folder


@pytest.fixture(scope="module")
def results(tiny_model, tasks):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tasks / "cache")
        return measured_by_lm_eval(tiny_model, tasks, "village", "animals", "small")


def changed(original, folder, **changes):
    path = folder / "results_changed.json"
    path.write_text(json.dumps(json.loads(original.read_text()) | changes))
    return path


def test_a_file_gives_the_numbers_that_are_measured_here(results, tiny_model, tasks):
    found = read_results([results])
    here = capabilities(
        load(str(tiny_model), device="cpu"), [str(tasks / f"{n}.yaml") for n in ("village", "all", "small")]
    )
    assert 0 < here["village_acc"]["value"] < 1, "all or nothing would show little"
    assert {"village_acc", "village_acc_norm", "animals_acc", "small_acc"} <= {*found.metrics}
    assert found.metrics == {name: pytest.approx(entry) for name, entry in here.items()}


def test_where_they_come_from_is_known(results, tiny_model):
    (path, source), *others = read_results([results, results]).sources.items()
    assert not others and path == str(results) and re.fullmatch("[0-9a-f]{16}", source["fingerprint"])
    assert source["model"] == str(tiny_model) and source["lm_eval"].startswith("0.")
    assert source["shots"]["village"] == 0 and source["limit"] is None


def test_a_run_has_them_with_their_file_and_the_report_says_so(results, tiny_model, pairs_file, tmp_path, capsys):
    arguments = ["evaluate", str(tiny_model), "--data", str(pairs_file), "--evaluations", "--no-likelihood"]
    main([*arguments, "--capability-results", str(results), "--output-dir", str(tmp_path / "run")])
    assert f"are of {tiny_model}: make sure" in capsys.readouterr().out
    run = load_run(tmp_path / "run")
    assert run.record["metrics"] == {f"lm-eval/{name}": m for name, m in read_results([results]).metrics.items()}
    assert run.record["measured_elsewhere"][str(results)]["lm_eval"]
    assert restored(run.record["config"], [EvaluateConfig()]).capability_results == (str(results),)
    page = write_report([run], tmp_path / "report").with_suffix(".md").read_text()
    assert f"was read from {results.name}, which is of {tiny_model}" in page


def test_another_file_at_the_same_path_is_another_run(results, tiny_model, pairs_file, tmp_path):
    path = changed(results, tmp_path)
    config = EvaluateConfig(
        Inputs(model=str(tiny_model), data=str(pairs_file)),
        Evaluating(evaluations=(), likelihood=False),
        capability_results=(path,),
    )
    before = evaluate(config, tmp_path / "run")
    assert evaluate(config, tmp_path / "run").record == before.record
    changed(results, tmp_path, date=1)
    with pytest.raises(RepnoiseError, match="another measured_elsewhere"):
        evaluate(config, tmp_path / "run")


def test_a_file_of_another_model_is_refused(results, tiny_model, tmp_path):
    loaded = load(str(tiny_model), device="cpu")
    read_results([results]).require_of(loaded)
    config = json.loads(results.read_text())["config"] | {"model_num_parameters": 7}
    other = changed(results, tmp_path, config=config)
    with pytest.raises(RepnoiseError, match=r"results_changed\.json is of another model .*with 7 parameters"):
        read_results([other]).require_of(loaded)
    adapted = changed(results, tmp_path, config=config | {"model_args": {"pretrained": "m", "peft": "adapter"}})
    read_results([adapted]).require_of(loaded)


def test_files_of_lm_eval_before_rows_had_their_counts_are_read(results, tmp_path):
    rows = json.loads(results.read_text())["results"]
    bare = {task: {key: value for key, value in row.items() if "," in key} for task, row in rows.items()}
    older = changed(results, tmp_path, results=bare, model_name=None)
    assert read_results([older]).metrics == read_results([results]).metrics


def test_two_results_of_one_task_are_refused(results, tmp_path):
    with pytest.raises(RepnoiseError, match=r"two results of lm-eval for animals, small, village: leave"):
        read_results([results, changed(results, tmp_path)])
    with pytest.raises(RepnoiseError, match="two results of lm-eval for village: leave"):
        evaluate(EvaluateConfig(capabilities=("village",), capability_results=(results,)), tmp_path / "run")
    with pytest.raises(RepnoiseError, match="two results of lm-eval for village_acc: leave"):
        read_results([results]).require_apart(["village_acc", "town_acc"])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"results": {}, "n-samples": {}, "config": {}}', "\xff"])
def test_what_is_no_such_file_is_told(content, tmp_path):
    path = tmp_path / "results_1.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(
        RepnoiseError, match=r"results_1.json has no results that can be read: give the results_\*.json"
    ):
        read_results([path])


def test_a_file_that_names_no_model_or_is_not_there_is_told(results, tmp_path):
    nameless = changed(results, tmp_path, model_name=None, config={"model_args": {}})
    with pytest.raises(RepnoiseError, match="has no results that can be read"):
        read_results([nameless])
    with pytest.raises(RepnoiseError, match=r"no file 'nowhere\.json'"):
        read_results([Path("nowhere.json")])
