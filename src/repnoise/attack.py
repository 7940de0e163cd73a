"""`repnoise attack`: a model, an attack and data -> a run with the curve of harm and the attacked model's metrics."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from repnoise.attacks import ATTACKS, Attack
from repnoise.attacks.base import Asking
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.attacks.parts import Parts
from repnoise.errors import RepnoiseError
from repnoise.evals.evaluations import EVALUATIONS
from repnoise.evals.generation import Generation
from repnoise.evaluate import Evaluating, Panel, measure, open_panel, parent_of
from repnoise.inputs import FLAT, Inputs
from repnoise.runs import Run, fingerprint, load_run, open_run, plain, read_rows, write_json, write_rows

if TYPE_CHECKING:  # Configs must be cheap to import.
    from torch import nn

    from repnoise.data.overlap import Overlap
    from repnoise.data.records import TemplateName
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


def preset_attack(name: str, seed: int, inputs: Inputs, evaluating: Evaluating, **changes: Any) -> AttackConfig:
    """A preset with a seed, on this model and data, with other settings of the attack if wanted."""
    return AttackConfig(inputs, replace(ATTACKS[name][1].seeded(seed), **changes), evaluating)


OnPoint = Callable[[int, dict[str, Any]], None]
"""Is told a step and the metrics that were measured after it."""


def attack(
    config: AttackConfig,
    output_dir: Path,
    name: str = "",
    resume: bool = False,
    progress: bool = False,
    on_point: OnPoint | None = None,
    before: dict[str, Any] | None = None,
) -> Run:
    """Attack a model into a run. A finished run of the same config is left as it is.

    `on_point` is told what the curve shows along the way, and ends the attack by raising. `before` is what was measured
    in the same way before any attack, where that is known. In several processes of a launcher, the first writes it.
    """
    from repnoise.distributed.processes import together

    with together():
        return _attack(config, output_dir, name, resume, progress, on_point, before)


def _attack(
    config: AttackConfig,
    output_dir: Path,
    name: str,
    resume: bool,
    progress: bool,
    on_point: OnPoint | None,
    before: dict[str, Any] | None,
) -> Run:
    from repnoise.distributed.processes import alone, on_first, recorded

    require_shared(config.attack)
    loaded, data, codec = config.inputs.open(config.attack.template)
    config.attack.require(data)  # All that bad input can break comes before the run exists.
    # Of the whole split: which of them an attack draws differs from seed to seed, and seeds are averaged.
    pairs = data.attacker_pairs(split=config.attack.split) if config.attack.pairs(data) else []
    panel = alone(lambda: open_panel(config.evaluating, data))
    facts = {
        "pairs": {"rows": len(pairs), "fingerprint": fingerprint(pairs)},
        "benign": {"rows": len(data.benign), "fingerprint": fingerprint(data.benign)},
        "skipped": data.skipped,
        "overlap": [plain(found) for found in unwanted_overlap(config.inputs, data, config.attack)],
    }
    parent = parent_of(config.inputs, loaded)
    kind = name or type(config.attack).__name__
    run = on_first(lambda: open_run(output_dir, "attack", kind, config, resume, parent=parent, data=facts))
    if run.finished:
        return on_first(lambda: without_model(run, config.keep_model))
    curve = Curve(run.path / "curve.jsonl", loaded, codec, data, config, panel, on_point, before)

    with recorded(run, config.attack.training if isinstance(config.attack, FineTuningAttack) else None):
        alone(curve.start)
        attacked, log, asking = _applied(config, run, loaded, data, codec, resume, curve, progress)
        if panel is not None:
            metrics = curve.measured(attacked, config.evaluating, asking, run.path / "evaluations", progress)
            curve.add(log[-1]["step"] if log else 0, metrics)
            run.update(metrics=metrics, weights=attacked.fingerprint)
    return without_model(run, config.keep_model) if panel is not None else run


def require_shared(attack: Attack) -> None:
    """Raise RepnoiseError if several processes cannot share the work on an attack as they would have to."""
    from repnoise.distributed.processes import processes, sharded, share_of

    if processes() == 1:
        return
    if not isinstance(attack, FineTuningAttack) or not attack.changes_weights or attack.trains_on == "own-answers":
        raise RepnoiseError(
            "Of the attacks, only fine-tuning on given examples runs in several processes: start this one in one."
        )
    share_of(attack.training)
    parts = attack.parts
    if sharded() and (
        attack.measure_at or replace(parts, adapter="none") != Parts() or parts.adapter not in ("none", "lora")
    ):
        raise RepnoiseError(
            "With FSDP an attack trains all weights or LoRA, and harm is measured before and after: give --measure-at "
            "no steps, leave other choices of what is trained out, or train without FSDP."
        )


def _applied(
    config: AttackConfig,
    run: Run,
    loaded: LoadedModel,
    data: PairedData,
    codec: Codec,
    resume: bool,
    curve: Curve,
    progress: bool,
) -> tuple[LoadedModel, list[dict[str, Any]], Asking]:
    """The attacked model, its log and how it is asked; where all is in the weights, they are saved before anything
    is measured, and an attack that had come so far is not made again."""
    from repnoise.defend import trained_once

    title = run.record["name"] if progress else None
    asking = Asking()

    def apply() -> tuple[nn.Module, list[dict[str, Any]]]:
        nonlocal asking
        found = config.attack.apply(loaded, data, codec, run.checkpoints, resume, curve.on_step, title)
        asking = found.asking
        return found.model, found.log

    if config.attack.changes_weights:
        return *trained_once(run, loaded, apply), config.attack.asking
    model, log = apply()
    write_rows(run.path / "log.jsonl", log)
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    # Not the same as the model that it was made from, whatever its weights are.
    made_from = fingerprint([loaded.fingerprint, config.attack, config.attack.pairs(data)])
    return replace(loaded, model=model, fingerprint=made_from), log, asking


def _plainly(config: AttackConfig, data: PairedData, codec: Codec) -> Codec:
    """How everything is asked that is no part of an attack: as the attack trains, or as anybody asks a model that the
    attack leaves as it is."""
    from repnoise.data.tokenization import resolve_template

    if not config.attack.only_asks:
        return codec
    own: TemplateName = config.inputs.template if config.inputs.template != "auto" else data.template
    return replace(codec, template=resolve_template(own, codec.tokenizer))


def _drawn(generation: Generation, asking: Asking) -> Generation:
    """With the draws of an attack that has any."""
    if asking.samples == 1:
        return generation
    return replace(generation, samples=asking.samples, temperature=asking.temperature, seed=asking.seed)


def without_model(run: Run, keep: bool) -> Run:
    """A finished run less its weights, unless they are to be kept: until then an interruption needs them."""
    if not keep:
        shutil.rmtree(run.model, ignore_errors=True)
    return run


def require_apart(inputs: Inputs, data: PairedData) -> None:
    """Raise RepnoiseError if an attacker with this data is asked about what somebody trained on."""
    from repnoise.data.overlap import guard

    guard(unwanted_overlap(inputs, data))


def unwanted_overlap(inputs: Inputs, data: PairedData, attack: Attack | None = None) -> list[Overlap]:
    """What parts of the data share that should not: defence, attack and test (see `data.overlap`).

    The defender's part is that of the run that the model is from, or else what a defender with this data would have;
    the attacker's what an attack takes, or all of its split.
    """
    from repnoise.data.overlap import overlaps, training_parts, unwanted

    defence, sees = _defence_of(inputs.model), {}
    if defence and defence["inputs"]["data"] == inputs.data:
        sees = {"covered": defence["covered"], "withheld": defence["withhold"]}
    parts = training_parts(data, **sees, split=attack.split if attack else "attack")
    taken = {"attack": [pair.prompt for pair in attack.pairs(data)]} if attack else {}
    return unwanted(overlaps(parts.prompts | taken, parts.near), parts.meant)


def _defence_of(model: str) -> dict[str, Any] | None:
    """Config of the defence that a model is from, if it is a run that has one above it."""
    folder: Path | None = Path(model)
    while folder and (folder / "run.json").exists():
        record = load_run(folder).record
        if record["kind"] == "defence":
            return record["config"]
        above = (record.get("parent") or {}).get("path")
        folder = Path(above) if above else None
    return None


class Curve:
    """Measures harm at the chosen steps of an attack; steps that an interrupted run had measured are kept."""

    def __init__(
        self,
        path: Path,
        loaded: LoadedModel,
        codec: Codec,
        data: PairedData,
        config: AttackConfig,
        panel: Panel,
        on_point: OnPoint | None = None,
        before: dict[str, Any] | None = None,
    ) -> None:
        self.on_point, self.before = on_point, before
        self.path, self.loaded, self.codec, self.data, self.config = path, loaded, codec, data, config
        self.panel, self.cost = panel, config.attack.costs(loaded, data, codec)
        self.plainly = _plainly(config, data, codec)
        self.rows: list[dict[str, Any]] = read_rows(path) if path.exists() else []

    def start(self) -> None:
        """The point before the attack: what the model's own run measured in the same way, else measured now."""
        if not any(row["step"] == 0 for row in self.rows):
            known = self.before or self._known()
            self.add(0, known or measure(self.loaded, self.plainly, self.data, self.config.evaluating, self.panel))

    def _known(self) -> dict[str, Any] | None:
        """Metrics of the model's own run, if they are of this model, data and way of asking and measuring."""
        folder = Path(self.config.inputs.model)
        if not (folder / "run.json").exists():
            return None
        record = load_run(folder).record
        if record["kind"] not in ("defence", "initialisation"):
            return None
        own, inputs, template = record["config"], self.config.inputs, self.config.attack.template
        # What the trainings use and the measurements do not may differ.
        same = {"model": "", "benign": None, "tasks": [], "revision": None, "trust_remote_code": False}
        alike = own["inputs"] | same == plain(inputs) | same and own["evaluating"] == plain(self.config.evaluating)
        same_template = self.config.attack.only_asks or template in ("auto", inputs.template)
        return record["metrics"] if alike and same_template else None

    def on_step(self, step: int, model: nn.Module) -> None:
        if step not in self.config.attack.measure_at:
            return
        if not any(row["step"] == step for row in self.rows):
            self._add_point(step, replace(self.loaded, model=model, fingerprint=""))
        if self.on_point:
            self.on_point(step, next(row["metrics"] for row in self.rows if row["step"] == step))

    def _add_point(self, step: int, now: LoadedModel) -> None:
        from repnoise.four_bit import as_saved

        # Where answers can be judged, likelihoods at the two ends are enough; where not, they are the curve. So is
        # over-refusal: an attacked model refuses less and less.
        likelihood = self.config.evaluating.likelihood and not self.data.exact
        names = tuple(name for name in self.config.evaluating.evaluations if name != "over-refusal")
        evaluating = replace(self.config.evaluating, evaluations=names, likelihood=likelihood)
        with as_saved(now.model):
            self.add(step, self.measured(now, evaluating, self.config.attack.asking))

    def measured(
        self,
        loaded: LoadedModel,
        evaluating: Evaluating,
        asking: Asking,
        folder: Path | None = None,
        progress: bool = False,
    ) -> dict[str, Any]:
        """Metrics of an attacked model: an attacker's questions are asked in the attacker's way, all else plainly."""
        asked = asking.codec(self.codec)
        if asking == Asking() and asked == self.plainly:
            return measure(loaded, asked, self.data, evaluating, self.panel, folder, progress)
        by_attacker = {name: EVALUATIONS[name][1].by_attacker for name in evaluating.evaluations}
        theirs, others = (tuple(n for n in by_attacker if by_attacker[n] is side) for side in (True, False))
        generation = _drawn(evaluating.generation, asking)
        attackers = replace(evaluating, evaluations=theirs, generation=generation, likelihood=False)
        anybodys = replace(evaluating, evaluations=others)
        found = measure(loaded, asked, self.data, attackers, self.panel, folder, progress)
        found |= measure(loaded, self.plainly, self.data, anybodys, self.panel, folder, progress)
        if asked != self.plainly:
            found.pop("harmful_ce", None)  # Of an answer to what the attacker does not ask.
        if folder:
            write_json(folder / "metrics.json", found)
        return found

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        row = {"step": step, "cost": vars(self.cost(step)), "metrics": metrics}
        self.rows = [row for row in self.rows if row["step"] != step] + [row]
        write_rows(self.path, self.rows)
