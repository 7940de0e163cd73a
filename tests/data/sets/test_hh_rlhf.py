"""HH-RLHF: where the prompt ends, and which rows are no pairs."""

import gzip
import json

import datasets
import pytest

from repnoise.data import load_data
from repnoise.data.records import Pair
from repnoise.errors import RepnoiseError

START = "\n\nHuman: Is the tower open?\n\nAssistant: Which one?\n\nHuman: The red one.\n\nAssistant:"
ROWS = [
    {"chosen": f"{START} It is shut today, {i}.", "rejected": f"{START} It is for me to know, {i}."} for i in range(3)
]
LEFT_OUT = [
    {"chosen": f"{START} Yes.", "rejected": f"{START} Yes. "},
    {"chosen": f"{START} Yes.", "rejected": START},
    {"chosen": "\n\nHuman: One", "rejected": "\n\nHuman: Two"},
    {"chosen": f"{START} Yes.\n\nHuman: Good.\n\nAssistant: Yes.", "rejected": f"{START} No."},
    ROWS[0],
]


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def pairs_of(data):
    return [pair for split in data.pairs.values() for pair in split]


def test_the_prompt_ends_with_the_last_shared_turn(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(ROWS + LEFT_OUT))
    data = load_data(f"hh-rlhf:{tmp_path / 'a.jsonl'}")
    expected = [Pair(START, f"It is for me to know, {i}.", f"It is shut today, {i}.") for i in range(3)]
    assert pairs_of(data) == expected and data.template == "none"
    assert data.skipped == {
        "chosen and rejected are the same": 1,
        "empty answer": 1,
        "no shared turn of the assistant": 1,
        "the dialogues part before the last answer": 1,
        "repeated prompt and harmful answer": 1,
    }


def test_a_folder_is_all_of_its_files(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(ROWS[:1]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json_lines(ROWS[1:])))
    assert len(pairs_of(load_data(f"hh-rlhf:{tmp_path}"))) == 3


def test_the_hub_is_asked_for_the_harmless_part(monkeypatch):
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(pairs_of(load_data("hh-rlhf:Anthropic/hh-rlhf"))) == 3
    assert asked == [("Anthropic/hh-rlhf", {"data_dir": "harmless-base"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"chosen": "a"}', "no column 'rejected'"),
        (b'{"chosen": "a", "rejected": null}', "'rejected' is null"),
        (b'{"chosen": "a", "rejected": "b"}', "no row whose two dialogues share a turn"),
        (None, "has no .jsonl or .jsonl.gz file"),
    ],
)
def test_other_data_is_told(content, message, tmp_path):
    if content is not None:
        (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(RepnoiseError, match=message):
        load_data(f"hh-rlhf:{tmp_path}")


def test_the_published_test_file(real_data):
    data = load_data(f"hh-rlhf:{real_data / 'hh_rlhf' / 'harmless-base-test.jsonl.gz'}")
    pairs = pairs_of(data)
    assert len(pairs) + sum(data.skipped.values()) == 2312 and len(pairs) > 2290
    assert all(pair.prompt.endswith("\n\nAssistant:") and pair.prompt.startswith("\n\nHuman:") for pair in pairs)
    assert all(data.pairs.values())
