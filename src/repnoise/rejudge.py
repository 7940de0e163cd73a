"""`repnoise judge score`: other judges on what a model has already written; nothing is generated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from repnoise.errors import RepnoiseError
from repnoise.evals.evaluations import EVALUATIONS, Metrics, Question, judged
from repnoise.judges import load_judge
from repnoise.runs import load_run, read_rows, write_json

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class RejudgeOptions:
    """Let judges score the completions of a run, say how far they agree, and list where they do not.

    Attributes:
        run: a run of `repnoise evaluate`, `attack` or `defend`.
        judges: names that `repnoise list judges` has.
        evaluation: whose completions.
        output_dir: where scores, values and metrics go; by default rejudged/EVALUATION in the run, whose own stay.
    """

    run: Annotated[Path, tyro.conf.arg(metavar="RUN"), tyro.conf.Positional]
    judges: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ("refusal", "coherence")
    evaluation: str = "resistance"
    output_dir: Path | None = None


def rejudge(options: RejudgeOptions) -> tuple[Path, Metrics]:
    """The folder with what the judges said, and the metrics; the same command again asks nobody twice.

    Raises RepnoiseError if the run has no such completions, or for a judge that there is none of.
    """
    load_run(options.run)
    source = options.run / "evaluations" / options.evaluation
    if options.evaluation not in EVALUATIONS or not (source / "completions.jsonl").exists():
        raise RepnoiseError(
            f"{options.run} has no completions of {options.evaluation!r}: choose from {_there(options)}."
        )
    evaluation = EVALUATIONS[options.evaluation][1]
    judges = [load_judge(name) for name in dict.fromkeys(options.judges)]
    judges = [judge for judge in judges if evaluation.asks(judge)]
    if not judges:
        raise RepnoiseError(
            f"None of the judges {', '.join(options.judges)} can judge {options.evaluation}: name others with --judges."
        )
    questions = [
        Question(**{key: row[key] for key in ("prompt", "reference", "group", "category")})
        for row in _rows(source / "prompts.jsonl")
    ]
    texts = [row["text"] for row in _rows(source / "completions.jsonl")[1:]]
    if len(texts) != len(questions):
        raise RepnoiseError(f"{source} is not whole: finish that run first, its own command with --resume goes on.")
    folder = options.output_dir or options.run / "rejudged" / options.evaluation
    metrics = judged(evaluation, questions, texts, judges, folder, _samples(questions))
    write_json(folder / "metrics.json", metrics)
    return folder, metrics


def _samples(questions: Sequence[Question]) -> int:
    """How many answers were drawn to each question: it stands there that often on end."""
    return math.gcd(*(len(list(same)) for _, same in groupby(questions))) or 1


def _there(options: RejudgeOptions) -> str:
    found = sorted(path.parent.name for path in (options.run / "evaluations").glob("*/completions.jsonl"))
    return ", ".join(found) or "none, for it has none at all"


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return read_rows(path)
    except (OSError, ValueError):
        raise RepnoiseError(f"{path} is missing or damaged: evaluate again into another folder.") from None


def agreement_table(folder: Path) -> Table | None:
    """How far every two judges agree, for the terminal; None where there were not two."""
    import json

    from rich.markup import escape
    from rich.table import Table

    path = folder / "agreement.json"
    if not path.exists():
        return None
    table = Table(title="Agreement of judges", title_justify="left")
    for column in ("judges", "same verdict", "Cohen's kappa", "Spearman", "n", "unscored"):
        table.add_column(column, justify="left" if column == "judges" else "right")
    for found in json.loads(path.read_text(encoding="utf-8")):
        same, kappa = (_shown(found[name]) for name in ("same", "kappa"))
        spearman = "–" if found["spearman"] is None else f"{found['spearman']:.2f}"
        table.add_row(
            escape(" and ".join(found["judges"])), same, kappa, spearman, str(found["n"]), str(found["unscored"])
        )
    return table


def _shown(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    limits = "" if found["low"] is None else f" [{found['low']:.2f}, {found['high']:.2f}]"
    return f"{found['mean']:.2f}{limits}"
