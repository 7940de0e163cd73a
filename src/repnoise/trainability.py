"""`repnoise trainability`: can a model still be trained on a harmless task? Fine-tuning, and ROUGE along the way."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from repnoise.attack import without_model
from repnoise.data.records import Example, ExampleSet
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation
from repnoise.evaluate import parent_of
from repnoise.inputs import FLAT, Inputs, long_prompts
from repnoise.optimisation import Training
from repnoise.runs import Run, fingerprint, open_run, read_rows, recording, write_rows

if TYPE_CHECKING:  # Configs must be cheap to import.
    from torch import nn

    from repnoise.data.sources import PairedData
    from repnoise.data.tokenization import Codec
    from repnoise.modeling import LoadedModel

SANDBOX = Training(learning_rate=1e-3, steps=200, batch_size=16, save_every=None)
PAPER = Training(learning_rate=8e-5, epochs=1, batch_size=8, max_grad_norm=0.0)
"""Paper, appendix: one epoch at 8e-5. The published code generates 25 tokens, which cuts many structures off."""


@dataclass(frozen=True)
class TrainabilityConfig:
    """Train a model on a harmless task and measure ROUGE along the way (the fourth immunization condition).

    Attributes:
        inputs: model and data.
        task: a task of the data by its name, or NAME:PATH of a format that `repnoise list datasets` names, or a table
            with the columns prompt, completion and split (train or test).
        training: optimiser settings; their steps are what a user would spend.
        generation: how test answers are drawn.
        measure_at: steps after which ROUGE is measured, beside the first and the last.
        tested: most test examples, the first ones; None for all.
        keep_model: keep the trained weights, to attack them.
    """

    inputs: Annotated[Inputs, FLAT] = field(default_factory=Inputs)
    task: str = "trade"
    training: Annotated[Training, FLAT] = SANDBOX
    generation: Annotated[Generation, FLAT] = field(default_factory=Generation)
    measure_at: tuple[int, ...] = (10, 25, 50, 100)
    tested: Annotated[int | None, tyro.conf.arg(name="tested")] = 200
    keep_model: bool = False

    def __post_init__(self) -> None:
        if self.tested is not None and self.tested < 1:
            raise RepnoiseError(f"--tested is the most test examples, 1 or more, not {self.tested}.")


def presets() -> dict[str, TrainabilityConfig]:
    """The sandbox's budget, and the paper's."""
    paper = TrainabilityConfig(training=PAPER, measure_at=(25, 50, 100, 200, 400), tested=None)
    return {"sandbox": TrainabilityConfig(), "paper": paper}


def trainability(
    config: TrainabilityConfig, output_dir: Path, name: str = "", resume: bool = False, progress: bool = False
) -> Run:
    """Train on the task into a run with a curve of ROUGE. A finished run of the same config is left as it is.

    Raises RepnoiseError for a task that there is none of, or whose texts do not fit.
    """
    from repnoise.data.extras import task_name
    from repnoise.defend import trained_once

    config.training.require_packages()
    loaded, data, codec = config.inputs.open()
    task = _fitting(_task(config, data), codec, config.inputs.skip_long)
    examples = _examples(task, codec, config.training)
    facts = {"task": {"rows": len(task.splits["train"]), "fingerprint": fingerprint(task.splits)}}
    facts["skipped"] = task.skipped
    parent = parent_of(config.inputs, loaded)
    run = open_run(
        output_dir, "trainability", name or task_name(config.task), config, resume, parent=parent, data=facts
    )
    if run.finished:
        return without_model(run, config.keep_model)
    tests = task.splits["test"][: config.tested]
    curve = _Curve(run.path / "curve.jsonl", loaded, codec, tests, config.generation)

    def training() -> tuple[nn.Module, list[dict[str, Any]]]:
        from repnoise.attacks.fine_tuning import language_modelling
        from repnoise.data.collators import ExampleCollator
        from repnoise.four_bit import as_saved
        from repnoise.training import train

        def on_step(step: int, model: nn.Module) -> None:
            if step in config.measure_at:
                with as_saved(model):
                    curve.measure(step, replace(loaded, model=model))

        collator, title = ExampleCollator(loaded.tokenizer.pad_token_id), run.record["name"] if progress else None
        folder = run.checkpoints
        return train(
            loaded.model, examples, collator, language_modelling, config.training, folder, resume, on_step, title
        )

    with recording(run):
        curve.measure(0, loaded)
        trained, log = trained_once(run, loaded, training)
        metrics = curve.measure(log[-1]["step"] if log else 0, trained, run.path / "evaluations" / "task")
        run.update(metrics=metrics, weights=trained.fingerprint)
    return without_model(run, config.keep_model)


class _Curve:
    """ROUGE at the chosen steps; what an interrupted run had measured is kept."""

    def __init__(
        self, path: Path, loaded: LoadedModel, codec: Codec, tests: list[Example], generation: Generation
    ) -> None:
        self.path, self.codec, self.tests, self.generation = path, codec, tests, generation
        self.rows: list[dict[str, Any]] = read_rows(path) if path.exists() else []

    def measure(self, step: int, model: LoadedModel, folder: Path | None = None) -> dict[str, Any]:
        """With a folder, the values of every test example are kept, to compare models on the same ones."""
        from repnoise.evals.evaluations import summarised
        from repnoise.evals.generation import generate
        from repnoise.evals.text_overlap import rouge

        known = next((row["metrics"] for row in self.rows if row["step"] == step), None)
        if known is None or (folder and not (folder / "values.jsonl").exists()):
            texts = generate(model, self.codec, [example.prompt for example in self.tests], self.generation)
            values = rouge(texts, [example.completion for example in self.tests])
            known = summarised(values)
            if folder:
                rows = [{name: own[i] for name, own in values.items()} for i in range(len(texts))]
                told = zip(self.tests, texts, rows, strict=True)
                named = {"group": "test", "category": ""}
                write_rows(
                    folder / "values.jsonl", [{"prompt": e.prompt, **named, "text": t, "values": v} for e, t, v in told]
                )
            self.rows = [row for row in self.rows if row["step"] != step] + [{"step": step, "metrics": known}]
            write_rows(self.path, self.rows)
        return known


def _task(config: TrainabilityConfig, data: PairedData) -> ExampleSet:
    from repnoise.data.extras import load_task

    if config.task in data.tasks:
        return data.tasks[config.task]
    try:
        return load_task(config.task)
    except RepnoiseError as error:
        known = f" Tasks of {data.name}: {', '.join(data.tasks)}." if data.tasks and ":" not in config.task else ""
        raise RepnoiseError(f"{error}{known}") from None


def _fitting(task: ExampleSet, codec: Codec, skip_long: bool) -> ExampleSet:
    """The task without prompts that leave no room for an answer; raises unless they are to be left out."""
    long = long_prompts([example.prompt for examples in task.splits.values() for example in examples], codec)
    kept = {split: [e for e in examples if e.prompt not in long] for split, examples in task.splits.items()}
    lost = sum(map(len, task.splits.values())) - sum(map(len, kept.values()))
    if lost and not skip_long:
        raise RepnoiseError(
            f"{lost:,} prompts of {task.name} leave no room for an answer within {codec.max_length} tokens: raise "
            "--max-length, or leave them out with --skip-long."
        )
    if not kept["train"] or not kept["test"]:
        raise RepnoiseError(f"Prompts of {task.name} leave no room for an answer: raise --max-length.")
    more = {"prompts without room for an answer": lost} if lost else {}
    return replace(task, splits=kept, skipped=task.skipped | more)


def _examples(task: ExampleSet, codec: Codec, training: Training) -> list[Any]:
    from repnoise.data.mixtures import epochs

    rows = [codec.row(example.prompt, example.completion) for example in task.splits["train"]]
    return epochs(rows, training.examples_seen(len(rows)), training.seed)
