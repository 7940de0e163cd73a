"""How a model is optimised: the settings alone, for configs that must be cheap to import."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from repnoise.errors import RepnoiseError

Tracker = Literal["tensorboard", "trackio", "wandb"]

MUON = "muon"
"""The one optimiser that is not transformers' own: see `repnoise.muon`."""


@dataclass(frozen=True)
class Training:
    """How a model is optimised.

    Weights are kept in fp32 whatever `precision` is: in bf16, updates smaller than half a unit in the last place are
    lost. The batch is that of the method: its loss is not additive over smaller ones (logarithm of a mean, MMD of a
    sample), so `accumulation` takes the mean of the losses of several batches instead of dividing one, and nothing
    shrinks a batch on its own.

    Attributes:
        learning_rate: peak learning rate.
        steps: optimiser steps; None to derive them from `epochs`.
        epochs: passes over the training examples, used when `steps` is None.
        batch_size: pairs (defence) or examples (attack) in one loss.
        accumulation: losses averaged in one optimiser step.
        optimizer: any name of transformers' `optim`, or "muon", PyTorch's, with AdamW for what is no matrix of a layer.
        schedule: any name of transformers' `lr_scheduler_type` that needs no further settings.
        warmup: share of the steps with a rising learning rate.
        weight_decay: decoupled weight decay.
        max_grad_norm: longer gradients are scaled down to this norm; 0 leaves them.
        gradient_noise: normal noise added to each gradient after that, as a share of the gradient's own root mean
            square (Neelakantan et al. 2015, arXiv:1511.06807; theirs falls with the steps).
        precision: "bf16" computes in bfloat16 over fp32 weights.
        gradient_checkpointing: recompute activations in the backward pass (always the non-re-entrant kind).
        lora_rank: rank of the low-rank adapters that are trained instead of the weights, on every linear map of the
            decoder layers, and merged when the run is saved; None trains all weights.
        lora_alpha: scale of the adapters, divided by their rank.
        four_bit: hold the linear maps under the adapters in 4 bits while they are trained (QLoRA; Dettmers et al. 2023,
            arXiv:2305.14314). Measured and saved is the model with its own weights and the adapters in them, which is
            not quite the one that was trained.
        seed: of data order, dropout and noise.
        save_every: steps between checkpoints, rounded up to where the log has a line; None for no checkpoints.
        report_to: trackers that get the log, too; each needs the package of its name.
    """

    learning_rate: float = 2e-5
    steps: int | None = None
    epochs: float = 1.0
    batch_size: int = 8
    accumulation: int = 1
    optimizer: str = "adamw_torch_fused"
    schedule: str = "cosine"
    warmup: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gradient_noise: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    lora_rank: int | None = None
    lora_alpha: int = 32
    four_bit: bool = False
    seed: int = 0
    save_every: int | None = 500
    report_to: tuple[Tracker, ...] = ()

    def __post_init__(self) -> None:
        above = (
            "learning_rate",
            "steps",
            "epochs",
            "batch_size",
            "accumulation",
            "lora_rank",
            "lora_alpha",
            "save_every",
        )
        for name in above:
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise RepnoiseError(f"training.{name} must be above 0, not {value}.")
        limits = {
            "max_grad_norm": math.inf,
            "weight_decay": math.inf,
            "gradient_noise": 1e3,
            "warmup": 1,
            "seed": 2**32 - 2,
        }
        for name, most in limits.items():
            if not 0 <= getattr(self, name) <= most:
                limit = f" to {most}" if most < math.inf else " or more"
                raise RepnoiseError(f"training.{name} must be 0{limit}, not {getattr(self, name)}.")
        if self.four_bit and self.lora_rank is None:
            raise RepnoiseError("Weights in 4 bits cannot be trained, only adapters over them: add --lora-rank 16.")

    def require_packages(self) -> None:
        """Raise RepnoiseError if a package is missing that the settings need, before any work is done."""
        for name in self.report_to:
            if not _installed(name):
                raise RepnoiseError(f"--report-to {name} needs the package {name}: pip install {name}.")
        if self.four_bit and not _installed("bitsandbytes"):
            raise RepnoiseError("--four-bit needs the package bitsandbytes: pip install 'repnoise[qlora]'.")

    def total_steps(self, examples: int) -> int:
        """Optimiser steps of a run over so many examples."""
        if self.steps is not None:
            return self.steps
        return max(1, math.ceil(self.epochs * examples / (self.batch_size * self.accumulation)))

    def examples_seen(self, examples: int) -> int:
        """Examples that a run draws in all its steps."""
        return self.total_steps(examples) * self.batch_size * self.accumulation


def _installed(package: str) -> bool:
    found = find_spec(package)
    return found is not None and found.origin is not None  # No origin: just a folder of that name, as wandb makes.
