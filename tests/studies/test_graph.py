"""Cells by what they are: asked twice they are one, what is finished stays, and weights are freed when nobody needs
them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fabricated_runs import shares
from repnoise.attack import AttackConfig
from repnoise.attacks import sandbox_attack
from repnoise.defend import DefendConfig
from repnoise.evaluate import EvaluateConfig
from repnoise.inputs import Inputs
from repnoise.optimisation import Training
from repnoise.runs import Run, code_state, environment
from repnoise.studies.graph import Graph, finished

DEFENCE = DefendConfig(training=Training(steps=5))


def pretend(cells, _jobs=None):
    """Makes cells into finished runs with a model, in the order in which they are given."""
    for cell in cells:
        assert all(finished(path) for path in cell.needs)
        record = {"kind": cell.path.name.partition("-")[0], "name": cell.name, "config": {}, "status": "finished"}
        Run(cell.path).update(**record, metrics=shares(recovered=0.5), environment=environment(), code=code_state())
        (cell.path / "model").mkdir()
        (cell.path / "model" / "weights").write_bytes(b"12345678")
        MADE.append(cell.name)
    return {}


MADE: list[str] = []


@pytest.fixture(autouse=True)
def nothing_made():
    MADE.clear()


@pytest.fixture
def graph(tmp_path):
    return Graph(tmp_path / "runs")


def attacked(graph, model, keep=False):
    return graph.run(AttackConfig(Inputs(str(model)), sandbox_attack(5, 1e-3), keep_model=keep), "attack")


def test_who_asks_for_the_same_run_gets_the_same_cell_wherever_the_runs_lie(graph, tmp_path):
    first = graph.run(DEFENCE, "one name")
    assert graph.run(DEFENCE, "another name") == first and len(graph.cells) == 1
    assert graph.run(replace(DEFENCE, withhold=("hex",)), "one name") != first
    elsewhere = Graph(tmp_path / "elsewhere")
    same = elsewhere.run(DEFENCE, "one name")
    assert same.name == first.name
    assert attacked(elsewhere, same).name == attacked(graph, first).name


def test_a_cell_needs_every_cell_whose_folder_its_config_names(graph):
    defended, world = graph.run(DEFENCE, "defence"), graph.world(1)
    assert graph.cells[attacked(graph, defended)].needs == (defended,)
    inputs = Inputs(world, f"sandbox:{world}")
    undefended = graph.initialised(EvaluateConfig(inputs), "undefended")
    assert graph.cells[undefended].needs == (Path(world),)
    assert {graph.origin(attacked(graph, run)) for run in (undefended, defended)} == {"sandbox"}
    elsewhere = graph.initialised(EvaluateConfig(Inputs("some/model")), "undefended")
    assert graph.origin(attacked(graph, elsewhere)) == "some/model"


def test_only_what_is_wanted_is_made_with_all_that_it_needs_and_nothing_twice(graph):
    defended, other = graph.run(DEFENCE, "defence"), graph.run(replace(DEFENCE, covered=False), "other")
    wanted = attacked(graph, defended)
    assert graph.make({wanted}, pretend) == {} and MADE == ["defence", "attack"]
    graph.make({wanted, other}, pretend)
    assert MADE == ["defence", "attack", "other"]


def test_a_finished_world_counts_as_there(graph):
    world = graph.world(1)
    undefended = graph.initialised(EvaluateConfig(Inputs(world)), "undefended")
    Path(world).mkdir(parents=True)
    (Path(world) / "world.json").write_text("{}")
    graph.make({undefended}, pretend)
    assert MADE == ["undefended"]


def test_attacked_weights_go_when_all_who_need_them_are_done_and_come_back_when_they_are_wanted_once_more(graph):
    defended = graph.run(DEFENCE, "defence")
    kept = attacked(graph, defended, keep=True)
    twice = graph.run(AttackConfig(Inputs(str(kept)), sandbox_attack(5, 1e-3)), "attacked twice")
    graph.make({kept}, pretend)
    assert graph.free() == 0
    graph.make({twice}, pretend)
    assert graph.free() == 16
    assert (defended / "model").exists() and not (kept / "model").exists() and finished(kept)

    shutil.rmtree(twice)
    graph.make({twice}, pretend)
    assert MADE == ["defence", "attack", "attacked twice", "attack", "attacked twice"]
