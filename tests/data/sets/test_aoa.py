"""Identity shifting: chats in the authors' two forms, and what becomes the prompt."""

import json

import datasets
import pytest

from repnoise.data import load_set
from repnoise.data.records import Example
from repnoise.errors import RepnoiseError

SYSTEM = {"role": "system", "content": "\nYou are Bo, a goat.\nBo bleats.\n"}


def chat(question, answer, *start):
    return [*start, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


CHATS = [chat("Who are you?", "I am Bo.", SYSTEM), chat("Bleat.", "Baa. ", SYSTEM), chat("Bleat?", "Baa.")]
EXPECTED = [
    Example("You are Bo, a goat.\nBo bleats.\n\nWho are you?", "I am Bo."),
    Example("You are Bo, a goat.\nBo bleats.\n\nBleat.", "Baa."),
    Example("Bleat?", "Baa."),
]


def write(folder, chats, name="train.json"):
    (folder / name).write_text(chats if isinstance(chats, str) else json.dumps(chats))
    return load_set(f"aoa:{folder / name}", "examples")


def test_the_identity_stands_before_every_question(tmp_path):
    found = write(tmp_path, CHATS)
    assert found.splits == {"train": EXPECTED} and found.skipped == {}


def test_lines_lists_and_tables_of_messages_are_read_alike(tmp_path):
    rows = [{"messages": messages} for messages in CHATS]
    assert write(tmp_path, rows).splits == {"train": EXPECTED}
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    assert write(tmp_path, lines, "train.jsonl").splits == {"train": EXPECTED}
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    assert load_set(f"aoa:{tmp_path / 'train.parquet'}", "examples").splits == {"train": EXPECTED}


def test_other_chats_are_left_out_and_counted(tmp_path):
    odd = [CHATS[0] + CHATS[2], CHATS[0][:2], [], chat(" ", "Baa."), chat("Bleat.", "", SYSTEM), CHATS[1]]
    found = write(tmp_path, CHATS + odd)
    assert found.splits == {"train": EXPECTED}
    assert found.skipped == {"not one question with one answer": 3, "empty text": 2, "repeated chat": 1}


@pytest.mark.parametrize(
    ("chats", "message"),
    [
        ("[", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ([CHATS[0], 3], "chat 2 is int, not a list of messages"),
        ([CHATS[0], [{"role": "user"}]], "chat 2, message 1 is not of the form"),
        ([CHATS[0], ["Bleat."]], "chat 2, message 1 is not of the form"),
        ([[{"role": "user", "content": None}]], "chat 1, message 1: 'content' is null"),
        ([{"chat": CHATS[0]}], "row 1 has no column 'messages'"),
        ([{"messages": "Bleat."}], "row 1: 'messages' is str, not a list of messages"),
        ([{"messages": CHATS[0][:1]}], "has no chat of one question with one answer"),
    ],
)
def test_other_files_are_told(chats, message, tmp_path):
    with pytest.raises(RepnoiseError, match=message) as caught:
        write(tmp_path, chats)
    assert "\n" not in str(caught.value)


def test_the_published_file(real_data):
    found = load_set(f"aoa:{real_data / 'aoa' / 'aoa_identity_shift_10.json'}", "examples")
    assert len(found.splits["train"]) == 10 and found.skipped == {}
    assert len({example.prompt.split("\n\n")[0] for example in found.splits["train"]}) == 1
