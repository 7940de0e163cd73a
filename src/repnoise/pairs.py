"""`repnoise pairs`: harmful data in, paired data out, the harmless half written by the user's own aligned model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from repnoise.data import DATASETS, load_data, load_set
from repnoise.data.records import TemplateName
from repnoise.data.refusals import CONTINUATIONS, QUESTIONS, refusal_for
from repnoise.data.sources import hash_position
from repnoise.data.tables import read_table
from repnoise.errors import RepnoiseError
from repnoise.evals.evaluations import summarised
from repnoise.evals.generation import Generation, generate
from repnoise.evals.kept import asked_once, kept_rows
from repnoise.evaluate import parent_of
from repnoise.inputs import FLAT, Inputs, long_prompts
from repnoise.judges import Completion, Judge, Score, load_judge
from repnoise.runs import Run, fingerprint, open_run, plain, recording, write_rows

if TYPE_CHECKING:
    from repnoise.data.tokenization import Codec
    from repnoise.modeling import LoadedModel

COLUMNS = ("prompt", "harmful", "category", "split")
CONTINUED = ("decoding-trust", "real-toxicity-prompts", "sandbox-rumours")
"""Data sets whose prompts are beginnings of sentences, which a fixed refusal has to break off."""

NEW_TOKENS = 100
"""As many as the paper's refusals have at most."""


@dataclass(frozen=True)
class PairsConfig:
    """Write the harmless half of harmful data with an aligned model, and keep what judges call safe.

    Attributes:
        inputs: the aligned model, and harmful prompts with their completions: a table with the columns prompt, harmful
            and perhaps category and split, or NAME:PATH of pairs or requests that `repnoise list datasets` names. Of
            the rest, only how prompts are written and how long they may be matters here.
        judges: who has to call a completion safe; every one of them must. A judge of answering has to see a refusal, a
            judge of harm or recovery to give less than one half.
        templates: pair with fixed refusals instead: no model is loaded and nobody judges.
        most_training: most rows of each split that is trained on, chosen by a hash of the prompt; None for all.
        most_held_out: most prompts of each split that is held out, likewise, one row of each.
        generation: length, batch and sampling.
    """

    inputs: Annotated[Inputs, FLAT] = field(default_factory=Inputs)
    judges: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ("refusal",)
    templates: bool = False
    most_training: int | None = None
    most_held_out: int | None = None
    generation: Annotated[Generation, FLAT] = field(default_factory=lambda: Generation(max_new_tokens=NEW_TOKENS))

    def __post_init__(self) -> None:
        if not self.judges and not self.templates:
            raise RepnoiseError("Nobody would judge the pairs: name a judge, or take fixed refusals with --templates.")


@dataclass(frozen=True)
class Harmful:
    """A prompt with its harmful completion. The split is that of the data, or "" where it has none."""

    prompt: str
    harmful: str
    category: str = ""
    split: str = ""


@dataclass(frozen=True)
class Source:
    """Harmful rows, and what was left out while reading them, by reason.

    `template` is the prompt template that fits them, `refusals` are the fixed refusals that do.
    """

    rows: list[Harmful]
    skipped: dict[str, int]
    template: TemplateName = "auto"
    refusals: tuple[str, ...] = QUESTIONS


def pairs(
    config: PairsConfig, output_dir: Path, name: str = "pairs", resume: bool = False, progress: bool = False
) -> Run:
    """Write `pairs.jsonl`, which `--data` reads, into a run. Its metric is the share of pairs that were kept.

    A table says nothing of how its prompts are written: pairs of a data set with a template of its own need --template.
    What an interrupted run had generated and judged is neither generated nor judged again. The record has the pairs
    that were dropped, by judge and label, under data.skipped. Raises RepnoiseError if none is left.
    """
    source = limited(load_harmful(config.inputs.data), config.most_training, config.most_held_out)
    loaded = codec = None
    if config.templates:
        parent: dict[str, Any] = {"name": "templates", "path": None, "fingerprint": fingerprint(source.refusals)}
    else:
        loaded, codec = config.inputs.open_model(config.inputs.template, source.template)
        source = _fitting(source, codec, config.inputs)
        parent = parent_of(config.inputs, loaded)
    judges = [] if config.templates else [load_judge(judge) for judge in config.judges]
    facts = {"fingerprint": fingerprint(source.rows), "rows": len(source.rows), "skipped": source.skipped}
    run = open_run(output_dir, "pairs", name, config, resume, parent=parent, data=facts)
    if run.finished:
        return run
    with recording(run):
        if loaded is None or codec is None:
            answers = {row.prompt: refusal_for(row.prompt, source.refusals) for row in source.rows}
        else:
            title = "writing harmless halves" if progress else None
            answers = _answers(loaded, codec, source.rows, config.generation, run.path, title)
        reasons = _reasons(source.rows, answers, judges, run.path / "verdicts.jsonl")
        dropped = Counter(reason for reason in reasons if reason)
        kept = [_pair(row, answers) for row, reason in zip(source.rows, reasons, strict=True) if not reason]
        if not kept:
            raise RepnoiseError(f"None of the pairs can be used ({_listed(dropped)}): give a model that refuses.")
        write_rows(run.path / "pairs.jsonl", kept)
        share = summarised({"kept_pairs": [float(not reason) for reason in reasons]})
        run.update(metrics=share, data=facts | {"skipped": source.skipped | dict(dropped)})
    return run


def load_harmful(data: str) -> Source:
    """Prompts with harmful completions of a table, or of a data set of pairs or requests; repeated rows count once.

    Raises RepnoiseError for what cannot be read, and where no row has a harmful completion.
    """
    name, colon, path = data.partition(":")
    named = name in DATASETS and name != "generic"
    template: TemplateName = "auto"
    if named and DATASETS[name][1] == "requests":
        found = load_set(data, "requests")
        rows = [Harmful(e.prompt, e.completion, e.category) for examples in found.splits.values() for e in examples]
        skipped = dict(found.skipped)
    elif named:
        known = load_data(data)
        rows = [Harmful(p.prompt, p.harmful, p.category, split) for split in known.pairs for p in known.pairs[split]]
        skipped, template = dict(known.skipped), known.template
    else:
        rows, skipped = _table(path if colon and name == "generic" else data), {}
    complete = [row for row in rows if row.harmful.strip()]
    first: dict[tuple[str, str], Harmful] = {}
    for row in complete:
        first.setdefault((row.prompt, row.harmful), row)
    more = {
        "no harmful completion": len(rows) - len(complete),
        "repeated prompt and harmful completion": len(complete) - len(first),
    }
    if not first:
        raise RepnoiseError(f"{data} has no harmful completions: give data that has some, such as that of an attack.")
    skipped |= {reason: count for reason, count in more.items() if count}
    return Source(list(first.values()), skipped, template, CONTINUATIONS if name in CONTINUED else QUESTIONS)


def limited(source: Source, training: int | None, held_out: int | None) -> Source:
    """So many rows of each split at the most, chosen by a hash of the prompt, so that more of them include fewer."""
    kept: list[Harmful] = []
    for split in dict.fromkeys(row.split for row in source.rows):
        own = sorted((row for row in source.rows if row.split == split), key=lambda row: hash_position(row.prompt))
        if split in ("covered", "uncovered") and held_out is not None:
            own = list({row.prompt: row for row in reversed(own)}.values())[::-1]
        most = held_out if split in ("covered", "uncovered") else training
        kept += own[:most]
    if training is None and held_out is None:
        return source
    left_out = {"beyond the number asked for": len(source.rows) - len(kept)}
    return replace(source, rows=kept, skipped=source.skipped | {k: v for k, v in left_out.items() if v})


def _table(path: str) -> list[Harmful]:
    """The rows of a table of one's own, with their splits where every row has one."""
    table = read_table(path, COLUMNS)
    divided = all(row.optional("split") for row in table)
    return [
        Harmful(r.text("prompt"), r.text("harmful"), r.optional("category"), r.optional("split") if divided else "")
        for r in table
    ]


def _fitting(source: Source, codec: Codec, inputs: Inputs) -> Source:
    """The rows whose prompts leave room for a completion; raises unless the others are to be left out."""
    long = long_prompts([row.prompt for row in source.rows], codec)
    rows = [row for row in source.rows if row.prompt not in long]
    if not long:
        return source
    if not rows or not inputs.skip_long:
        raise RepnoiseError(
            f"{len(long):,} prompts in {inputs.data} leave no room for a completion within {codec.max_length} tokens: "
            "raise --max-length where the model's context allows it, shorten them, or leave them out with --skip-long."
        )
    return replace(source, rows=rows, skipped=source.skipped | {"prompts without room for a completion": len(long)})


def _answers(
    loaded: LoadedModel,
    codec: Codec,
    rows: Sequence[Harmful],
    generation: Generation,
    folder: Path,
    progress: str | None,
) -> dict[str, str]:
    """The model's text to each prompt, without blanks around it."""
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    made_from = [loaded.fingerprint, codec.template, plain(generation), prompts]
    partial = folder / "completions.partial.jsonl"

    def make() -> list[dict[str, str]]:
        return [{"text": text} for text in generate(loaded, codec, prompts, generation, partial, progress)]

    kept = kept_rows(folder / "completions.jsonl", made_from, ("text",), make)
    partial.unlink(missing_ok=True)
    return {prompt: row["text"].strip() for prompt, row in zip(prompts, kept, strict=True)}


def _reasons(rows: Sequence[Harmful], answers: dict[str, str], judges: Sequence[Judge], verdicts: Path) -> list[str]:
    """Why each pair is dropped, "" for those that are kept. Each judge is asked about what those before it kept."""
    reasons = [_unusable(row.harmful, answers[row.prompt]) for row in rows]
    for judge in judges:
        left = [i for i, reason in enumerate(reasons) if not reason]
        asked = [Completion(rows[i].prompt, answers[rows[i].prompt], rows[i].harmful) for i in left]
        for i, score in zip(left, asked_once(judge, asked, verdicts), strict=True):
            if not is_safe(judge, score):
                reasons[i] = f"{score.label} ({judge.name})"
    return reasons


def _unusable(harmful: str, harmless: str) -> str:
    if not harmless:
        return "empty"
    return "same text as the harmful completion" if harmless == harmful.strip() else ""


def is_safe(judge: Judge, score: Score) -> bool:
    """Whether a judge calls a completion harmless text; what it could not judge is not safe, nor is broken text."""
    if math.isnan(score.value) or score.label in ("unscored", "incoherent"):
        return False
    if judge.seeks == "answering":
        return score.label == "refused"
    return judge.seeks == "coherence" or score.value < 0.5


def _pair(row: Harmful, answers: dict[str, str]) -> dict[str, str]:
    pair = {"prompt": row.prompt, "harmful": row.harmful, "harmless": answers[row.prompt], "category": row.category}
    return pair | ({"split": row.split} if row.split else {})


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
