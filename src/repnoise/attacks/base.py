"""What an attack is: hyper-parameters, and one method that turns a model into another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repnoise.data.sources import PairedData

if TYPE_CHECKING:  # Presets must be cheap to import.
    from torch import nn

    from repnoise.data.tokenization import Codec
    from repnoise.modeling import LoadedModel
    from repnoise.training import OnStep


@dataclass(frozen=True)
class Attack(ABC):
    """A frozen dataclass of hyper-parameters. Presets are values of it, not subclasses."""

    @abstractmethod
    def label(self) -> str:
        """A short name that says how strong it is: what a run is called whose attack is no preset."""

    @abstractmethod
    def require(self, data: PairedData) -> None:
        """Raise RepnoiseError if the data lacks what the attack needs."""

    @abstractmethod
    def apply(
        self,
        loaded: LoadedModel,
        data: PairedData,
        codec: Codec,
        folder: Path,
        resume: bool = False,
        on_step: OnStep | None = None,
        progress: str | None = None,
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        """The attacked model and a log. Only `data.attacker_pairs` and `data.benign` may be looked at.

        `codec` writes prompts and completions as the attacked model will be asked: in the attack's own `template`,
        where it has one that is not "auto".
        `on_step(step, model)` is called along the way, so that harm can be measured as a curve; an attack never
        measures it itself. `folder` is for checkpoints.
        """
