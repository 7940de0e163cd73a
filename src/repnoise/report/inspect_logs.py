"""What models wrote and what judges said of it, as logs that `inspect view` opens (Inspect, of the UK AISI)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repnoise.errors import RepnoiseError
from repnoise.evals.evaluations import EVALUATIONS, file_name_of
from repnoise.metrics import recorded
from repnoise.report.lineage import NO_ATTACK, Lineage, data_of, run_names
from repnoise.runs import Run, fingerprint, read_rows

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample, EvalScore, EvalSpec
    from inspect_ai.scorer import Score

Rows = list[dict[str, Any]]


def write_inspect_logs(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write a log for each evaluation of each finished run that kept its completions; returns their paths.

    The logs have all questions and answers in full, harmful ones as well: without them there is nothing to view.
    Raises RepnoiseError where the package is missing or no run has kept any.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError:
        raise RepnoiseError("Inspect logs need the package inspect-ai: pip install 'repnoise[inspect]'.") from None
    lineage, names = Lineage(runs), run_names(runs)
    kept = [(run, name) for run in runs if run.finished for name in EVALUATIONS if _completions(run, name).exists()]
    if not kept:
        raise RepnoiseError(
            "No finished run has kept what its model wrote, so there is nothing to log: give runs of repnoise defend, "
            "attack or evaluate that still have their folder evaluations/."
        )
    paths = []
    for run, name in kept:
        log = _log(run, name, lineage, names[run.path.resolve()])
        # Inspect lists those JSON files alone that are named so.
        started = re.sub(r"[:+]", "-", log.eval.created)
        paths.append(folder / f"{started}_{name}_{log.eval.eval_id}.json")
        folder.mkdir(parents=True, exist_ok=True)
        write_eval_log(log, paths[-1].as_posix(), format="json")
    return paths


def _completions(run: Run, name: str) -> Path:
    return run.path / "evaluations" / name / "completions.jsonl"


def _log(run: Run, name: str, lineage: Lineage, called: str) -> EvalLog:
    from inspect_ai.log import EvalLog, EvalResults

    place = run.path / "evaluations" / name
    try:
        questions, values = read_rows(place / "prompts.jsonl"), read_rows(place / "values.jsonl")
        texts, judged = read_rows(place / "completions.jsonl")[1:], _judged(run, name)
        draws, left = divmod(len(texts), len(values))
        whole = not left and all(len(rows) == len(texts) for rows in (questions, *judged.values()))
    except (OSError, ValueError, ZeroDivisionError):
        whole = False
    if not whole:
        raise RepnoiseError(f"{place} is not whole: evaluate again into another folder, or leave that run out.")
    model = _model(run, lineage)
    samples = [
        _sample(i, draws, model, name, question, text["text"], values[i // draws], {j: r[i] for j, r in judged.items()})
        for i, (question, text) in enumerate(zip(questions, texts, strict=True))
    ]
    scores = [_judge_score(judge, rows) for judge, rows in judged.items()] + [_metrics(run, name, values)]
    results = EvalResults(total_samples=len(samples), completed_samples=len(samples), scores=scores)
    spec = _spec(run, name, model, lineage, called)
    spec.dataset.samples, spec.config.epochs = len(values), draws
    return EvalLog(status="success", eval=spec, results=results, samples=samples)


def _judged(run: Run, name: str) -> dict[str, Rows]:
    """The scores of each judge, of those too that `repnoise judge score` asked later."""
    evaluating = (run.record.get("config") or {}).get("evaluating") or {}
    known = {file_name_of(judge): judge for judge in evaluating.get("judges") or ()}
    found: dict[str, Rows] = {}
    for place in (run.path / "evaluations" / name, run.path / "rejudged" / name):
        for path in sorted(place.glob("scores-*.jsonl")):
            judge = path.stem.removeprefix("scores-")
            if ".partial" not in judge:
                found.setdefault(known.get(judge, judge), read_rows(path)[1:])
    return found


def _model(run: Run, lineage: Lineage) -> str:
    """The model's name in the report, and what was done to it: "repnoise/100@1e-3"."""
    defence, _, attack, _ = lineage.place(run)
    return defence if attack == NO_ATTACK else f"{defence}/{attack}"


def _sample(
    index: int,
    draws: int,
    model: str,
    name: str,
    question: dict[str, Any],
    text: str,
    values: dict[str, Any],
    verdicts: dict[str, dict[str, Any]],
) -> EvalSample:
    """A question with one answer to it; several answers are what Inspect calls epochs."""
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatCompletionChoice, ChatMessageAssistant, ChatMessageUser, ModelOutput
    from inspect_ai.scorer import Score

    # Ids would be drawn at random, and the same runs shall make the same files.
    asked = ChatMessageUser(content=question["prompt"], id=f"question-{index}", source="input")
    answer = ChatMessageAssistant(content=text, id=f"answer-{index}", source="generate", model=model)
    scores = {judge: _verdict(row) for judge, row in verdicts.items()}
    scores[name] = Score(value=values["values"], explanation=f"Of {draws} answers together." if draws > 1 else None)
    return EvalSample(
        id=index // draws + 1,
        epoch=index % draws + 1,
        input=question["prompt"],
        target=question["reference"],
        messages=[asked, answer],
        output=ModelOutput(model=model, choices=[ChatCompletionChoice(message=answer, stop_reason="stop")]),
        scores=scores,
        metadata={"group": question["group"], "category": question["category"]},
        uuid=fingerprint([model, name, index]),
    )


def _verdict(row: dict[str, Any]) -> Score:
    from inspect_ai.scorer import Score

    explanation, labelled = row["explanation"] or None, {"label": row["label"]}
    if row["value"] is None:
        return Score.unscored(explanation=explanation, metadata=labelled)
    return Score(value=row["value"], answer=row["label"], explanation=explanation, metadata=labelled)


def _judge_score(judge: str, rows: Rows) -> EvalScore:
    """A judge's mean over what it could score, and how many texts have each label."""
    from inspect_ai.log import EvalMetric, EvalScore

    known = [row["value"] for row in rows if row["value"] is not None]
    labels = [row["label"] for row in rows]
    found = {"mean": sum(known) / len(known) if known else math.nan}
    found |= {label: labels.count(label) / len(labels) for label in sorted({*labels})}
    return EvalScore(
        name=judge,
        scorer=judge,
        scored_samples=len(known),
        unscored_samples=len(rows) - len(known),
        metrics={metric: EvalMetric(name=metric, value=value) for metric, value in found.items()},
    )


def _metrics(run: Run, name: str, values: Rows) -> EvalScore:
    """What the run's record says of this evaluation, with intervals."""
    from inspect_ai.log import EvalMetric, EvalScore

    own = {metric for row in values for metric in row["values"]}
    metrics: dict[str, EvalMetric] = {}
    for metric, entry in run.record["metrics"].items():
        if metric.partition("@")[0] in own:
            facts = {key: entry.get(key) for key in ("n", "low", "high", "unscored")}
            metrics[metric] = EvalMetric(name=metric, value=recorded(entry).mean, metadata=facts)
    return EvalScore(name=name, scorer=name, metrics=metrics)


def _spec(run: Run, name: str, model: str, lineage: Lineage, called: str) -> EvalSpec:
    """What was evaluated, how, and from which code."""
    from inspect_ai.log import EvalConfig, EvalDataset, EvalRevision, EvalSpec
    from inspect_ai.model import GenerateConfig

    record: dict[str, Any] = run.record
    generation = ((record.get("config") or {}).get("evaluating") or {}).get("generation") or {}
    code, packages = record.get("code") or {}, (record.get("environment") or {}).get("packages") or {}
    commit = code.get("commit")
    _, seed, _, attack_seed = lineage.place(run)
    facts = {key: record[key] for key in ("kind", "name", "parent", "weights", "data", "config") if record.get(key)}
    facts |= {"run": called, "seed": seed, "attack_seed": attack_seed, "code": code}
    identity = fingerprint([facts, record.get("started"), name])
    return EvalSpec(
        eval_id=identity,
        task_id=identity,
        run_id=fingerprint([facts, record.get("started")]),
        created=_started(record),
        task=name,
        task_description=EVALUATIONS[name][0],
        dataset=EvalDataset(name=data_of(run)),
        model=model,
        model_generate_config=GenerateConfig(
            max_tokens=generation.get("max_new_tokens"),
            temperature=generation.get("temperature"),
            top_p=generation.get("top_p"),
            seed=generation.get("seed"),
        ),
        config=EvalConfig(),
        revision=EvalRevision(type="git", origin="", commit=commit, dirty=code.get("changed")) if commit else None,
        packages={package: version for package, version in packages.items() if version},
        metadata=facts,
    )


def _started(record: dict[str, Any]) -> str:
    """When the run began, in the form that Inspect reads: 2026-12-01T00:35:24+00:00."""
    return re.sub(r"(\d\d)(\d\d)$", r"\1:\2", record.get("started") or "1970-01-01T00:00:00+0000")
