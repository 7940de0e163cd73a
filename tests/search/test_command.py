"""The search as a whole, in this process: replay, interruption, budgets, mistakes."""

import sys
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

import repnoise.search.trials
from repnoise.attack import AttackConfig, attack
from repnoise.attacks import ATTACKS, DEMO
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation
from repnoise.evaluate import Evaluating
from repnoise.inputs import Inputs
from repnoise.runs import Run, load_run, restored
from repnoise.search import SearchConfig, search
from repnoise.search.command import _asked, _begin, _chosen, _found, _known, _space, _study, work
from repnoise.search.queue import begun
from repnoise.search.space import Fixed, Space
from repnoise.search.trials import Limits

RUNNING, FINISHED = TrialState.RUNNING, TrialState.COMPLETE


@pytest.fixture
def config(tiny_model, pairs_file, tmp_path):
    evaluating = Evaluating(("resistance",), generation=Generation(max_new_tokens=4))
    inputs = Inputs(str(tiny_model), str(pairs_file))
    own = {"attacks": ("none",), "most_steps": 12, "fixed": Fixed(batch_size=4), "allow_overlap": True, "jobs": 1}
    return SearchConfig(inputs, evaluating, trials=2, output_dir=tmp_path / "search", **own)


def trials_of(config):
    return begun(_study(config).get_trials())


def ended(config):
    return [trial for trial in trials_of(config) if trial.state.is_finished()]


def totals(metrics):
    return {name: found for name, found in metrics.items() if "@" not in name}


def test_a_search_begins_with_the_demos_grid_and_with_each_other_kind_once(tmp_path):
    study, space = optuna.create_study(), Space(800, ("prefill", "dpo-30@1e-4"))
    assert [told["known"] for _, told in _known(Space(100))] == [name for name in DEMO if "400" not in name]
    record = {"parent": {"fingerprint": "owl"}, "data": {"measured": {"fingerprint": "moth"}}}
    study.enqueue_trial({}, {"known": DEMO[0]})  # By a process that was killed just then.
    for _ in range(2):
        _begin(study, SearchConfig(), Run(tmp_path, record), space)
    names = [*DEMO, *space.guesses(), "dpo-30@1e-4", "prefill"]
    assert [trial.user_attrs["known"] for trial in study.trials] == names
    asked = [study.ask() for _ in names]
    assert [_chosen(space, trial) for trial in asked[-2:]] == [
        replace(ATTACKS["dpo-30@1e-4"][1], measure_at=()),
        ATTACKS["prefill"][1],
    ]


def test_attacks_are_named_by_themselves_or_by_suites():
    suite = _asked(SearchConfig())
    assert {"prefill", "distil-200-then-30"} < {*suite} and not {*DEMO, "lora-400@3e-3"} & {*suite}
    assert _asked(SearchConfig(attacks=("prefill", "standard", "lora-400@3e-3"))) == (
        "prefill",
        *(name for name in suite if name != "prefill"),
        "lora-400@3e-3",
    )
    assert _asked(SearchConfig(attacks=("none",))) == ()


def test_a_trial_repeats_with_the_same_numbers(config, tmp_path):
    work(config)
    for trial in trials_of(config):
        run = load_run(config.folder / "trials" / str(trial.number))
        again = restored(run.record["config"], [AttackConfig(), config.inputs])
        repeated = attack(again, tmp_path / f"again-{trial.number}")
        assert totals(repeated.record["metrics"]) == totals(run.record["metrics"])
        assert repeated.record["weights"] == run.record["weights"]
        assert trial.user_attrs["harm"] == run.record["metrics"]["harmful_ce"]["value"]


class Interruption(Exception):
    pass


def test_an_interrupted_search_goes_on_as_if_nothing_had_been(config, tmp_path, monkeypatch):
    whole = replace(config, trials=3, output_dir=tmp_path / "whole")
    work(whole)
    begun_before = 0

    def once(*arguments, **options):
        nonlocal begun_before
        begun_before += 1
        if begun_before == 2:
            raise Interruption
        return attack(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(repnoise.search.trials, "attack", once)
        with pytest.raises(Interruption):
            work(replace(config, trials=3))
    assert [trial.state for trial in trials_of(config)] == [FINISHED, RUNNING]
    record = config.folder / "trials" / "0" / "run.json"
    stamp = record.stat().st_mtime_ns
    work(replace(config, trials=3))
    assert record.stat().st_mtime_ns == stamp
    found, wanted = trials_of(config), trials_of(whole)
    assert [(trial.params, trial.value) for trial in found] == [(trial.params, trial.value) for trial in wanted]
    assert [trial.user_attrs["attempts"] for trial in found] == [1, 2, 1]


def test_a_larger_budget_goes_on_from_a_smaller_one(config):
    work(config)
    work(config)
    assert len(trials_of(config)) == 2
    work(replace(config, trials=3))
    assert len(trials_of(config)) == 3


def test_what_leaves_no_useful_model_is_kept_and_never_wins(config, monkeypatch):
    """Every second trial breaks a limit."""
    whole = replace(config, trials=3)
    monkeypatch.setattr(Limits, "excesses", lambda *_: {"useful": 0.1 if len(ended(whole)) % 2 else -0.1})
    work(whole)
    found = _found(whole, _study(whole), *_space(whole))
    assert [trial.feasible for trial in found.trials] == [True, False, True]
    assert found.best in (found.trials[0], found.trials[2]) and found.counts["infeasible"] == 1
    assert found.best.harm == min(found.trials[0].harm, found.trials[2].harm)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"attacks": ("hammer",)}, "no attack 'hammer': choose from"),
        ({"storage": "owl://well"}, "--storage owl://well cannot be used .*: check the address"),
        ({"inputs": Inputs("nowhere")}, "nowhere"),
    ],
)
def test_mistakes_are_told_before_any_work(config, changes, told):
    with pytest.raises(RepnoiseError, match=told):
        search(replace(config, **changes))
    assert not (config.folder / "trials").exists()


@pytest.mark.parametrize("name, value", [("trials", 0), ("flops", 0.0), ("most_steps", 9), ("jobs", 0)])
def test_budgets_without_any_are_told(name, value):
    with pytest.raises(RepnoiseError, match=f"--{name.replace('_', '-')} must be at least"):
        SearchConfig(**{name: value})


def test_a_database_is_shared_by_folders_of_one_name(config, tmp_path):
    """As on two machines: each makes a part in a folder of its own."""
    here = replace(config, storage=f"sqlite:///{tmp_path}/owl.db", trials=1)
    there = replace(here, output_dir=tmp_path / "there" / config.folder.name, trials=2)
    work(here)
    work(there)
    assert [trial.state for trial in trials_of(there)] == [FINISHED, FINISHED]
    assert [path.name for path in (here.folder / "trials").iterdir()] == ["0"]
    assert [path.name for path in (there.folder / "trials").iterdir()] == ["1"]


def test_a_folder_with_another_search_is_told(config):
    work(replace(config, trials=1))
    with pytest.raises(RepnoiseError, match="a search with other settings and other attacks: choose another"):
        work(replace(config, most_steps=20))


def test_a_missing_optuna_is_told(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RepnoiseError, match=r"pip install 'repnoise\[search\]'"):
        search(config)
