"""Run directories as the commands write them, with numbers that a test chooses."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

from repnoise.attack import presets as attacks
from repnoise.defend import presets as defences
from repnoise.evals.evaluations import summarised
from repnoise.evaluate import EvaluateConfig
from repnoise.inputs import Inputs
from repnoise.runs import Run, code_state, environment, fingerprint, plain, recording, write_rows
from repnoise.trainability import presets as trainabilities

BASES = {"undefended": "0123456789abcdef"}
"""Fingerprint of weights that things start from; those of other models are made from their names."""


def shares(n=40, **values):
    """Metrics that are shares of n prompts: `recovered=0.25` is 10 of 40."""
    return summarised({name: [1.0] * round(n * v) + [0.0] * (n - round(n * v)) for name, v in values.items()})


def averages(n=40, **values):
    """Metrics that are means over n prompts, which differ by a tenth to each side."""
    return summarised({name: [v * (0.9 + 0.2 * i / (n - 1)) for i in range(n)] for name, v in values.items()})


def unscored(*names):
    """Metrics of which no prompt has a value, as NaN in the file: the worst that may be found there."""
    return {name: {"value": math.nan, "n": 0, "low": math.nan, "high": None, "unscored": 40} for name in names}


def close(run, status, metrics):
    """End a run as `status` says; "running" leaves it as a killed process does."""
    run.record |= {"metrics": metrics, "weights": weights_of(run), "seconds": 12.5}
    try:
        with recording(run):
            if status != "finished":
                raise RuntimeError("The noise term is not finite.")
    except RuntimeError:
        if status == "running":
            run.update(status="running", error=None)
    return run


def defence(folder, name="repnoise", metrics=None, seed=0, steps=100, status="finished", config=None, **more):
    """A defended model, trained by a preset of `repnoise defend`; `config` changes fields of the DefendConfig.

    `more` is `base`, the name of the model that was defended, and `data`, the fingerprint of the pairs.
    """
    preset = defences()[name if name in defences() else "repnoise"]
    training = replace(preset.training, seed=seed, steps=steps)
    base = more.pop("base", None)
    inputs = Inputs(model=base or "sandbox")
    run = _open(
        folder,
        "defence",
        name,
        replace(preset, **{"inputs": inputs, "training": training} | (config or {})),
        base,
        **more,
    )
    if status == "finished":
        write_rows(run.path / "log.jsonl", training_log(steps, seed))
    return close(run, status, metrics or {})


def control(folder, name="undefended", metrics=None, seed=0, status="finished"):
    """One of the two models that nobody defended."""
    run = _open(folder, "initialisation", name, EvaluateConfig(), seed=seed)
    return close(run, status, metrics or {})


def attack(folder, parent, name="100@1e-3", metrics=None, seed=0, curve=None, status="finished", config=None, **more):
    """An attack on the model of a run, or on the one that `parent` names; `curve` is {step: metrics} before the end.

    `config` changes fields of the AttackConfig, `more` fields of the attack's training.
    """
    preset = attacks()[name if name in attacks() else "100@1e-3"]
    training = replace(preset.attack.training, seed=seed, **more)
    inputs = Inputs(model=parent if isinstance(parent, str) else str(parent.path))
    changes = {"inputs": inputs, "attack": replace(preset.attack, training=training)} | (config or {})
    run = _open(folder, "attack", name, replace(preset, **changes), parent)
    steps = {**(curve or {}), training.steps or 250: metrics or {}}
    prices = {step: {"steps": step, "samples": 16 * step, "flops": None} for step in steps}
    rows = [{"step": step, "cost": prices[step], "metrics": found} for step, found in steps.items()]
    write_rows(run.path / "curve.jsonl", rows)
    return close(run, status, metrics or {})


def trainability(folder, parent, task="trade", curve=None, seed=0):
    """A model that was trained on a harmless task; `curve` is {step: metrics}, of which the last are the run's."""
    preset = trainabilities()["sandbox"]
    inputs = Inputs(model=parent if isinstance(parent, str) else str(parent.path))
    config = replace(preset, inputs=inputs, task=task, training=replace(preset.training, seed=seed))
    run = _open(folder, "trainability", task, config, parent)
    write_rows(run.path / "curve.jsonl", [{"step": step, "metrics": found} for step, found in curve.items()])
    return close(run, "finished", curve[max(curve)])


def by_prompt(run, name="resistance", group="covered", **values):
    """The file that has every prompt's values, one list a metric."""
    lists = zip(*values.values(), strict=True)
    rows = [
        {"prompt": f"question {i}", "group": group, "category": "", "values": dict(zip(values, own, strict=True))}
        for i, own in enumerate(lists)
    ]
    write_rows(run.path / "evaluations" / name / "values.jsonl", rows)
    return run


def evaluation(folder, parent, metrics, **inputs):
    """A model that is only measured."""
    model = parent if isinstance(parent, str) else str(parent.path)
    run = _open(folder, "evaluation", "evaluation", EvaluateConfig(Inputs(model=model, **inputs)), parent)
    return close(run, "finished", metrics)


def training_log(steps, seed=0):
    """What the Trainer logs: the terms fall, the noise term to its floor."""
    rows = []
    for step in [1, *range(10, steps + 1, 10)]:
        done = step / steps
        wobble = 0.02 * math.sin(step + seed)
        noise = {"noise": 0.05 + 1.4 * math.exp(-6 * done) + wobble / 4, "noise_floor": 0.045}
        terms = {"stability": 0.02 + 1.1 * math.exp(-5 * done) + abs(wobble), **noise, "ascent": 4 + 9 * done + wobble}
        rows.append({"loss": 1.0 - done, "grad_norm": 1.0, "learning_rate": 1e-3, "epoch": done, "step": step, **terms})
    return rows


def _open(folder, kind, name, config, parent=None, data="d", **facts):
    path = Path(folder)
    path.mkdir(parents=True)
    run = Run(path)
    run.update(
        kind=kind,
        name=name,
        config=plain(config),
        parent=_parent(parent),
        data={"pairs": {"rows": 40, "fingerprint": data}, "skipped": {}},
        **facts,
        **_provenance(),
        status="running",
        metrics={},
    )
    return run


@cache
def _provenance():
    return {"code": code_state(), "environment": environment()}


def _parent(parent):
    if parent is None or isinstance(parent, str):
        name = "undefended" if parent in (None, "sandbox") else parent
        return {"name": name, "path": None, "fingerprint": BASES.get(name) or fingerprint(name)}
    return {"name": parent.record["name"], "path": str(parent.path.resolve()), "fingerprint": weights_of(parent)}


def weights_of(run):
    return run.record.get("weights") or fingerprint(str(run.path))
