"""What a search found, as JSON, as a picture and in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from repnoise.metrics import HARM, name_of, number
from repnoise.runs import write_json, write_text
from repnoise.search.drawing import picture
from repnoise.search.results import Found, importance

if TYPE_CHECKING:
    from optuna import Study

COSTS = ("flops", "steps")
OPTIMISM = "the best of many tries is partly best by luck, so what it does with fresh seeds is the better estimate"


def write_results(found: Found, study: Study, folder: Path, seconds: float) -> Path:
    """Write search.json and search.svg, print the table, and return the first."""
    from rich.console import Console

    best = found.best
    spent = {cost: sum(found.price(trial, cost) for trial in found.trials) for cost in COSTS}
    spent["seconds"] = sum(trial.seconds or 0.0 for trial in found.trials)
    matters = importance(study, found)
    again = {"fresh": found.fresh, "fresh_mean": found.fresh_mean, "note": OPTIMISM}
    write_json(
        folder / "search.json",
        {
            "model": found.model,
            "data": found.data,
            "metric": found.metric,
            "before": found.before,
            "limits": found.limits,
            "budget": found.budget | {"spent": spent},
            "counts": found.counts,
            "best": best and best.row() | {"config": found.config} | again,
            "best_without_base": found.best_without_base and found.best_without_base.row(),
            "strongest": found.strongest and found.strongest.row(),
            "front": {cost: [trial.row() for trial in found.front(cost)] for cost in COSTS},
            "importance": matters,
            "left_out": found.left_out,
            "trials": [trial.row() for trial in found.trials],
        },
    )
    write_text(folder / "search.svg", picture(found))
    console = Console()
    console.print(table(found))
    for line in sentences(found, matters, folder):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"{len(found.trials)} trials in {seconds:.0f} s. Results: {folder / 'search.json'}", soft_wrap=True)
    return folder / "search.json"


def table(found: Found) -> Any:
    """The front, from the cheapest to the best: no attack that cost less did as much."""
    from rich.markup import escape
    from rich.table import Table

    utility = found.before["utility_metric"]
    title = f"{name_of(found.metric)} against cost: attacks that left a useful model and were beaten by none cheaper"
    shown = Table(title=escape(title[0].upper() + title[1:]), title_justify="left")
    shown.add_column("trial", justify="right")
    shown.add_column("attack", overflow="fold")
    for name in (name_of(found.metric), name_of(utility) if utility else "utility", "incoherent", "steps", "FLOPs"):
        shown.add_column(escape(name), justify="right")
    for trial in found.front(found.axis):
        flops = trial.cost.get("flops")
        shown.add_row(
            str(trial.number),
            escape(trial.name),
            number(trial.harm, found.metric),
            number(trial.utility, utility or ""),
            number(trial.incoherent, "incoherent_rate"),
            f"{trial.cost['steps']:,}",
            "–" if flops is None else f"{flops:.1e}",
        )
    return shown


def sentences(found: Found, matters: dict[str, Any], folder: Path) -> list[str]:
    """What the table does not say: the best attack and how sure that is, the grid, and what mattered."""
    best, counts = found.best, found.counts
    grid = found.worst([trial for trial in found.trials if trial.grid])
    lines = [
        f"{counts['finished']} trials finished ({counts['infeasible']} left no useful model), {counts['pruned']} were "
        f"pruned, {counts['failed']} failed."
    ]
    if best is None:
        lines.append("No attack left a useful model: raise --epsilon, or try more.")
    elif found.gain(best) <= HARM[found.metric] * (found.before["harm"] or 0.0):
        lines.append("No attack that left a useful model did any harm: raise --epsilon, or try more.")
    else:
        told = f"The worst attack is {best.name} with {number(best.harm, found.metric)}"
        seeds = ", ".join(number(row["harm"], found.metric) for row in found.fresh)
        again = f", {number(found.fresh_mean, found.metric)} with fresh seeds ({seeds}): {OPTIMISM}" if seeds else ""
        lines += [f"{told}{again}.", f"Once more: repnoise attack --preset {folder / best.run}"]
    others = (
        ("Of attacks that do not need the undefended model", found.best_without_base),
        ("Whatever it left of the model, the most", found.strongest),
        ("Of the demo's grid", grid),
    )
    for what, trial in others:
        if trial is not None and trial != best:
            left = "" if trial.feasible else ", which left no useful model"
            lines.append(f"{what}: {number(trial.harm, found.metric)} with {trial.name}{left}.")
    if values := matters["values"]:
        shares = ", ".join(f"{name} {100 * value:.0f} %" for name, value in values.items())
        lines.append(f"What mattered, from {matters['trials']} trials, roughly: {shares}.")
    return lines
