"""Tasks of lm-eval on a tiny model: what its numbers are, and what is said when there are none."""

import json
import logging
import math
import random
import sys
from statistics import stdev

import pytest
import torch

from conftest import byte_level_tokenizer, tiny_llama
from repnoise.errors import RepnoiseError
from repnoise.evals.capability import PAPER_TASKS, capabilities, task_names
from repnoise.modeling import LoadedModel, load

pytest.importorskip("lm_eval", reason="needs lm-eval, of the extra eval")

CHOICES = ["owl", "moon", "hare"]
QUESTIONS = [
    {"question": f"What is {what}?", "choices": CHOICES, "answer": number % 3}
    for number, what in enumerate(("grey", "round", "quick", "under the well"))
]
SEED = 3
TASK = {
    "task": "village",
    "dataset_path": "json",
    "test_split": "test",
    "fewshot_split": "shots",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
SHOT = {"question": "What does the baker do?", "choices": ["Bakes.", "Sings."], "answer": 0}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def loaded(tiny_model):
    found = load(str(tiny_model), device="cpu")
    torch.manual_seed(SEED)
    with torch.no_grad():  # So that the choices differ.
        for parameter in found.model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return found


def write(folder, rows=QUESTIONS, name="village", **changes):
    """A YAML task (JSON is YAML) with its questions beside it; returns its path."""
    folder.mkdir(exist_ok=True)
    files = {"test": folder / f"{name}.jsonl", "shots": folder / f"{name}-shots.jsonl"}
    for path, content in ((files["test"], rows), (files["shots"], [SHOT])):
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    config = TASK | {"task": name, "dataset_kwargs": {"data_files": {k: str(v) for k, v in files.items()}}} | changes
    lines = [f"{key}: {json.dumps(value)}" for key, value in config.items() if value is not None]
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    return str(folder / f"{name}.yaml")


def chosen(loaded, question, before=""):
    """The answer with the highest log-likelihood, by the model's logits alone."""
    head = f"{before}Question: {question['question']}\nAnswer:"
    scores = []
    for choice in question["choices"]:
        start = len(loaded.tokenizer(head)["input_ids"])
        ids = loaded.tokenizer(f"{head} {choice}")["input_ids"]
        with torch.no_grad():
            logits = loaded.model.eval()(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        scores.append(sum(logits[i - 1, ids[i]].item() for i in range(start, len(ids))))
    return scores.index(max(scores))


def right(loaded, before=""):
    return [float(chosen(loaded, question, before) == question["answer"]) for question in QUESTIONS]


def test_accuracy_is_how_often_the_likeliest_choice_is_right(loaded, tmp_path):
    found = capabilities(loaded, [write(tmp_path / "a")])
    values = right(loaded)
    mean, error = sum(values) / 4, stdev(values) / 2
    assert 0 < mean < 1, "all or nothing would show little"
    assert found == {
        "village_acc": {
            "value": pytest.approx(mean),
            "n": 4,
            "low": pytest.approx(max(mean - 1.96 * error, 0)),
            "high": pytest.approx(min(mean + 1.96 * error, 1)),
            "unscored": 0,
        }
    }


def test_shots_stand_before_the_question_and_a_limit_leaves_questions_out(loaded, tmp_path):
    path = write(tmp_path / "a")
    shot = "Question: What does the baker do?\nAnswer: Bakes.\n\n"
    values = right(loaded, shot)
    assert sum(values) != sum(right(loaded)), "the shot must matter for this to show anything"
    assert capabilities(loaded, [path], shots=1)["village_acc"]["value"] == pytest.approx(sum(values) / 4)
    first = capabilities(loaded, [path], limit=1)["village_acc"]
    assert (first["value"], first["n"], first["low"]) == (right(loaded)[0], 1, None)


def test_a_group_without_a_number_of_its_own_is_one_number_over_all_its_questions(loaded, tmp_path):
    folder = tmp_path / "a"
    write(folder, QUESTIONS[:2], "owls")
    write(folder, QUESTIONS[2:], "hares", metric_list=[*TASK["metric_list"], {"metric": "acc_norm"}])
    (folder / "all.yaml").write_text("group: animals\ntask: [owls, hares]\n")
    values = right(loaded)
    found = capabilities(loaded, [str(folder / "all.yaml")])
    assert set(found) == {"animals_acc"}, "only what both have"
    mean = sum(values) / 4
    # Half of the questions is in each task, whose standard error is that of a mean of two.
    error = math.hypot(*(stdev(part) / math.sqrt(2) / 2 for part in (values[:2], values[2:])))
    assert error > 0 and found["animals_acc"] == {
        "value": pytest.approx(mean),
        "n": 4,
        "low": pytest.approx(max(mean - 1.96 * error, 0)),
        "high": pytest.approx(min(mean + 1.96 * error, 1)),
        "unscored": 0,
    }


def test_several_tasks_are_measured_together_and_the_same_task_once(loaded, tmp_path):
    paths = (write(tmp_path / "a"), write(tmp_path / "b", name="town"))
    found = capabilities(loaded, [*paths, paths[0]])
    assert list(found) == ["village_acc", "town_acc"]
    assert found["village_acc"] == found["town_acc"]
    assert capabilities(loaded, []) == {}


def test_a_broken_model_is_unscored_and_not_right_wherever_the_first_choice_is(tmp_path):
    tokenizer = byte_level_tokenizer()
    broken = LoadedModel(tiny_llama(tokenizer), tokenizer, "broken", 256)
    torch.nn.init.constant_(broken.model.lm_head.weight, math.nan)
    rows = [question | {"answer": 0} for question in QUESTIONS]
    found = capabilities(broken, [write(tmp_path / "a", rows)])
    assert found == {"village_acc": {"value": None, "n": 0, "low": None, "high": None, "unscored": 4}}


def test_measuring_is_quiet_and_leaves_everything_as_it_was(loaded, tmp_path, capfd):
    loaded.model.train()
    torch.manual_seed(5)
    random.seed(5)
    states, level = (torch.get_rng_state(), random.getstate()), logging.getLogger("lm_eval").level
    capabilities(loaded, [write(tmp_path / "a")])
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert loaded.model.training and logging.getLogger("lm_eval").level == level
    loaded.model.eval()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"doc_to_text": "{{riddle.first}}"}, r"village.yaml cannot be \w+ \(.*riddle"),
        ({"dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}}}, r"village.yaml cannot be loaded \(.*nowhere"),
        ({"task": None}, r"village.yaml cannot be loaded \(.*correct the file"),
        ({"metric_list": [{"metric": "owlness"}]}, r"village.yaml cannot be \w+ \("),
    ],
)
def test_a_mistake_in_a_task_of_ones_own_is_one_sentence(loaded, tmp_path, changes, message):
    with pytest.raises(RepnoiseError, match=message):
        capabilities(loaded, [write(tmp_path / "a", **changes)])


def test_a_file_that_is_not_there_is_told(loaded):
    with pytest.raises(RepnoiseError, match=r"no file 'nowhere.yaml': check the path"):
        capabilities(loaded, ["nowhere.yaml"])


@pytest.mark.slow
def test_an_unknown_task_is_told_with_what_is_like_it(loaded):
    with pytest.raises(RepnoiseError, match=r"no task 'helaswag': did you mean hellaswag"):
        capabilities(loaded, ["helaswag"])


@pytest.mark.slow
def test_without_a_connection_the_task_is_named(loaded):
    with pytest.raises(RepnoiseError, match=r"The task hellaswag cannot be loaded \(.*check the connection"):
        capabilities(loaded, ["hellaswag"])


@pytest.mark.slow
def test_the_papers_tasks_are_known_to_the_harness():
    from lm_eval.tasks import TaskManager

    assert set(PAPER_TASKS) <= set(TaskManager().all_tasks)


def test_the_papers_tasks_have_one_name_together():
    assert task_names(["winogrande", "paper"]) == ["winogrande", *(t for t in PAPER_TASKS if t != "winogrande")]


@pytest.mark.parametrize("settings", [{"shots": -1}, {"limit": 0}])
def test_impossible_settings_are_told(loaded, settings):
    with pytest.raises(RepnoiseError, match="of lm-eval must be at least"):
        capabilities(loaded, ["hellaswag"], **settings)


def test_a_missing_package_is_told_with_what_installs_it(loaded, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(RepnoiseError, match=r"pip install 'repnoise\[eval\]'"):
        capabilities(loaded, ["hellaswag"])
