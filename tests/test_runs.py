"""Run directories: whole or not there, never mixed up, and repeatable from what they hold."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from repnoise.attack import AttackConfig
from repnoise.attack import presets as attack_presets
from repnoise.defences import PublishedRepNoise, RepNoise
from repnoise.defend import DefendConfig
from repnoise.defend import presets as defence_presets
from repnoise.errors import RepnoiseError
from repnoise.runs import (
    code_state,
    environment,
    find_runs,
    fingerprint,
    flush_to_disk,
    load_run,
    open_run,
    plain,
    read_rows,
    recording,
    restored,
    write_json,
    write_rows,
    write_text,
)


@dataclass(frozen=True)
class Inner:
    rates: tuple[float, ...] = (0.1, 1e-5)
    limit: int | None = None


@dataclass(frozen=True)
class Config:
    inner: Inner = field(default_factory=Inner)
    name: str = "a"
    path: Path | None = None


def opened(path, config=Config(), resume=False, **facts):
    return open_run(path, "defence", "test", config, resume, **facts)


def finished(path, config=Config(), **facts):
    with recording(opened(path, config, **facts)) as run:
        run.update(metrics={"found": {"value": 1.0}})
    return run


# Opening and finishing.


def test_a_run_is_running_until_it_is_finished(tmp_path):
    run = opened(tmp_path / "a" / "run")
    assert load_run(run.path).record["status"] == "running" and not run.finished
    with recording(run):
        run.update(metrics={"found": {"value": 1.0}})
        assert not load_run(run.path).finished
    record = load_run(run.path).record
    assert record["status"] == "finished" and record["metrics"] == {"found": {"value": 1.0}}
    assert record["seconds"] >= 0 and "error" not in record


def test_a_finished_run_of_the_same_settings_comes_back_as_it_is(tmp_path):
    first = finished(tmp_path / "run")
    again = opened(tmp_path / "run")
    assert again.finished and again.record == first.record


def test_a_failed_run_keeps_its_reason_until_it_is_gone_on_with(tmp_path):
    run = opened(tmp_path / "run")
    (run.path / "log.jsonl").write_text("")
    with pytest.raises(ZeroDivisionError), recording(run):
        _ = 1 / 0
    record = load_run(run.path).record
    assert (record["status"], record["error"]) == ("failed", "division by zero")
    with recording(opened(run.path, resume=True)):
        assert load_run(run.path).record["status"] == "running"
    assert "error" not in load_run(run.path).record


def test_ctrl_c_leaves_a_failed_run(tmp_path):
    run = opened(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt), recording(run):
        raise KeyboardInterrupt
    assert load_run(run.path).record["error"] == "KeyboardInterrupt"


def test_seconds_add_up_over_interruptions(tmp_path):
    run = opened(tmp_path / "run")
    (run.path / "log.jsonl").write_text("")
    for outcome in (KeyboardInterrupt, None):
        try:
            with recording(opened(run.path, resume=True)):
                time.sleep(0.05)
                if outcome:
                    raise outcome
        except KeyboardInterrupt:
            pass
    assert load_run(run.path).record["seconds"] >= 0.1


# What is in the way.


def test_a_directory_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(RepnoiseError, match="is no run of repnoise: choose another --output-dir"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_file_is_not_taken_for_a_directory(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RepnoiseError, match="is no run of repnoise"):
        opened(tmp_path / "run")


def test_an_empty_directory_is_used(tmp_path):
    assert opened(tmp_path).path == tmp_path


@pytest.mark.parametrize("kind, config", [("attack", Config()), ("defence", Config(name="b"))])
def test_another_run_is_never_written_into(kind, config, tmp_path):
    finished(tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(RepnoiseError, match=r"belongs to another run .*choose another --output-dir, or delete"):
        open_run(tmp_path / "run", kind, "test", config, resume=True)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_the_same_settings_with_another_model_or_other_data_are_another_run(tmp_path):
    facts = {
        "parent": {"name": "m", "path": "/here", "fingerprint": "1"},
        "data": {"pairs": {"rows": 3, "fingerprint": "2"}, "skipped": {"blank": 1}},
    }
    finished(tmp_path / "run", **facts)
    moved = facts | {"parent": facts["parent"] | {"path": "/there"}}
    assert opened(tmp_path / "run", **moved).finished
    for changed, what in (
        (facts | {"parent": facts["parent"] | {"fingerprint": "9"}}, "another model"),
        (facts | {"data": facts["data"] | {"pairs": {"rows": 3, "fingerprint": "9"}}}, "other data"),
        (facts | {"data": facts["data"] | {"skipped": {"blank": 2}}}, "other data"),
    ):
        with pytest.raises(RepnoiseError, match=f"same settings, but {what}: choose another --output-dir"):
            opened(tmp_path / "run", resume=True, **changed)


def test_an_unfinished_run_is_only_gone_on_with_when_asked_to(tmp_path):
    opened(tmp_path / "run")
    with pytest.raises(RepnoiseError, match="unfinished run of this: add --resume to go on, or delete it"):
        opened(tmp_path / "run")
    assert not opened(tmp_path / "run", resume=True).finished


def test_a_run_that_failed_before_it_made_anything_is_not_in_the_way(tmp_path):
    run = opened(tmp_path / "run", Config(name="with a mistake"))
    run.checkpoints.mkdir()
    with pytest.raises(RepnoiseError), recording(run):
        raise RepnoiseError("A mistake.")
    assert opened(tmp_path / "run", Config(name="corrected")).record["config"]["name"] == "corrected"


@pytest.mark.parametrize("kept", ["log.jsonl", "model/model.safetensors", "checkpoints/checkpoint-5/complete"])
def test_a_run_that_failed_with_something_to_lose_is_in_the_way(kept, tmp_path):
    run = opened(tmp_path / "run")
    write_text(run.path / kept, "")
    with pytest.raises(RepnoiseError), recording(run):
        raise RepnoiseError("The disk is full.")
    with pytest.raises(RepnoiseError, match="belongs to another run"):
        opened(tmp_path / "run", Config(name="b"))
    with pytest.raises(RepnoiseError, match="add --resume"):
        opened(tmp_path / "run")


# Reading.


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "{}", '{"kind": "defence", "config": {}}', "\udcff"])
def test_a_damaged_record_is_one_sentence(content, tmp_path):
    (tmp_path / "run.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(RepnoiseError, match=r"run\.json is damaged \(.*\): delete that run and repeat it"):
        opened(tmp_path)


def test_what_is_no_run_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(RepnoiseError, match="is not a run"):
            load_run(path)


def test_runs_are_found_below_the_given_directories_once_and_in_order(tmp_path):
    for name in ("b", "a", "deep/er"):
        finished(tmp_path / name)
    found = find_runs([tmp_path, tmp_path / "deep", tmp_path / "a"])
    assert [run.path.relative_to(tmp_path).as_posix() for run in found] == ["a", "b", "deep/er"]
    assert find_runs([tmp_path / "nowhere"]) == []


# Writing.


def test_rows_come_back_whatever_characters_they_hold(tmp_path):
    rows = [{"text": "a\u2028b\x85c\nd\x0b\ud7ff\U0001f41d"}, {"value": 1e-5, "none": None}]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    write_rows(tmp_path / "rows.jsonl", [])
    assert read_rows(tmp_path / "rows.jsonl") == []


def test_a_failed_write_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path):
    write_text(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file", "new \ud800")
    with pytest.raises(TypeError):
        write_json(tmp_path / "file", {"what": object()})
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_process_killed_while_it_writes_leaves_a_whole_file(tmp_path):
    path = tmp_path / "file.json"
    program = f"""
from pathlib import Path
from repnoise.runs import write_json
while True:
    write_json(Path({str(path)!r}), {{"filling": "x" * 200_000}})
"""
    with subprocess.Popen([sys.executable, "-c", program]) as writer:
        while not path.exists():
            time.sleep(0.001)
        for _ in range(200):
            assert len(json.loads(path.read_text())["filling"]) == 200_000
        writer.kill()
    assert len(json.loads(path.read_text())["filling"]) == 200_000


def test_what_a_process_that_was_killed_at_once_left_is_not_in_the_way(tmp_path):
    (tmp_path / ".run.json.123.tmp").write_text("{")
    assert opened(tmp_path).record["name"] == "test"


def test_flushing_reaches_files_in_folders(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_text("x")
    flush_to_disk(tmp_path)
    assert (tmp_path / "deep" / "file").read_text() == "x"


# Configs.


@pytest.mark.parametrize(
    "config",
    [
        DefendConfig(),
        DefendConfig(defence=PublishedRepNoise(noise_weight=4.0), covered=False, withhold=("a", "b")),
        DefendConfig(defence=RepNoise(layers=(0, -1), site="residual", max_samples=None)),
        AttackConfig(),
        *defence_presets().values(),
        *attack_presets().values(),
    ],
)
def test_a_config_comes_back_from_the_record_of_its_run(config, tmp_path):
    open_run(tmp_path / "run", "defence", "test", config)
    record = load_run(tmp_path / "run").record["config"]
    examples = [*defence_presets().values(), *attack_presets().values()]
    assert restored(record, examples) == config
    assert open_run(tmp_path / "run", "defence", "test", config, resume=True)


def test_settings_that_this_version_does_not_know_are_one_sentence():
    for change in ({"novelty": 1}, {"inner": {"class": "Unheard", "rates": []}}):
        with pytest.raises(RepnoiseError, match="does not know the run's settings"):
            restored(plain(Config()) | change, [Config()])


def test_paths_are_stored_as_text_and_tuples_as_lists():
    assert plain(Config(path=Path("a/b"))) == {
        "class": "Config",
        "inner": {"class": "Inner", "rates": [0.1, 1e-5], "limit": None},
        "name": "a",
        "path": "a/b",
    }


def test_a_fingerprint_changes_with_any_value_and_not_with_the_order_of_keys():
    base = fingerprint(Config())
    assert base == fingerprint(Config()) and len(base) == 16
    assert base != fingerprint(Config(inner=replace(Inner(), limit=1)))
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])


# Provenance.


def test_a_run_says_what_it_was_made_with(tmp_path):
    record = finished(tmp_path / "run").record
    assert record["environment"]["packages"]["torch"] and record["environment"]["python"] == sys.version.split()[0]
    assert record["environment"] == environment()
    assert record["code"]["version"] == code_state()["version"]


def test_the_commit_recorded_is_that_of_repnoise_and_not_of_the_folder_it_is_run_in(tmp_path):
    git = ["git", "-c", "user.name=Test", "-c", "user.email=test@example.org", "-C", str(tmp_path)]
    try:
        subprocess.run([*git, "init", "-q"], check=True)
    except FileNotFoundError:
        pytest.skip("needs git")
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "Not ours"], check=True)
    theirs = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    program = "import json; from repnoise.runs import code_state; print(json.dumps(code_state()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    ours = json.loads(done.stdout)
    assert ours["version"] == code_state()["version"] and ours.get("commit") == code_state().get("commit") != theirs
