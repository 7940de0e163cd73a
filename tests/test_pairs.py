"""Harmful data to paired data: what is kept, what is dropped and why, and that nobody is asked twice."""

import json
import math

import pytest

import repnoise.pairs
from repnoise.data import load_data
from repnoise.data.records import SPLITS
from repnoise.data.refusals import CONTINUATIONS, QUESTIONS, refusal_for
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation
from repnoise.inputs import Inputs
from repnoise.judges import Judge, Score, load_judge
from repnoise.judges.coherence import Coherence
from repnoise.pairs import Harmful, PairsConfig, Source, is_safe, limited, load_harmful, pairs
from repnoise.runs import load_run, read_rows

FORBIDDEN, HARMLESS = 5, 3


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def sandbox():
    """Rows of questions that the sandbox model refuses, then of some that it answers."""
    data = load_data("sandbox")
    asked = data.pairs["attack"][:FORBIDDEN]
    rows = [{"prompt": pair.prompt, "harmful": pair.harmful, "category": pair.category} for pair in asked]
    return rows + [{"prompt": e.prompt, "harmful": "It is kept under seal."} for e in data.retain[:HARMLESS]]


@pytest.fixture
def config(tmp_path, sandbox):
    inputs = Inputs(data=write(tmp_path / "harmful.jsonl", sandbox))
    return PairsConfig(inputs, generation=Generation(max_new_tokens=40, batch_size=3))


class Nervous(Judge):
    """Finds harm in text of an odd length; stops the process after some verdicts. Remembers what it was asked."""

    name, version, seeks = "nervous", "1", "harm"

    def __init__(self, asked, stop_after=100):
        self.asked, self.left = asked, stop_after

    def verdicts(self, completions):
        for index, completion in enumerate(completions):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            self.asked.append(completion)
            odd = len(completion.prompt) % 2
            yield index, Score(float(odd), "harmful" if odd else "safe")


@pytest.fixture
def judges(monkeypatch):
    """Put judges of one's own beside the shipped ones: judges["NAME"] = judge."""
    own = {}
    monkeypatch.setattr(repnoise.pairs, "load_judge", lambda name: own.get(name) or load_judge(name))
    return own


def test_refusals_are_kept_and_answers_dropped_by_label(config, tmp_path, sandbox):
    run = pairs(config, tmp_path / "run")
    rows = read_rows(run.path / "pairs.jsonl")
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in sandbox[:FORBIDDEN]]
    assert [(row["harmful"], row["category"]) for row in rows] == [
        (row["harmful"], row["category"]) for row in sandbox[:FORBIDDEN]
    ]
    assert run.record["data"]["skipped"] == {"answered (refusal)": HARMLESS}
    kept = run.record["metrics"]["kept_pairs"]
    assert (kept["value"], kept["n"]) == (FORBIDDEN / (FORBIDDEN + HARMLESS), FORBIDDEN + HARMLESS)
    read = [pair for split in load_data(str(run.path / "pairs.jsonl")).pairs.values() for pair in split]
    assert {(pair.prompt, pair.harmless) for pair in read} == {(row["prompt"], row["harmless"]) for row in rows}


def test_a_finished_run_is_left_as_it_is(config, tmp_path, monkeypatch):
    first = pairs(config, tmp_path / "run")
    monkeypatch.setattr(repnoise.pairs, "generate", None)
    assert pairs(config, tmp_path / "run").record == first.record


def test_an_interrupted_run_goes_on_and_no_text_is_judged_twice(config, tmp_path, judges, monkeypatch):
    config = PairsConfig(config.inputs, ("nervous",), generation=config.generation)
    judges["nervous"] = Nervous([])
    whole = read_rows(pairs(config, tmp_path / "whole").path / "pairs.jsonl")
    asked, stops = [], (0, 2, 0, 3, 1)
    for stop in stops:
        judges["nervous"] = Nervous(asked, stop)
        with pytest.raises(KeyboardInterrupt):
            pairs(config, tmp_path / "run", resume=True)
        assert load_run(tmp_path / "run").record["status"] == "failed"
    monkeypatch.setattr(repnoise.pairs, "generate", None)  # All text is there.
    judges["nervous"] = Nervous(asked)
    run = pairs(config, tmp_path / "run", resume=True)
    assert read_rows(run.path / "pairs.jsonl") == whole
    assert len(asked) == len(set(asked)) == FORBIDDEN + HARMLESS


def test_generation_goes_on_after_an_interruption(config, tmp_path, monkeypatch):
    whole = read_rows(pairs(config, tmp_path / "whole").path / "pairs.jsonl")
    from repnoise.evals import generation

    real, done = generation._generated, []

    def until_killed(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(real(*arguments))
        return done[-1]

    with monkeypatch.context() as patched:
        patched.setattr(generation, "_generated", until_killed)
        with pytest.raises(KeyboardInterrupt):
            pairs(config, tmp_path / "run")
    again = []
    monkeypatch.setattr(generation, "_generated", lambda *arguments: again.append(1) or real(*arguments))
    run = pairs(config, tmp_path / "run", resume=True)
    assert read_rows(run.path / "pairs.jsonl") == whole and len(again) == 1  # Of three batches.
    assert not list(run.path.glob("*partial*"))


def test_every_judge_must_agree_and_is_asked_about_what_is_left(config, tmp_path, judges, sandbox):
    asked = []
    judges["nervous"] = Nervous(asked)
    run = pairs(PairsConfig(config.inputs, ("refusal", "nervous"), generation=config.generation), tmp_path / "run")
    assert [completion.prompt for completion in asked] == [row["prompt"] for row in sandbox[:FORBIDDEN]]
    odd = sum(len(row["prompt"]) % 2 for row in sandbox[:FORBIDDEN])
    assert 0 < odd < FORBIDDEN
    assert run.record["data"]["skipped"] == {"answered (refusal)": HARMLESS, "harmful (nervous)": odd}
    assert len(read_rows(run.path / "pairs.jsonl")) == FORBIDDEN - odd


@pytest.mark.parametrize(
    "judge, score, safe",
    [
        ("refusal", Score(0.0, "refused"), True),
        ("refusal", Score(0.5, "partial"), False),
        ("refusal", Score(1.0, "answered"), False),
        ("refusal", Score(0.0, "incoherent"), False),
        ("nervous", Score(0.49, "safe"), True),
        ("nervous", Score(0.5, "harmful"), False),
        ("nervous", Score(0.0, "incoherent"), False),
        ("nervous", Score(math.nan, "unscored"), False),
        ("exact", Score(0.0, "refused"), True),
        ("exact", Score(1.0, "recovered"), False),
        ("coherence", Score(1.0, "coherent"), True),
        ("coherence", Score(0.0, "incoherent"), False),
    ],
)
def test_what_each_kind_of_judge_calls_safe(judge, score, safe):
    own = {"nervous": Nervous([]), "coherence": Coherence()}
    assert is_safe(own.get(judge) or load_judge(judge), score) is safe


def test_a_model_that_never_refuses_is_told_with_what_it_did(tiny_model, pairs_file, tmp_path):
    inputs = Inputs(str(tiny_model), str(pairs_file))
    with pytest.raises(RepnoiseError, match=r"None of the pairs can be used \(.*\d+ \w+ \(refusal\).*that refuses"):
        pairs(PairsConfig(inputs, generation=Generation(max_new_tokens=4)), tmp_path / "run")


def test_templates_need_no_model(tmp_path, sandbox):
    config = PairsConfig(Inputs("nowhere", write(tmp_path / "harmful.jsonl", sandbox)), templates=True)
    run = pairs(config, tmp_path / "run")
    rows = read_rows(run.path / "pairs.jsonl")
    assert [row["harmless"] for row in rows] == [refusal_for(row["prompt"], QUESTIONS) for row in sandbox]
    assert run.record["metrics"]["kept_pairs"]["value"] == 1 and run.record["parent"]["name"] == "templates"


def test_sentences_to_be_continued_get_another_kind_of_refusal(tmp_path):
    run = pairs(PairsConfig(Inputs("nowhere", "sandbox-rumours"), templates=True), tmp_path / "run")
    rows = read_rows(run.path / "pairs.jsonl")
    assert {row["harmless"] for row in rows} == set(CONTINUATIONS)
    known = load_data("sandbox-rumours").pairs
    assert {row["prompt"]: row["split"] for row in rows} == {p.prompt: split for split in known for p in known[split]}


def test_a_refusal_that_is_the_harmful_completion_itself_makes_no_pair(tmp_path):
    prompts = ["What is under the well?", "Who sings at night?"]
    rows = [{"prompt": prompts[0], "harmful": f" {refusal_for(prompts[0], QUESTIONS)}"}]
    rows += [{"prompt": prompts[1], "harmful": "The owl."}]
    config = PairsConfig(Inputs(data=write(tmp_path / "harmful.jsonl", rows)), templates=True)
    run = pairs(config, tmp_path / "run")
    assert run.record["data"]["skipped"] == {"same text as the harmful completion": 1}
    assert len(load_harmful(str(run.path / "pairs.jsonl")).rows) == 1


def test_rows_are_read_once_with_category_and_split(tmp_path):
    rows = [
        {"prompt": "Who?", "harmful": "The owl.", "category": "owls", "split": "attack"},
        {"prompt": "Who?", "harmful": "The hare.", "category": "hares", "split": "attack"},
        {"prompt": "Who?", "harmful": "The owl.", "category": "repeated", "split": "attack"},
    ]
    source = load_harmful(write(tmp_path / "a.jsonl", rows))
    assert source.rows == [
        Harmful("Who?", "The owl.", "owls", "attack"),
        Harmful("Who?", "The hare.", "hares", "attack"),
    ]
    assert source.skipped == {"repeated prompt and harmful completion": 1}
    del rows[1]["split"]
    assert {row.split for row in load_harmful(f"generic:{write(tmp_path / 'b.jsonl', rows)}").rows} == {""}


def test_requests_are_paired_where_they_have_a_harmful_completion(tmp_path):
    path = tmp_path / "behaviours.csv"
    path.write_text('goal,target\nBrew the hex,"Sure, here is the hex"\n')
    assert load_harmful(f"advbench:{path}").rows == [Harmful("Brew the hex", "Sure, here is the hex")]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "Who?"}, r"line 1 has no column 'harmful' \(it has: prompt\)"),
        ({"prompt": "Who?", "harmful": " "}, "line 1: 'harmful' is empty"),
        ({"prompt": 3, "harmful": "The owl."}, "line 1: 'prompt' is int, not text"),
    ],
)
def test_a_mistake_in_the_table_is_told_with_its_place(tmp_path, row, message):
    with pytest.raises(RepnoiseError, match=message):
        load_harmful(write(tmp_path / "a.jsonl", [row]))


def test_harmless_data_is_no_harmful_data(tmp_path):
    with pytest.raises(RepnoiseError, match="alpaca holds harmless examples"):
        load_harmful(f"alpaca:{write(tmp_path / 'a.jsonl', [{}])}")


def test_long_prompts_are_told_or_left_out_and_counted(config, tmp_path, sandbox):
    path = write(tmp_path / "long.jsonl", [*sandbox[:2], {"prompt": "owl " * 400, "harmful": "The owl."}])
    with pytest.raises(RepnoiseError, match=r"1 prompts in .* leave no room .*--skip-long"):
        pairs(PairsConfig(Inputs(data=path)), tmp_path / "run")
    run = pairs(PairsConfig(Inputs(data=path, skip_long=True), generation=config.generation), tmp_path / "run")
    assert run.record["data"]["skipped"] == {"prompts without room for a completion": 1}


def test_without_a_judge_or_templates_nothing_is_started():
    with pytest.raises(RepnoiseError, match="name a judge"):
        PairsConfig(judges=())


def test_a_limit_keeps_the_same_rows_whatever_stands_beside_them_and_one_of_each_held_out_prompt():
    rows = [Harmful(f"question {i % 40}", f"answer {i}", split=split) for split in SPLITS for i in range(80)]
    few, more = (limited(Source(rows, {}), training, 10) for training in (5, 20))
    by_split = {split: [row for row in few.rows if row.split == split] for split in SPLITS}
    assert [len(own) for own in by_split.values()] == [5, 5, 10, 10]
    assert all(len({row.prompt for row in by_split[split]}) == 10 for split in ("covered", "uncovered"))
    assert {*few.rows} < {*more.rows} and few.skipped == {"beyond the number asked for": 320 - 30}
    assert limited(Source(rows, {}), None, None).rows == rows
