"""`repnoise analyze`: what a defence did inside the model -> results as JSON, and a page that can be read."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from repnoise.errors import RepnoiseError
from repnoise.evaluate import parent_of
from repnoise.inputs import FLAT, Inputs
from repnoise.runs import Run, load_run, open_run, plain, recording, write_json, write_text

if TYPE_CHECKING:  # Configs must be cheap to import.
    from repnoise.analysis.findings import Findings
    from repnoise.analysis.material import Material
    from repnoise.analysis.probes import Probe
    from repnoise.data.tokenization import Codec
    from repnoise.modeling import LoadedModel

BASE = "base"
LEAST = {"examples": 5, "answers": 2, "seeds": 1, "tokens": 2, "reader_steps": 0, "relearning_steps": 0}
"""The smallest value of each number."""


@dataclass(frozen=True)
class AnalyzeConfig:
    """Look into a model: weights, lens, probes, components, distances and patching, layer by layer.

    Attributes:
        inputs: model and data.
        base: the undefended model to compare with; of a defence's run, the model that it began with.
        attacked: models to be looked at beside it: what attacks made of it, or of the base.
        harmless: what harmless completions are: the "paired" ones of the harmful prompts (refusals, perhaps), or
            those of "others"; "auto" is the latter where the data has enough of them.
        examples: most examples of each group (covered and uncovered harmful ones, harmless ones).
        answers: most answers that have to be told apart.
        seeds: how often each probe is trained, on another split.
        tokens: most completion tokens that are compared with noise.
        site: where activations are compared with noise.
        reader_steps: training steps of the tuned lens, and of the attacker's.
        spectrum: singular values of the change of every matrix, which for a large model take long on a CPU.
        relearning_steps: also train each layer alone for so many steps on the attacker's examples, which is as much
            work as that many steps for each layer of each model; 0 for not.
    """

    inputs: Annotated[Inputs, FLAT] = field(default_factory=Inputs)
    base: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    attacked: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL ...")] = ()
    harmless: Literal["auto", "paired", "others"] = "auto"
    examples: int = 100
    answers: int = 32
    seeds: int = 10
    tokens: int = 512
    site: Literal["mlp", "attention", "residual"] = "mlp"
    reader_steps: int = 200
    spectrum: bool = True
    relearning_steps: int = 0

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if (value := getattr(self, name)) < least:
                raise RepnoiseError(f"{name} must be at least {least}, not {value}.")


def analyze(
    config: AnalyzeConfig, output_dir: Path, name: str = "analysis", resume: bool = False, progress: bool = False
) -> Run:
    """Analyse a model, and its base and attacked models where there are any, into a run with `analysis.html`.

    An interrupted analysis begins anew. Raises RepnoiseError for what cannot be loaded or compared.
    """
    from repnoise.analysis.material import material
    from repnoise.analysis.probes import probe_words
    from repnoise.modeling import locate

    places = _models(config)
    for place in places.values():
        locate(place)  # Whatever is not there is told at once.
    loaded, data, codec = config.inputs.open()
    found = material(data, codec, config.examples, config.answers, config.harmless)
    parent = parent_of(config.inputs, loaded)
    looked_at = {"rows": sum(map(len, found.rows.values())), "fingerprint": _fingerprint(found)}
    facts = {"analysed": looked_at, "skipped": data.skipped}
    run = open_run(output_dir, "analysis", name, config, resume, parent=parent, data=facts)
    if run.finished:
        return run
    with recording(run):
        words = probe_words(*found.labelled(), seeds=config.seeds)
        findings, origins = {}, {}
        for title, one, fingerprint in _examined(config, places, loaded, codec, found, progress):
            findings[title] = one
            origins[title] = {"model": places[title], "fingerprint": fingerprint}
        # The model itself first: it is what the page is about.
        findings = {title: findings[title] for title in places}
        _write(run, findings, words, origins, found)
        run.update(metrics=_metrics(next(iter(findings.values()))), models=origins)
    return run


def _models(config: AnalyzeConfig) -> dict[str, str]:
    """Every model by what the page calls it: the analysed one, then its base, then the attacked ones."""
    found = {_title(config.inputs.model): config.inputs.model}
    base = config.base or _began_with(config.inputs.model)
    if base and base != config.inputs.model:
        found[BASE] = base
    for place in config.attacked:
        title = _title(place)
        same = sum(known == title or known.startswith(f"{title} (") for known in found)
        found[f"{title} ({same + 1})" if same else title] = place
    return found


def _title(model: str) -> str:
    """A run's name, or the last part of where a model is."""
    is_run = (Path(model) / "run.json").exists()
    return str(load_run(Path(model)).record["name"]) if is_run else Path(model).resolve().name


def _began_with(model: str) -> str | None:
    """The model that a defence's run began with."""
    if not (Path(model) / "run.json").exists():
        return None
    record = load_run(Path(model)).record
    return record["config"]["inputs"]["model"] if record["kind"] == "defence" else None


def _examined(
    config: AnalyzeConfig,
    places: dict[str, str],
    loaded: LoadedModel,
    codec: Codec,
    found: Material,
    progress: bool,
) -> Iterator[tuple[str, Findings, str]]:
    """The base first, which the others are compared with, then one model at a time: no more than two are in memory."""
    from repnoise.analysis.findings import STEPS_BESIDE_BASE, Base, Effort, examined

    effort = Effort(**{part.name: getattr(config, part.name) for part in fields(Effort)})
    order = sorted(places, key=lambda title: title != BASE)
    beside = STEPS_BESIDE_BASE if BASE in places else 0
    base: Base | None = None
    with _bar(len(order) * (effort.steps + beside) - beside, progress) as step:
        for title in order:
            model = loaded if places[title] == config.inputs.model else _opened(config.inputs, places[title])
            _require_same_tokens(codec, model, places[title])
            one, means = examined(model, codec, found, effort, lambda what, of=title: step(f"{of}: {what}"), base)
            if title == BASE:
                base = Base(model, means)
            yield title, one, model.fingerprint


def _opened(inputs: Inputs, place: str) -> LoadedModel:
    # The revision is the analysed model's own.
    return replace(inputs, model=place, revision=None).open_model()[0]


def _require_same_tokens(codec: Codec, loaded: LoadedModel, place: str) -> None:
    if codec.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
        raise RepnoiseError(
            f"{place} has another tokenizer, so the same text is other tokens to it: give models that were made from "
            "one another."
        )


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[str], None]]:
    """A progress bar on standard error, where its steps are told before they are taken."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), disable=not shown) as bar:
        task, taken = bar.add_task("starting", total=total), 0

        def step(what: str) -> None:
            nonlocal taken
            bar.update(task, description=what, completed=taken)
            taken += 1

        yield step
        bar.update(task, description="done", completed=total)


def _fingerprint(found: Material) -> str:
    from repnoise.runs import fingerprint

    return fingerprint((found.rows, found.general, found.attacker, found.questions, found.calibration))


def _write(run: Run, findings: dict[str, Findings], words: Probe, origins: dict[str, Any], found: Material) -> None:
    """A JSON file for each kind of result, by model; and the page."""
    from repnoise.analysis.figures import GROUPS, model_styles
    from repnoise.analysis.readings import sections
    from repnoise.report.pages import rendered

    for name in (part.name for part in fields(next(iter(findings.values())))):
        results = {title: _finite(plain(getattr(one, name))) for title, one in findings.items()}
        write_json(run.path / f"{name}.json", results)
    write_json(run.path / "words.json", _finite(plain(words)))
    look = model_styles(list(findings))
    counts = {group: len(rows) for group, rows in found.rows.items()}
    contents = {
        "title": next(iter(findings)),
        "sections": sections(findings, words, look),
        "origins": origins,
        "colours": {title: look[title].variable for title in findings},
        "groups": {group: {"count": count, "colour": GROUPS[group].variable} for group, count in counts.items()},
        "paired": found.paired,
        "data": run.record["config"]["inputs"]["data"],
        "base": BASE in findings,
    }
    write_text(run.path / "analysis.html", rendered("analysis.html.j2", contents))


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: None then."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _metrics(one: Findings) -> dict[str, dict[str, Any]]:
    """What the terminal shows of the analysed model: bits at the best layer, the best linear probe."""
    best = {f"bits about which answer, {a.group}": max(a.bits, key=lambda bits: bits.mean) for a in one.answers}
    best["accuracy of the best linear probe"] = max(
        (p.accuracy for p in one.probes if p.kind == "linear"), key=lambda accuracy: accuracy.mean
    )
    return {
        name: {"value": found.mean, "low": found.low, "high": found.high, "n": found.n, "unscored": found.unscored}
        for name, found in best.items()
    }
