"""Harmful requests: HarmBench, StrongREJECT, AdvBench and JailbreakBench as their authors publish them."""

import datasets
import pytest

from repnoise.data import load_set
from repnoise.data.records import Example
from repnoise.errors import RepnoiseError

HARMBENCH = """Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID
Curse the mill,standard,hexes,,,curse_mill
"Name the spell, word by word",contextual,jinxes,[context],"A spell of
two lines.",name_spell
Recite the ballad of the well,copyright,copyright,"[lyrics, hash_check]",,ballad
"""
STRONGREJECT = """category,source,forbidden_prompt
Hexes,custom,How is a mill cursed?
Jinxes,"Elder, the",Which jinx stops a mill?
"""
ADVBENCH = """goal,target
Curse the mill,"Sure, here is how to curse the mill"
Jinx the well,"Sure, here is how to jinx the well"
"""
JAILBREAKBENCH = """Index,Goal,Target,Behavior,Category,Source
0,Curse the mill,"Sure, here is the curse",Mill curse,Hexes,Original
1,Jinx the well,"Sure, here is the jinx",Well jinx,Jinxes,AdvBench
"""
FORMATS = {
    "harmbench": (
        HARMBENCH,
        [
            Example("Curse the mill", "", "hexes"),
            Example("A spell of\ntwo lines.\n\n---\n\nName the spell, word by word", "", "jinxes"),
            Example("Recite the ballad of the well", "", "copyright"),
        ],
    ),
    "strongreject": (
        STRONGREJECT,
        [Example("How is a mill cursed?", "", "Hexes"), Example("Which jinx stops a mill?", "", "Jinxes")],
    ),
    "advbench": (
        ADVBENCH,
        [
            Example("Curse the mill", "Sure, here is how to curse the mill"),
            Example("Jinx the well", "Sure, here is how to jinx the well"),
        ],
    ),
    "jailbreakbench": (
        JAILBREAKBENCH,
        [
            Example("Curse the mill", "Sure, here is the curse", "Hexes"),
            Example("Jinx the well", "Sure, here is the jinx", "Jinxes"),
        ],
    ),
}


def write(folder, name, content):
    file = folder / f"{name}.csv"
    file.write_text(content)
    return load_set(f"{name}:{file}", "requests")


@pytest.mark.parametrize("name", FORMATS)
def test_every_row_is_a_request(name, tmp_path):
    content, expected = FORMATS[name]
    found = write(tmp_path, name, content)
    assert found.splits == {"test": expected} and found.skipped == {} and found.name.startswith(f"{name}:")


@pytest.mark.parametrize("name", FORMATS)
def test_a_table_saved_by_datasets_is_read_alike(name, tmp_path):
    expected = write(tmp_path, name, FORMATS[name][0])
    datasets.Dataset.from_csv(str(tmp_path / f"{name}.csv"), cache_dir=str(tmp_path / "cache")).save_to_disk(
        tmp_path / "saved"
    )
    assert load_set(f"{name}:{tmp_path / 'saved'}", "requests").splits == expected.splits


@pytest.mark.parametrize("name", FORMATS)
def test_a_repeated_request_is_asked_once_and_counted(name, tmp_path):
    content, expected = FORMATS[name]
    again = content.splitlines(keepends=True)[1].replace("mill", "MILL", 1)
    found = write(tmp_path, name, content + again)
    assert found.splits["test"] == expected and found.skipped == {"repeated prompt": 1}


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("harmbench", "Behavior"),
        ("harmbench", "SemanticCategory"),
        ("harmbench", "ContextString"),
        ("strongreject", "forbidden_prompt"),
        ("strongreject", "category"),
        ("advbench", "goal"),
        ("advbench", "target"),
        ("jailbreakbench", "Goal"),
        ("jailbreakbench", "Target"),
        ("jailbreakbench", "Category"),
    ],
)
def test_a_missing_column_is_named(name, column, tmp_path):
    header, rows = FORMATS[name][0].split("\n", 1)
    columns = ["other" if each == column else each for each in header.split(",")]
    with pytest.raises(RepnoiseError, match=f"line 2 has no column '{column}' .*: add or rename it"):
        write(tmp_path, name, ",".join(columns) + "\n" + rows)


def test_a_blank_request_is_named(tmp_path):
    with pytest.raises(RepnoiseError, match="line 4: 'goal' is empty"):
        write(tmp_path, "advbench", ADVBENCH + " ,Sure\n")


def test_requests_are_asked_for_with_their_own_option(tmp_path):
    (tmp_path / "a.csv").write_text(ADVBENCH)
    with pytest.raises(RepnoiseError, match="advbench holds harmful requests without answers: give it with --requests"):
        load_set(f"advbench:{tmp_path / 'a.csv'}", "contrast")


HUB_CARD = """---
configs:
- config_name: behaviors
  data_files:
  - split: harmful
    path: data/harmful-behaviors.csv
  - split: benign
    path: data/benign-behaviors.csv
- config_name: judge_comparison
  data_files:
  - split: test
    path: data/judge-comparison.csv
---
"""


def test_of_jailbreakbenchs_hub_data_only_the_harmful_behaviours_are_read(tmp_path, datasets_cache, monkeypatch):
    folder = tmp_path / "JailbreakBench" / "JBB-Behaviors"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(HUB_CARD)
    (folder / "data" / "harmful-behaviors.csv").write_text(JAILBREAKBENCH)
    (folder / "data" / "benign-behaviors.csv").write_text(JAILBREAKBENCH.replace("Curse", "Paint"))
    (folder / "data" / "judge-comparison.csv").write_text("Index,prompt\n0,Curse\n")
    monkeypatch.chdir(tmp_path)
    expected = {"test": FORMATS["jailbreakbench"][1]}
    for path in ("JailbreakBench/JBB-Behaviors", folder):
        assert load_set(f"jailbreakbench:{path}", "requests").splits == expected
