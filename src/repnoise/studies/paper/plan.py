"""`--dry-run`: what the cells of a study will take, from the configs of models alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from repnoise.attack import AttackConfig
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.cells import Cell
from repnoise.defend import DefendConfig
from repnoise.errors import RepnoiseError
from repnoise.estimate.devices import Device
from repnoise.estimate.estimates import Estimate, Rows, estimate, model_config
from repnoise.evaluate import EvaluateConfig
from repnoise.runs import plain
from repnoise.studies.graph import Graph
from repnoise.trainability import TrainabilityConfig

SIZES: dict[str, dict[str, Any]] = {
    "Llama-2-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000},
    "Llama-2-13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "vocab_size": 32000},
    "Qwen1.5-0.5B": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "vocab_size": 151936},
    "Qwen1.5-1.8B": {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24, "vocab_size": 151936},
    "Qwen1.5-4B": {"hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 40, "vocab_size": 151936},
    "Qwen1.5-7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 151936},
}
"""Of the paper's models, from their public configs, so that a plan needs no hub. Heads have 128 dimensions, those of
the two smallest Qwen 64 and 128; the smallest has its head tied to its embeddings."""

PAIRS, PROMPTS = 10_000, 300
"""Of a training that says no number, and of each half of an evaluation: guesses for tasks and for data of one's own."""


@dataclass(frozen=True)
class Planned:
    """Cells that are alike but for their seeds.

    Attributes:
        what: what they do.
        count: how many there are.
        estimate: of each; None where there is no formula for it, and `why`.
    """

    what: str
    count: int
    estimate: Estimate | None
    why: str = ""


def planned(graph: Graph, cells: Sequence[Cell]) -> list[Planned]:
    """What these cells take, those that are alike together."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_likeness(graph, cell), []).append(cell)
    found = []
    for alike in groups.values():
        one, why = None, ""
        try:
            one = _estimate(graph, alike[0])
        except RepnoiseError as error:
            why = str(error)
        found.append(Planned(alike[0].title, len(alike), one, why))
    return found


def _likeness(graph: Graph, cell: Cell) -> str:
    """The same text for cells that differ in their seeds and in which run they start from only."""
    settings = _without_seeds(plain(graph.configs.get(cell.path)))
    return json.dumps([graph.origin(cell.path), cell.title, settings])


def _without_seeds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_seeds(item) for key, item in value.items() if key not in ("seed", "model", "base")}
    return [_without_seeds(item) for item in value] if isinstance(value, list) else value


def _estimate(graph: Graph, cell: Cell) -> Estimate:
    """Of one cell. Raises RepnoiseError for what there is no formula for."""
    config, of_model = graph.configs.get(cell.path), shape_of(graph.origin(cell.path))
    match config:
        case DefendConfig():
            return estimate(config, of_model, Rows(config.samples or PAIRS))
        case AttackConfig():
            return estimate(config, of_model, Rows(getattr(config.attack, "samples", None) or PAIRS))
        case TrainabilityConfig():
            learning = AttackConfig(config.inputs, FineTuningAttack(training=config.training), keep_model=True)
            return estimate(learning, of_model, Rows(PAIRS))
        case EvaluateConfig():
            return estimate(config, of_model, Rows(2 * PROMPTS))
    raise RepnoiseError("There is no formula for it.")


@lru_cache
def shape_of(name: str) -> Any:
    """The config of a model: the known sizes of the paper's, which need no hub, or its own."""
    known = next((own for prefix, own in SIZES.items() if name.partition("/")[2].startswith(prefix)), None)
    return _config(name, known) if known else model_config(name)


def _config(name: str, sizes: dict[str, Any]) -> Any:
    from transformers import LlamaConfig, Qwen2Config

    heads = sizes["hidden_size"] // (64 if sizes["hidden_size"] == 1024 else 128)
    more = {"num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 4096}
    make = LlamaConfig if "Llama" in name else Qwen2Config
    return make(**sizes, **more, tie_word_embeddings="0.5B" in name)


def show_plan(plan: Sequence[Planned], name: str, device: Device, done: int) -> None:
    """Print the plan: per cell, and all of them together."""
    from rich.console import Console
    from rich.table import Table

    from repnoise.estimate.command import in_bytes, in_flops, in_time

    console = Console()
    table = Table("cell", "cells", "FLOP", "memory", "time", "devices", "disk", title="Of each cell")
    for column in table.columns[1:]:
        column.no_wrap = True
    for one in plan:
        found = one.estimate
        if found is None:
            table.add_row(one.what, str(one.count), *5 * ("–",))
            continue
        count = found.devices(device)
        table.add_row(
            one.what,
            str(one.count),
            in_flops(found.flops),
            in_bytes(found.memory_bytes),
            in_time(found.seconds(device)),
            "too large" if count is None else str(count),
            in_bytes(found.disk_bytes),
        )
    console.print(table)
    known = [(one.estimate, one.count) for one in plan if one.estimate]
    total = sum(found.seconds(device) * count for found, count in known)
    disk = sum(found.disk_bytes * count for found, count in known)
    unknown = sum(one.count for one in plan if one.estimate is None)
    console.print(
        f"{sum(one.count for one in plan):,} cells ({done:,} done before are left out): {total / 3600:,.1f} hours on "
        f"one device ({name}), {in_bytes(disk)} on disk if nothing were freed; attacked weights are dropped once "
        f"measured. Judges, and {unknown:,} cells without a formula (–), are not in it.",
        soft_wrap=True,
    )
