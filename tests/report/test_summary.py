"""Runs become rows: who was attacked by what, which numbers may be averaged, and which attack decides."""

import math
import shutil
from dataclasses import replace

import pytest

from fabricated_runs import attack, averages, control, defence, evaluation, shares, unscored
from repnoise.attack import presets as attacks
from repnoise.defences import PublishedRepNoise, RepNoise
from repnoise.evals.generation import Generation
from repnoise.evaluate import Evaluating
from repnoise.inputs import Inputs
from repnoise.metrics import limits, number, within_bounds
from repnoise.report.lineage import Lineage, seed_of
from repnoise.report.summary import (
    attacks_in_order,
    defence_order,
    estimate,
    headline_of,
    models,
    summarise,
    worst_rows,
)
from repnoise.runs import find_runs
from repnoise.statistics import Interval


def value(rows, defence, attack, metric):
    return estimate(rows, defence, attack, metric)[0].mean


def names(runs):
    lineage = Lineage(runs)
    return [lineage.place(run)[0] for run in runs]


def grid(folder, parent, values, seed=0, metric="recovered"):
    """An attack of each name with that much recovered."""
    make = averages if metric == "harmful_ce" else shares
    return [
        attack(folder / f"{parent.path.name}-{name}-{seed}", parent, name, make(**{metric: found}), seed)
        for name, found in values.items()
    ]


def test_a_row_says_whose_number_it_is(tmp_path):
    metrics = shares(recovered=0.25, recovered_content=0.5, harmless_accuracy=0.9, refusal_rate=0.1)
    model = defence(tmp_path / "model", metrics=shares(harmless_accuracy=1.0), seed=3)
    rows = summarise([model, attack(tmp_path / "attack", model, metrics=metrics, seed=4)])
    assert {row["metric"] for row in rows if row["attack"] == "100@1e-3"} == set(metrics)
    [row] = [row for row in rows if row["metric"] == "recovered"]
    shown = {key: row[key] for key in ("defence", "seed", "attack", "attack_seed", "metric", "value", "n", "step")}
    assert shown == {
        "defence": "repnoise",
        "seed": 3,
        "attack": "100@1e-3",
        "attack_seed": 4,
        "metric": "recovered",
        "value": 0.25,
        "n": 40,
        "step": 100,
    }
    assert row["low"] < 0.25 < row["high"]


def test_models_come_with_the_controls_last_and_attacks_from_weak_to_strong(tmp_path):
    runs = []
    for name, make in (("undefended", control), ("repnoise", defence), ("random-initialisation", control)):
        model = make(tmp_path / name, name, shares(harmless_accuracy=1.0))
        runs += [model, *grid(tmp_path, model, dict.fromkeys(("400@1e-3", "100@1e-3-half-benign", "30@3e-4"), 0.5))]
    rows = summarise(runs)
    assert models(rows) == ["repnoise", "undefended", "random-initialisation"]
    assert attacks_in_order(rows) == ["none", "30@3e-4", "400@1e-3", "100@1e-3-half-benign"]
    assert defence_order(["undefended", "b", "random-initialisation", "a"])[:2] == ["a", "b"]


@pytest.mark.parametrize("status", ["running", "failed"])
def test_runs_that_did_not_finish_give_no_rows(tmp_path, status):
    model = defence(tmp_path / "model", metrics=shares(harmless_accuracy=1.0))
    done = attack(tmp_path / "done", model, metrics=shares(recovered=0.5), seed=0)
    undone = attack(tmp_path / "undone", model, metrics=shares(recovered=1.0), seed=1, status=status)
    assert value(summarise([model, done, undone]), "repnoise", "100@1e-3", "recovered") == 0.5
    assert summarise([undone]) == []


def test_numbers_before_the_attack_are_the_models_own_else_the_start_of_the_curve(tmp_path):
    model = defence(tmp_path / "model", metrics=shares(harmless_accuracy=1.0))
    curve = {0: shares(harmless_accuracy=0.8, refusal_rate=1.0)}
    attacked = attack(tmp_path / "attack", model, metrics=shares(recovered=0.5), curve=curve)
    rows = summarise([attacked, model])
    assert value(rows, "repnoise", "none", "harmless_accuracy") == 1.0
    assert value(rows, "repnoise", "none", "refusal_rate") == 1.0
    assert value(summarise([attacked]), "repnoise", "none", "harmless_accuracy") == 0.8


def test_what_has_no_score_is_null_in_its_row_and_out_of_the_mean(tmp_path):
    model = defence(tmp_path / "model")
    runs = [attack(tmp_path / "0", model, metrics=shares(recovered=0.5), seed=0)]
    runs += [attack(tmp_path / "1", model, metrics=unscored("recovered"), seed=1)]
    rows = summarise([model, *runs])
    assert [(row["value"], row["low"]) for row in rows if row["attack_seed"] == 1] == [(None, None)]
    assert value(rows, "repnoise", "100@1e-3", "recovered") == 0.5
    alone = summarise([model, runs[1]])
    assert math.isnan(value(alone, "repnoise", "100@1e-3", "recovered"))
    assert worst_rows(alone) == []
    assert headline_of(alone, "repnoise") is None


def test_seeds_are_averaged_with_an_interval_for_other_seeds_and_other_prompts(tmp_path):
    runs = []
    for seed, recovered in enumerate((0.2, 0.3, 0.4)):
        model = defence(tmp_path / f"{seed}", seed=seed)
        runs += [model, attack(tmp_path / f"attack-{seed}", model, metrics=shares(recovered=recovered), seed=seed)]
    rows = summarise(runs)
    found, values = estimate(rows, "repnoise", "100@1e-3", "recovered")
    assert (found.mean, values) == (pytest.approx(0.3), pytest.approx([0.2, 0.3, 0.4]))
    one, _ = estimate(summarise(runs[2:4]), "repnoise", "100@1e-3", "recovered")
    assert found.low < one.low < one.high < found.high
    assert found.low >= 0


def test_attacks_of_several_seeds_on_one_model_weigh_as_much_as_one_attack_on_another(tmp_path):
    first, second = defence(tmp_path / "a", seed=0), defence(tmp_path / "b", seed=1)
    runs = [attack(tmp_path / f"a{seed}", first, metrics=shares(recovered=0.1), seed=seed) for seed in range(3)]
    runs += [attack(tmp_path / "b0", second, metrics=shares(recovered=0.5), seed=0)]
    rows = summarise([first, second, *runs])
    assert value(rows, "repnoise", "100@1e-3", "recovered") == pytest.approx(0.3)
    assert worst_rows(rows)[0]["seeds"] == 2


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ({"covered": False}, "covered False"),
        ({"defence": RepNoise(noise_weight=1.0)}, "noise_weight 1.0"),
        ({"withhold": ("hexes",)}, "withhold ['hexes']"),
        ({"inputs": Inputs(data="pairs.jsonl")}, "data pairs.jsonl"),
        ({"evaluating": Evaluating(generation=Generation(temperature=1.0))}, "temperature 1.0"),
    ],
)
def test_two_defences_of_one_name_with_other_settings_are_not_averaged(tmp_path, config, shown):
    one = defence(tmp_path / "one", metrics=shares(harmless_accuracy=1.0), seed=0)
    other = defence(tmp_path / "other", metrics=shares(harmless_accuracy=0.5), seed=1, config=config)
    rows = summarise([one, other])
    assert sorted(row["value"] for row in rows if row["metric"] == "harmless_accuracy") == [0.5, 1.0]
    assert len(models(rows)) == 2
    assert f"repnoise ({shown})" in models(rows)


def test_two_defences_that_differ_in_many_settings_are_told_apart_by_few(tmp_path):
    one = defence(tmp_path / "one")
    other = defence(tmp_path / "other", seed=1, config={"defence": PublishedRepNoise(), "covered": False})
    assert names([one, other]) == ["repnoise (class RepNoise, …)", "repnoise (class PublishedRepNoise, …)"]


def test_paths_are_told_by_their_last_part_where_that_is_enough(tmp_path):
    def on(*paths):
        runs = [defence(tmp_path / f"{paths}-{path}", config={"inputs": Inputs(data=path)}).path for path in paths]
        return names(find_runs(runs))

    assert on("there/a.jsonl", "there/b.jsonl") == ["repnoise (data a.jsonl)", "repnoise (data b.jsonl)"]
    assert on("a/pairs.jsonl", "b/pairs.jsonl") == ["repnoise (data a/pairs.jsonl)", "repnoise (data b/pairs.jsonl)"]


def test_two_defences_trained_on_other_data_under_one_name_are_not_averaged(tmp_path):
    one, other = defence(tmp_path / "one", data="aaaa"), defence(tmp_path / "other", seed=1, data="bbbb")
    assert names([one, other]) == ["repnoise (pairs aaaa)", "repnoise (pairs bbbb)"]


@pytest.mark.parametrize("changes", [{"steps": 50}, {"learning_rate": 1e-4}, {"lora_rank": 4}])
def test_two_attacks_of_one_name_with_other_settings_are_not_averaged(tmp_path, changes):
    model = defence(tmp_path / "model")
    runs = [attack(tmp_path / "one", model, metrics=shares(recovered=0.2))]
    runs += [attack(tmp_path / "other", model, metrics=shares(recovered=0.6), seed=1, **changes)]
    found = {row["attack"]: row["value"] for row in summarise([model, *runs])}
    assert sorted(found.values()) == [0.2, 0.6]
    [(name, shown)] = changes.items()
    assert f"100@1e-3 ({name} {shown})" in found


def test_what_does_not_change_a_result_does_not_keep_seeds_apart(tmp_path):
    one = defence(tmp_path / "one", seed=0)
    measuring = Evaluating(likelihood=False, evaluations=("resistance",), generation=Generation(batch_size=8))
    other = defence(tmp_path / "other", seed=1, config={"evaluating": measuring})
    preset = attacks()["100@1e-3"]
    first = attack(tmp_path / "first", one, metrics=shares(recovered=0.2), seed=0)
    changed = {"attack": replace(preset.attack, measure_at=()), "keep_model": True}
    second = attack(tmp_path / "second", other, metrics=shares(recovered=0.4), seed=0, config=changed)
    rows = summarise([one, other, first, second])
    assert models(rows) == ["repnoise"]
    assert value(rows, "repnoise", "100@1e-3", "recovered") == pytest.approx(0.3)


def test_an_attack_alone_still_knows_whom_it_attacked(tmp_path):
    model = defence(tmp_path / "model", seed=5)
    rows = summarise([attack(tmp_path / "attack", model, metrics=shares(recovered=0.5), seed=1)])
    assert {(row["defence"], row["seed"], row["attack_seed"]) for row in rows} == {("repnoise", 5, 1)}


def test_directories_that_were_moved_still_know_whom_they_attacked(tmp_path):
    for name, noise, seed in (("mild", 1.0, 0), ("mild", 1.0, 1), ("strong", 4.0, 0)):
        folder = tmp_path / "before" / f"{name}-{seed}"
        config = {"defence": RepNoise(noise_weight=noise)}
        model = defence(folder / "defence", metrics=shares(harmless_accuracy=1.0), seed=seed, config=config)
        attack(folder / "attack", model, metrics=shares(recovered=0.1 * noise), seed=9)
    expected = summarise(find_runs([tmp_path / "before"]))
    shutil.move(tmp_path / "before", tmp_path / "after")
    assert summarise(find_runs([tmp_path / "after"])) == expected
    assert {row["seed"] for row in expected} == {0, 1}
    assert len(models(expected)) == 2


def test_an_attack_on_a_model_that_is_gone_is_known_by_the_models_name(tmp_path):
    model = defence(tmp_path / "model")
    attacked = attack(tmp_path / "attack", model, metrics=shares(recovered=0.5))
    shutil.rmtree(tmp_path / "model")
    assert models(summarise([attacked])) == ["repnoise"]


def test_an_attack_on_an_attacked_model_is_an_attack_of_its_own(tmp_path):
    model = defence(tmp_path / "model")
    first = attack(tmp_path / "first", model, metrics=shares(recovered=0.2))
    curve = {0: shares(recovered=0.2, harmless_accuracy=0.1)}
    second = attack(tmp_path / "second", first, "400@1e-3", shares(recovered=0.9), curve=curve)
    rows = summarise([model, first, second])
    assert value(rows, "repnoise", "100@1e-3, then 400@1e-3", "recovered") == 0.9
    # What it started from was attacked already.
    assert math.isnan(value(rows, "repnoise", "none", "harmless_accuracy"))


def test_the_model_that_the_defences_started_from_is_the_undefended_one(tmp_path):
    defended = defence(tmp_path / "model", base="models/llama")
    raw = attack(tmp_path / "raw", "models/llama", metrics=shares(refusal_rate=0.1))
    measured = evaluation(tmp_path / "evaluation", "models/llama", shares(over_refusal_rate=0.2))
    rows = summarise([defended, raw, measured])
    assert models(rows) == ["undefended"]
    assert {row["attack"] for row in rows} == {"100@1e-3", "none"}
    assert models(summarise([raw])) == ["llama"]


def test_models_of_two_families_are_each_compared_with_their_own(tmp_path):
    runs = []
    for base in ("models/llama", "models/mistral"):
        model = defence(tmp_path / f"{base}-defended", base=base)
        runs += [model, attack(tmp_path / f"{base}-attack", model, metrics=shares(refusal_rate=0.5))]
        runs += [attack(tmp_path / f"{base}-raw", base, metrics=shares(refusal_rate=0.1))]
    bases = {row["defence"]: row["base"] for row in summarise(runs)}
    defended = {name: base for name, base in bases.items() if name.startswith("repnoise")}
    assert sorted(defended.values()) == ["llama", "mistral"]
    assert (bases["llama"], bases["mistral"]) == ("llama", "mistral")


def test_a_defence_on_top_of_a_defence_is_not_averaged_with_one_on_the_plain_model(tmp_path):
    below = [defence(tmp_path / f"below-{seed}", "first", seed=seed) for seed in (0, 1)]
    above = [
        defence(tmp_path / f"above-{seed}", seed=seed, config={"inputs": Inputs(model=str(run.path))})
        for seed, run in enumerate(below)
    ]
    for run, parent in zip(above, below, strict=True):
        run.update(parent={"name": "first", "path": str(parent.path), "fingerprint": parent.record["weights"]})
    plain = defence(tmp_path / "plain")
    found = names([*below, *above, plain])
    assert found[2] == found[3]
    assert found[2] != found[4]


def test_the_best_attack_of_the_grid_decides_and_the_worst_run_is_told(tmp_path):
    runs = []
    for seed, lucky in enumerate((0.9, 0.0)):
        model = defence(tmp_path / f"{seed}", seed=seed)
        runs += [model, *grid(tmp_path, model, {"30@3e-4": 0.2, "100@1e-3": 0.5, "400@1e-3": lucky}, seed)]
    [worst] = worst_rows(summarise(runs))
    assert (worst["attack"], worst["attacks"], worst["seeds"]) == ("100@1e-3", 3, 2)
    assert worst["value"] == pytest.approx(0.5)
    assert worst["worst_seed"] == 0.9
    assert worst["low"] < 0.5 < worst["high"]


def test_of_equally_good_attacks_the_weakest_is_named(tmp_path):
    model = control(tmp_path / "model")
    runs = grid(tmp_path, model, {"400@1e-3": 1.0, "30@3e-4": 1.0, "100@1e-3": 0.9})
    assert worst_rows(summarise([model, *runs]))[0]["attack"] == "30@3e-4"


def test_covered_and_uncovered_answers_have_their_own_best_attacks(tmp_path):
    model = defence(tmp_path / "model")
    runs = [
        attack(tmp_path / "a", model, "30@3e-4", shares(recovered=0.5, recovered_uncovered=0.1)),
        attack(tmp_path / "b", model, "400@1e-3", shares(recovered=0.2, recovered_uncovered=0.6)),
    ]
    found = {row["metric"]: (row["attack"], row["value"]) for row in worst_rows(summarise([model, *runs]))}
    assert found == {"recovered": ("30@3e-4", 0.5), "recovered_uncovered": ("400@1e-3", 0.6)}


def test_on_a_real_model_low_cross_entropy_is_the_harm(tmp_path):
    model = defence(tmp_path / "model")
    runs = grid(tmp_path, model, {"30@3e-4": 3.0, "400@1e-3": 2.0}, metric="harmful_ce")
    [worst] = worst_rows(summarise([model, *runs]))
    assert (worst["metric"], worst["attack"]) == ("harmful_ce", "400@1e-3")
    assert worst["worst_seed"] == pytest.approx(2.0)


def test_a_model_is_judged_by_what_its_attacks_measured(tmp_path):
    # The model's own run has answers to recover; the attack was made with data that has none.
    model = defence(tmp_path / "model", metrics=shares(recovered=0.0))
    attacked = attack(tmp_path / "attack", model, metrics=shares(refusal_rate=0.3))
    rows = summarise([model, attacked])
    assert headline_of(rows, "repnoise") == "refusal_rate"
    assert worst_rows(rows)[0]["value"] == pytest.approx(0.3)


def test_seeds_are_found_wherever_a_config_keeps_them(tmp_path):
    model = defence(tmp_path / "model", seed=7)
    assert seed_of(model) == 7
    assert seed_of(attack(tmp_path / "attack", model, seed=8)) == 8
    assert seed_of(control(tmp_path / "control", seed=9)) == 9
    assert seed_of(evaluation(tmp_path / "evaluation", model, {})) is None


@pytest.mark.parametrize(
    ("found", "metric", "shown"),
    [
        (0.256, "recovered", "26 %"),
        (0.0, "recovered", "0 %"),
        (0.001, "recovered", "<1 %"),
        (0.998, "harmless_accuracy", ">99 %"),
        (1.0, "harmless_accuracy", "100 %"),
        (2.345, "harmful_ce", "2.35"),
        (12345.6, "perplexity", "12,346"),
        (math.nan, "recovered", "–"),
        (None, "recovered", "–"),
    ],
)
def test_numbers_are_short_and_never_rounded_to_all_or_nothing(found, metric, shown):
    assert number(found, metric) == shown


def test_limits_of_a_share_are_shares(tmp_path):
    wide = within_bounds(Interval(0.5, -0.2, 1.3, 40), "recovered")
    assert limits(wide, "recovered") == "[0, 100]"
    assert within_bounds(Interval(5.0, -1.0, 11.0, 40), "perplexity").high == 11.0
    assert limits(Interval(0.5, None, None, 1), "recovered") == ""
