"""The library's one `transformers.Trainer` subclass, for defences and attacks alike."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from repnoise.distributed.processes import Share, first, mean_of, on_first, processes, share_of, stopped_explained, wait
from repnoise.distributed.sharding import load_shards, save_shards, whole, without_weights
from repnoise.distributed.shared_step import Objective, draw_apart, shared_step
from repnoise.errors import RepnoiseError
from repnoise.modeling import with_activation_checkpointing, with_lora, without_progress_bars
from repnoise.muon import MuonFactory
from repnoise.optimisation import MUON, Training
from repnoise.progress import ProgressBar
from repnoise.runs import flush_to_disk

OnStep = Callable[[int, nn.Module], None]

SHARDS = "shards"
"""Folder of a checkpoint that holds weights and optimiser in parts; others have them in ordinary files."""


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
    an uninterrupted run. Without it, what an earlier training left in the folder is deleted. `on_step(step, model)` is
    called after every step, and for step 0 before the first; what it draws at random changes nothing. `progress` is the
    title of a progress bar on stderr. Returns the trained model (adapters still on) and the log: one dict a logged
    step, terms averaged since the one before.

    Raises RepnoiseError if a term or a gradient is not finite, telling which one and when, and for an optimiser,
    schedule or tracker that cannot be used.

    Several processes share a step (see `distributed.share_of`). Only the first calls `on_step`, and does not where
    weights are sharded; then it alone returns a model with weights.
    """
    training.require_packages()
    share = share_of(training)
    checkpoint = on_first(lambda: _starting_point(folder, resume))
    _require_sharable(training, share, checkpoint)
    if training.lora_rank is not None:
        torch.manual_seed(training.seed)  # The adapters' initial weights belong to the run.
        model = with_lora(model, training.lora_rank, training.lora_alpha, four_bit=training.four_bit)  # type: ignore[arg-type]
    steps = len(examples) // (training.batch_size * training.accumulation)
    bar = ProgressBar(progress) if progress is not None and first() else None
    callbacks = [
        _LogLastStep(),
        _SoundGradients(training.max_grad_norm, folder),
        *([_NoisyGradients(training)] if training.gradient_noise else []),
        *(_trackers(training, folder, checkpoint) if first() else []),
        *([_OnStep(on_step)] if on_step and not share.sharded else []),
        *([bar] if bar else []),
    ]
    shape = without_weights(model) if share.sharded else None
    with without_progress_bars(), with_activation_checkpointing(model, training.gradient_checkpointing):
        step = shared_step(objective, model, share)
        trainer = _trainer(objective, model, training, steps, folder, collator, examples, callbacks, share, step)
        draw_apart(training, share, checkpoint)
        if on_step and checkpoint is None and not share.sharded:
            if first():
                with _random_state_kept(model):
                    on_step(0, model)
            wait()
        with bar.line if bar else nullcontext(), _memory_explained(), stopped_explained():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if first():
        with suppress(OSError):
            folder.rmdir()  # Trainer made it, and without checkpoints it is empty.
    if shape is not None:
        model = whole(model, shape, trainer.args.device)
    # Sorted, as a checkpoint keeps them.
    return model.eval(), [dict(sorted(row.items())) for row in trainer.state.log_history if "loss" in row]


def _starting_point(folder: Path, resume: bool) -> Path | None:
    checkpoint = newest_checkpoint(folder) if resume else None
    discard_checkpoints(folder, but=checkpoint)
    return checkpoint


def _require_sharable(training: Training, share: Share, checkpoint: Path | None) -> None:
    """Raise RepnoiseError for settings that need whole weights where they are sharded, and for a checkpoint of the
    other kind."""
    if share.sharded and (training.optimizer == MUON or training.gradient_noise):
        raise RepnoiseError("Muon and --gradient-noise need whole matrices: train without FSDP, or leave them out.")
    if checkpoint and (checkpoint / SHARDS).is_dir() != share.sharded:
        written, how = ("without", "take a launch configuration without") if share.sharded else ("with", "go on with")
        raise RepnoiseError(f"{checkpoint} was written {written} FSDP: {how} it, or begin again without --resume.")


class ObjectiveTrainer(Trainer):
    """Trainer whose loss is an objective with named terms: they are logged, and must stay finite."""

    def __init__(
        self,
        objective: Objective,
        model: nn.Module,
        args: TrainingArguments,
        precision: str,
        collator: Callable[[Sequence[Any]], Any],
        examples: Sequence[Any],
        callbacks: list[TrainerCallback],
        share: Share,
        step: nn.Module | None,
        optimizer: Any = None,
    ) -> None:
        dataset: Any = examples  # A list is a data set: it has a length and indices.
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=dataset,
            callbacks=callbacks,
            optimizer_cls_and_kwargs=optimizer,
        )
        self.remove_callback(PrinterCallback)
        if self.args.world_size != share.processes:
            raise RepnoiseError("Only repnoise defend and repnoise attack run in several processes of a launcher.")
        self.share, self.step = share, step
        self.objective, self.precision = objective, precision
        # The mean over accumulated batches, not their sum, whatever arguments the model's own loss takes.
        self.model_accepts_loss_kwargs = False
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        # Not through Trainer's own bf16, which leaves the model wrapped in an autocast after training.
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss, terms = self.objective(model, inputs) if self.step is None else model(inputs)
        if not torch.stack([loss.detach(), *(term.to(loss) for term in terms.values())]).isfinite().all():
            bad = [name for name, term in terms.items() if not term.isfinite()] or ["the loss"]
            raise _not_finite(bad, self.state.global_step + 1, "that term", Path(str(self.args.output_dir)))
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0) + term
        self._count += 1
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._count:
            means = {name: mean_of(total / self._count).item() for name, total in self._sums.items()}
            logs = logs | means
            self._sums, self._count = {}, 0
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # Nobody reads it, it takes time, and it would be wrong: an objective has several forward passes.

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        if self.step is None:
            return super()._wrap_model(model, training, dataloader)
        if self.share.sharded:
            return self.step
        return nn.parallel.DistributedDataParallel(self.step)  # `_SoundGradients` finds weights that are left out.

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return _whole(super()._get_grad_norm(model, grad_norm))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self.share.sharded:
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.step is None or not self.share.sharded:
            return super()._save_optimizer_and_scheduler(output_dir)
        save_shards(self.step, self.optimizer, Path(output_dir) / SHARDS)
        if first():
            scheduler: Any = self.lr_scheduler
            torch.save(scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self.share.sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.step is None or checkpoint is None or not self.share.sharded:
            return super()._load_optimizer_and_scheduler(checkpoint)
        load_shards(self.step, self.optimizer, Path(checkpoint) / SHARDS)
        scheduler: Any = self.lr_scheduler
        scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        super()._save_checkpoint(model, trial)
        wait()
        if not first():
            return
        folder = Path(str(self.args.output_dir))
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        # A killed process leaves half a checkpoint behind: only one with this mark is ever read.
        flush_to_disk(checkpoint)
        (checkpoint / "complete").touch()
        discard_checkpoints(folder, but=checkpoint)


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint with the most steps, if there is any."""
    whole = [mark.parent for mark in folder.glob("checkpoint-*/complete")]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def discard_checkpoints(folder: Path, but: Path | None) -> None:
    """Delete all checkpoints in a folder but one, half-written ones included."""
    for path in folder.glob("checkpoint-*"):
        if path != but:
            (path / "complete").unlink(missing_ok=True)  # First, so that none that is half deleted counts as whole.
            shutil.rmtree(path)


def _trainer(
    objective: Objective, model: nn.Module, training: Training, steps: int, folder: Path, *rest: Any
) -> ObjectiveTrainer:
    try:
        arguments = _arguments(training, share_of(training), steps, folder)
        muon = (MuonFactory, {"lr": training.learning_rate, "decay": training.weight_decay})
        optimizer = muon if training.optimizer == MUON else None
        trainer = ObjectiveTrainer(objective, model, arguments, training.precision, *rest, optimizer=optimizer)
        trainer.create_optimizer_and_scheduler(steps)  # Now, so that what is wrong with them shows before any work.
    except (ImportError, ValueError, TypeError) as error:
        names = f"Optimiser {training.optimizer!r} with schedule {training.schedule!r}"
        raise RepnoiseError(f"{names} cannot be used: {str(error).rstrip('.')}.") from error
    return trainer


def _arguments(training: Training, share: Share, steps: int, folder: Path) -> TrainingArguments:
    log_every = max(1, steps // 100)
    # Saving only where something was just logged keeps a resumed run's log the same as an uninterrupted one's.
    save_every = math.ceil((training.save_every or steps) / log_every) * log_every
    arguments = TrainingArguments(
        output_dir=str(folder),
        run_name=folder.parent.name,
        max_steps=steps,
        per_device_train_batch_size=share.batch_size,
        gradient_accumulation_steps=share.accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=math.ceil(training.warmup * steps),
        optim="adamw_torch" if training.optimizer == MUON else training.optimizer,
        weight_decay=training.weight_decay,
        max_grad_norm=0.0,  # `_SoundGradients` does it.
        seed=training.seed,
        logging_steps=log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps" if training.save_every else "no",
        save_steps=save_every,
        report_to=[name for name in training.report_to if name != "tensorboard"] or "none",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
    )
    # With several GPUs in sight Trainer would split every batch between them, and make it that many times larger.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _trackers(training: Training, folder: Path, checkpoint: Path | None) -> list[TrainerCallback]:
    """TensorBoard with its files beside the checkpoints, which are deleted; Trainer itself starts the others."""
    if "tensorboard" not in training.report_to:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    # Steps after the checkpoint are about to be logged once more.
    again_from = int(checkpoint.name.split("-")[1]) + 1 if checkpoint else None
    return [TensorBoardCallback(SummaryWriter(str(folder.parent / "tensorboard"), purge_step=again_from))]


def _not_finite(what: Sequence[str], step: int, lower: str, folder: Path) -> RepnoiseError:
    verb = "is" if len(what) == 1 else "are"
    checkpoint = newest_checkpoint(folder)
    kept = f" The last good checkpoint stays in {checkpoint}." if checkpoint else ""
    return RepnoiseError(
        f"Training stopped at step {step}: {' and '.join(what)} {verb} not finite. Lower --learning-rate, or the "
        f"weight of {lower}, and start again.{kept}",
        exit_code=1,
    )


@contextmanager
def _memory_explained() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RepnoiseError(
            "The GPU's memory is not enough: use --gradient-checkpointing, --precision bf16, or --lora-rank and then "
            "--four-bit, or lower --max-length or --batch-size (which is part of the method).",
            exit_code=1,
        ) from error


@contextmanager
def _random_state_kept(model: nn.Module) -> Iterator[None]:
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


class _LogLastStep(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True


class _SoundGradients(TrainerCallback):
    """Clips gradients, and stops at one that is not finite: a finite loss can have it, and it would spoil the weights.

    Trainer's own clipping would turn a gradient whose norm is infinite into zeros or NaN and go on.
    """

    def __init__(self, max_norm: float, folder: Path) -> None:
        self.max_norm, self.folder = max_norm, folder

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
        _require_all_trained(model)
        norm = _whole(torch.nn.utils.get_total_norm([parameter.grad for parameter in trained]))
        if not norm.isfinite():
            raise _not_finite(["the gradient"], state.global_step + 1, "a term", self.folder)
        if self.max_norm:
            torch.nn.utils.clip_grads_with_norm_(trained, self.max_norm, norm)


def _require_all_trained(model: nn.Module) -> None:
    """Raise RepnoiseError for a weight without a gradient, which would be left out of the mean over processes."""
    if processes() > 1:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.grad is None:
                raise RepnoiseError(
                    f"{name} is to be trained and gets no gradient, which several processes cannot agree on: start one "
                    "process, or freeze it.",
                    exit_code=1,
                )


def _whole(norm: Any) -> Any:
    """A norm over all processes, where each has that of its shards."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


class _NoisyGradients(TrainerCallback):
    def __init__(self, training: Training) -> None:
        self.share, self.seed = training.gradient_noise, training.seed

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        with self._same_draws(state.global_step, model):
            for parameter in model.parameters():
                if (gradient := parameter.grad) is not None:
                    gradient += self.share * gradient.square().mean().sqrt() * torch.randn_like(gradient)

    @contextmanager
    def _same_draws(self, step: int, model: nn.Module) -> Iterator[None]:
        """In all processes, whose weights have to stay the same."""
        if processes() == 1:
            yield
            return
        with _random_state_kept(model):
            torch.manual_seed(self.seed + 2**32 * (step + 1))
            yield


class _OnStep(TrainerCallback):
    def __init__(self, on_step: OnStep) -> None:
        self.on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if first():
            with _random_state_kept(model):
                self.on_step(state.global_step, model)
        wait()
