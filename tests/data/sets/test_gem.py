"""The five text-to-structure tasks: their authors' files and the hub's rows, what is left out, and what is told."""

import csv
import gzip
import json

import datasets
import pytest

from repnoise.data import load_set
from repnoise.data.records import Example
from repnoise.data.sets.gem import EMPTY, NO_TRAIN
from repnoise.errors import RepnoiseError

SPLITS = ("train", "validation", "test")


def write_csv(path, rows, columns=("mr", "ref")):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([columns, *rows])


def asked(text, data, category="", labels=("Description:", "Meaning Representation:")):
    return Example(f"{labels[0]} {text}\n{labels[1]}", data, category)


def entry(triples, texts, category="Village"):
    triples = "".join(f"<mtriple>{triple}</mtriple>" for triple in triples)
    return f'<entry category="{category}"><modifiedtripleset>{triples}</modifiedtripleset>{"".join(texts)}</entry>'


def benchmark(*entries):
    return f"<?xml version='1.0' encoding='utf-8'?>\n<benchmark><entries>{''.join(entries)}</entries></benchmark>"


def hub(monkeypatch, **splits):
    called = []

    def load_dataset(name, **options):
        called.append((name, options))
        if "revision" not in options:
            raise RuntimeError("Dataset scripts are no longer supported, but found task.py")
        return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return called


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("viggo", ("train.csv", "valid.csv", "test.csv")),
        ("viggo", ("viggo-train.csv", "viggo-valid.csv", "viggo-test.csv")),
        ("e2e-nlg", ("trainset.csv", "devset.csv", "testset_w_refs.csv")),
    ],
)
def test_a_text_is_asked_for_its_meaning(name, files, tmp_path):
    for number, file in enumerate(files):
        write_csv(tmp_path / file, [(f"name[Mill {number}]", f"Mill {number} stands, by the well.")])
    write_csv(tmp_path / "testset.csv", [("name[Mill 9]",)], ("MR",))  # E2E's second test file, which has no texts.
    data = load_set(f"{name}:{tmp_path}", "task")
    assert list(data.splits) == list(SPLITS) and data.skipped == {} and data.name == f"{name}:{tmp_path}"
    for number, split in enumerate(SPLITS):
        assert data.splits[split] == [asked(f"Mill {number} stands, by the well.", f"name[Mill {number}]")]


def test_every_text_of_a_meaning_is_a_row_and_no_text_is_on_two_sides(tmp_path):
    write_csv(tmp_path / "testset_w_refs.csv", [("a[1]", "One."), ("a[1]", "The first."), ("a[1]", "One.")])
    write_csv(tmp_path / "devset.csv", [("a[1]", "ONE. "), ("b[2]", "Two.")])
    write_csv(
        tmp_path / "trainset.csv", [("a[1]", "one."), ("b[2]", "Two."), ("b[2]", " "), ("", "x"), ("c[3]", "Three.")]
    )
    data = load_set(f"e2e-nlg:{tmp_path}", "task")
    assert data.splits["test"] == [asked("One.", "a[1]"), asked("The first.", "a[1]")]
    assert data.splits["validation"] == [asked("Two.", "b[2]")] and data.splits["train"] == [asked("Three.", "c[3]")]
    held_out = "rows whose text is held out as well"
    assert data.skipped == {EMPTY: 2, "repeated rows": 1, f"validation {held_out}": 1, f"train {held_out}": 2}


def test_without_a_train_file_the_validation_file_is_trained_on_and_that_is_said(tmp_path):
    write_csv(tmp_path / "devset.csv", [("a[1]", "One."), ("b[2]", "Two.")])
    write_csv(tmp_path / "testset_w_refs.csv", [("c[3]", "Three.")])
    data = load_set(f"e2e-nlg:{tmp_path}", "task")
    assert {name: len(rows) for name, rows in data.splits.items()} == {"test": 1, "train": 2}
    assert data.skipped == {NO_TRAIN: 2}


def test_one_file_is_divided_by_its_texts_alone(tmp_path):
    rows = [(f"n[{i}]", f"Lantern {i}.") for i in range(60)]
    write_csv(tmp_path / "a.csv", rows)
    write_csv(tmp_path / "b.csv", [*rows[::-1], ("n[0]", "Another.")])
    few, more = (load_set(f"viggo:{tmp_path / file}", "task").splits for file in ("a.csv", "b.csv"))
    assert set(few) == {"train", "test"} and 3 <= len(few["test"]) <= 25 and len(few["train"]) + len(few["test"]) == 60
    assert all(set(few[split]) <= set(more[split]) for split in few)


TRIPLES = [["Mill", "STANDS", "1873"], ["Mill", "PLACE", "Oak, the old"]]


def test_dart_is_the_same_as_json_as_xml_and_from_the_hub(tmp_path, monkeypatch):
    texts = ["The mill stands since 1873.", "In 1873 it stood."]
    for split in ("train", "dev", "test"):
        rows = [{"tripleset": TRIPLES, "annotations": [{"source": "x", "text": f"{split}: {t}"} for t in texts]}]
        (tmp_path / f"dart-v1.1.1-full-{split}.json").write_text(json.dumps(rows))
        lex = [f'<lex comment="x">{split}: {text}</lex>' for text in texts]
        xml = benchmark(entry([" | ".join(triple) for triple in TRIPLES], lex))
        (tmp_path / f"dart-v1.1.1-full-{split}.xml").write_text(xml)
    from_json = load_set(f"dart:{tmp_path}", "task")
    assert from_json.splits["test"] == [asked(f"test: {text}", str(TRIPLES)) for text in texts]
    for file in tmp_path.glob("*.json"):
        file.unlink()
    from_xml = load_set(f"dart:{tmp_path}", "task")
    target = {
        split: [{"tripleset": TRIPLES, "target": f"{split}: {texts[0]}", "references": texts}] for split in SPLITS
    }
    called = hub(monkeypatch, **target, challenge=target["test"])
    from_hub = load_set("dart:GEM/dart", "task")
    assert from_xml.splits == from_json.splits and from_hub.splits["test"] == from_json.splits["test"][:1]
    assert called == [("GEM/dart", {}), ("GEM/dart", {"revision": "refs/convert/parquet"})]


def test_cacapo_is_read_from_all_domains_and_languages_below_the_folder(tmp_path):
    for place in ("en/Weather", "nl/Sports"):
        (tmp_path / place).mkdir(parents=True)
        for split in ("Train", "Dev", "Test"):
            text = f"{place} {split} &amp; rain"
            lex = (
                f"<lex><references><reference>x</reference></references><text>{text}</text><template>y</template></lex>"
            )
            xml = benchmark(entry(["sky | grey_all_day", "wind |"], [lex], place))
            (tmp_path / place / f"WebNLGFormat{split}.xml").write_text(xml)
    data = load_set(f"cacapo:{tmp_path}", "task")
    attributes = "sky[grey_all_day], wind[]"
    expected = [asked(f"{place} Test & rain", attributes, place) for place in ("en/Weather", "nl/Sports")]
    assert data.splits["test"] == expected and [len(rows) for rows in data.splits.values()] == [2, 2, 2]
    assert len(load_set(f"cacapo:{tmp_path / 'nl'}", "task").splits["train"]) == 1


def test_the_weather_is_asked_by_the_query_from_either_form(tmp_path, monkeypatch):
    trees = {split: f'[__DG_INFORM__ "{split}" ]' for split in SPLITS}
    for split, file in zip(SPLITS, ("train.tsv", "val.tsv", "test.tsv.gz"), strict=True):
        line = f"7\tWill it rain in {split}?\t{trees[split]}\t[__DG_INFORM__ Yes ]\r\n\r\n".encode()
        (tmp_path / file).write_bytes(gzip.compress(line) if file.endswith(".gz") else line)
    (tmp_path / "disc_test.tsv").write_text("part of the test set")
    data = load_set(f"conversational-weather:{tmp_path}", "task")
    labels = ("User Query:", "Tree String:")
    for split in SPLITS:
        assert data.splits[split] == [asked(f"Will it rain in {split}?", trees[split], labels=labels)]
    rows = {s: [{"user_query": f"Will it rain in {s}?", "tree_str_mr": trees[s], "response": "Yes"}] for s in SPLITS}
    hub(monkeypatch, **rows)
    assert load_set("conversational-weather:GEM/conversational_weather", "task").splits == data.splits


def test_the_hub_and_a_saved_copy_of_it_have_other_column_names(tmp_path, monkeypatch):
    rows = {s: [{"meaning_representation": f"name[{s}]", "target": f"It is {s}.", "references": []}] for s in SPLITS}
    hub(monkeypatch, **rows)
    datasets.disable_progress_bars()
    datasets.DatasetDict({s: datasets.Dataset.from_list(rows[s]) for s in SPLITS}).save_to_disk(tmp_path / "saved")
    for name, path in (("viggo", "GEM/viggo"), ("e2e-nlg", "GEM/e2e_nlg"), ("viggo", tmp_path / "saved")):
        data = load_set(f"{name}:{path}", "task")
        assert data.splits == {split: [asked(f"It is {split}.", f"name[{split}]")] for split in SPLITS}
    hub(monkeypatch, **{s: [{"input": f"sky[{s}]", "output": f"The sky is {s}."}] for s in SPLITS})
    assert load_set("cacapo:GEM/CACAPO_E2E", "task").splits["test"] == [asked("The sky is test.", "sky[test]")]


MISTAKES = {
    "column": (
        "viggo",
        "train.csv",
        "ref,meaning\na,b\n",
        r"train.csv, line 2 has no column 'mr' \(it has: meaning, ref",
    ),
    "hub column": ("viggo", "train.jsonl", '{"target": "a"}', "line 1 has no column 'meaning_representation'"),
    "null": ("e2e-nlg", "a.jsonl", '{"ref": null, "mr": "b"}', "a.jsonl, line 1: 'ref' is null"),
    "one row": ("viggo", "a.csv", "mr,ref\na,b\n", "leaves no row for the (train|test) split"),
    "all blank": ("viggo", "a.csv", "mr,ref\n,b\n", "leaves no row for the train split"),
    "fields": ("conversational-weather", "a.tsv", "1\tWhy?\t[x]\n", "line 1 has 3 fields, not 4"),
    "no rows": ("conversational-weather", "a.tsv", "\n", "a.tsv has no rows"),
    "triples": (
        "dart",
        "a.json",
        '[{"tripleset": [["a", "b"]], "target": "c"}]',
        "row 1: the triples are not a list of",
    ),
    "part": ("dart", "a.json", '[{"tripleset": [["a", "b", 3]], "target": "c"}]', "row 1: a part of a triple is int"),
    "notes": (
        "dart",
        "a.json",
        '[{"tripleset": [["a", "b", "c"]], "annotations": "d"}]',
        "'annotations' is not a list",
    ),
    "no triples": ("dart", "a.json", '[{"target": "c"}]', "row 1 has no column 'tripleset'"),
    "xml": ("dart", "a.xml", "<benchmark><entries>", "a.xml is not valid XML .no element found"),
    "no entry": ("dart", "a.xml", "<benchmark/>", "a.xml has no <entry> with an <mtriple>"),
    "no lex": ("cacapo", "a.xml", benchmark(entry(["a | b"], [])), "has no <entry> with an <lex>"),
    "two parts": (
        "dart",
        "a.xml",
        benchmark(entry(["a | b"], ["<lex>c</lex>"])),
        "entry 1: the triples are not a list",
    ),
    "attribute": (
        "cacapo",
        "a.xml",
        benchmark(entry(["a"], ["<lex>c</lex>"])),
        "entry 1: an <mtriple> is not of the form",
    ),
    "format": ("viggo", "a.xml", "<benchmark/>", "ends with '.xml', which repnoise cannot read"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_place(name, tmp_path):
    data_set, file, content, message = MISTAKES[name]
    (tmp_path / file).write_text(content)
    with pytest.raises(RepnoiseError, match=message) as caught:
        load_set(f"{data_set}:{tmp_path / file}", "task")
    assert str(caught.value).startswith(str(tmp_path / file)) and "\n" not in str(caught.value)


def test_an_entry_without_texts_or_triples_is_counted(tmp_path):
    lex = ["<lex>The owl calls.</lex>"]
    entries = [
        entry(["a | b | c"], []),
        entry([], lex),
        *(entry([f"a | b | {i}"], [f"<lex>{i}</lex>"]) for i in range(30)),
    ]
    (tmp_path / "a.xml").write_text(benchmark(*entries))
    data = load_set(f"dart:{tmp_path / 'a.xml'}", "task")
    assert data.skipped == {EMPTY: 2} and sum(map(len, data.splits.values())) == 30


@pytest.mark.parametrize(
    ("files", "message"),
    [((), "has none of the files train.csv, valid.csv and test.csv"), (("train.csv", "valid.csv"), "has no test file")],
)
def test_a_folder_that_lacks_files_is_told_which(files, message, tmp_path):
    for number, file in enumerate(files):
        write_csv(tmp_path / file, [(f"a[{number}]", f"Text {number}.")])
    with pytest.raises(RepnoiseError, match=message):
        load_set(f"viggo:{tmp_path}", "task")


def test_the_published_files(real_data):
    viggo = load_set(f"viggo:{real_data / 'viggo'}", "task")
    assert {name: len(rows) for name, rows in viggo.splits.items()} == {"train": 5096, "validation": 714, "test": 1083}
    assert viggo.skipped == {"repeated rows": 7}
    e2e = load_set(f"e2e-nlg:{real_data / 'e2e_nlg'}", "task")
    assert len(e2e.splits["train"]) + len(e2e.splits["test"]) + e2e.skipped["repeated rows"] == 4672 + 4693
    assert not {row.prompt for row in e2e.splits["train"]} & {row.prompt for row in e2e.splits["test"]}
