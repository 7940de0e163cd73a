"""The library's one `transformers.Trainer` subclass, for defences and attacks alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from repnoise.errors import RepnoiseError
from repnoise.modeling import with_lora
from repnoise.optimisation import Training

Objective = Callable[[nn.Module, Any], tuple[Tensor, dict[str, Tensor]]]
"""(model, batch) to the scalar to minimise and its detached terms."""

OnStep = Callable[[int, nn.Module], None]


def train(
    model: nn.Module,
    examples: Sequence[Any],
    collator: Callable[[Sequence[Any]], Any],
    objective: Objective,
    training: Training,
    folder: Path,
    resume: bool = False,
    on_step: OnStep | None = None,
    progress: str | None = None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Minimise the objective over `examples`, already in order and as many as the steps need.

    Checkpoints go to `folder`; with `resume`, training goes on from the newest whole one and ends with the same bits as
    an uninterrupted run. `on_step(step, model)` is called after every step, and for step 0 before the first. Returns
    the trained model (adapters still on) and the log: one dict a logged step, terms averaged since the one before.

    Raises RepnoiseError if a term is not finite, telling which one and when.
    """
    if training.lora_rank is not None:
        torch.manual_seed(training.seed)  # The adapters' initial weights belong to the run.
        model = with_lora(model, training.lora_rank, training.lora_alpha)  # type: ignore[arg-type]
    if training.gradient_checkpointing:
        # The re-entrant kind would cut captured activations off from the graph.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    steps = len(examples) // (training.batch_size * training.accumulation)
    checkpoint = newest_checkpoint(folder) if resume else None
    bar = _ProgressBar(progress) if progress is not None else None
    callbacks: list[TrainerCallback] = [
        _FiniteGradients(),
        *([_OnStep(on_step)] if on_step else []),
        *([bar] if bar else []),
    ]
    trainer = ObjectiveTrainer(objective, model, _arguments(training, steps, folder), collator, examples, callbacks)
    if on_step and checkpoint is None:
        on_step(0, model)
    with bar.line if bar else nullcontext():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return model, [row for row in trainer.state.log_history if "loss" in row]


class ObjectiveTrainer(Trainer):
    """Trainer whose loss is an objective with named terms: they are logged, and must stay finite."""

    def __init__(
        self,
        objective: Objective,
        model: nn.Module,
        args: TrainingArguments,
        collator: Callable[[Sequence[Any]], Any],
        examples: Sequence[Any],
        callbacks: list[TrainerCallback],
    ) -> None:
        dataset: Any = examples  # A list is a data set: it has a length and indices.
        super().__init__(model=model, args=args, data_collator=collator, train_dataset=dataset, callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        if self.args.world_size > 1:
            raise RepnoiseError("repnoise trains in one process so far: start it without a distributed launcher.")
        self.objective = objective
        # The mean over accumulated batches, not their sum, whatever arguments the model's own loss takes.
        self.loss_is_scaled_for_ga = False
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            loss, terms = self.objective(model, inputs)
        if not torch.isfinite(loss):
            raise RepnoiseError(_not_finite(terms, self.state.global_step + 1), exit_code=1)
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0) + term
        self._count += 1
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._count:
            logs = logs | {name: (total / self._count).item() for name, total in self._sums.items()}
            self._sums, self._count = {}, 0
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        super()._save_checkpoint(model, trial)
        # A killed process leaves half a checkpoint behind: only one with this mark is ever read.
        (Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}" / "complete").touch()


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint with the most steps, if there is any."""
    whole = [mark.parent for mark in folder.glob("checkpoint-*/complete")]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def _arguments(training: Training, steps: int, folder: Path) -> TrainingArguments:
    log_every = max(1, steps // 100)
    # Saving only where something was just logged keeps a resumed run's log the same as an uninterrupted one's.
    save_every = math.ceil((training.save_every or steps) / log_every) * log_every
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=math.ceil(training.warmup * steps),
        optim=training.optimizer,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        bf16=training.precision == "bf16",
        seed=training.seed,
        logging_steps=log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps" if training.save_every else "no",
        save_steps=save_every,
        save_total_limit=2,
        report_to=list(training.report_to) or "none",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
    )


def _not_finite(terms: dict[str, Tensor], step: int) -> str:
    bad = [name for name, term in terms.items() if not torch.isfinite(term)] or ["loss"]
    return (
        f"Training stopped at step {step}: {' and '.join(bad)} is not finite. Lower --learning-rate (or the "
        "weight of that term) and start again; the last checkpoint is from before."
    )


class _FiniteGradients(TrainerCallback):
    """A finite loss can have a gradient that is not; applied, it would spoil the weights and then a checkpoint."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        gradients: Iterable[Tensor] = [p.grad for p in model.parameters() if p.grad is not None]
        if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            terms = {"the gradient": torch.tensor(math.nan)}
            raise RepnoiseError(_not_finite(terms, state.global_step + 1), exit_code=1)


class _OnStep(TrainerCallback):
    def __init__(self, on_step: OnStep) -> None:
        self.on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.on_step(state.global_step, model)


class _ProgressBar(TrainerCallback):
    """One line with the steps done, the time left and the latest terms."""

    def __init__(self, title: str) -> None:
        self.line = Progress(
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[terms]}"),
        )
        self.task = self.line.add_task("", total=None, terms="")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.line.update(self.task, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.line.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        hidden = ("epoch", "grad_norm", "learning_rate", "step")
        terms = {name: value for name, value in (logs or {}).items() if name not in hidden and "train" not in name}
        self.line.update(self.task, terms="  ".join(f"{name} {float(value):.3g}" for name, value in terms.items()))
