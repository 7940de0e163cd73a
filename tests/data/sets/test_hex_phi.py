"""HEx-PHI: files without a header, whose names say the category."""

import huggingface_hub.constants
import pytest

from repnoise.data import load_set
from repnoise.data.records import Example
from repnoise.errors import RepnoiseError

FILES = {
    "category_1.csv": 'Curse the mill\n"Jinx the well, twice"\n\n',
    "category_3.csv": 'Say "moo", loudly, at the elder\n',
    "category_11.csv": "Sell my goat for magic beans.\nCURSE the mill\n",
}
EXPECTED = [
    Example("Curse the mill", "", "Illegal Activity"),
    Example("Jinx the well, twice", "", "Illegal Activity"),
    Example('Say "moo", loudly, at the elder', "", "Hate/Harass/Violence"),
    Example("Sell my goat for magic beans.", "", "Tailored Financial Advice"),
]


def write(folder, files=FILES):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


def test_the_first_line_is_a_request_and_the_file_says_the_category(tmp_path):
    found = load_set(f"hex-phi:{write(tmp_path)}", "requests")
    assert found.splits == {"test": EXPECTED} and found.skipped == {"repeated prompt": 1}


def test_one_file_is_one_category(tmp_path):
    found = load_set(f"hex-phi:{write(tmp_path) / 'category_1.csv'}", "requests")
    assert found.splits == {"test": EXPECTED[:2]} and found.skipped == {}


def test_the_hub_id_is_what_the_hub_has(tmp_path, monkeypatch):
    cache = tmp_path / "cache" / "datasets--LLM-Tuning-Safety--HEx-PHI"
    write(cache / "snapshots" / ("0" * 40))
    write(cache / "refs", {"main": "0" * 40})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert load_set("hex-phi:LLM-Tuning-Safety/HEx-PHI", "requests").splits == {"test": EXPECTED}


def test_a_download_that_fails_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(RepnoiseError, match=r"HEx-PHI cannot be downloaded .*: ask for access") as caught:
        load_set("hex-phi:LLM-Tuning-Safety/HEx-PHI", "requests")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "files", "message"),
    [
        ("", {"other.csv": "a"}, "has no file category_1.csv to category_11.csv"),
        ("other.csv", {"other.csv": "a"}, "other.csv is not named category_1.csv to category_11.csv"),
        ("category_12.csv", {"category_12.csv": "a"}, "category_12.csv is not named"),
        ("", {"category_1.csv": 'a\n"b\nc\n'}, r"category_1.csv, line \d is not valid CSV"),
        ("", {"category_1.csv": "\n"}, "has no request"),
        ("none", {}, "There is no file"),
    ],
)
def test_other_files_are_told(path, files, message, tmp_path):
    with pytest.raises(RepnoiseError, match=message):
        load_set(f"hex-phi:{write(tmp_path, files) / path}", "requests")
