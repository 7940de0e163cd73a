"""Tuning: what is searched, what counts as better, and that nothing finished is lost."""

import json
from dataclasses import replace

import pytest
from optuna.trial import FixedTrial

from repnoise.cli import main
from repnoise.defences import RepNoise
from repnoise.defend import presets
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation
from repnoise.evaluate import Evaluating
from repnoise.inputs import Inputs
from repnoise.runs import load_run
from repnoise.search.queue import begun, open_study
from repnoise.tuning.command import TuneConfig, _found, _trial, work
from repnoise.tuning.results import Tried, Tuned, read_preset, sentences, write_tuned
from repnoise.tuning.space import chosen, spread, tuned
from repnoise.tuning.trials import Bounds, lost, score

PRESET = presets()["repnoise"]
BEFORE = {"harmless_accuracy": {"value": 0.8}, "over_refusal_rate": {"value": 0.1}, "rouge1": {"value": 0.5}}


@pytest.fixture
def config(tiny_model, pairs_file, tmp_path):
    evaluating = Evaluating(("resistance",), generation=Generation(max_new_tokens=4))
    text = tmp_path / "plain.txt"
    text.write_text("The miller went down to the river.\n\nNobody saw him come back.\n")
    inputs = Inputs(str(tiny_model), str(pairs_file), plain_text=str(text))
    return TuneConfig("repnoise", inputs, evaluating, ("30@3e-4",), trials=2, steps=2, output_dir=tmp_path / "tune")


def test_the_learning_rate_and_every_number_above_zero_is_tuned_and_nothing_else():
    preset = replace(PRESET, defence=RepNoise(noise_weight=2.0, ascent_weight=0.0, retain_weight=3.0, max_samples=64))
    assert tuned(preset) == {"learning_rate": 1e-3, "noise_weight": 2.0, "retain_weight": 3.0, "noise_scale": 1.0}
    made = chosen(
        FixedTrial({"learning_rate": 5e-4, "noise_weight": 1, "retain_weight": 9, "noise_scale": 2}), preset, 8
    )
    assert made.training == replace(preset.training, learning_rate=5e-4)
    assert made.defence == replace(preset.defence, noise_weight=1.0, retain_weight=9.0, noise_scale=2.0)


def test_the_first_trials_are_the_preset_and_points_on_all_sides_of_it():
    settings = spread(PRESET, 4.0, 8)
    assert settings[0] == pytest.approx(tuned(PRESET)) and len(settings) == 8
    for name, value in tuned(PRESET).items():
        ratios = sorted(point[name] / value for point in settings[1:])
        assert min(ratios) >= 1 / 4 and max(ratios) <= 4
        # Already the next two lie on two sides, half the way up and down on a logarithmic scale.
        assert sorted(point[name] / value for point in settings[1:3]) == pytest.approx([0.5, 2.0])
        assert sum(ratio < 1 for ratio in ratios) in (3, 4) and len({round(r, 6) for r in ratios}) == 7
    assert spread(PRESET, 4.0, 3) == settings[:3]


@pytest.mark.parametrize(
    ("metric", "value", "bound", "excess"),
    [
        ("harmless_accuracy", 0.76, "stability", 0.0),  # Exactly a twentieth less.
        ("harmless_accuracy", 0.4, "stability", 0.45),
        ("over_refusal_rate", 0.25, "over_refusal", 0.1),
        ("rouge1", 0.3, "trainability", 0.3),
    ],
)
def test_a_bound_is_passed_by_what_is_beyond_it(metric, value, bound, excess):
    found = Bounds().excesses(BEFORE | {metric: {"value": value}}, BEFORE)
    assert found[bound] == pytest.approx(excess, abs=1e-9)
    assert lost(found) == pytest.approx(excess, abs=1e-9)  # The others are kept.


def test_perplexity_bounds_what_has_no_harmless_answers():
    found = Bounds().excesses({"perplexity": {"value": 12.0}}, {"perplexity": {"value": 10.0}})
    assert found == {"stability": pytest.approx(0.15)}


def test_less_harm_is_better_unless_it_was_paid_for_with_the_model():
    before = {"recovered": {"value": 0.0}}
    kept, ruined = {"stability": -0.02}, {"stability": 0.2}
    assert score(0.3, kept, "recovered", before) == pytest.approx(-0.3)
    assert score(0.1, kept, "recovered", before) > score(0.3, kept, "recovered", before)
    assert score(0.0, ruined, "recovered", before) == pytest.approx(-0.6)
    assert score(None, {"stability": 0.5}, "recovered", before) == pytest.approx(-2.5)  # Not attacked: all is lost.
    # Of a cross-entropy, which an attack lowers, more is better.
    nats = {"harmful_ce": {"value": 4.0}}
    assert score(6.0, {}, "harmful_ce", nats) > score(2.0, {}, "harmful_ce", nats)


def tried(number, harm, excess=0.0, **choices):
    made = {"score": -(harm or 1.0) - 3 * max(0.0, excess), "metrics": {"rouge1": 0.5}}
    return Tried(number, choices, harm, {"a": harm}, {"stability": excess}, **made)


def found(*trials):
    return Tuned("repnoise", "recovered", {"recovered": 1.0, "rouge1": 0.5}, {}, ("a",), [*trials], PRESET, PRESET)


def test_the_best_stays_within_the_bounds_if_any_does():
    assert found(tried(0, 0.9), tried(1, 0.2, 0.01), tried(2, 0.5)).best.number == 2
    outside = found(tried(1, 0.2, 0.01), tried(2, 0.1, 0.3))
    assert outside.best.number == 1
    assert "No trial stayed within the bounds: the best of them, 1, passes stability." in sentences(outside)


def test_sensitivity_is_the_rank_correlation_and_silent_about_few_trials():
    rising = [tried(i, 0.1 * i, learning_rate=10.0**i, noise_weight=float(-i)) for i in range(1, 6)]
    assert found(*rising).sensitivity() == {"learning_rate": {"harm": 1.0}, "noise_weight": {"harm": -1.0}}
    assert found(*rising[:4]).sensitivity() == {}


@pytest.mark.slow
def test_tuning_makes_the_preset_first_goes_on_with_more_trials_and_writes_a_preset(config, tmp_path, capsys):
    work(config)
    study = open_study(config.folder, None, "tune")
    first, second = begun(study.get_trials())
    assert first.params == tuned(config.preset) and second.params != first.params
    runs = [load_run(config.folder / "trials" / str(i) / "defence") for i in range(2)]
    assert [run.record["config"]["training"]["seed"] for run in runs] == [1000, 1001]
    assert runs[0].record["config"]["training"]["steps"] == 2
    attack = load_run(config.folder / "trials" / "0" / "30@3e-4").record["config"]
    assert attack["attack"]["training"]["seed"] == 1000
    assert not runs[0].model.exists()  # The settings are what is wanted.
    started = [run.record["started"] for run in runs]

    more = replace(config, trials=3)
    work(more)
    again = [load_run(config.folder / "trials" / str(i) / "defence").record["started"] for i in range(3)]
    assert again[:2] == started
    with pytest.raises(RepnoiseError, match="a tuning with other settings"):
        work(replace(config, span=2.0))

    result = _found(more, open_study(config.folder, None, "tune"))
    assert [trial.number for trial in result.trials] == [0, 1, 2]
    preset = write_tuned(result, config.folder, 1.0)
    assert json.loads((config.folder / "tune.json").read_text())["best"] == result.best.number
    assert read_preset(config.folder).defence == result.best_config.defence
    capsys.readouterr()
    main(["defend", "--preset", str(preset), "--output-dir", str(tmp_path / "again"), "--seed", "7"])
    repeated = load_run(tmp_path / "again").record
    assert repeated["name"] == "repnoise" and repeated["config"]["training"]["seed"] == 7
    assert repeated["config"]["defence"] == json.loads(preset.read_text())["config"]["defence"]


def test_a_defence_that_ruins_the_model_is_not_attacked(config):
    study = open_study(config.folder, None, "tune")
    study.enqueue_trial(tuned(config.preset))
    before = {"harmful_ce": {"value": 5.0}, "perplexity": {"value": 1e-3}, "refusal_rate": {"value": 0.0}}
    made = _trial(config, study.ask(), before).made()
    assert made["harm"] is None and made["harms"] == {} and not (config.folder / "trials" / "0" / "30@3e-4").exists()


def test_what_a_defence_costs_must_be_measured(config):
    blind = replace(config, inputs=replace(config.inputs, plain_text=None))
    with pytest.raises(RepnoiseError, match="--plain-text FILE"):
        work(blind)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"defence": "shield"}, "There is no defence 'shield'"),
        ({"attacks": ("tickle",)}, "There is no attack 'tickle'"),
        ({"attacks": ()}, "needs an attack"),
        ({"span": 1.0}, "a --span above 1"),
        ({"trials": 0}, "--trials must be at least 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(changes, sentence):
    with pytest.raises(RepnoiseError, match=sentence):
        replace(TuneConfig(), **changes)


def test_a_file_that_is_no_preset_is_told_apart(tmp_path, capsys):
    (tmp_path / "notes.json").write_text('{"kind": "defence"}')
    with pytest.raises(SystemExit):
        main(["defend", "--preset", str(tmp_path / "notes.json")])
    assert "holds no preset" in capsys.readouterr().err
