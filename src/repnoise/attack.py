"""`repnoise attack`: a model, an attack and data -> a run with the curve of harm and the attacked model's metrics."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from repnoise.attacks import ATTACKS, Attack
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.data.sources import PairedData
from repnoise.data.tokenization import Codec
from repnoise.defend import keep_model
from repnoise.evaluate import Evaluating, measure, parent_of
from repnoise.inputs import FLAT, Inputs
from repnoise.modeling import LoadedModel
from repnoise.runs import Run, fingerprint, load_run, open_run, read_rows, recording, write_rows


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
    loaded, data, _ = config.inputs.open()
    codec = config.inputs.codec(loaded, data, getattr(config.attack, "template", None))
    pairs = data.attacker_pairs(getattr(config.attack, "categories", ()))
    facts = {"pairs": {"rows": len(pairs), "fingerprint": fingerprint(pairs)}}
    parent = parent_of(config.inputs, loaded)
    run = open_run(
        output_dir, "attack", name or type(config.attack).__name__, config, resume, parent=parent, data=facts
    )
    if run.finished:
        return run
    with recording(run):
        curve = Curve(run.path / "curve.jsonl", loaded, codec, data, config)
        curve.start()
        title = run.record["name"] if progress else None
        model, log = config.attack.apply(loaded, data, run.checkpoints, resume, curve.on_step, title)
        attacked = keep_model(run, model, loaded, log)
        run.update(metrics=measure(attacked, codec, data, config.evaluating, run.path / "evaluations"))
        curve.add(log[-1]["step"] if log else 0, run.record["metrics"])
        if not config.keep_model:
            shutil.rmtree(run.model)
    return run


class Curve:
    """Measures harm at the chosen steps of an attack; steps that an interrupted run had measured are kept."""

    def __init__(self, path: Path, loaded: LoadedModel, codec: Codec, data: PairedData, config: AttackConfig) -> None:
        self.path, self.loaded, self.codec, self.data, self.config = path, loaded, codec, data, config
        self.rows: list[dict[str, Any]] = read_rows(path) if path.exists() else []

    def start(self) -> None:
        """The point before the attack: what the model's own run measured on the same data, else measured now."""
        model = Path(self.config.inputs.model)
        known = load_run(model).record if (model / "run.json").exists() else {"metrics": {}}
        if known["metrics"] and known["config"]["inputs"]["data"] == self.config.inputs.data:
            self.add(0, known["metrics"])
        elif not self.rows:
            self.add(0, measure(self.loaded, self.codec, self.data, self.config.evaluating))

    def on_step(self, step: int, model: nn.Module) -> None:
        wanted = getattr(self.config.attack, "measure_at", ())
        if step not in wanted or any(row["step"] == step for row in self.rows):
            return
        now = replace(self.loaded, model=model, fingerprint="")
        evaluating = replace(self.config.evaluating, likelihood=False)
        self.add(step, measure(now, self.codec, self.data, evaluating))

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        self.rows = [row for row in self.rows if row["step"] != step] + [{"step": step, "metrics": metrics}]
        write_rows(self.path, self.rows)
