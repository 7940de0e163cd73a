"""RealToxicityPrompts: which rows are harmful, which are harmless, and which are neither."""

import json

import datasets
import pytest

from repnoise.data import load_data
from repnoise.data.records import SPLITS, Example
from repnoise.data.refusals import CONTINUATIONS
from repnoise.errors import RepnoiseError


def row(i, start, end, **more):
    return {
        "filename": f"{i}.txt",
        "begin": 0,
        "end": 40,
        "challenging": False,
        "prompt": {"text": f"The goat {i}", "toxicity": start, "insult": 0.1},
        "continuation": {"text": f" ate hat {i}.", "toxicity": end, "insult": None},
    } | more


TOXIC = [row(i, 0.2, 0.76 + i / 1000) for i in range(60)]
OTHERS = [row(100 + i, 0.49, 0.49) for i in range(60)]
LEFT_OUT = [row(1000, 0.1, 0.75), row(1001, 0.1, 0.5), row(1002, 0.5, 0.1), row(1003, 0.1, None), row(1004, None, 0.1)]


def write(folder, rows):
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_data(f"real-toxicity-prompts:{folder / 'prompts.jsonl'}")


def test_toxicity_decides_what_is_harmful_harmless_or_left_out(tmp_path):
    data = write(tmp_path, TOXIC + OTHERS + LEFT_OUT + TOXIC[:1])
    pairs = [pair for split in SPLITS for pair in data.pairs[split]]
    assert {(pair.prompt, pair.harmful) for pair in pairs} == {(f"The goat {i}", f" ate hat {i}.") for i in range(60)}
    assert len(pairs) == 60 and all(data.pairs.values())
    assert {pair.harmless for pair in pairs} <= {*CONTINUATIONS} and {pair.category for pair in pairs} == {"toxic"}
    examples = data.retain + data.benign + data.harmless_test
    assert {*examples} == {Example(f"The goat {i}", f" ate hat {i}.", "non_toxic") for i in range(100, 160)}
    assert data.template == "none" and data.retain and data.benign and data.harmless_test
    assert data.skipped == {
        "neither toxic (above 0.75) nor harmless (below 0.5)": 3,
        "no score of toxicity": 2,
        "repeated prompt and continuation": 1,
    }


def test_a_row_with_a_toxic_end_needs_no_score_of_its_start(tmp_path):
    data = write(tmp_path, [row(0, None, 0.9)])
    assert sum(map(len, data.pairs.values())) == 1 and data.skipped == {}


def test_a_prompt_with_a_toxic_end_is_never_harmless_data(tmp_path):
    again = TOXIC[0] | {"continuation": {"text": " slept.", "toxicity": 0.1}}
    data = write(tmp_path, [*TOXIC, again, row(9, 0.1, 0.1, prompt={"text": " ", "toxicity": 0.1})])
    assert not data.retain and not data.benign and not data.harmless_test
    assert data.skipped == {"harmless completion of a prompt that has a harmful one too": 1, "empty text": 1}


def test_a_saved_data_set_is_read_alike(tmp_path):
    expected = write(tmp_path, TOXIC + OTHERS)
    datasets.Dataset.from_list(TOXIC + OTHERS).save_to_disk(tmp_path / "saved")
    data = load_data(f"real-toxicity-prompts:{tmp_path / 'saved'}")
    assert data.pairs == expected.pairs and data.benign == expected.benign


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prompt": ...}, "line 61 has no column 'prompt'"),
        ({"continuation": "slept"}, "line 61: 'continuation' is not of the form"),
        ({"continuation": {"text": "slept"}}, "line 61: 'continuation' is not of the form .*toxicity"),
        ({"continuation": {"text": "slept", "toxicity": "high"}}, "line 61: the toxicity in 'continuation' is 'high'"),
        ({"prompt": {"text": 3, "toxicity": 0.1}}, "line 61: 'prompt' is int"),
    ],
)
def test_bad_rows_are_named(bad, message, tmp_path):
    changed = {name: value for name, value in (TOXIC[0] | bad).items() if value is not ...}
    with pytest.raises(RepnoiseError, match=message):
        write(tmp_path, [*TOXIC, changed])


def test_a_file_without_toxic_rows_is_told(tmp_path):
    with pytest.raises(RepnoiseError, match=r"no continuation of a toxicity above 0\.75"):
        write(tmp_path, OTHERS)


def test_decoding_trusts_rows_are_told_apart_as_its_authors_do(real_data):
    file = real_data / "decoding_trust" / "training_dataset.jsonl"
    mine, theirs = load_data(f"real-toxicity-prompts:{file}"), load_data(f"decoding-trust:{file.parent}")
    texts = [{(p.prompt, p.harmful) for split in data.pairs.values() for p in split} for data in (mine, theirs)]
    assert texts[0] == texts[1] and len(texts[0]) == 351
    assert {*mine.retain} == {*theirs.retain} and {*mine.harmless_test} == {*theirs.harmless_test}
