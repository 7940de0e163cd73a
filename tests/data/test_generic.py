"""A user's own tables: every format gives the same data, every mistake one sentence, and nothing else ever escapes."""

import csv
import gzip
import io
import json
import subprocess
import sys

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repnoise.data import load_data
from repnoise.data.examples import load_example_set, load_text
from repnoise.data.extras import with_extras
from repnoise.data.records import SPLITS, Example, Pair
from repnoise.data.sets.generic import load_generic
from repnoise.data.sources import PairedData, split_by_prompt
from repnoise.errors import RepnoiseError

ROWS = [
    {
        "prompt": f"Who guards gate {i}?",
        "harmful": f"The owl, {i}.",
        "harmless": "I keep that secret.",
        "category": "gates",
    }
    for i in range(40)
]


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_csv(rows, delimiter=","):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def all_pairs(data):
    return sorted((pair for split in data.pairs.values() for pair in split), key=lambda pair: pair.prompt)


def write_feather(path):
    from pyarrow import feather, table

    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    feather.write_feather(table(columns), str(path), compression="uncompressed")
    return str(path)


def write_parquet(path):
    datasets.Dataset.from_list(ROWS).data.table.to_pandas().to_parquet(path)
    return str(path)


def write_folder(path):
    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(path)
    return str(path)


WRITERS = {
    "a.jsonl": lambda path: write(path, json_lines(ROWS)),
    "lines.json": lambda path: write(path, json_lines(ROWS)),
    "list.json": lambda path: write(path, json.dumps(ROWS, indent=1)),
    "bom.jsonl": lambda path: write(path, "\ufeff" + json_lines(ROWS).replace("\n", "\r\n\r\n")),
    "a.jsonl.gz": lambda path: write(path, gzip.compress(json_lines(ROWS).encode())),
    "a.csv": lambda path: write(path, as_csv(ROWS)),
    "a.CSV.gz": lambda path: write(path, gzip.compress(as_csv(ROWS).encode())),
    "a.tsv": lambda path: write(path, as_csv(ROWS, "\t")),
    "a.parquet": write_parquet,
    "file.arrow": write_feather,
    "folder": write_folder,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_pairs(name, tmp_path):
    data = load_data(WRITERS[name](tmp_path / name))
    assert all_pairs(data) == sorted((Pair(**row) for row in ROWS), key=lambda pair: pair.prompt)
    assert data.held_out == {"covered": data.pairs["covered"], "uncovered": data.pairs["uncovered"]}
    assert data.skipped == {} and not data.exact and data.name == str(tmp_path / name)


def test_arrow_streams_of_datasets_are_read(tmp_path):
    write_folder(tmp_path / "saved")
    (stream,) = (tmp_path / "saved" / "train").glob("*.arrow")
    assert len(all_pairs(load_generic(str(stream)))) == len(ROWS)


def test_characters_that_look_like_line_breaks_stay_in_their_row(tmp_path):
    row = ROWS[0] | {"harmful": "one\u2028two\x85three"}
    path = write(tmp_path / "a.jsonl", json.dumps(row, ensure_ascii=False))
    assert all_pairs(load_generic(path))[0].harmful == "one\u2028two\x85three"


def test_no_prompt_is_in_two_splits_and_all_splits_are_there(tmp_path):
    rows = ROWS + [row | {"prompt": f" {row['prompt'].upper()}", "harmful": "The fox."} for row in ROWS]
    data = load_generic(write(tmp_path / "a.jsonl", json_lines(rows)))
    keys = [{pair.prompt.strip().lower() for pair in data.pairs[split]} for split in SPLITS]
    assert all(keys) and sum(map(len, keys)) == len(set.union(*keys)) == len(ROWS)


def test_adding_rows_moves_no_row():
    pairs = [Pair(**row) for row in ROWS]
    few, all_of_them = split_by_prompt(pairs[:20]), split_by_prompt(pairs)
    assert all(set(few[split]) <= set(all_of_them[split]) for split in SPLITS)


def test_a_split_column_is_used_as_it_is(tmp_path):
    rows = [row | {"split": SPLITS[i % 4]} for i, row in enumerate(ROWS)]
    data = load_generic(write(tmp_path / "a.csv", as_csv(rows)))
    for i, split in enumerate(SPLITS):
        assert data.pairs[split] == [Pair(**row) for row in ROWS[i::4]]


def test_repeated_rows_are_dropped_and_counted(tmp_path):
    data = load_generic(write(tmp_path / "a.jsonl", json_lines([*ROWS, ROWS[0] | {"harmless": "No."}, ROWS[1]])))
    assert all_pairs(data) == sorted((Pair(**row) for row in ROWS), key=lambda pair: pair.prompt)
    assert data.skipped == {"repeated prompt and harmful completion": 2}


def line(**changes):
    """A good row, and on line 2 one with a change; a column set to ... is left out."""
    return json_lines([ROWS[0], {name: value for name, value in (ROWS[1] | changes).items() if value is not ...}])


SPLIT_TWICE = [ROWS[0] | {"split": "attack"}, ROWS[0] | {"split": "covered"}]
MALFORMED = {
    "missing column": (
        "a.jsonl",
        line(harmless=...),
        "line 2 has no column 'harmless' (it has: category, harmful, prompt)",
    ),
    "missing csv column": (
        "a.csv",
        "prompt,harmful,refusal\na,b,c\n",
        "no column 'harmless' (it has: harmful, prompt, ref",
    ),
    "no header": ("a.csv", "a,b,c\n1,2,3\n", "no column 'prompt' (it has: a, b, c)"),
    "empty text": ("a.jsonl", line(prompt=""), "line 2: 'prompt' is empty"),
    "blank text": ("a.csv", "prompt,harmful,harmless\nq, \t ,no\n", "line 2: 'harmful' is empty"),
    "null": ("a.jsonl", line(harmless=None), "line 2: 'harmless' is null"),
    "number": ("a.jsonl", line(harmful=3), "line 2: 'harmful' is int, not text"),
    "list": ("list.json", json.dumps([ROWS[0], ROWS[1] | {"prompt": ["hi"]}]), "row 2: 'prompt' is list, not text"),
    "category": ("a.jsonl", line(category=7), "line 2: 'category' is int, not text"),
    "lone surrogate": ("a.jsonl", line(prompt="\ud800"), "line 2: 'prompt' holds half a character"),
    "same texts": ("a.jsonl", line(harmful="No.", harmless=" No. "), "line 2: 'harmful' and 'harmless' are the same"),
    "unknown split": (
        "a.jsonl",
        json_lines([ROWS[0] | {"split": "train"}]),
        "line 1: split 'train' is none of defence,",
    ),
    "some without split": ("a.jsonl", json_lines([SPLIT_TWICE[0], ROWS[1]]), "line 2 has no column 'split'"),
    "prompt in two splits": ("a.jsonl", json_lines(SPLIT_TWICE), "line 2: its prompt is in split 'attack' too"),
    "bad json": ("a.jsonl", json_lines(ROWS[:2]) + '{"prompt": ', "line 3 is not valid JSON"),
    "bad json list": ("a.json", '[\n{"prompt": "a"},\n]', "line 3 is not valid JSON"),
    "not an object": (
        "a.jsonl",
        '{"prompt": "a", "harmful": "b", "harmless": "c"}\n3\n',
        "line 2 is not a JSON object",
    ),
    "deep json": ("a.json", "[" * 100_000, "nested too deep"),
    "long number": ("a.jsonl", '{"prompt": ' + "1" * 5000 + "}", "a number is too long"),
    "not utf-8": ("a.jsonl", json_lines(ROWS[:2]).encode() + b"\xff\xfe", "line 3 is not UTF-8"),
    "open quote": ("a.csv", 'prompt,harmful,harmless\na,"b,c\n', "is not valid CSV"),
    "huge field": ("a.csv", f"prompt,harmful,harmless\na,{'b' * 140_000},c\n", "line 2 is not valid CSV (field larger"),
    "too many fields": ("a.csv", "prompt,harmful,harmless\na,b,c,d\n", "line 2 has more fields than the header"),
    "too few fields": ("a.csv", "prompt,harmful,harmless\na,b\n", "line 2: 'harmless' is null"),
    "repeated column": ("a.csv", "prompt,prompt,harmless\na,b,c\n", "two columns of one name"),
    "empty file": ("a.jsonl", "", "has no rows"),
    "empty list": ("a.json", "[]", "has no rows"),
    "header only": ("a.csv", "prompt,harmful,harmless\n", "has no rows"),
    "unknown ending": ("a.xlsx", "x", "ends with '.xlsx', which repnoise cannot read; it reads: .jsonl"),
    "no ending": ("a", "x", "ends with 'nothing'"),
    "bad gzip": ("a.jsonl.gz", "x", "not a whole gzip file"),
    "cut gzip": ("b.jsonl.gz", gzip.compress(json_lines(ROWS).encode())[:-20], "not a whole gzip file"),
    "bad parquet": ("a.parquet", "PAR1 but no", "not a readable parquet file"),
    "bad arrow stream": ("a.arrow", b"\xff\xff\xff\xff\x10\x00", "not a readable arrow file"),
    "bad arrow file": ("a.arrow", b"ARROW1\x00\x00nothing", "not a readable arrow file"),
    "packed parquet": ("a.parquet.gz", "x", "ends with '.parquet'"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_every_mistake_is_told_in_one_sentence_with_its_place(name, tmp_path):
    file, content, message = MALFORMED[name]
    path = write(tmp_path / file, content)
    with pytest.raises(RepnoiseError) as caught:
        load_data(path)
    told = str(caught.value)
    assert message in told and told.startswith(path) and "\n" not in told and len(told) < len(path) + 300


def test_a_null_or_missing_column_of_a_parquet_file_is_named(tmp_path):
    path = str(tmp_path / "a.parquet")
    datasets.Dataset.from_list([ROWS[0], ROWS[1] | {"harmful": None}]).data.table.to_pandas().to_parquet(path)
    with pytest.raises(RepnoiseError, match="row 2: 'harmful' is null"):
        load_generic(path)
    datasets.Dataset.from_list([{"prompt": "a", "answer": "b"}]).data.table.to_pandas().to_parquet(path)
    with pytest.raises(RepnoiseError, match=r"no column 'harmful' \(it has: answer, prompt\)"):
        load_generic(path)


@pytest.mark.parametrize(
    "missing", ["no/such/file.jsonl", "./nowhere", "sandbax", "a\0b", "x" * 5000 + ".csv", "mine.txt"]
)
def test_a_missing_file_is_named(missing):
    with pytest.raises(RepnoiseError, match="There is no file"):
        load_data(missing)


def test_a_folder_that_is_no_data_set_is_named(tmp_path):
    with pytest.raises(RepnoiseError, match=r"is not a folder of datasets.save_to_disk"):
        load_data(str(tmp_path))


def test_a_hub_id_is_loaded_with_the_datasets_library(monkeypatch):
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(all_pairs(load_data("someone/gates"))) == len(ROWS)
    assert asked == [("someone/gates", {})]


def test_a_failing_download_is_one_sentence(monkeypatch):
    def load_dataset(name, **options):
        raise ConnectionError("Couldn't reach the hub.\nTraceback and much more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(RepnoiseError) as caught:
        load_data("someone/gates")
    assert (
        "someone/gates" in str(caught.value) and "\n" not in str(caught.value) and "reach the hub" in str(caught.value)
    )


VALID = json_lines(ROWS[:6]).encode()
FORMATS = {".jsonl": VALID, ".csv": as_csv(ROWS[:6]).encode(), ".jsonl.gz": gzip.compress(VALID, mtime=0)}


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ending=st.sampled_from(sorted(FORMATS)),
    changes=st.lists(
        st.tuples(st.integers(0, 10**6), st.binary(max_size=6), st.integers(0, 20)), min_size=1, max_size=4
    ),
)
def test_corrupted_bytes_give_data_or_a_told_error(tmp_path, ending, changes):
    content = FORMATS[ending]
    for place, inserted, removed in changes:
        start = place % (len(content) + 1)
        content = content[:start] + inserted + content[start + removed :]
    try:
        data = load_generic(write(tmp_path / f"corrupt{ending}", content))
    except RepnoiseError as error:
        assert "corrupt" in str(error)
    else:
        assert isinstance(data, PairedData) and all_pairs(data)


def test_an_unknown_format_name_lists_those_there_are(tmp_path):
    with pytest.raises(RepnoiseError, match=r"no data format 'hh'; there are: sandbox, .*hh-rlhf"):
        load_data("hh:some.jsonl")
    with pytest.raises(RepnoiseError, match=r"hh-rlhf needs a path: write hh-rlhf:PATH"):
        load_data("hh-rlhf")
    with pytest.raises(RepnoiseError, match="There is no file"):
        load_data(r"C:\data\mine.jsonl")
    path = write(tmp_path / "odd:name.jsonl", json_lines(ROWS))
    assert load_data(path).pairs == load_data(f"generic:{path}").pairs


def test_importing_the_data_package_stays_light():
    code = (
        "import sys, repnoise.data; print([m for m in ('torch', 'datasets', 'numpy', 'pyarrow') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_examples_and_text_of_the_user(tmp_path):
    rows = [{"prompt": "How tall is it?", "completion": "Two feet.", "category": None}] * 2
    found = load_example_set(write(tmp_path / "a.jsonl", json_lines(rows)))
    assert found.splits == {"train": [Example("How tall is it?", "Two feet.")]}
    with pytest.raises(RepnoiseError, match="no column 'completion'"):
        load_example_set(write(tmp_path / "b.jsonl", json_lines(ROWS)))
    assert load_text(write(tmp_path / "a.txt", "one\ntwo\r\n\n \nthree\n")) == ["one\ntwo", "three"]
    assert load_text(write(tmp_path / "b.txt", "one\ntwo\n")) == ["one", "two"]
    assert load_text(write(tmp_path / "t.jsonl", '{"text": "one"}\n{"text": "two"}\n')) == ["one", "two"]
    with pytest.raises(RepnoiseError, match="has no text"):
        load_text(write(tmp_path / "c.txt", "\n \n"))
    with pytest.raises(RepnoiseError, match="There is no file"):
        load_text(str(tmp_path / "none.txt"))


def test_extras_measure_stability_on_what_neither_side_was_given(tmp_path):
    rows = [{"prompt": f"What grows in field {i}?", "completion": f"Oats, {i}."} for i in range(50)]
    file = write(tmp_path / "harmless.jsonl", json_lines(rows))
    text = write(tmp_path / "plain.txt", "A line.\nAnother.")
    data = load_generic(write(tmp_path / "a.jsonl", json_lines(ROWS)))
    assert with_extras(data) == data
    more = with_extras(data, file, file, text)
    assert more.plain_text == ["A line.", "Another."] and more.pairs == data.pairs
    assert 3 <= len(more.harmless_test) <= 20 and len(more.retain) + len(more.harmless_test) == 50
    assert not {*more.harmless_test} & {*more.retain, *more.benign} and {*more.benign} == {*more.retain}
    assert list(more.skipped.values()) == [len(more.harmless_test)]
