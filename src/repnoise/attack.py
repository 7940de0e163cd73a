"""`repnoise attack`: a model, an attack and data -> a run with the curve of harm and the attacked model's metrics."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from repnoise.attacks import ATTACKS, Attack
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.evaluate import Evaluating, measure, parent_of
from repnoise.inputs import FLAT, Inputs
from repnoise.runs import Run, fingerprint, load_run, open_run, plain, read_rows, recording, write_rows

if TYPE_CHECKING:  # Configs must be cheap to import.
    from torch import nn

    from repnoise.data.sources import PairedData
    from repnoise.data.tokenization import Codec
    from repnoise.modeling import LoadedModel


@dataclass(frozen=True)
class AttackConfig:
    """Do to a model what somebody who holds its weights would do, and measure the harm along the way.

    Attributes:
        inputs: model and data.
        attack: the attack with its hyper-parameters.
        evaluating: how harm is measured.
        keep_model: keep the attacked weights; they are the harmful ones, and large.
    """

    inputs: Annotated[Inputs, FLAT] = field(default_factory=Inputs)
    attack: Annotated[Attack, FLAT] = field(default_factory=FineTuningAttack)
    evaluating: Annotated[Evaluating, FLAT] = field(default_factory=Evaluating)
    keep_model: bool = False


def presets() -> dict[str, AttackConfig]:
    """The attacks of `repnoise list attacks` on the undefended sandbox, as configs to start from."""
    return {name: AttackConfig(attack=attack) for name, (_, attack) in ATTACKS.items()}


def attack(config: AttackConfig, output_dir: Path, name: str = "", resume: bool = False, progress: bool = False) -> Run:
    """Attack a model into a run. A finished run of the same config is left as it is."""
    from repnoise.defend import trained_once

    loaded, data, codec = config.inputs.open(getattr(config.attack, "template", "auto"))
    config.attack.require(data)  # All that bad input can break comes before the run exists.
    pairs = data.attacker_pairs(getattr(config.attack, "categories", ()), getattr(config.attack, "split", "attack"))
    facts = {
        "pairs": {"rows": len(pairs), "fingerprint": fingerprint(pairs)},
        "benign": {"rows": len(data.benign), "fingerprint": fingerprint(data.benign)},
        "skipped": data.skipped,
    }
    parent = parent_of(config.inputs, loaded)
    run = open_run(
        output_dir, "attack", name or type(config.attack).__name__, config, resume, parent=parent, data=facts
    )
    if run.finished:
        return run
    curve = Curve(run.path / "curve.jsonl", loaded, codec, data, config)

    def training() -> tuple[nn.Module, list[dict[str, Any]]]:
        title = run.record["name"] if progress else None
        return config.attack.apply(loaded, data, codec, run.checkpoints, resume, curve.on_step, title)

    with recording(run):
        curve.start()
        attacked, log = trained_once(run, loaded, training)
        metrics = measure(attacked, codec, data, config.evaluating, run.path / "evaluations")
        curve.add(log[-1]["step"] if log else 0, metrics)
        run.update(metrics=metrics, weights=attacked.fingerprint)
        if not config.keep_model:
            shutil.rmtree(run.model)
    return run


class Curve:
    """Measures harm at the chosen steps of an attack; steps that an interrupted run had measured are kept."""

    def __init__(self, path: Path, loaded: LoadedModel, codec: Codec, data: PairedData, config: AttackConfig) -> None:
        self.path, self.loaded, self.codec, self.data, self.config = path, loaded, codec, data, config
        self.rows: list[dict[str, Any]] = read_rows(path) if path.exists() else []

    def start(self) -> None:
        """The point before the attack: what the model's own run measured in the same way, else measured now."""
        if not any(row["step"] == 0 for row in self.rows):
            known = self._known()
            self.add(0, known or measure(self.loaded, self.codec, self.data, self.config.evaluating))

    def _known(self) -> dict[str, Any] | None:
        """Metrics of the model's own run, if they are of this model, data and way of asking and measuring."""
        folder = Path(self.config.inputs.model)
        if not (folder / "run.json").exists():
            return None
        record = load_run(folder).record
        own, inputs = record["config"], self.config.inputs
        # What the trainings use and the measurements do not may differ.
        same = {"model": "", "benign": None, "revision": None, "trust_remote_code": False}
        alike = own["inputs"] | same == plain(inputs) | same and own["evaluating"] == plain(self.config.evaluating)
        template = getattr(self.config.attack, "template", "auto")
        plainly_asked = template in ("auto", inputs.template) and record["kind"] != "attack"
        return record["metrics"] if alike and plainly_asked else None

    def on_step(self, step: int, model: nn.Module) -> None:
        wanted = getattr(self.config.attack, "measure_at", ())
        if step not in wanted or any(row["step"] == step for row in self.rows):
            return
        now = replace(self.loaded, model=model, fingerprint="")
        # Where answers can be judged, likelihoods at the two ends are enough; where not, they are the curve. So is
        # over-refusal: an attacked model refuses less and less.
        likelihood = self.config.evaluating.likelihood and not self.data.exact
        names = tuple(name for name in self.config.evaluating.evaluations if name != "over-refusal")
        evaluating = replace(self.config.evaluating, evaluations=names, likelihood=likelihood)
        self.add(step, measure(now, self.codec, self.data, evaluating))

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        self.rows = [row for row in self.rows if row["step"] != step] + [{"step": step, "metrics": metrics}]
        write_rows(self.path, self.rows)
