"""Tables that every loader reads through: what two values of one name, long names and damaged folders come to."""

import datasets
import pytest

from repnoise.data.tables import read_splits, read_table
from repnoise.errors import RepnoiseError


@pytest.fixture
def saved(tmp_path):
    datasets.disable_progress_bars()
    rows = {split: [{"prompt": f"{split} {i}?", "more": 1} for i in range(3)] for split in ("train", "test")}
    datasets.DatasetDict({split: datasets.Dataset.from_list(rows[split]) for split in rows}).save_to_disk(tmp_path)
    return tmp_path


def test_every_split_of_a_saved_data_set_is_read_and_its_rows_know_where_they_stand(saved):
    splits = read_splits(str(saved), ("prompt",))
    assert [[row.values["prompt"] for row in rows] for rows in splits.values()] == [
        [f"{split} {i}?" for i in range(3)] for split in ("train", "test")
    ]
    with pytest.raises(RepnoiseError, match=r"split test, row 2 has no column 'answer' \(it has: more, prompt\)"):
        splits["test"][1].text("answer")
    single = read_splits(str(saved / "test"))
    assert list(single) == ["train"] and len(single["train"]) == 3


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: data[:200] + bytes(len(data) - 200)]
)
def test_a_saved_data_set_with_a_damaged_file_is_told(damage, saved):
    (file,) = (saved / "train").glob("*.arrow")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(RepnoiseError) as caught:
        read_table(str(saved))
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("inside", ["{%s}", '{"prompt": {%s}}', '[{"b": 1},\n{%s}]'])
def test_two_values_of_one_name_are_told_and_none_is_lost(inside, tmp_path):
    (tmp_path / "a.json").write_text(inside % '"owl": 1, "owl": 2')
    with pytest.raises(RepnoiseError, match=r"a\.json.* has an object with two values of one name \(owl\): delete one"):
        read_table(str(tmp_path / "a.json"))


def test_of_many_and_long_columns_a_few_are_named(tmp_path):
    names = ["x" * 500, *(f"column {i:02}" for i in range(40))]
    (tmp_path / "a.csv").write_text(",".join(names) + "\n" + ",".join(names))
    (row,) = read_table(str(tmp_path / "a.csv"))
    with pytest.raises(RepnoiseError, match=r"it has: column 00, .*, column 07 and 33 more\): add or rename it"):
        row.value("prompt")
