"""Alpaca and Dolly: how input and context join the instruction, and which rows are left out."""

import json

import datasets
import pytest

from repnoise.data import load_set
from repnoise.data.records import Example
from repnoise.errors import RepnoiseError

ALPACA = [
    {"instruction": "Name three owls.", "input": "", "output": "Grey, tin and salt."},
    {"instruction": "Shorten this.", "input": "A very long tale.", "output": "A tale."},
]
DOLLY = [
    {
        "instruction": "Who is she?",
        "context": "Ada keeps the well.\n",
        "response": "Its keeper.",
        "category": "closed_qa",
    },
    {"instruction": "Why?", "context": None, "response": "Because.", "category": "open_qa"},
]
FROM_ALPACA = [
    Example("Name three owls.", "Grey, tin and salt."),
    Example("Shorten this.\n\nA very long tale.", "A tale."),
]


def test_an_input_follows_the_instruction_after_an_empty_line(tmp_path):
    (tmp_path / "alpaca_data.json").write_text(json.dumps([*ALPACA, ALPACA[0], ALPACA[0] | {"output": ""}]))
    data = load_set(f"alpaca:{tmp_path / 'alpaca_data.json'}", "examples")
    assert data.splits == {"train": FROM_ALPACA}
    assert data.skipped == {"repeated rows": 1, "blank instruction or answer": 1}


def test_dolly_has_categories_and_contexts(tmp_path):
    (tmp_path / "dolly.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DOLLY))
    data = load_set(f"dolly:{tmp_path / 'dolly.jsonl'}", "examples")
    assert data.splits["train"] == [
        Example("Who is she?\n\nAda keeps the well.", "Its keeper.", "closed_qa"),
        Example("Why?", "Because.", "open_qa"),
    ]
    assert data.skipped == {}


def test_the_hub_has_the_same_columns(monkeypatch):
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(ALPACA)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_set("alpaca:tatsu-lab/alpaca", "examples").splits == {"train": FROM_ALPACA}
    assert asked == [("tatsu-lab/alpaca", {})]


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("alpaca", DOLLY[0], "line 1 has no column 'input'"),
        ("dolly", ALPACA[0], "line 1 has no column 'context'"),
        ("dolly", DOLLY[0] | {"response": None}, "line 1: 'response' is null"),
        ("dolly", DOLLY[0] | {"category": 3}, "line 1: 'category' is int, not text"),
        ("alpaca", ALPACA[0] | {"input": ["a"]}, "line 1: 'input' is list, not text"),
        ("alpaca", ALPACA[0] | {"output": " "}, "no row with an instruction and an answer"),
    ],
)
def test_another_table_is_told(name, row, message, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(RepnoiseError, match=message):
        load_set(f"{name}:{tmp_path / 'a.jsonl'}", "examples")
