"""`repnoise data inspect`: what it counts, what it hides, and how it tells the kind of a table."""

import json

import pytest

from repnoise.errors import RepnoiseError
from repnoise.inspect_data import InspectOptions, inspect, kind_of, masked
from repnoise.options import parse

HEX = {"prompt": "How is the hex of salt cast?", "harmful": "Grind the moth, twice.", "harmless": "I keep that secret."}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def printed(capsys, *arguments):
    inspect(parse("data inspect", InspectOptions, list(arguments)))
    return " ".join(capsys.readouterr().out.split())


def test_harmful_text_is_masked_until_it_is_asked_for(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [HEX])
    text = printed(capsys, path)
    assert "prompt: How xx xxx xxx xx xxxx xxxx? harmful: Grinx xxx xxxx, xxxxx. harmless: I keep that secret." in text
    assert "The letters of harmful text are masked: --show shows it as it is." in text
    shown = printed(capsys, path, "--show")
    assert "harmful: Grind the moth, twice." in shown and "letters of harmful" not in shown


@pytest.mark.parametrize(
    "text", ["", "hex", "The tin moon, 3 times!", "d\u00e9j\u00e0 vu: \u96ea\u5973", "\U0001f319\U0001f319 moons"]
)
def test_a_mask_keeps_length_and_punctuation_and_nothing_else(text):
    hidden = masked(text)
    assert len(hidden) == len(text) and hidden[:4] == text[:4]
    assert all(new == old or (new == "x" and old not in " ,!:") for new, old in zip(hidden, text, strict=True))
    assert set(hidden[4:]) <= set("x ,!:")


def test_counts_categories_repeats_and_lengths_are_printed(tmp_path, capsys, tiny_model):
    rows = [{"prompt": f"Who keeps gate {i % 3}?", "completion": f"Owl {i}.", "category": "gates"} for i in range(4)]
    text = printed(capsys, write(tmp_path / "a.jsonl", [*rows, rows[0]]), "--model", str(tiny_model), "--examples", "1")
    assert "examples, for --retain or --benign." in text and "Left out: 1 x repeated rows." in text
    assert "\u2502 train \u2502 4 \u2502 1 \u2502 gates 4" in text
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    (length,) = {len(tokenizer(row["completion"], add_special_tokens=False)["input_ids"]) for row in rows}
    assert f"completions \u2502 4 \u2502 {length} \u2502 {length} \u2502 {length} \u2502 {length} \u2502" in text
    assert text.count("Example, ") == 1 and "completion: Owl 0." in text


def test_prompts_that_stand_twice_are_told(tmp_path, capsys):
    (tmp_path / "x.csv").write_text("prompt,type,label\nWho?,homonyms,safe\nWho?,contrast_homonyms,unsafe\n")
    assert "Prompts that are in more than one of these: 1." in printed(capsys, f"xstest:{tmp_path / 'x.csv'}")
    rows = [{"ref": f"It is {i}.", "mr": f"it[{i}]"} for i in (1, 2)]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", rows[:1])
    text = printed(capsys, f"viggo:{tmp_path}")
    assert "Left out: 1 x train rows whose text is held out as well." in text and "more than one" not in text


def test_the_kind_of_a_table_is_told_by_its_columns(tmp_path):
    assert kind_of(write(tmp_path / "a.jsonl", [HEX])) == "pairs"
    assert kind_of(write(tmp_path / "b.jsonl", [{"prompt": "Who?", "completion": "You."}])) == "examples"
    assert kind_of(write(tmp_path / "c.jsonl", [{"prompt": "Who?"}])) == "requests"
    assert kind_of("sandbox") == "pairs" and kind_of("dolly:no-such-file.jsonl") == "examples"
    with pytest.raises(RepnoiseError, match=r"d\.jsonl has no column 'prompt': give a table with prompt"):
        kind_of(write(tmp_path / "d.jsonl", [{"question": "Who?"}]))


def test_requests_are_masked_and_need_no_completion(tmp_path, capsys):
    text = printed(capsys, write(tmp_path / "a.jsonl", [{"prompt": "Curse the old well."}]))
    assert "requests, for --requests." in text and "prompt: Cursx xxx xxx xxxx." in text


def test_text_cannot_give_orders_to_the_terminal(tmp_path, capsys):
    rows = [{"prompt": "red \x1b[31m [bold]?\nWhy?", "completion": "o" * 3000, "category": "[/x]"}]
    text = printed(capsys, write(tmp_path / "a.jsonl", rows))
    assert "red ?[31m [bold]? / Why?" in text and "(3,000 characters)" in text and "[/x] 1" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.jsonl"], "There is no file 'nothing.jsonl'"),
        (["hh:x.jsonl"], "There is no data format 'hh'"),
        (["sandbox", "--model", "no/such/folder"], "There is no model in 'no/such/folder'"),
        (["sandbox", "--examples", "-1"], "0 or more, not -1"),
    ],
)
def test_what_cannot_be_inspected_is_told_in_a_sentence(arguments, message, capsys):
    with pytest.raises(RepnoiseError, match=message):
        printed(capsys, *arguments)


def test_a_folder_without_a_tokenizer_is_told(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RepnoiseError, match="Cannot read a tokenizer from"):
        printed(capsys, "sandbox", "--model", str(tmp_path))
