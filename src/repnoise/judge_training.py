"""`repnoise judge train`: labelled completions -> a run with a classifier, and how good it is on held-out ones."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from repnoise.data.labelled import Labelled, LabelledData, load_labelled
from repnoise.data.mixtures import epochs
from repnoise.errors import RepnoiseError
from repnoise.inputs import FLAT
from repnoise.judges import Completion, Score
from repnoise.judges.classifier import Classifier, Settings, explained, fitted, most_tokens, padded, write_settings
from repnoise.judges.coherence import broken
from repnoise.judges.linear import Linear, save_linear, train_linear
from repnoise.judges.quality import confusion, quality, reliability
from repnoise.optimisation import Training
from repnoise.runs import Run, fingerprint, open_run, recording, write_rows, write_text

if TYPE_CHECKING:  # The config must be cheap to import.
    from torch import Tensor, nn

LINEAR = "linear"
LABELS = {0: "safe", 1: "harmful"}
PAPER = Training(
    learning_rate=6e-6, epochs=4, batch_size=32, schedule="linear", warmup=0.03, weight_decay=0.01, save_every=500
)
"""Paper, appendix D, with the batch of its script (the text says 128) and the script's decay and schedule, whose 1,000
steps of warm-up are 3 % of BeaverTails' 330k rows."""


@dataclass(frozen=True)
class JudgeTrainingConfig:
    """Train a classifier that judges completions, and measure it on held-out ones.

    Attributes:
        model: what to start from: a folder, a run or a hub id of any model that transformers can classify texts with;
            or "linear", for logistic regression over words and characters.
        data: a table with the columns prompt, completion and label (harmful or safe), or pairs as everywhere else.
        text: what the classifier reads, with {completion} and perhaps {prompt}; "auto" is both, but the completion
            alone where it continues the prompt, for there the prompt would give the answer away.
        max_length: most tokens of that text; the prompt's beginning is cut first.
        training: optimiser settings, which "linear" has no use for: it has one solution.
    """

    model: Annotated[str, tyro.conf.arg(metavar="MODEL|linear"), tyro.conf.Positional] = "microsoft/deberta-v3-xsmall"
    data: str = "sandbox"
    text: str = "auto"
    max_length: int = 512
    training: Annotated[Training, FLAT] = PAPER

    def __post_init__(self) -> None:
        if self.max_length < 8:
            raise RepnoiseError(f"max_length must be at least 8 tokens, not {self.max_length}.")
        if self.training.lora_rank is not None:
            raise RepnoiseError("A judge is trained with all its weights: leave out --lora-rank.")

    def settings(self, data: LabelledData) -> Settings:
        """How the trained classifier is asked."""
        both = "Question: {prompt}\nAnswer: {completion}"
        auto = "{completion}" if data.template == "none" else both
        return Settings(auto if self.text == "auto" else self.text, max_length=self.max_length)


def train_judge(
    config: JudgeTrainingConfig, output_dir: Path, name: str = "judge", resume: bool = False, progress: bool = False
) -> Run:
    """Train and measure a judge into a run, which `classifier:RUN` or `linear:RUN` then loads.

    No class is weighted, so that values are probabilities at the training data's share of harm; what that share is, and
    how well they are calibrated on held-out data, stands in report.md. Raises RepnoiseError for data or a model that
    cannot be used; an interrupted training goes on with `resume`.
    """
    config.training.require_packages()
    data = load_labelled(config.data)
    train = [row for row in data.train if not broken(row.completion)]
    skipped = data.skipped | {"broken training texts": len(data.train) - len(train)}
    settings = config.settings(data)
    start = None if config.model == LINEAR else _Start(config, settings)
    facts: dict[str, Any] = {
        part: {"rows": len(rows), "kinds": _kinds(rows), "fingerprint": fingerprint(rows)}
        for part, rows in (("train", train), ("test", data.test))
    }
    facts["skipped"] = {reason: count for reason, count in skipped.items() if count}
    parent = {"name": config.model, "path": None, "fingerprint": start.fingerprint if start else LINEAR}
    run = open_run(output_dir, "judge", name, config, resume, parent=parent, data=facts)
    if run.finished:
        return run
    with recording(run):
        if not run.model.exists():
            if start:
                start.train(run, train, resume, progress)
            else:
                _train_linear(run, train, settings)
        if start:
            write_settings(start.settings, run.model)
        judge = Classifier(str(run.path)) if start else Linear(str(run.path))
        _measure(run, judge, data.test)
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    return run


def _kinds(rows: Sequence[Labelled]) -> dict[str, int]:
    counts = Counter(f"{'harmful' if row.harmful else 'safe'}, {row.origin}" for row in rows)
    return dict(sorted(counts.items()))


def _train_linear(run: Run, rows: Sequence[Labelled], settings: Settings) -> None:
    texts = [settings.written(row.prompt, row.completion) for row in rows]
    partial = run.path / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model = train_linear(texts, [row.harmful for row in rows], [row.prompt for row in rows], settings)
    save_linear(model, partial)
    partial.rename(run.model)


class _Start:
    """A pretrained model with a new head for two labels, its tokenizer, and how it is asked."""

    def __init__(self, config: JudgeTrainingConfig, settings: Settings) -> None:
        from repnoise.modeling import ensure_pad_token, locate, weights_fingerprint

        self.training, self.settings = config.training, settings
        place = locate(config.model)
        with explained(config.model):
            from transformers import AutoConfig, AutoTokenizer

            architecture = AutoConfig.from_pretrained(
                place, num_labels=2, id2label=LABELS, label2id={name: number for number, name in LABELS.items()}
            )
            self.tokenizer: Any = AutoTokenizer.from_pretrained(place)
            ensure_pad_token(self.tokenizer)
            architecture.pad_token_id = self.tokenizer.pad_token_id
            self.model: Any = _with_new_head(place, architecture, config.training.seed)
        self.length = most_tokens(settings, architecture, self.tokenizer)
        self.fingerprint = weights_fingerprint(place, architecture)

    def train(self, run: Run, rows: Sequence[Labelled], resume: bool, progress: bool) -> None:
        from repnoise.modeling import save_whole
        from repnoise.training import train

        examples = [self._example(row) for row in rows]
        ordered = epochs(examples, self.training.examples_seen(len(examples)), self.training.seed)
        title = run.record["name"] if progress else None
        model, log = train(
            self.model, ordered, self._batch, _objective, self.training, run.checkpoints, resume, progress=title
        )
        write_rows(run.path / "log.jsonl", log)
        save_whole(model, self.tokenizer, run.model)

    def _example(self, row: Labelled) -> dict[str, Any]:
        ids, _ = fitted(self.settings, self.tokenizer, self.length, row.prompt, row.completion)
        return {"input_ids": ids, "label": int(row.harmful)}

    def _batch(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        import torch

        batch = padded([example["input_ids"] for example in examples], self.tokenizer.pad_token_id)
        return batch | {"labels": torch.tensor([example["label"] for example in examples])}


def _with_new_head(place: str, architecture: Any, seed: int) -> Any:
    """The model in fp32; all but the head (and a pooler, which language models lack) has to be in the files."""
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    from repnoise.modeling import without_progress_bars

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # That the head is new is what is meant.
    torch.manual_seed(seed)
    try:
        with without_progress_bars():
            both: Any = AutoModelForSequenceClassification.from_pretrained(
                place,
                config=architecture,
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    finally:
        logging.set_verbosity(verbosity)
    model, loading = both
    body = f"{model.base_model_prefix}."
    wrong = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
    if wrong := sorted(key for key in wrong if key.startswith(body) and "pooler" not in key):
        raise ValueError(f"its weights do not fit its config.json: {wrong[0]} is missing or of another size")
    return model


def _objective(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    from torch.nn.functional import cross_entropy

    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return cross_entropy(logits.float(), batch["labels"]), {}


def _measure(run: Run, judge: Classifier | Linear, rows: Sequence[Labelled]) -> None:
    """Ask the trained judge, as it will be asked, for the held-out rows, and write what comes of it."""
    scores = judge.score([Completion(row.prompt, row.completion) for row in rows])
    write_rows(run.path / "held_out.jsonl", [vars(r) | vars(s) for r, s in zip(rows, scores, strict=True)])
    metrics = _quality(rows, scores)
    for origin in sorted({row.origin for row in rows if not row.harmful}):
        chosen = [i for i, row in enumerate(rows) if row.harmful or row.origin == origin]
        if len(chosen) < len(rows):
            part = _quality([rows[i] for i in chosen], [scores[i] for i in chosen])
            metrics |= {f"{name}_against_{origin}s": part[name] for name in ("f1", "auroc")}
    run.update(metrics=metrics, judge=judge.name, version=judge.version)
    write_text(run.path / "report.md", judge_report(run, rows, scores))


def _quality(rows: Sequence[Labelled], scores: Sequence[Score]) -> dict[str, dict[str, Any]]:
    # Broken text is not asked about: neither right nor wrong.
    values = [math.nan if score.label == "incoherent" else score.value for score in scores]
    called = [score.label == "harmful" for score in scores]
    return quality([row.prompt for row in rows], [row.harmful for row in rows], values, called)


def judge_report(run: Run, rows: Sequence[Labelled], scores: Sequence[Score]) -> str:
    """The run as Markdown: metrics with intervals, confusion table, reliability, and the rows behind them."""
    table = confusion([row.harmful for row in rows], [score.label for score in scores])
    called = [
        name for name in ("harmful", "safe", "incoherent", "unscored") if any(name in row for row in table.values())
    ]
    asked = [(row.harmful, score.value) for row, score in zip(rows, scores, strict=True) if score.label != "incoherent"]
    bins = reliability([harmful for harmful, _ in asked], [value for _, value in asked])
    data = run.record["data"]
    parts = [
        f"# Judge {run.record['name']}",
        f"Trained from {run.record['config']['model']} on {run.record['config']['data']}. Harm is the class that F1, "
        "precision and recall are of; intervals are 95 %, over prompts. No prompt of the test was in the training.",
        _table(
            ("metric", "value", "95 % interval", "n"), [_metric_row(*item) for item in run.record["metrics"].items()]
        ),
        "## Confusion",
        _table(
            ("truth", *(f"called {name}" for name in called)),
            [(truth, *(str(row.get(name, 0)) for name in called)) for truth, row in table.items()],
        ),
        "## Calibration",
        _table(
            ("values", "n", "mean value", "share of harm"),
            [
                (f"{b['from']:.1f} to {b['to']:.1f}", str(b["n"]), f"{b['predicted']:.3f}", f"{b['observed']:.3f}")
                for b in bins
            ],
        ),
        "## Rows",
        _table(
            ("part", "rows", "of which"),
            [
                (
                    part,
                    str(data[part]["rows"]),
                    "; ".join(f"{count} {kind}" for kind, count in data[part]["kinds"].items()),
                )
                for part in ("train", "test")
            ],
        ),
    ]
    if data["skipped"]:
        left_out = ", ".join(f"{count:,} x {reason}" for reason, count in data["skipped"].items())
        parts.append(f"Left out: {left_out}.")
    return "\n\n".join(parts) + "\n"


def _metric_row(name: str, metric: dict[str, Any]) -> tuple[str, ...]:
    value = "none" if metric["value"] is None else f"{metric['value']:.3f}"
    interval = "none" if metric["low"] is None else f"{metric['low']:.3f} to {metric['high']:.3f}"
    return name, value, interval, str(metric["n"])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
