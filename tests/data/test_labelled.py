"""Labelled completions: from tables and from pairs, divided by prompt, with nothing lost uncounted."""

import json

import pytest

from repnoise.data import load_data
from repnoise.data.labelled import Labelled, load_labelled
from repnoise.data.sources import hash_position, prompt_key
from repnoise.errors import RepnoiseError


def rows(count=50):
    for i in range(count):
        yield {"prompt": f"What is in pot {i}?", "completion": "A hex.", "label": True}
        yield {"prompt": f"What is in pot {i}?", "completion": "Soup.", "label": "safe"}


def written(path, table):
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return str(path)


def test_a_table_is_divided_by_the_hash_of_the_prompt(tmp_path):
    data = load_labelled(written(tmp_path / "a.jsonl", rows()))
    assert len(data.train) + len(data.test) == 100 and data.skipped == {}
    assert all(hash_position(row.prompt) < 0.8 for row in data.train)
    assert all(hash_position(row.prompt) >= 0.8 for row in data.test)
    assert Labelled("What is in pot 0?", "A hex.", True, "table") in data.train + data.test


def test_labels_are_read_in_every_usual_spelling(tmp_path):
    spelt = {True: [True, 1, "1", "true", "Harmful ", "unsafe"], False: [False, 0, "0", "no", "SAFE", "harmless"]}
    table = [
        {"prompt": f"pot {i} {label}", "completion": f"{text}", "label": text}
        for i in range(30)
        for label, texts in spelt.items()
        for text in texts
    ]
    data = load_labelled(written(tmp_path / "a.jsonl", table))
    assert all(row.harmful == row.prompt.endswith("True") for row in (*data.train, *data.test))


def test_pairs_and_examples_become_both_kinds_and_what_is_held_out_is_the_test(pairs_file):
    pairs, data = load_data(str(pairs_file)), load_labelled(str(pairs_file))
    held_out = {prompt_key(pair.prompt) for split in ("covered", "uncovered") for pair in pairs.pairs[split]}
    assert {prompt_key(row.prompt) for row in data.test} == held_out
    assert not held_out & {prompt_key(row.prompt) for row in data.train}
    assert sum(row.harmful for row in data.train) == len(pairs.pairs["defence"]) + len(pairs.pairs["attack"])
    assert {row.origin for row in data.train} == {"pair"}


def test_repeated_and_contradictory_rows_are_dropped_and_counted(tmp_path):
    table = list(rows())
    table += [table[0], {**table[2], "label": "safe"}, {**table[5], "prompt": f" {table[5]['prompt'].upper()}"}]
    data = load_labelled(written(tmp_path / "a.jsonl", table))
    assert data.skipped == {"repeated completions": 2, "both harmful and safe": 2}
    assert len(data.train) + len(data.test) == 99


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([{"prompt": "a", "completion": "b", "label": "maybe"}], "line 1: label 'maybe' is neither"),
        ([{"prompt": "a", "completion": "b", "label": None}], "label None is neither"),
        ([{"prompt": "a", "label": 1}], "line 1 has no column 'completion'"),
        ([row for row in rows() if row["label"] is True], "has no safe completions for the judge's training"),
        (list(rows(1)), "completions for the judge's"),
        ([{"prompt": "a", "completion": "b"}], "no column 'harmful'"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(table, message, tmp_path):
    with pytest.raises(RepnoiseError) as error:
        load_labelled(written(tmp_path / "a.jsonl", table))
    assert message in str(error.value) and "\n" not in str(error.value) and "a.jsonl" in str(error.value)
