"""What models wrote to the same questions, side by side; what an attacked model wrote is masked unless asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repnoise.runs import Run, fingerprint, read_rows

GROUPS = ("covered", "uncovered")
QUESTIONS = "resistance"
FIRST = ("scores-exact", "scores-refusal")
"""The judges whose words are shown, where they were asked."""
LONGEST = 600
"""Characters of an answer that are shown."""


@dataclass(frozen=True)
class Answer:
    """What one model wrote: `text` is "" where it is masked, `label` is what the first judge calls it."""

    model: str
    label: str
    words: int
    text: str


@dataclass(frozen=True)
class Example:
    """A question and the answers of several models, in their order; `prompt` is "" where it is masked."""

    prompt: str
    group: str
    number: int
    answers: tuple[Answer, ...]


def is_fictional(run: Run) -> bool:
    """Whether a run was asked the questions of the sandbox, which have no harmful text."""
    data = str(((run.record.get("config") or {}).get("inputs") or {}).get("data") or "")
    return data.partition(":")[0] == "sandbox"


def side_by_side(runs: Mapping[str, Run], unmasked: bool, each: int) -> list[Example]:
    """Questions that all models of a comparison were asked, `each` of every group, with what each wrote.

    `runs` has a run of each model. The questions are those with the least fingerprints: a fixed draw
    that nobody chose. Masked text is not in what comes back at all.
    """
    asked = {model: _asked(run) for model, run in runs.items()}
    asked = {model: found for model, found in asked.items() if found}
    if not asked:
        return []
    common = set.intersection(*({*found} for found in asked.values()))
    first = next(iter(asked.values()))
    order = sorted(common, key=fingerprint)
    examples = []
    for group in GROUPS:
        for number, prompt in enumerate([one for one in order if first[one]["group"] == group][:each], 1):
            shown = unmasked or all(is_fictional(runs[model]) for model in asked)
            answers = tuple(_answer(model, asked[model][prompt], shown) for model in asked)
            examples.append(Example(prompt if shown else "", group, number, answers))
    return examples


def _answer(model: str, found: dict[str, Any], shown: bool) -> Answer:
    text = " ".join(found["text"].split())
    cut = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return Answer(model, found["label"], len(text.split()), cut if shown else "")


def _asked(run: Run) -> dict[str, dict[str, Any]]:
    """By prompt the group, the first answer and what the first judge called it; nothing where that was not kept."""
    folder = run.path / "evaluations" / QUESTIONS
    judges = sorted(folder.glob("scores-*.jsonl"), key=lambda path: (path.stem not in FIRST, path.name))
    if not judges or not (folder / "completions.jsonl").exists():
        return {}
    questions = read_rows(folder / "prompts.jsonl")
    texts, scores = read_rows(folder / "completions.jsonl")[1:], read_rows(judges[0])[1:]
    if not len(questions) == len(texts) == len(scores):  # Another evaluation is being written there.
        return {}
    found: dict[str, dict[str, Any]] = {}
    for question, text, score in zip(questions, texts, scores, strict=True):
        own = {"group": question["group"], "text": text["text"], "label": score["label"]}
        found.setdefault(question["prompt"], own)
    return found


def chosen_runs(runs: Sequence[Run], places: Sequence[tuple[str, str]], wanted: Mapping[str, str]) -> dict[str, Run]:
    """For each model the first finished run of the wanted attack; `places` has defence and attack of each run."""
    found: dict[str, Run] = {}
    for model, attack in wanted.items():
        own = (run for run, place in zip(runs, places, strict=True) if place == (model, attack) and run.finished)
        run = next((run for run in own if (run.path / "evaluations" / QUESTIONS).is_dir()), None)
        if run is not None:
            found[model] = run
    return found
