"""`repnoise estimate`: what a run will take, before anything is downloaded or computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from repnoise.errors import RepnoiseError
from repnoise.estimate.devices import DEVICES, USABLE, Device, find_device
from repnoise.estimate.estimates import Estimate, Rows, estimate, model_config


@dataclass(frozen=True)
class EstimateOptions:
    """Memory, operations and time of a defence, an attack or an evaluation, from the model's config alone.

    What a preset says can be changed by the options that are None here.

    Attributes:
        model: a folder with config.json, a run, a hub id, or "sandbox".
        what: the command that is to be run.
        defence: preset of a defence.
        attack: preset of an attack.
        device: devices it may run on; "here" is this machine, measured for a second.
        batch_size: pairs or examples of a loss; prompts at a time of an evaluation.
        length: tokens of a row with its padding, 256 unless it is said.
        completion: share of them that belongs to the completion.
        examples: pairs of a defence, examples of an attack, prompts of an evaluation.
        steps: optimiser steps.
        accumulation: losses averaged in an optimiser step.
        precision: fp32 or bf16.
        gradient_checkpointing: recompute activations.
        lora_rank: rank of adapters.
        four_bit: hold the weights under the adapters in 4 bits.
        optimizer: name of the optimiser.
        max_new_tokens: longest answer in an evaluation.
        retain: also train on general harmless examples, as the sandbox does.
        revision: commit or tag of a hub model.
        trust_remote_code: run model code that comes with the weights.
    """

    model: Annotated[str, tyro.conf.arg(metavar="MODEL"), tyro.conf.Positional] = "sandbox"
    what: Literal["defend", "attack", "evaluate"] = "defend"
    defence: str = "repnoise"
    attack: str = "100@1e-3"
    device: tuple[str, ...] = tuple(DEVICES)
    batch_size: int | None = None
    length: int | None = None
    completion: float = 0.75
    examples: int | None = None
    steps: int | None = None
    accumulation: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    lora_rank: int | None = None
    four_bit: bool = False
    optimizer: str = "adamw_torch_fused"
    max_new_tokens: int = 64
    retain: bool = True
    revision: str | None = None
    trust_remote_code: bool = False


def estimate_command(options: EstimateOptions) -> Estimate:
    """Print what the run will take, and return it."""
    devices = {name: find_device(name) for name in options.device}
    of_model = model_config(options.model, options.revision, options.trust_remote_code)
    rows = Rows(options.examples, options.length, options.completion)
    found = estimate(config_of(options), of_model, rows)
    _show(options, found, devices)
    return found


def config_of(options: EstimateOptions) -> Any:
    """The config of the command that the options describe."""
    from repnoise.attack import presets as attacks
    from repnoise.defend import presets as defences
    from repnoise.evals.generation import Generation
    from repnoise.evaluate import EvaluateConfig, Evaluating
    from repnoise.inputs import Inputs

    inputs = Inputs(options.model, max_length=options.length or Inputs.max_length)
    if options.what == "evaluate":
        changes = {} if options.batch_size is None else {"batch_size": options.batch_size}
        return EvaluateConfig(inputs, Evaluating(generation=Generation(options.max_new_tokens, **changes)))
    presets: Any = defences() if options.what == "defend" else attacks()
    name = options.defence if options.what == "defend" else options.attack
    if name not in presets:
        what = "defences" if options.what == "defend" else "attacks"
        raise RepnoiseError(f"There is no preset {name!r}: `repnoise list {what}` names them.")
    chosen = presets[name]
    if options.what == "attack":
        if not hasattr(chosen.attack, "training"):
            return replace(chosen, inputs=inputs)
        attack = replace(chosen.attack, training=_changed(chosen.attack.training, options))
        return replace(chosen, inputs=inputs, attack=attack)
    defence = chosen.defence if options.retain else replace(chosen.defence, retain_weight=0.0)
    return replace(chosen, inputs=inputs, defence=defence, training=_changed(chosen.training, options))


def _changed(training: Any, options: EstimateOptions) -> Any:
    """A preset's training with what was asked for."""
    names = ("batch_size", "steps", "accumulation", "lora_rank")
    said = {name: value for name in names if (value := getattr(options, name)) is not None}
    always = ("precision", "gradient_checkpointing", "optimizer", "four_bit")
    return replace(training, **said, **{name: getattr(options, name) for name in always})


def _show(options: EstimateOptions, found: Estimate, devices: dict[str, Device]) -> None:
    sizes, batch, console = found.sizes, found.batch, Console()
    unit = "batch" if options.what == "evaluate" else "step"
    console.print(
        f"{sizes.architecture}, {sizes.weights:,} weights ({sizes.trained:,} trained): {found.steps:,} "
        f"{'batches' if unit == 'batch' else 'steps'} of {batch.rows} x {batch.length} tokens, {batch.completion:,} of "
        f"them of completions, in {found.precision}.",
        soft_wrap=True,
    )
    console.print(_table("Memory, each at its largest", {k: in_bytes(v) for k, v in found.holds.items()}))
    times = {name: f"{in_flops(flops)}  {flops / found.step_flops:.0%}" for name, flops in found.parts.items()}
    console.print(_table(f"Operations of a {unit}", times | {"together": in_flops(found.step_flops)}))
    top = max(found.moments, key=lambda moment: moment.bytes)
    console.print(
        f"Peak: {in_bytes(found.memory_bytes)}, {top.name}. Disk: {in_bytes(found.disk_bytes)}.", soft_wrap=True
    )
    table = Table("device", f"s a {unit}", "total", "fits", title="On one device, and how many it takes")
    for name, device in devices.items():
        table.add_row(name, f"{found.step_seconds(device):.3g}", in_time(found.seconds(device)), _fits(found, device))
    console.print(table)


def _fits(found: Estimate, device: Device) -> str:
    share = found.memory_bytes / device.memory
    if share <= USABLE:
        return f"yes, {share:.0%}"
    count = found.devices(device)
    return f"no, {share:.0%}; " + ("on no number of them" if count is None else f"sharded over {count}")


def _table(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=title, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def in_bytes(count: float) -> str:
    return _scaled(count, (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)), "B")


def in_flops(count: float) -> str:
    return _scaled(count, (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)), "FLOP")


def _scaled(value: float, units: tuple[tuple[str, float], ...], least: str) -> str:
    name, size = next(((name, size) for name, size in units if value >= size), (least, 1.0))
    return f"{value / size:.3g} {name}"


def in_time(seconds: float) -> str:
    return _scaled(seconds, (("days", 86400.0), ("h", 3600.0), ("min", 60.0)), "s")
