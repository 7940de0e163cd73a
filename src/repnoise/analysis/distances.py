"""How near representations are to noise, to each other, and to those of the base model, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repnoise.losses import mmd2
from repnoise.statistics import Interval, bootstrap_interval

DRAWS = 40
"""How often chance is asked what it would give."""


@dataclass(frozen=True)
class NoiseDistance:
    """Activations of one group against Gaussian noise.

    Attributes:
        layers: whose activations they are.
        mmd: unbiased squared MMD of tokens to draws from N(0, scale^2 I); 0 in the mean where the two do not differ.
        floor: the 95 % quantile of the same for two samples of noise.
        size: root mean square of an activation; the noise's is `scale`. Most of a large MMD may be this alone.
    """

    group: str
    layers: tuple[int, ...]
    mmd: tuple[float, ...]
    floor: float
    size: tuple[float, ...]
    scale: float


@dataclass(frozen=True)
class GroupDistance:
    """Two groups of examples against each other: unbiased squared MMD by layer, and its 95 % quantile where the same
    examples are divided at random."""

    groups: tuple[str, str]
    layers: tuple[int, ...]
    mmd: tuple[float, ...]
    floor: tuple[float, ...]


@dataclass(frozen=True)
class BaseSimilarity:
    """The same examples in a model and in its base, by layer.

    Attributes:
        cka: linear centred kernel alignment, unbiased: 1 if one is the other turned and scaled, 0 in the mean if the
            two have nothing to do with each other.
        cosine: mean cosine of an example's two states, with its interval over examples; 1 if nothing was moved.
    """

    group: str
    layers: tuple[int, ...]
    cka: tuple[float, ...]
    cosine: tuple[Interval, ...]


def noise_distance(
    group: str, tokens: Tensor, layers: Sequence[int], scale: float = 1.0, seed: int = 0
) -> NoiseDistance:
    """Of sampled tokens (L, n, D)."""
    generator = torch.Generator().manual_seed(seed)
    shape = tokens.shape[1:]

    def noise() -> Tensor:
        return scale * torch.randn(shape, generator=generator)

    target = noise()
    found = [mmd2(own, target, unbiased=True).item() for own in tokens]
    chance = [mmd2(noise(), noise(), unbiased=True).item() for _ in range(DRAWS)]
    sizes = tokens.float().square().mean((1, 2)).sqrt().tolist()
    return NoiseDistance(group, tuple(layers), tuple(found), _floor(chance), tuple(sizes), scale)


def group_distance(
    names: tuple[str, str], first: Tensor, second: Tensor, layers: Sequence[int], seed: int = 0
) -> GroupDistance:
    """Of example means (n, L, D) and (m, L, D). An example is one sample: its tokens are not independent."""
    generator = torch.Generator().manual_seed(seed)
    found, floors = [], []
    for i in range(len(layers)):
        x, y = first[:, i], second[:, i]
        found.append(mmd2(x, y, unbiased=True).item())
        joint = torch.cat([x, y])
        floors.append(_floor([_divided(joint, len(x), generator) for _ in range(DRAWS)]))
    return GroupDistance(names, tuple(layers), tuple(found), tuple(floors))


def _divided(joint: Tensor, size: int, generator: torch.Generator) -> float:
    order = torch.randperm(len(joint), generator=generator)
    return mmd2(joint[order[:size]], joint[order[size:]], unbiased=True).item()


def base_similarity(group: str, ours: Tensor, base: Tensor, layers: Sequence[int]) -> BaseSimilarity:
    """Of the example means (n, L, D) of the same rows in the two models."""
    cka = [linear_cka(ours[:, i], base[:, i], unbiased=True) for i in range(len(layers))]
    cosine = torch.nn.functional.cosine_similarity(ours.double(), base.double(), dim=-1)
    return BaseSimilarity(
        group, tuple(layers), tuple(cka), tuple(bootstrap_interval(values) for values in cosine.T.tolist())
    )


def linear_cka(x: Tensor, y: Tensor, unbiased: bool = False) -> float:
    """Linear centred kernel alignment of states (n, D) and (n, E) of the same n examples (Kornblith et al. 2019,
    arXiv:1905.00414, section 3). It does not change with rotation or scale; NaN where one of the two does not vary.

    With fewer examples than dimensions it is near 1 whatever is compared; `unbiased` estimates each of its three terms
    without that bias (Song et al. 2012, JMLR 13, equation 5) and needs four examples.
    """
    products = [states.double() @ states.double().T for states in (x - x.mean(0), y - y.mean(0))]
    estimate: Callable[[Tensor, Tensor], Tensor] = _unbiased_hsic if unbiased else _hsic
    kernel, other = products
    scale = estimate(kernel, kernel) * estimate(other, other)
    return (estimate(kernel, other) / scale.sqrt()).item() if scale > 0 else float("nan")


def _hsic(kernel: Tensor, other: Tensor) -> Tensor:
    """Of kernels whose features are centred, up to a constant factor."""
    return (kernel * other).sum()


def _unbiased_hsic(kernel: Tensor, other: Tensor) -> Tensor:
    n = len(kernel)
    if n < 4:
        raise ValueError(f"The unbiased estimate needs at least four examples, got {n}.")
    k, m = kernel.clone().fill_diagonal_(0), other.clone().fill_diagonal_(0)
    sums = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(0))
    return ((k * m).sum() + sums) / (n * (n - 3))


def _floor(values: Sequence[float]) -> float:
    return torch.tensor(values, dtype=torch.float64).quantile(0.95).item()
