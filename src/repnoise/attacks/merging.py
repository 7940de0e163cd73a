"""Edits of the weights that go towards another model of the same shape, or away from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from repnoise.attacks.weight_edits import Edit, require_finite
from repnoise.errors import RepnoiseError

if TYPE_CHECKING:  # Presets must be cheap to import.
    from torch import Tensor, nn

Base = Annotated[str, tyro.conf.arg(name="attack-base", metavar="MODEL")]


@dataclass(frozen=True)
class Interpolation(Edit):
    """w = (1 - share) w + share w_base, for all weights: embeddings, norms and biases, too.

    A share between 0 and 1 merges the defended model with another one of the same shape; above 1 it goes beyond that
    one, away from the defence; below 0 it exaggerates what the defence changed. This is task arithmetic on the
    defence's weight change (Ilharco et al. 2022, Editing Models with Task Arithmetic, arXiv:2212.04089); between two
    fine-tunings of one model, the path is often one of low loss (Wortsman et al. 2022, Model soups, arXiv:2203.05482).

    Needs the weights of both and no data. With the undefended model itself as the base, the attacker has nothing to
    gain at share 1, for it is what they have already: that setting says how soon the defence is diluted. In practice
    the base is the public model before instruction tuning, and the prize is to lose the defence and keep the tuning.
    Fails where the two are far apart: in between is neither, and outside the norm of the weights grows with the share.

    Attributes:
        base: the model to go towards: a folder, a run, a hub id or "sandbox".
        share: how far to go: 0 is the attacked model, 1 the base.
    """

    base: Base = "sandbox"
    share: float = 0.5

    def __post_init__(self) -> None:
        require_finite("share", self.share)
        if self.share == 0:
            raise RepnoiseError("share 0 leaves the attacked model as it is: give another, such as 0.5.")

    def require(self) -> None:
        require_place(self.base)

    def label(self) -> str:
        return f"interpolation-{self.share:g}"

    def needs(self) -> str:
        return "weights of both models"

    def source(self) -> str:
        return "Ilharco et al. 2022"

    def weights(self, model: nn.Module) -> list[Tensor]:
        return list(model.parameters())

    def operations(self, weight: Tensor) -> float:
        return 3.0 * weight.numel()

    def edited(self, model: nn.Module) -> Iterator[Tensor]:
        for weight, was in counterparts(model, self.base):
            yield (1 - self.share) * weight + self.share * was


@dataclass(frozen=True)
class DeltaStrip(Edit):
    """w = w - [w - w_base]_rank: takes the best approximation of that rank out of each matrix's change.

    The change is that from the base to the defended model, and its approximation a truncated singular value
    decomposition. A change of a vector (norm, bias) has rank 1 and is undone whole; embeddings are matrices like all
    others. The idea: what alignment changes is of low rank (Wei et al. 2024, Assessing the Brittleness of Safety
    Alignment via Pruning and Low-Rank Modifications, arXiv:2402.05162), so that a few directions carry it while the
    rest of the change, which may be worth having, stays.

    Needs both models and no data, and one decomposition a matrix. As with `Interpolation`, an attacker who has the
    undefended model needs no attack: there it says how concentrated the defence is. Fails where the defence's change
    is spread over all directions.

    Attributes:
        base: the model before the defence: a folder, a run, a hub id or "sandbox".
        rank: singular directions of each change that are undone; all of them give the base.
    """

    base: Base = "sandbox"
    rank: int = 8

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise RepnoiseError(f"rank must be at least 1, not {self.rank}.")

    def require(self) -> None:
        require_place(self.base)

    def label(self) -> str:
        return f"delta-strip-{self.rank}"

    def needs(self) -> str:
        return "weights of both models"

    def source(self) -> str:
        return "after Wei et al. 2024"

    def weights(self, model: nn.Module) -> list[Tensor]:
        return list(model.parameters())

    def operations(self, weight: Tensor) -> float:
        """6 m n^2 + 20 n^3 for the decomposition of m x n with m >= n (Golub and Van Loan, Matrix Computations, 2013,
        figure 8.6.1), 2 m n rank for the product of what is kept."""
        if weight.dim() < 2:
            return float(weight.numel())
        n, m = sorted(weight.shape[-2:])
        matrices = weight.numel() // (m * n)
        return float(matrices * (6 * m * n**2 + 20 * n**3 + 2 * m * n * min(self.rank, n)))

    def edited(self, model: nn.Module) -> Iterator[Tensor]:
        for weight, was in counterparts(model, self.base):
            yield weight - truncated(weight - was, self.rank)


def require_place(base: str) -> None:
    """Raise RepnoiseError if a folder or run that is to be the base is not there."""
    from repnoise.modeling import locate

    locate(base)


def counterparts(model: nn.Module, base: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Each weight with that of the base, which is held on the CPU; raises RepnoiseError if they do not correspond."""
    from repnoise.modeling import load

    ours, theirs = dict(model.named_parameters()), dict(load(base, device="cpu").model.named_parameters())
    odd = [name for name in ours | theirs if _shape(ours, name) != _shape(theirs, name)]
    if odd:
        raise RepnoiseError(
            f"The base {base!r} is not built like the attacked model ({odd[0]} differs): give the model that the "
            "attacked one was made from."
        )
    for name, weight in ours.items():
        yield weight, theirs[name].detach().to(weight)


def _shape(weights: dict[str, Any], name: str) -> tuple[int, ...]:
    return tuple(weights[name].shape) if name in weights else ()


def truncated(change: Tensor, rank: int) -> Tensor:
    """The best approximation of that rank, in the Frobenius norm, of a matrix or of each of a stack of them."""
    import torch

    if change.dim() < 2:
        return change
    left, sizes, right = torch.linalg.svd(change, full_matrices=False)
    return (left[..., :rank] * sizes[..., None, :rank]) @ right[..., :rank, :]
