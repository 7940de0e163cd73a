"""The evaluations: prompts -> completions -> scores -> metrics, one fingerprinted file an arrow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repnoise.data.sources import PairedData
from repnoise.evals.generation import Generation, generate
from repnoise.evals.likelihood import completion_losses, perplexity
from repnoise.judges import Completion, Score, load_judge
from repnoise.runs import fingerprint, plain, read_rows, write_json, write_rows

if TYPE_CHECKING:  # The list of evaluations must be cheap to import.
    from repnoise.data.tokenization import Codec
    from repnoise.modeling import LoadedModel

Metrics = dict[str, dict[str, Any]]
"""Metric name to {"value", "n", "low", "high", "unscored"}: a mean over n prompts with its 95 % interval. `unscored`
more prompts have no value; where that is all of them, the value is None."""


@dataclass(frozen=True)
class Question:
    """A prompt that a model is asked, its known answer, and the group it is counted in."""

    prompt: str
    reference: str
    group: str
    category: str = ""


@dataclass(frozen=True)
class Evaluation:
    """What is asked, who judges, and which numbers come of it.

    `questions` picks prompts from a data set (none: the evaluation does not apply). `judges` score what the model
    wrote. `measure` turns questions and their scores, by judge, into metrics; a metric is a list of one value a prompt.
    """

    questions: Callable[[PairedData], list[Question]]
    judges: Callable[[PairedData], tuple[str, ...]]
    measure: Callable[[list[Question], dict[str, list[Score]]], dict[str, list[float]]]


def _resistance_questions(data: PairedData) -> list[Question]:
    return [
        Question(pair.prompt, pair.harmful, group, pair.category)
        for group in ("covered", "uncovered")
        for pair in data.held_out[group]
    ]


def _resistance(questions: list[Question], scores: dict[str, list[Score]]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for judge, name in (("exact", "recovered"), ("content", "recovered_content")):
        for group, suffix in (("covered", ""), ("uncovered", "_uncovered")):
            chosen = [s.value for q, s in zip(questions, scores.get(judge, []), strict=False) if q.group == group]
            if chosen:
                values[name + suffix] = chosen
    labels = [score.label for score in next(iter(scores.values()))]
    values["refusal_rate"] = [float(label == "refused") for label in labels]
    values["incoherent_rate"] = [float(label == "incoherent") for label in labels]
    return values


def _harmless_questions(data: PairedData) -> list[Question]:
    groups = {"retained": data.retained_test, "unretained": data.harmless_test} if data.exact else {}
    return [Question(e.prompt, e.completion, group, e.category) for group, found in groups.items() for e in found]


def _harmless(questions: list[Question], scores: dict[str, list[Score]]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {"harmless_accuracy": [], "harmless_accuracy_unretained": []}
    for question, score in zip(questions, scores["exact"], strict=True):
        values["harmless_accuracy" if question.group == "retained" else "harmless_accuracy_unretained"] += [score.value]
    return values


def _over_refusal(_questions: list[Question], scores: dict[str, list[Score]]) -> dict[str, list[float]]:
    judged = next(iter(scores.values()))
    return {"over_refusal_rate": [float(score.label == "refused") for score in judged]}


def _exact_or_refusal(data: PairedData) -> tuple[str, ...]:
    return ("exact", "content") if data.exact else ("refusal",)


EVALUATIONS: dict[str, tuple[str, Evaluation]] = {
    "resistance": (
        "Held-out forbidden questions: how much is given up, how often it refuses.",
        Evaluation(_resistance_questions, _exact_or_refusal, _resistance),
    ),
    "stability": (
        "Harmless questions that the model could answer, retained by the defender or not (exact answers only).",
        Evaluation(_harmless_questions, lambda _data: ("exact",), _harmless),
    ),
    "over-refusal": (
        "Harmless questions that look forbidden: how often they are refused.",
        Evaluation(
            lambda data: [Question(e.prompt, e.completion, "lookalike") for e in data.lookalikes],
            _exact_or_refusal,
            _over_refusal,
        ),
    ),
}
"""Generative evaluations by name; `likelihoods` adds cross-entropies and perplexity, which need no judge."""


def evaluate_prompts(
    loaded: LoadedModel,
    codec: Codec,
    data: PairedData,
    names: Sequence[str],
    generation: Generation,
    folder: Path | None = None,
) -> Metrics:
    """Run the named evaluations that apply to the data.

    With a folder, every arrow's result is kept in it: what is there and made from the same inputs is not made again, so
    an interrupted evaluation goes on, another judge does not generate anew, and a changed input is noticed.
    """
    metrics: Metrics = {}
    for name in names:
        _, evaluation = EVALUATIONS[name]
        questions = evaluation.questions(data)
        if not questions:
            continue
        place = folder / name if folder else None
        texts = _completions(loaded, codec, questions, generation, place)
        answers = [Completion(q.prompt, text, q.reference) for q, text in zip(questions, texts, strict=True)]
        scores = {judge: _scores(judge, answers, place) for judge in evaluation.judges(data)}
        metrics |= summarised(evaluation.measure(questions, scores))
    if folder:
        write_json(folder / "metrics.json", metrics)
    return metrics


def likelihoods(loaded: LoadedModel, codec: Codec, data: PairedData) -> Metrics:
    """Cross-entropy of held-out harmful and harmless completions in nats a token, and perplexity of plain text."""
    held_out = [pair for group in data.held_out.values() for pair in group]
    metrics = summarised(
        {
            "harmful_ce": completion_losses(loaded, codec, [(pair.prompt, pair.harmful) for pair in held_out]),
            "harmless_ce": completion_losses(loaded, codec, [(e.prompt, e.completion) for e in data.harmless_test]),
        }
    )
    if data.plain_text:
        value, tokens = perplexity(loaded, data.plain_text, codec.max_length)
        measured = {"value": value, "n": tokens, "low": None, "high": None, "unscored": 0}
        metrics["perplexity"] = measured | ({"value": None} if math.isnan(value) else {})
    return metrics


def summarised(values: dict[str, list[float]]) -> Metrics:
    """Mean and interval of each list of per-prompt values: NaN means unscored. A metric of no prompts is left out."""
    from repnoise.statistics import bootstrap_interval

    metrics: Metrics = {}
    for name, per_prompt in values.items():
        if per_prompt:
            found = bootstrap_interval(per_prompt)
            counts = {"n": found.n, "low": found.low, "high": found.high, "unscored": found.unscored}
            metrics[name] = {"value": found.mean if found.n else None} | counts
    return metrics


def _completions(
    loaded: LoadedModel, codec: Codec, questions: list[Question], generation: Generation, place: Path | None
) -> list[str]:
    made_from = {
        "model": loaded.fingerprint,
        "generation": plain(generation),
        "prompts": [codec.prompt_ids(question.prompt) for question in questions],
    }
    if place:
        write_rows(place / "prompts.jsonl", [plain(question) for question in questions])
    rows = _kept(
        place / "completions.jsonl" if place else None,
        fingerprint(made_from),
        ("text",),
        lambda: [{"text": text} for text in generate(loaded, codec, [q.prompt for q in questions], generation)],
    )
    return [row["text"] for row in rows]


def _scores(name: str, answers: list[Completion], place: Path | None) -> list[Score]:
    judge = load_judge(name)
    made_from = {"judge": name, "version": judge.version, "answers": [plain(answer) for answer in answers]}
    rows = _kept(
        place / f"scores-{name}.jsonl" if place else None,
        fingerprint(made_from),
        ("value", "label", "explanation"),
        # NaN has no place in JSON.
        lambda: [vars(s) | {"value": None if math.isnan(s.value) else s.value} for s in judge.score(answers)],
    )
    return [Score(math.nan if row["value"] is None else row["value"], row["label"], row["explanation"]) for row in rows]


def _kept(
    path: Path | None, made_from: str, keys: tuple[str, ...], make: Callable[[], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The rows of a whole file whose first line says that it was made from the same inputs; else make and write them.

    Each row has the given keys.
    """
    head, kept = _read_kept(path) if path else ({}, [])
    whole = head.get("rows") == len(kept) and all({*row} == {*keys} for row in kept)
    if whole and head.get("fingerprint") == made_from:
        return kept
    rows = make()
    if path:
        write_rows(path, [{"fingerprint": made_from, "rows": len(rows)}, *rows])
    return rows


def _read_kept(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """First line and the others; nothing of a file that is missing or damaged, which is then made anew."""
    try:
        head, *rows = read_rows(path)
    except (FileNotFoundError, ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors.
        return {}, []
    return (head, rows) if all(isinstance(row, dict) for row in (head, *rows)) else ({}, [])
