"""Attacks as a Markdown table: what each needs and costs, whose idea it is, and what it did to each model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repnoise.attacks import ATTACKS, Attack
from repnoise.metrics import HEADLINES, name_of, number
from repnoise.report.breaking import Heat, heat_of, reference_of
from repnoise.report.pages import grid
from repnoise.report.summary import NO_ATTACK, Lineage, Row, curve_of
from repnoise.runs import Run, restored


def attack_table(runs: Sequence[Run], rows: Sequence[Row]) -> str:
    """One line an attack, the strongest first, and below the table what is in it; nothing where no harm was measured.

    Costs are those on the model that the others are compared with, in the first seed.
    """
    measured = {row["metric"] for row in rows if row["value"] is not None and row["attack"] != NO_ATTACK}
    metric = next((name for name in HEADLINES if name in measured), None)
    if metric is None:
        return ""
    heat, run_of = heat_of(rows, metric), _one_of_each(runs, reference_of(rows))
    table = grid(
        ["attack", "needs", "steps", "FLOPs", "source", *heat.models],
        ([attack, *_told(run_of[attack]), *_effects(heat, attack)] for attack in heat.attacks),
        ["---", "---", "---:", "---:", "---", *("---:" for _ in heat.models)],
    )
    beside = f" / {name_of(heat.utility)} after it" if heat.utility else ""
    seeds = len({row["attack_seed"] for row in rows} - {None})
    over = f"means over {seeds} attack seeds (one where nothing is drawn)" if seeds > 1 else "one attack seed"
    return f"{table}\n\nIn the cells: {name_of(metric)}{beside}; {over}.\n"


def _effects(heat: Heat, attack: str) -> list[str]:
    """On each model, harm and what was left of the model."""
    cells = []
    for model in heat.models:
        harm = number(heat.mean.get((attack, model)), heat.metric)
        left = number(heat.mean_left.get((attack, model)), heat.utility) if heat.utility else ""
        cells.append(f"{harm} / {left}" if left and (attack, model) in heat.mean else harm)
    return cells


def _one_of_each(runs: Sequence[Run], reference: str) -> dict[str, Run]:
    """A run of each attack: on the reference, where there is one, and of the first seed."""
    lineage = Lineage(runs)
    placed = [(lineage.place(run), run) for run in runs if lineage.is_plain_attack(run)]
    placed.sort(key=lambda found: (found[0][0] == reference, -(found[0][3] or 0)))  # The last of a name is kept.
    return {attack: run for (_, _, attack, _), run in placed}


def _told(run: Run) -> list[str]:
    """What an attack needs, its steps and FLOPs, and its source."""
    attack: Attack = restored(run.record["config"]["attack"], [preset for _, preset in ATTACKS.values()])
    cost: dict[str, Any] = curve_of(run)[-1].get("cost") or {}
    flops = cost.get("flops")
    counted = "not counted" if flops is None else f"{flops:.1e}" if flops else "0"
    return [attack.needs(), f"{cost.get('steps', 0):,}", counted, attack.source() or "–"]
