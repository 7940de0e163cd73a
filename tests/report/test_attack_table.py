"""The table of attacks: one line each, with what it needs, costs and did, as the runs say it."""

from dataclasses import replace

import pytest

import fabricated_runs as fake
from repnoise.attacks import ATTACKS
from repnoise.report.attack_table import attack_table
from repnoise.report.summary import summarise
from repnoise.runs import plain, write_rows


def run_of(folder, parent, name, seed, cost, **values):
    """A run of a preset as it is."""
    run = fake.attack(folder, parent, metrics=fake.shares(**values))
    run.update(name=name, config=run.record["config"] | {"attack": plain(ATTACKS[name][1].seeded(seed))})
    end = {"step": 1, "metrics": run.record["metrics"], "cost": cost}
    write_rows(run.path / "curve.jsonl", [end])
    return run


@pytest.fixture
def runs(tmp_path):
    defended = fake.defence(tmp_path / "defended", metrics=fake.shares(recovered=0.0, harmless_accuracy=1.0))
    models, found = {"plain": "sandbox", "defended": defended}, [defended]
    harm = {("plain", "prefill"): 1.0, ("plain", "100@1e-3"): 0.5, ("defended", "100@1e-3"): 0.25}
    costs = {"prefill": {"steps": 0, "samples": 0, "flops": 0.0}, "100@1e-3": {"steps": 100, "flops": 4.6e10}}
    costs["4-bit"] = {"steps": 1, "flops": None}
    for model, parent in models.items():
        for name, seeds in (("4-bit", 1), ("100@1e-3", 2), ("prefill", 1)):
            for seed in range(seeds):
                values = {"recovered": harm.get((model, name), 0.0) + 0.1 * seed, "harmless_accuracy": 0.9}
                found.append(run_of(tmp_path / f"{model}-{name}-{seed}", parent, name, seed, costs[name], **values))
    return found


def cells_of(table):
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return lines[0], {line[0]: line[1:] for line in lines[2:]}


def test_every_attack_has_a_line_that_says_what_it_needs_costs_and_did_the_strongest_first(runs):
    table = attack_table(runs, summarise(runs))
    head, lines = cells_of(table)
    assert head == ["attack", "needs", "steps", "FLOPs", "source", "repnoise", "undefended"]
    assert [*lines] == ["prefill", "100@1e-3", "4-bit"]
    needs = "to write how an answer begins, harmful answers"
    assert lines["prefill"] == [needs, "0", "0", "Vega et al. 2023, Qi et al. 2024", "0 % / 90 %", "100 % / 90 %"]
    told = ["weights, harmful answers", "100", "4.6e+10", "Rosati et al. 2024"]
    assert lines["100@1e-3"] == [*told, "30 % / 90 %", "55 % / 90 %"], "means over two seeds"
    assert lines["4-bit"] == ["weights", "1", "not counted", "Zhang et al. 2024", "0 % / 90 %", "0 % / 90 %"]
    assert "recovered, covered / harmless" in table and "2 attack seeds" in table


def test_what_did_not_meet_a_model_has_a_dash_there(runs):
    some = [run for run in runs if run.path.name != "defended-prefill-0"]
    assert cells_of(attack_table(some, summarise(some)))[1]["prefill"][-2:] == ["–", "100 % / 90 %"]


def test_without_attacks_there_is_no_table(runs):
    assert attack_table(runs[:1], summarise(runs[:1])) == ""


def test_every_preset_says_what_it_needs_and_whose_idea_it_is():
    for name, (_, attack) in ATTACKS.items():
        assert attack.needs() and attack.source(), name
    few = ATTACKS["10-shot-30@3e-4"][1]
    assert (few.needs(), few.source()) == ("weights, 10 harmful answers", "Qi et al. 2023")
    assert replace(few, samples=None).source() == "Rosati et al. 2024"
