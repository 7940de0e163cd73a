"""A part of the report for each model and for each attack: every number with the runs it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from repnoise.attacks import ATTACKS
from repnoise.metrics import HEADLINES, NAMES, name_of
from repnoise.report.breaking import heat_of
from repnoise.report.completions import chosen_runs, side_by_side
from repnoise.report.latex import slug
from repnoise.report.lineage import NO_ATTACK, TRAINED, Lineage, kind_of
from repnoise.report.model_card import settings_of
from repnoise.report.provenance import run_links, sources
from repnoise.report.summary import Row, attacks_in_order, curve_of, estimate, headline_of, models, worst_rows
from repnoise.report.tables import cell
from repnoise.report.verdicts import verdicts
from repnoise.runs import Run

EACH = 2
"""Questions of each group whose answers are shown."""


class Pages:
    """What the parts of one report share: rows, places of runs, and anchors."""

    def __init__(self, runs: Sequence[Run], rows: Sequence[Row], unmasked: bool = False) -> None:
        self.runs, self.rows, self.unmasked = runs, rows, unmasked
        self.lineage, self.links = Lineage(runs), run_links(runs)
        self.places = [self.lineage.place(run) for run in runs]
        self.attacks = [attack for attack in attacks_in_order(rows) if attack != NO_ATTACK]
        self.model_anchors = anchors("model", models(rows))
        self.attack_anchors = anchors("attack", self.attacks)
        measured = {row["metric"] for row in rows if row["attack"] != NO_ATTACK}
        harm = next((metric for metric in HEADLINES if metric in measured), "")
        left = "harmless_accuracy" if "harmless_accuracy" in measured else "perplexity"
        wanted = (harm, f"{harm}_uncovered", left, "incoherent_rate", "refusal_rate")
        self.columns = [metric for metric in dict.fromkeys(wanted) if metric in measured][:4]

    def contents(self) -> dict[str, Any]:
        """All that the page shows of models, attacks and answers."""
        return {
            "model_anchors": self.model_anchors,
            "attack_anchors": self.attack_anchors,
            "columns": [name_of(metric) for metric in self.columns],
            "model_pages": [self._model(name) for name in models(self.rows)],
            "attack_pages": [self._attack(attack) for attack in self.attacks],
            "comparisons": self._comparisons(),
        }

    def _model(self, name: str) -> dict[str, Any]:
        own = [row for row in self.rows if row["defence"] == name]
        made = [run for run, place in zip(self.runs, self.places, strict=True) if place[0] == name]
        defence = next((run for run in made if run.record["kind"] == "defence"), None)
        before = [row for row in own if row["attack"] == NO_ATTACK and row["value"] is not None]
        metrics = [metric for metric in NAMES if any(row["metric"] == metric for row in before)]
        return {
            "name": name,
            "anchor": self.model_anchors[name],
            "sentence": next(found["sentence"] for found in verdicts(self.rows) if found["defence"] == name),
            "settings": settings_of(defence.record["config"]) if defence else {},
            "before": [
                {
                    "name": name_of(metric),
                    **cell(estimate(before, name, NO_ATTACK, metric)[0], metric),
                    "runs": sources((row for row in before if row["metric"] == metric), self.links),
                }
                for metric in metrics
            ],
            "lines": [self._line(name, attack, attack, self.attack_anchors[attack]) for attack in self._strongest(own)],
        }

    def _strongest(self, rows: Sequence[Row]) -> list[str]:
        """Attacks on the model itself by their strength; then what was done to it otherwise."""
        done = {row["attack"] for row in rows}
        headline = headline_of(rows, rows[0]["defence"])
        first = heat_of(rows, headline).attacks if headline else []
        return [*first, *(attack for attack in self.attacks if attack in done and attack not in first)]

    def _attack(self, attack: str) -> dict[str, Any]:
        names = [name for name in models(self.rows) if any(self._of(name, attack))]
        runs = [run for run, place in zip(self.runs, self.places, strict=True) if place[2] == attack and run.finished]
        config = (runs[0].record.get("config") or {}).get("attack") or {} if runs else {}
        known = ATTACKS.get(attack, ("",))[0].removesuffix(".")
        return {
            "name": attack,
            "anchor": self.attack_anchors[attack],
            "told": known or kind_of(config) or ("a harmless task" if attack.startswith(TRAINED) else ""),
            "cost": _cost(runs[0]) if runs else "",
            "settings": settings_of(config, "attack"),
            "lines": [self._line(name, attack, name, self.model_anchors[name]) for name in names],
            **self._examples(dict.fromkeys(names, attack)),
        }

    def _line(self, model: str, attack: str, shown: str, anchor: str) -> dict[str, Any]:
        rows = list(self._of(model, attack))
        return {
            "name": shown,
            "anchor": anchor,
            "cells": [cell(estimate(rows, model, attack, metric)[0], metric) for metric in self.columns],
            "runs": sources(rows, self.links),
        }

    def _of(self, model: str, attack: str) -> Iterable[Row]:
        return (row for row in self.rows if (row["defence"], row["attack"]) == (model, attack))

    def _comparisons(self) -> list[dict[str, Any]]:
        """Answers before any attack, and under the best attack on each model."""
        worst = {row["defence"]: row["attack"] for row in reversed(worst_rows(self.rows))}
        parts = (
            ("Before any attack", dict.fromkeys(models(self.rows), NO_ATTACK)),
            ("Under the best attack on each model", {name: worst[name] for name in models(self.rows) if name in worst}),
        )
        found = [{"title": title, "attacks": wanted} | self._examples(wanted) for title, wanted in parts]
        return [part for part in found if part["examples"]]

    def _examples(self, wanted: dict[str, str]) -> dict[str, Any]:
        chosen = chosen_runs(self.runs, [(place[0], place[2]) for place in self.places], wanted)
        examples = side_by_side(chosen, self.unmasked, EACH)
        numbers = {run.path: str(number) for number, run in enumerate(self.runs, 1)}
        answered = [answer.model for answer in examples[0].answers] if examples else []
        return {"examples": examples, "answering": {model: numbers[chosen[model].path] for model in answered}}


def anchors(kind: str, names: Sequence[str]) -> dict[str, str]:
    """An anchor for each name, of its letters and digits; those of two names never the same."""
    found: dict[str, str] = {}
    for name in names:
        anchor, number = f"{kind}-{slug(name)}", 2
        while anchor in found.values():
            anchor, number = f"{kind}-{slug(name)}-{number}", number + 1
        found[name] = anchor
    return found


def _cost(run: Run) -> str:
    """What an attack cost on one model, in words."""
    curve = curve_of(run)
    cost = (curve[-1].get("cost") or {}) if curve else {}
    words = {"steps": "steps", "samples": "examples", "flops": "FLOPs"}
    known = {name: cost[name] for name in words if cost.get(name)}
    return ", ".join(f"{v:,.0f} {words[n]}" if v < 1e6 else f"{v:.2g} {words[n]}" for n, v in known.items())
