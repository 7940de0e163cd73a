"""The directions in which representations vary most, and how harmful and harmless ones lie along them (paper, Figures 4
and 8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

SHOWN = 10
"""Most components whose share is kept."""


@dataclass(frozen=True)
class Components:
    """Principal components of all groups of examples together.

    Attributes:
        layer: whose states they are.
        explained: share of the variance in each of the first components, the largest first.
        coordinates: by group, each example's place along the first two components.
        spread: by group, the root of the mean squared distance of its examples from their mean, over that of all
            examples from theirs: near 0 for a group that has fallen into a point.
    """

    layer: int
    explained: tuple[float, ...]
    coordinates: dict[str, tuple[tuple[float, float], ...]]
    spread: dict[str, float]


def principal_components(groups: Mapping[str, Tensor], layer: int) -> Components:
    """Of the states (n, D) of each group: one fit for all, so that the groups can be compared.

    The paper flattens the tokens of a sequence into one long vector, whose components tell lengths apart, too; here an
    example is the mean over its completion. The sign of a component means nothing: the largest loading is made
    positive, so that runs agree. Raises ValueError for fewer than two examples or dimensions.
    """
    states = {name: own.double().numpy() for name, own in groups.items()}
    joint = np.concatenate(list(states.values()))
    if min(joint.shape) < 2:
        raise ValueError(f"Components need at least two examples in two dimensions, got {joint.shape}.")
    centre = joint.mean(0)
    _, singular, directions = np.linalg.svd(joint - centre, full_matrices=False)
    first = directions[:2]
    first = first * np.sign(first[range(2), np.abs(first).argmax(1)])[:, None]
    total = np.square(singular).sum()
    explained = np.square(singular[:SHOWN]) / total if total else np.zeros(min(SHOWN, len(singular)))
    return Components(
        layer,
        tuple(explained.tolist()),
        {name: tuple((float(a), float(b)) for a, b in (own - centre) @ first.T) for name, own in states.items()},
        {name: _spread(own) / (_spread(joint) or 1.0) for name, own in states.items()},
    )


def _spread(states: np.ndarray) -> float:
    return float(np.sqrt(np.square(states - states.mean(0)).sum(1).mean())) if len(states) else 0.0
