"""What is tuned of a defence: one rule for all of them, so that none is searched more cleverly than another."""

from __future__ import annotations

import math
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


def spread(preset: DefendConfig, span: float, count: int) -> list[dict[str, float]]:
    """Settings to begin with: the preset, then points that are spread evenly over the space (Sobol's sequence without
    its corner, on logarithmic scales). A few draws at random may all lie on one side, and the same one for all."""
    from scipy.stats.qmc import Sobol

    centre = tuned(preset)
    # Its second point is the centre: the preset.
    points = Sobol(len(centre), scramble=False).random_base2(max(1, math.ceil(math.log2(count + 1))))[1 : count + 1]
    settings = zip(centre.items(), points.T, strict=True)
    columns = {name: value * span ** (2 * column - 1) for (name, value), column in settings}
    return [{name: float(column[i]) for name, column in columns.items()} for i in range(count)]


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
