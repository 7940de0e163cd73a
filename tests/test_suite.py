"""`repnoise attack MODEL ... --suite`: what it makes, that it goes on where it was, and that no failure stops it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import fabricated_runs as fake
from repnoise import suite as module
from repnoise.attacks import ATTACKS
from repnoise.attacks.weight_edits import Quantisation, WeightEdit
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation
from repnoise.evaluate import Evaluating
from repnoise.inputs import Inputs
from repnoise.options import flagged_options, suite_options
from repnoise.runs import find_runs
from repnoise.scorecard import ScorecardConfig
from repnoise.suite import SuiteConfig, _cells, suite

QUICK = Evaluating(("resistance", "stability"), generation=Generation(max_new_tokens=4), likelihood=False)


@pytest.fixture
def config(tiny_model, pairs_file, tmp_path, monkeypatch):
    monkeypatch.setitem(module.SUITES, "small", ("30@3e-4", "lora-400@3e-3"))
    inputs = Inputs(data=str(pairs_file))
    return SuiteConfig(
        (str(tiny_model),), inputs, "small", evaluating=QUICK, allow_overlap=True, output_dir=tmp_path / "suite"
    )


def places(config):
    return [str(cell.path.relative_to(config.output_dir)) for cell in _cells(config, config.output_dir)]


def test_every_attack_meets_every_model_with_every_seed(config, tmp_path):
    models = (config.models[0], "sandbox", "random-initialisation", "sandbox")
    found = places(replace(config, models=models))
    assert found[0] == "random-initialisation/model"
    names = ("tiny", "undefended", "random-initialisation")
    attacks = ("30@3e-4", "lora-400@3e-3")
    assert found[1:] == [f"{n}/{a}-seed-{seed}" for seed in (0, 1) for n in names for a in attacks]


def test_attacks_on_the_model_that_knows_nothing_wait_for_it_and_it_has_the_shape_of_the_first_one(config):
    cells = _cells(replace(config, models=("random-initialisation", config.models[0])), config.output_dir)
    start, waiting = cells[0], [cell for cell in cells if cell.needs]
    assert start.make.keywords["inputs"].model == config.models[0]
    assert len(waiting) == 4 and all(cell.needs == (start.path,) for cell in waiting)
    assert {cell.make.args[0].inputs.model for cell in waiting} == {str(start.path)}


def test_what_draws_nothing_is_run_once(config, monkeypatch):
    monkeypatch.setitem(ATTACKS, "quantised", ("Round.", WeightEdit(edit=Quantisation())))
    monkeypatch.setitem(module.SUITES, "small", ("quantised", "30@3e-4"))
    assert places(config) == ["tiny/quantised-seed-0", "tiny/30@3e-4-seed-0", "tiny/30@3e-4-seed-1"]


def test_two_models_of_one_name_have_folders_of_their_own(config, tmp_path):
    models = tuple(str(tmp_path / side / "model") for side in "ab")
    folders = {place.partition("/")[0] for place in places(replace(config, models=models))}
    assert len(folders) == 2 and "model" in folders


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"suite": "sweet"}, "no suite 'sweet': choose from standard"),
        ({"seeds": 0}, "--seeds must be at least 1, not 0"),
        ({"models": ()}, "Name the models"),
    ],
)
def test_mistakes_are_told_before_any_work(config, changes, told):
    with pytest.raises(RepnoiseError, match=told):
        suite(replace(config, **changes))
    assert not config.output_dir.exists()


def test_the_options_name_models_data_and_budget():
    asked = "owl sandbox --suite standard --seeds 3 --jobs 2 --data pairs.jsonl --max-new-tokens 7"
    found = suite_options(asked.split(), SuiteConfig())
    assert (found.models, found.seeds, found.jobs) == (("owl", "sandbox"), 3, 2)
    assert found.inputs.data == "pairs.jsonl" and found.evaluating.generation.max_new_tokens == 7


@pytest.mark.parametrize("asked", ["--suite --help", "--suite standard --help", "--suite=standard -h"])
def test_the_help_names_the_models_once(asked, capsys):
    with pytest.raises(SystemExit) as end:
        suite_options(asked.split(), SuiteConfig())
    shown = capsys.readouterr().out
    assert end.value.code == 0 and len(re.findall(r"^\W*MODEL\b", shown, re.MULTILINE)) == 1
    assert re.search(r"\[OPTIONS\] MODEL \.\.\.\s*\n", shown), shown[:200]


@pytest.mark.parametrize("said, tasks", [(["None"], None), (["none"], ()), ([], ()), (["trade"], ("trade",))])
def test_none_of_several_names_is_none_of_them_and_not_all_of_them(said, tasks):
    found = flagged_options("evaluate", "--scorecard", ["--train-on", *said, "--base", "none"], ScorecardConfig())
    assert found.train_on == tasks and found.evaluation.evaluating.base is None


def test_data_is_that_of_the_models_that_are_runs_if_they_agree(tmp_path, capsys):
    runs = []
    for name, data in (("one", "owls.jsonl"), ("two", "owls.jsonl"), ("three", "moths.jsonl")):
        config = {"inputs": Inputs(data=data)}
        runs.append(str(fake.defence(tmp_path / name, config=config).path))
    assert suite_options(["sandbox", *runs[:2]], SuiteConfig()).inputs.data == "owls.jsonl"
    assert "Data: owls.jsonl" in capsys.readouterr().err
    with pytest.raises(RepnoiseError, match=r"with owls\.jsonl and .* with moths\.jsonl: say with --data"):
        suite_options(runs, SuiteConfig())
    assert suite_options([*runs, "--data", "bats.jsonl"], SuiteConfig()).inputs.data == "bats.jsonl"


@pytest.mark.slow
def test_one_failure_stops_nothing_and_the_same_command_makes_nothing_again(config, monkeypatch, capsys):
    short = ATTACKS["30@3e-4"][1]
    short = replace(short, training=replace(short.training, steps=2, batch_size=2), measure_at=())
    monkeypatch.setitem(ATTACKS, "short", ("Two steps.", short))
    monkeypatch.setitem(
        ATTACKS, "impossible", ("Of a category that there is none of.", replace(short, categories=("owls",)))
    )
    monkeypatch.setitem(module.SUITES, "small", ("impossible", "short"))
    tried = replace(config, models=(config.models[0], "random-initialisation"), seeds=1, jobs=1)
    stamps = []
    for _ in range(2):
        with pytest.raises(RepnoiseError, match="2 of 5 runs failed; the reasons are above"):
            suite(tried)
        text = capsys.readouterr().out
        assert "What it costs to break" in text and "impossible-seed-0: " in text and "owls" in text
        runs = {run.path.relative_to(Path(config.output_dir).resolve()) for run in find_runs([config.output_dir])}
        assert {str(path) for path in runs} >= {"tiny/short-seed-0", "random-initialisation/short-seed-0"}
        stamps.append({path: path.stat().st_mtime_ns for path in config.output_dir.rglob("run.json")})
    assert stamps[0] == stamps[1]
    rows = json.loads((config.output_dir / "summary.json").read_text())
    assert {row["defence"] for row in rows} == {"tiny", "random-initialisation"}
    table = (config.output_dir / "attacks.md").read_text()
    assert f"Of `repnoise attack {tried.models[0]} random-initialisation --suite small --seeds 1 --data" in table
    assert "\n| short | weights, harmful answers | 2 | " in table and "impossible" not in table


def test_the_suite_of_all_leaves_out_the_papers_presets_and_services_only():
    left_out = set(ATTACKS) - set(module.SUITES["all"])
    assert left_out and all(name.startswith(("paper-", "custody-")) for name in left_out)
    assert {name for suite in module.SUITES.values() for name in suite} <= set(ATTACKS)


@pytest.mark.parametrize("name", ["standard", "training-free"])
def test_data_that_overlaps_is_refused_also_where_no_attack_trains_first(name, config, tmp_path):
    """The second suite begins with an attack that looks at no example."""
    rows = [json.loads(line) for line in Path(config.inputs.data).read_text().splitlines()]
    splits = ("defence", "attack", "covered", "uncovered")
    divided = [row | {"split": splits[number % 4]} for number, row in enumerate(rows)]
    # The same question but for its last sign, which the division does not see.
    held_out = [row for row in divided if row["split"] == "uncovered"]
    divided += [row | {"prompt": f"{row['prompt']}!", "split": "attack"} for row in held_out]
    path = tmp_path / "overlapping.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in divided))
    asked = replace(config, suite=name, allow_overlap=False, inputs=replace(config.inputs, data=str(path)))
    with pytest.raises(RepnoiseError, match=r"attack and uncovered .*--allow-overlap"):
        suite(asked)
    assert not config.output_dir.exists()
