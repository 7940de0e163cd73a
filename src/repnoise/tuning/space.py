"""What is tuned of a defence: one rule for all of them, so that none is searched more cleverly than another."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repnoise.defend import DefendConfig

RATE = "learning_rate"


def tuned(preset: DefendConfig) -> dict[str, float]:
    """The settings that are searched, with the preset's values: the learning rate, and every number above 0 of the
    defence that is no count. What the preset has at 0 or at None is a part that it leaves out."""
    own = {field.name: getattr(preset.defence, field.name) for field in fields(preset.defence)}
    numbers = {name: value for name, value in own.items() if isinstance(value, float) and value > 0}
    return {RATE: preset.training.learning_rate} | numbers


def chosen(trial: Any, preset: DefendConfig, span: float) -> DefendConfig:
    """The preset with what a trial of Optuna chooses, on logarithmic scales.

    Raises RepnoiseError where the defence refuses a value.
    """
    values = {
        name: _rounded(trial.suggest_float(name, value / span, value * span, log=True))
        for name, value in tuned(preset).items()
    }
    training = replace(preset.training, learning_rate=values.pop(RATE))
    return replace(preset, training=training, defence=replace(preset.defence, **values))


def _rounded(value: float) -> float:
    """Three digits: a number that can be read and typed."""
    return float(f"{value:.3g}")
