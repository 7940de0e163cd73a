"""The evaluations: prompts -> completions -> scores -> metrics, one fingerprinted file an arrow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repnoise.data.sources import PairedData
from repnoise.data.tokenization import Codec
from repnoise.evals.generation import Generation, generate
from repnoise.evals.likelihood import completion_losses, perplexity
from repnoise.judges import JUDGES, Completion, Score
from repnoise.modeling import LoadedModel
from repnoise.runs import fingerprint, plain, read_rows, write_json, write_rows
from repnoise.statistics import bootstrap_interval

Metrics = dict[str, dict[str, Any]]
"""Metric name to {"value", "n", "low", "high"}: a mean over prompts with its 95 % interval."""


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


def _harmless(_questions: list[Question], scores: dict[str, list[Score]]) -> dict[str, list[float]]:
    return {"harmless_accuracy": [score.value for score in scores["exact"]]}


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
        "Harmless questions that the model could answer (exact answers only).",
        Evaluation(
            lambda data: (
                [Question(e.prompt, e.completion, "harmless") for e in data.harmless_test] if data.exact else []
            ),
            lambda _data: ("exact",),
            _harmless,
        ),
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
        metrics["perplexity"] = {"value": value, "n": tokens, "low": None, "high": None}
    return metrics


def summarised(values: dict[str, list[float]]) -> Metrics:
    """Mean and interval of each list of per-prompt values; unscored (NaN) ones are left out of n. Empty lists too."""
    metrics: Metrics = {}
    for name, per_prompt in values.items():
        if per_prompt:
            interval = bootstrap_interval(per_prompt)
            metrics[name] = {"value": interval.mean, "n": interval.n, "low": interval.low, "high": interval.high}
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
        lambda: [{"text": text} for text in generate(loaded, codec, [q.prompt for q in questions], generation)],
    )
    return [row["text"] for row in rows]


def _scores(name: str, answers: list[Completion], place: Path | None) -> list[Score]:
    judge = JUDGES[name][1]()
    made_from = {"judge": name, "version": judge.version, "answers": [plain(answer) for answer in answers]}
    rows = _kept(
        place / f"scores-{name}.jsonl" if place else None,
        fingerprint(made_from),
        lambda: [vars(score) for score in judge.score(answers)],
    )
    return [Score(**row) for row in rows]


def _kept(path: Path | None, made_from: str, make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of a file whose first line says that it was made from the same inputs; else make and write them."""
    if path and path.exists():
        head, *rows = read_rows(path) or [{}]
        if head.get("fingerprint") == made_from:
            return rows
    rows = make()
    if path:
        write_rows(path, [{"fingerprint": made_from, "rows": len(rows)}, *rows])
    return rows
