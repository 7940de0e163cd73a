"""`repnoise evaluate`: a model and a data set -> completions, scores and metrics on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from repnoise.errors import RepnoiseError
from repnoise.evals.capability_results import read_results
from repnoise.evals.evaluations import EVALUATIONS, Metrics, evaluate_prompts, likelihoods, summarised
from repnoise.evals.generation import Generation
from repnoise.inputs import FLAT, Inputs
from repnoise.judges import Judge, load_judge
from repnoise.runs import Run, fingerprint, load_run, open_run, recording

if TYPE_CHECKING:
    from repnoise.data.sources import PairedData
    from repnoise.data.tokenization import Codec
    from repnoise.modeling import LoadedModel


REFERENCES = 200
"""Most texts of each kind that the base model is asked about."""


@dataclass(frozen=True)
class Evaluating:
    """What is measured, who judges, and how text is generated for it.

    Attributes:
        evaluations: names of generative evaluations; those that do not apply to the data are left out.
        judges: judges of what harmful requests brought, beside the one that fits the data: names that
            `repnoise list judges` has. Of several that seek harm the first gives the headline.
        base: the undefended model, to tell implausible text by and to compare with (Kullback-Leibler divergence).
        generation: length, batch and sampling.
        likelihood: also measure cross-entropies of the held-out completions and perplexity.
    """

    evaluations: tuple[str, ...] = tuple(EVALUATIONS)
    judges: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    base: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    generation: Generation = field(default_factory=Generation)
    likelihood: bool = True

    def __post_init__(self) -> None:
        for name in self.evaluations:
            if name not in EVALUATIONS:
                raise RepnoiseError(f"There is no evaluation {name!r}: choose from {', '.join(EVALUATIONS)}.")


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a model, without changing it.

    Attributes:
        inputs: model and data.
        evaluating: what is measured.
        capabilities: tasks of lm-eval by name, or files of the user's own tasks; needs the extra "eval".
        capability_limit: most questions of each such task; None for all.
        capability_shots: solved examples before each question; None for what the task says.
        capability_results: files results_*.json that lm-eval's own command wrote of this model, somewhere else.
    """

    inputs: Annotated[Inputs, FLAT] = field(default_factory=Inputs)
    evaluating: Annotated[Evaluating, FLAT] = field(default_factory=Evaluating)
    capabilities: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TASK ...")] = ()
    capability_limit: int | None = None
    capability_shots: int | None = None
    capability_results: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE ...")] = ()


@dataclass(frozen=True)
class Panel:
    """Judges that are ready to judge, and the undefended model where there is one to compare with."""

    judges: list[Judge]
    base: LoadedModel | None = None


def evaluate(
    config: EvaluateConfig,
    output_dir: Path,
    name: str = "evaluation",
    resume: bool = False,
    progress: bool = False,
) -> Run:
    """Evaluate a model into a run. What an interrupted evaluation had finished is not done again."""
    elsewhere = read_results(config.capability_results)
    elsewhere.require_apart(config.capabilities)
    loaded, data, codec = config.inputs.open()
    elsewhere.require_of(loaded)
    panel = open_panel(config.evaluating, data)
    parent = parent_of(config.inputs, loaded)
    measured = (data.held_out, data.retained_test, data.harmless_test, data.lookalikes, data.unsafe, data.requests)
    measured += (data.plain_text,)
    facts = {"measured": {"fingerprint": fingerprint(measured)}, "skipped": data.skipped}
    more = {"measured_elsewhere": elsewhere.sources} if elsewhere.sources else {}
    run = open_run(output_dir, "evaluation", name, config, resume, parent=parent, data=facts, **more)
    if not run.finished:
        with recording(run):
            folder = run.path / "evaluations"
            metrics = measure(loaded, codec, data, config.evaluating, panel, folder, progress)
            if config.capabilities:
                from repnoise.evals.capability import capabilities

                found = capabilities(loaded, config.capabilities, config.capability_limit, config.capability_shots)
                elsewhere.require_apart(found)
                metrics |= {f"lm-eval/{name}": measured for name, measured in found.items()}
            metrics |= {f"lm-eval/{name}": measured for name, measured in elsewhere.metrics.items()}
            if not metrics:
                raise RepnoiseError(f"Nothing to measure in {data.name}: none of the chosen evaluations applies to it.")
            run.update(metrics=metrics)
    return run


def open_panel(evaluating: Evaluating, data: PairedData) -> Panel:
    """The judges that fit the data (exact ones where answers are known, else refusal phrases and coherence), those
    that were asked for, and the base model. Raises RepnoiseError for one that cannot be loaded."""
    from repnoise.modeling import load

    base = load(evaluating.base) if evaluating.base else None
    fitting = ("exact", "content") if data.exact else ("refusal",)
    names = dict.fromkeys((*fitting, *evaluating.judges))
    judges = [load_judge(name) for name in names if data.exact or name != "coherence"]
    return Panel(judges if data.exact else [*judges, _coherence(base, data)], base)


def measure(
    loaded: LoadedModel,
    codec: Codec,
    data: PairedData,
    evaluating: Evaluating,
    panel: Panel,
    folder: Path | None = None,
    progress: bool = False,
) -> Metrics:
    """All metrics that apply, with their intervals over prompts. See `evals.evaluations` for the files in `folder`."""
    names, generation = evaluating.evaluations, evaluating.generation
    metrics = evaluate_prompts(loaded, codec, data, names, generation, panel.judges, folder, progress)
    if evaluating.likelihood:
        metrics |= likelihoods(loaded, codec, data)
        if panel.base is not None and panel.base.fingerprint != loaded.fingerprint:
            from repnoise.evals.divergence import kl_to_base

            harmless = [*data.retained_test, *data.harmless_test]
            moved = kl_to_base(panel.base, loaded, codec, harmless, data.plain_text[:REFERENCES])
            metrics |= summarised({"kl_to_base": moved})
    return metrics


def _coherence(base: LoadedModel | None, data: PairedData) -> Judge:
    """Told by the text alone, or with a base model also by how likely that finds it beside the data's own texts."""
    from repnoise.evals.likelihood import text_losses
    from repnoise.judges.coherence import Coherence, plausibility_limit

    if base is None:
        return Coherence()
    pairs = [pair for pairs in data.held_out.values() for pair in pairs]
    harmless = [pair.harmless for pair in pairs] + [example.completion for example in data.harmless_test]
    groups = ([pair.harmful for pair in pairs], harmless, data.plain_text)
    references = [text for group in groups for text in group[:REFERENCES] if text]
    scorer = partial(text_losses, base)
    return Coherence(scorer, plausibility_limit(scorer(references)), base.fingerprint)


def parent_of(inputs: Inputs, loaded: LoadedModel) -> dict[str, str | None]:
    """Where a run's model came from: its run where it is one, and the fingerprint of its weights."""
    folder = Path(inputs.model)
    if (folder / "run.json").exists():
        return {
            "name": load_run(folder).record["name"],
            "path": str(folder.resolve()),
            "fingerprint": loaded.fingerprint,
        }
    name = "undefended" if inputs.model == "sandbox" else inputs.model
    return {"name": name, "path": None, "fingerprint": loaded.fingerprint}
