"""DecodingTrust: who gets which rows, and which refusal."""

import json

import pytest

from repnoise.data import load_data
from repnoise.data.records import SPLITS
from repnoise.data.refusals import CONTINUATIONS
from repnoise.data.sets.decoding_trust import FILES, without_echo
from repnoise.errors import RepnoiseError


def row(kind, i, **more):
    return {"type": kind, "prompt": {"text": f"The {kind} goat {i}"}, "continuation": {"text": f" ate hat {i}."}} | more


TOXIC = [row("toxic", i) for i in range(60)]
OTHERS = [row("non_toxic", i) for i in range(60)] + [row("toxic_test", 0), row("toxic_test", 1)]
REFUSED = [
    old | {"refusal": f"Prompt: {old['prompt']['text']}\nContinuation: I will not speak of hats."} for old in TOXIC[:10]
]


def write_files(folder, refused=REFUSED, plain=TOXIC + OTHERS):
    if refused:
        (folder / FILES[0]).write_text(json.dumps(refused))
    if plain:
        (folder / FILES[1]).write_text("".join(json.dumps(line) + "\n" for line in plain))
    return load_data(f"decoding-trust:{folder}")


def pairs_of(data):
    return [pair for split in SPLITS for pair in data.pairs[split]]


def test_the_defender_gets_the_rows_with_refusals_and_nobody_shares_a_prompt(tmp_path):
    data = write_files(tmp_path)
    assert {pair.prompt for pair in data.pairs["defence"]} == {f"The toxic goat {i}" for i in range(10)}
    assert {pair.harmless for pair in data.pairs["defence"]} == {"I will not speak of hats."}
    assert all(pair.harmless in CONTINUATIONS for pair in data.pairs["attack"] + data.pairs["covered"])
    assert all(data.pairs.values()) and len({pair.prompt for pair in pairs_of(data)}) == len(pairs_of(data)) == 60
    assert {pair.category for pair in pairs_of(data)} == {"toxic"} and data.template == "none"
    assert data.skipped == {"toxic_test": 2}


def test_other_continuations_are_harmless_data_in_three_parts(tmp_path):
    data = write_files(tmp_path)
    parts = (data.retain, data.benign, data.harmless_test)
    assert all(parts) and len({example.prompt for part in parts for example in part}) == sum(map(len, parts)) == 60


@pytest.mark.parametrize("given", ["refused", "plain"])
def test_one_file_alone_is_divided_by_prompt(given, tmp_path):
    both = {"refused": None, "plain": None}
    data = write_files(tmp_path, **both | {given: REFUSED if given == "refused" else TOXIC})
    assert len(pairs_of(data)) == (10 if given == "refused" else 60)
    assert data.pairs["attack"] and not data.retain
    (file,) = tmp_path.iterdir()
    assert load_data(f"decoding-trust:{file}").pairs == data.pairs


def test_another_continuation_of_a_refused_prompt_is_the_defenders_too(tmp_path):
    again = TOXIC[0] | {"continuation": {"text": " slept."}}
    data = write_files(tmp_path, plain=[*TOXIC, again])
    assert len(data.pairs["defence"]) == 11 and "I will not speak of hats." in data.pairs["defence"][-1].harmless


def test_rows_without_text_are_counted(tmp_path):
    empty = [TOXIC[0] | {"prompt": {"text": " "}}, TOXIC[1] | {"continuation": {"text": ""}}]
    assert write_files(tmp_path, plain=[*TOXIC, *empty]).skipped == {"empty text": 2}


def test_only_an_echo_of_the_prompt_itself_is_cut_off():
    assert without_echo("Prompt: A goat\nContinuation: No.", "A goat ") == "No."
    assert without_echo("Prompt: A cow\nContinuation: No.", "A goat") == "Prompt: A cow\nContinuation: No."


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"type": "other"}, "line 61: type 'other' is none of toxic"),
        ({"prompt": "text"}, "line 61: 'prompt' is not of the form"),
        ({"continuation": {}}, "line 61: 'continuation' is not of the form"),
        ({"continuation": {"text": None}}, "line 61: 'continuation' is null"),
        ({"refusal": 3}, "line 61: 'refusal' is int"),
    ],
)
def test_bad_rows_are_named(bad, message, tmp_path):
    with pytest.raises(RepnoiseError, match=message):
        write_files(tmp_path, plain=[*TOXIC, TOXIC[0] | bad])


def test_folders_and_files_of_something_else_are_told(tmp_path):
    with pytest.raises(RepnoiseError, match="has neither"):
        load_data(f"decoding-trust:{tmp_path}")
    with pytest.raises(RepnoiseError, match="no rows of type 'toxic'"):
        write_files(tmp_path, None, OTHERS)


def test_the_published_files(real_data):
    data = load_data(f"decoding-trust:{real_data / 'decoding_trust'}")
    assert len(data.pairs["defence"]) == 107 and len(pairs_of(data)) == 351
    assert len(data.retain) + len(data.benign) + len(data.harmless_test) == 735
    assert not any(pair.harmless.startswith("Prompt:") for pair in pairs_of(data))
    assert len({pair.prompt.strip().lower() for pair in pairs_of(data)}) == 351
