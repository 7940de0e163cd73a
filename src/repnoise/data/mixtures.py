"""The order in which a training run sees its examples, fixed by a seed before it starts.

Because the order is a list and not a sampler's state, an interrupted run goes on with exactly the batches that it would
have seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def epochs(items: Sequence[T], count: int, seed: int) -> list[T]:
    """`count` items: every item once in a random order, then once more in another, and so on."""
    rng = random.Random(seed)
    order: list[T] = []
    while len(order) < count:
        order += rng.sample(items, len(items))
    return order[:count]


def mixed(main: Sequence[T], other: Sequence[T], share: float, count: int, seed: int) -> list[T]:
    """`count` items of which a random `share` comes from `other`, each side in its own epochs."""
    rng = random.Random(f"mixture {seed}")
    from_other = [rng.random() < share for _ in range(count)]
    mains = iter(epochs(main, count - sum(from_other), seed))
    others = iter(epochs(other, sum(from_other), seed + 1) if any(from_other) else [])
    return [next(others) if is_other else next(mains) for is_other in from_other]
