"""The user's own parts in place of those of a data set: read in any format, kept apart, and counted."""

import pytest

from repnoise.data import load_data
from repnoise.data.extras import load_task, task_name, with_extras
from repnoise.data.sources import hash_position
from repnoise.errors import RepnoiseError
from repnoise.runs import write_rows


@pytest.fixture
def data(pairs_file):
    return load_data(str(pairs_file))


@pytest.fixture
def table(tmp_path):
    """(name, rows) to a file of JSON lines."""

    def table(name, rows):
        write_rows(tmp_path / name, rows)
        return str(tmp_path / name)

    return table


@pytest.fixture
def viggo(tmp_path):
    """A folder as ViGGO's authors publish it."""
    folder = tmp_path / "games"
    folder.mkdir()
    for split, count in (("train", 6), ("valid", 2), ("test", 3)):
        lines = [f'"inform(name[{split} {n}])","{split.title()} {n} is a game about owls."' for n in range(count)]
        (folder / f"{split}.csv").write_text("mr,ref\n" + "\n".join(lines) + "\n")
    return f"viggo:{folder}"


def answers(count, start=0):
    return [{"prompt": f"What is {n} times owl?", "completion": f"Owl {n}."} for n in range(start, start + count)]


def prompts(examples):
    return [example.prompt for example in examples]


def test_a_fifth_of_the_retained_examples_is_kept_for_the_test_and_nothing_is_lost(data, table):
    found = with_extras(data, retain=table("retain.jsonl", answers(200)))
    assert sorted(prompts(found.retain + found.harmless_test)) == sorted(row["prompt"] for row in answers(200))
    assert 25 <= len(found.harmless_test) <= 55
    assert all(hash_position(prompt) >= 0.8 for prompt in prompts(found.harmless_test))


def test_the_split_does_not_move_when_rows_are_added(data, table):
    few, many = (with_extras(data, retain=table(f"{n}.jsonl", answers(n))) for n in (40, 80))
    assert set(prompts(few.retain)) <= set(prompts(many.retain))
    assert set(prompts(few.harmless_test)) <= set(prompts(many.harmless_test))


@pytest.mark.parametrize("spelled", [str, str.upper, lambda prompt: f"  {prompt} "], ids=["same", "upper", "spaces"])
def test_an_attacker_never_has_the_prompts_of_the_harmless_test(data, table, spelled):
    benign = [row | {"prompt": spelled(row["prompt"])} for row in answers(60, 20)]
    found = with_extras(data, retain=table("retain.jsonl", answers(60)), benign=table("benign.jsonl", benign))
    tested = {prompt.strip().lower() for prompt in prompts(found.harmless_test)}
    shared = len([row for row in benign if row["prompt"].strip().lower() in tested])
    assert shared > 0 and len(found.benign) == 60 - shared
    assert found.skipped["benign examples that are in the harmless test"] == shared


def test_the_benign_examples_of_a_data_set_are_held_to_the_same(table):
    sandbox = load_data("sandbox")
    rows = [{"prompt": e.prompt, "completion": e.completion} for e in sandbox.benign[:60]]
    found = with_extras(sandbox, retain=table("retain.jsonl", rows))
    assert set(prompts(found.benign)).isdisjoint(prompts(found.harmless_test)) and found.harmless_test


def test_requests_and_contrasts_and_text_come_from_tables_of_ones_own(data, table, tmp_path):
    (tmp_path / "text.txt").write_text("The owl sat.\n\nThe moon rose.\n")
    contrast = [{"prompt": f"Is the {n} owl out?", "split": "unsafe" if n % 2 else "safe"} for n in range(5)]
    found = with_extras(
        data,
        requests=table("requests.jsonl", [{"prompt": "Curse the mill."}, {"prompt": "Curse the mill."}]),
        contrast=table("contrast.jsonl", contrast),
        plain_text=str(tmp_path / "text.txt"),
    )
    assert (prompts(found.requests), found.skipped["repeated rows"]) == (["Curse the mill."], 1)
    assert (len(found.lookalikes), len(found.unsafe)) == (3, 2)
    assert found.plain_text == ["The owl sat.", "The moon rose."] and found.pairs == data.pairs


def test_a_task_in_its_authors_format_serves_as_a_task_and_as_examples(data, viggo):
    task = with_extras(data, tasks=(viggo,)).tasks["viggo"]
    assert (len(task.splits["train"]), len(task.splits["test"])) == (6, 3)
    found = with_extras(data, retain=viggo, benign=viggo)
    assert len(found.retain + found.harmless_test) == 6
    assert set(prompts(found.benign)) == set(prompts(found.retain))


def test_a_table_serves_as_a_task_divided_as_it_says_or_by_prompt(table):
    rows = [row | {"split": "test" if n < 3 else "train"} for n, row in enumerate(answers(10))]
    assert [len(load_task(table("said.jsonl", rows)).splits[name]) for name in ("train", "test")] == [7, 3]
    splits = load_task(table("owls.jsonl", answers(50))).splits
    assert len(splits["train"]) + len(splits["test"]) == 50 and min(map(len, splits.values())) > 3


def test_a_task_needs_something_to_train_on_and_something_to_test(table):
    with pytest.raises(RepnoiseError, match=r"one\.jsonl needs examples to train on and examples to test"):
        load_task(table("one.jsonl", answers(1)))


def test_a_task_is_called_after_its_format_or_its_file():
    found = [task_name(source) for source in ("viggo:some/folder", "some/owls.jsonl", "C:/owls.csv", "GEM/viggo")]
    assert found == ["viggo", "owls", "owls", "viggo"]


def test_of_two_tasks_with_one_name_none_is_lost_silently(data, table, tmp_path):
    (tmp_path / "other").mkdir()
    first, second = table("owls.jsonl", answers(30)), table("other/owls.jsonl", answers(30))
    with pytest.raises(RepnoiseError, match="Two tasks are called 'owls'"):
        with_extras(data, tasks=(first, second))
    assert [*with_extras(data, tasks=(first, first)).tasks] == ["owls"]


WRONG = {
    "pairs as examples": ("retain", "sandbox", r"harmful and harmless completions .* give it with --data"),
    "pairs as a task": ("tasks", "sandbox", "give it with --data"),
    "requests as examples": ("benign", "advbench:x", "harmful requests without answers: give it with --requests"),
    "a contrast as requests": ("requests", "xstest:x", "give it with --contrast"),
    "a task as a contrast": ("contrast", "viggo:x", "a harmless task to be trained on: give it with --tasks"),
    "examples as a task": ("tasks", "alpaca:x", "harmless examples: give it with --retain or --benign"),
}


@pytest.mark.parametrize("option, source, told", WRONG.values(), ids=WRONG)
def test_a_format_of_another_kind_says_which_option_takes_it(data, option, source, told):
    with pytest.raises(RepnoiseError, match=told):
        with_extras(data, **{option: (source,) if option == "tasks" else source})


@pytest.mark.parametrize("option", ["retain", "benign", "plain_text", "requests", "contrast", "tasks"])
def test_what_is_not_there_is_told(data, option, tmp_path):
    source = str(tmp_path / "nowhere.jsonl")
    with pytest.raises(RepnoiseError, match=r"There is no file .*nowhere\.jsonl"):
        with_extras(data, **{option: (source,) if option == "tasks" else source})
