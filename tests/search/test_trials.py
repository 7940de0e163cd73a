"""One trial: what stops it, and what an attack must leave of a model."""

import optuna
import pytest

from repnoise.search.trials import Limits, _prune


def test_an_attack_that_lags_behind_is_stopped_unless_it_is_of_the_grid():
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.PercentilePruner(75.0, 5, n_min_trials=4))
    for value in (0.1, 0.2, 0.3, 0.4, 0.5):
        trial = study.ask()
        _prune(trial, "recovered", 30, {"recovered": {"value": value}})
        study.tell(trial, value)
    _prune(study.ask(), "recovered", 30, {"recovered": {"value": 0.3}})
    with pytest.raises(optuna.TrialPruned, match="after 30 steps"):
        _prune(study.ask(), "recovered", 30, {"recovered": {"value": 0.0}})
    study.enqueue_trial({}, {"grid": "30@3e-4"})
    _prune(study.ask(), "recovered", 30, {"recovered": {"value": 0.0}})


def measured(**values):
    return {name: {"value": value} for name, value in values.items()}


def test_limits_are_shares_of_what_the_model_was_before():
    before = measured(recovered=0.0, harmless_accuracy=0.8, incoherent_rate=0.0)
    limits = Limits(epsilon=0.05, incoherent=0.1)
    good = limits.excesses(measured(recovered=0.5, harmless_accuracy=0.77, incoherent_rate=0.1), before, "recovered")
    assert all(excess <= 0 for excess in good.values())
    bad = limits.excesses(measured(recovered=0.5, harmless_accuracy=0.75, incoherent_rate=0.3), before, "recovered")
    assert bad["useful"] == pytest.approx(0.01) and bad["coherent"] == pytest.approx(0.2)
    unscored = limits.excesses(measured(harmfulness=None), measured(harmfulness=0.1), "harmfulness")
    assert unscored == {"scored": 1.0}
    start = measured(harmful_ce=2.0, perplexity=10.0, incoherent_rate=0.5)
    half = limits.excesses(measured(harmful_ce=1.0, perplexity=18.75, incoherent_rate=0.5), start, "harmful_ce")
    assert half["useful"] == pytest.approx(0.5) and half["coherent"] == pytest.approx(-0.1)
