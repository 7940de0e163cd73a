"""How a training shows how far it is."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback


class ProgressBar(TrainerCallback):
    """One line with the steps done, the time left and the latest terms; off a terminal, a line every tenth."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.console = Console(stderr=True)
        self.line = Progress(
            TextColumn(escape(title)),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[terms]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.line.add_task("", total=None, terms="")
        self.started_at, self.start, self.tenths = 0, 0.0, -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.line.update(self.task, total=state.max_steps, completed=state.global_step)
        self.started_at, self.start = state.global_step, time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.line.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" not in (logs or {}):
            return  # Trainer's closing summary.
        hidden = ("epoch", "grad_norm", "learning_rate", "step")
        terms = "  ".join(f"{name} {value:.3g}" for name, value in logs.items() if name not in hidden)
        self.line.update(self.task, terms=terms)
        tenths = 10 * state.global_step // state.max_steps
        if not self.console.is_terminal and tenths > self.tenths:
            self.tenths = tenths
            a_step = (time.perf_counter() - self.start) / (state.global_step - self.started_at)
            left = round(a_step * (state.max_steps - state.global_step))
            text = f"{self.title}: step {state.global_step} of {state.max_steps}, {left} s left, {terms}"
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
