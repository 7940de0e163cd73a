"""BeaverTails: one pair an answer, with all its categories, and who may train on which."""

import json
import lzma

import datasets
import pytest

from repnoise.data import load_data
from repnoise.data.records import SPLITS, Example, Pair
from repnoise.data.refusals import QUESTIONS
from repnoise.data.sets.beavertails import CATEGORIES, GROUPS
from repnoise.errors import RepnoiseError

WEAPONS, THEFT, HATE = CATEGORIES[4], CATEGORIES[5], CATEGORIES[6]


def row(prompt, response, *harms, **more):
    category = {name: name in harms for name in CATEGORIES}
    return {"prompt": prompt, "response": response, "category": category, "is_safe": not harms} | more


UNSAFE = [row(f"How is goat {i} cursed?", f"Hum tune {i} at it.", (WEAPONS, THEFT, HATE)[i % 3]) for i in range(60)]
SAFE = [row(f"What does goat {i} eat?", f"Hat number {i}.") for i in range(60)]


def write(folder, rows, name="train.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_data(f"beavertails:{folder / name}")


def pairs_of(data):
    return [pair for split in SPLITS for pair in data.pairs[split]]


def test_unsafe_answers_become_pairs_and_safe_ones_harmless_data(tmp_path):
    data = write(tmp_path, UNSAFE + SAFE)
    assert sorted((p.prompt, p.harmful, p.category) for p in pairs_of(data)) == sorted(
        (r["prompt"], r["response"], (WEAPONS, THEFT, HATE)[i % 3]) for i, r in enumerate(UNSAFE)
    )
    assert all(data.pairs.values()) and {pair.harmless for pair in pairs_of(data)} <= {*QUESTIONS}
    examples = data.retain + data.benign + data.harmless_test
    assert data.retain and data.benign and data.harmless_test
    assert {*examples} == {Example(r["prompt"], r["response"], "safe") for r in SAFE} and len(examples) == 60
    assert data.template == "auto" and data.skipped == {}


def test_the_papers_refusals_are_the_harmless_half_without_the_request_for_them(tmp_path):
    prompt = UNSAFE[0]["prompt"]
    refusals = {0: f"Question: {prompt}\nAnswer: Goats are under my care.", 1: "Ask the herd.", 2: " ", 3: None}
    data = write(tmp_path, [UNSAFE[i] | {"refusal": text} for i, text in refusals.items()])
    found = {pair.prompt: pair.harmless for pair in pairs_of(data)}
    assert found[prompt] == "Goats are under my care." and found[UNSAFE[1]["prompt"]] == "Ask the herd."
    assert {found[UNSAFE[2]["prompt"]], found[UNSAFE[3]["prompt"]]} <= {*QUESTIONS}


def test_an_answer_judged_several_times_is_one_pair_with_what_anybody_found(tmp_path):
    judged = [row("A curse?", "Hum.", HATE), row("A curse?", "Hum.", WEAPONS, HATE), row("A curse?", "Hum.")]
    data = write(tmp_path, [*judged, SAFE[0], SAFE[0]])
    (pair,) = pairs_of(data)
    assert (pair.prompt, pair.harmful, pair.category) == ("A curse?", "Hum.", f"{WEAPONS} + {HATE}")
    assert data.skipped == {
        "repeated prompt and response": 2,
        "harmless completion of a prompt that has a harmful one too": 1,
    }


def test_withholding_a_category_withholds_every_row_that_has_it(tmp_path):
    both = [row(f"Which curse for hen {i}?", "Hum.", THEFT, HATE) for i in range(40)]
    data = write(tmp_path, UNSAFE + both)
    everything, left = data.defender_pairs(), data.defender_pairs(withheld=[HATE])
    assert left == [pair for pair in everything if HATE not in pair.category]
    assert {pair.category for pair in left} == {WEAPONS, THEFT}
    assert data.defender_pairs(withheld=["toxic"]) == left and data.defender_pairs(withheld=[HATE, "toxic"]) == left
    assert {pair.category for pair in data.defender_pairs(withheld=["crime"])} == {HATE}
    attacked = data.attacker_pairs(["toxic"])
    assert attacked == [pair for pair in data.pairs["attack"] if HATE in pair.category]
    assert {pair.category for pair in attacked} == {HATE, f"{THEFT} + {HATE}"}


def test_names_of_categories_are_not_looked_for_inside_each_other(tmp_path):
    data = write(tmp_path, UNSAFE)
    with pytest.raises(RepnoiseError, match=r"no category 'theft'; it has: .*, crime, privacy, toxic, violence"):
        data.defender_pairs(withheld=["theft"])
    with pytest.raises(RepnoiseError, match="no category 'privacy'"):  # A group of which there are no rows.
        data.attacker_pairs(["privacy"])
    assert all({*names} <= {*CATEGORIES} for names in GROUPS.values())


def test_rows_that_cannot_be_used_are_counted(tmp_path):
    odd = [
        row("A goat?", " ", HATE),
        row("\n", "Yes."),
        row("A?", "B.", HATE, is_safe=True),
        row("A?", "C.") | {"is_safe": False},
    ]
    assert write(tmp_path, UNSAFE + odd).skipped == {
        "empty text": 2,
        "is_safe and category contradict each other": 2,
    }


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"response": ...}, "line 61 has no column 'response'"),
        ({"is_safe": ...}, "line 61 has no column 'is_safe'"),
        ({"category": ...}, "line 61 has no column 'category'"),
        ({"prompt": None}, "line 61: 'prompt' is null"),
        ({"response": 3}, "line 61: 'response' is int"),
        ({"is_safe": "no"}, "line 61: 'is_safe' is 'no', neither true nor false"),
        ({"category": "theft"}, "line 61: 'category' is str"),
        ({"category": {"thefts": True}}, "line 61: 'category' has 'thefts', none of the 14"),
        ({"category": {HATE: 1}}, "line 61: 'category' has 1 for hate_speech,offensive_language, not true or false"),
        ({"refusal": []}, "line 61: 'refusal' is list"),
    ],
)
def test_bad_rows_are_named(bad, message, tmp_path):
    changed = {name: value for name, value in (UNSAFE[0] | bad).items() if value is not ...}
    with pytest.raises(RepnoiseError, match=message):
        write(tmp_path, [*UNSAFE, changed])


def test_a_table_without_harm_is_told(tmp_path):
    with pytest.raises(RepnoiseError, match="has no unsafe answer"):
        write(tmp_path, SAFE)


def test_parquet_and_the_hubs_packed_file_are_read_alike(tmp_path):
    expected = write(tmp_path, UNSAFE + SAFE)
    datasets.Dataset.from_list(UNSAFE + SAFE).data.table.to_pandas().to_parquet(tmp_path / "train.parquet")
    (tmp_path / "train.jsonl.xz").write_bytes(lzma.compress((tmp_path / "train.jsonl").read_bytes()))
    for name in ("train.parquet", "train.jsonl.xz"):
        data = load_data(f"beavertails:{tmp_path / name}")
        assert data.pairs == expected.pairs and data.retain == expected.retain
    (tmp_path / "train.jsonl.xz").write_bytes(b"nothing")
    with pytest.raises(RepnoiseError, match="not a whole xz file"):
        load_data(f"beavertails:{tmp_path / 'train.jsonl.xz'}")


HUB_CARD = """---
configs:
- config_name: default
  data_files:
  - split: 330k_train
    path: round0/330k/train.jsonl.xz
  - split: 30k_test
    path: round0/30k/test.jsonl
---
"""


def test_a_part_of_the_hubs_data_is_chosen_by_name(tmp_path, datasets_cache, monkeypatch):
    folder = tmp_path / "PKU-Alignment" / "BeaverTails"
    for size in ("30k", "330k"):
        (folder / "round0" / size).mkdir(parents=True)
    expected = write(folder / "round0" / "30k", UNSAFE, "test.jsonl")
    lines = "".join(json.dumps(row) + "\n" for row in UNSAFE + SAFE).encode()
    (folder / "round0" / "330k" / "train.jsonl.xz").write_bytes(lzma.compress(lines))
    (folder / "README.md").write_text(HUB_CARD)
    monkeypatch.chdir(tmp_path)
    small = load_data("beavertails:PKU-Alignment/BeaverTails/30k_test")
    assert small.pairs == expected.pairs and not small.retain
    assert load_data(f"beavertails:{folder}/330k_train").retain
    with pytest.raises(RepnoiseError, match="has several parts: write PKU-Alignment/BeaverTails/30k_train, or one of"):
        load_data("beavertails:PKU-Alignment/BeaverTails")
    with pytest.raises(RepnoiseError, match="330k_test"):
        load_data("beavertails:PKU-Alignment/BeaverTails/330k_test")


def test_a_saved_data_set_of_several_parts_asks_for_one(tmp_path):
    rows = datasets.Dataset.from_list(UNSAFE)
    datasets.DatasetDict({"330k_train": rows, "30k_test": rows}).save_to_disk(tmp_path / "saved")
    with pytest.raises(RepnoiseError, match="saved has several parts"):
        load_data(f"beavertails:{tmp_path / 'saved'}")
    assert len(pairs_of(load_data(f"beavertails:{tmp_path / 'saved'}/30k_test"))) == 60


def test_a_pair_is_written_out_in_full(tmp_path):
    data = write(tmp_path, [row(" A curse? ", "Hum.\n", THEFT, refusal="No.")])
    assert pairs_of(data) == [Pair("A curse?", "Hum.", "No.", THEFT)]
