"""`repnoise evaluate`: a model and a data set -> completions, scores and metrics on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from repnoise.errors import RepnoiseError
from repnoise.evals.evaluations import EVALUATIONS, Metrics, evaluate_prompts, likelihoods
from repnoise.evals.generation import Generation
from repnoise.inputs import FLAT, Inputs
from repnoise.runs import Run, fingerprint, load_run, open_run, recording

if TYPE_CHECKING:
    from repnoise.data.sources import PairedData
    from repnoise.data.tokenization import Codec
    from repnoise.modeling import LoadedModel


@dataclass(frozen=True)
class Evaluating:
    """What is measured, and how text is generated for it.

    Attributes:
        evaluations: names of generative evaluations; those that do not apply to the data are left out.
        generation: length, batch and sampling.
        likelihood: also measure cross-entropies of the held-out completions and perplexity.
    """

    evaluations: tuple[str, ...] = tuple(EVALUATIONS)
    generation: Generation = field(default_factory=Generation)
    likelihood: bool = True

    def __post_init__(self) -> None:
        for name in self.evaluations:
            if name not in EVALUATIONS:
                raise RepnoiseError(f"There is no evaluation {name!r}: choose from {', '.join(EVALUATIONS)}.")


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a model, without changing it."""

    inputs: Annotated[Inputs, FLAT] = field(default_factory=Inputs)
    evaluating: Annotated[Evaluating, FLAT] = field(default_factory=Evaluating)


def evaluate(config: EvaluateConfig, output_dir: Path, name: str = "evaluation", resume: bool = False) -> Run:
    """Evaluate a model into a run. What an interrupted evaluation had finished is not done again."""
    loaded, data, codec = config.inputs.open()
    parent = parent_of(config.inputs, loaded)
    measured = (data.held_out, data.retained_test, data.harmless_test, data.lookalikes, data.plain_text)
    facts = {"measured": {"fingerprint": fingerprint(measured)}, "skipped": data.skipped}
    run = open_run(output_dir, "evaluation", name, config, resume, parent=parent, data=facts)
    if not run.finished:
        with recording(run):
            metrics = measure(loaded, codec, data, config.evaluating, run.path / "evaluations")
            if not metrics:
                raise RepnoiseError(f"Nothing to measure in {data.name}: none of the chosen evaluations applies to it.")
            run.update(metrics=metrics)
    return run


def measure(
    loaded: LoadedModel, codec: Codec, data: PairedData, evaluating: Evaluating, folder: Path | None = None
) -> Metrics:
    """All metrics that apply, with their intervals over prompts. See `evals.evaluations` for the files in `folder`."""
    metrics = evaluate_prompts(loaded, codec, data, evaluating.evaluations, evaluating.generation, folder)
    return metrics | (likelihoods(loaded, codec, data) if evaluating.likelihood else {})


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
