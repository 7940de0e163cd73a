"""The comparison of defences: which runs it is made of, and what it says of them."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from fabricated_runs import shares
from repnoise.attacks import ATTACKS
from repnoise.defences import DEFENCES
from repnoise.defend import presets
from repnoise.errors import RepnoiseError
from repnoise.runs import Run, code_state, environment, plain, write_json
from repnoise.studies import STUDIES, study_options
from repnoise.studies.comparison import collected, front, standings, verdict
from repnoise.studies.defences import ABLATED, CONTROLS, CUSTODIES, TUNED, DefencesStudy
from repnoise.studies.document import write_document


@pytest.fixture
def study(tmp_path):
    return DefencesStudy(("sandbox"), ("repnoise", "rmu"), ("repnoise-no-noise",), output_dir=tmp_path / "study")


def tuned(study, **changes):
    for name in study.defences:
        config = presets()[name]
        defence = replace(config.defence, **changes) if name == "repnoise" else config.defence
        record = {"kind": "defence", "name": name, "config": plain(replace(config, defence=defence))}
        write_json(study.output_dir / "tuning" / name / "preset.json", record)


def finished(path, kind, name, **values):
    config = {"defence": {"noise_weight": 2.0}, "training": {"learning_rate": 1e-3}}
    record = {"kind": kind, "name": name, "config": config, "status": "finished", "metrics": shares(**values)}
    Run(path).update(**record, seconds=30.0, environment=environment(), code=code_state())


def measured(study, name, recovered, harmless=1.0):
    """Runs of a defence, whole: `recovered` by attack, in every world and with every seed the same."""
    for own, world, seed in study.models():
        if own != name:
            continue
        folder, kind = study.folder(name, world, seed), "defence" if name in TUNED else "initialisation"
        before = {"harmless_accuracy": harmless, "harmless_accuracy_unretained": harmless / 2, "over_refusal_rate": 0.0}
        finished(folder / "model-run", kind, name, **before, refusal_rate=1.0)
        finished(folder / "task", "trainability", "task", rouge1=0.6)
        for attack in study.attacks(name):
            for attack_seed in range(study.attack_seeds):
                found = {"recovered": recovered[attack], "recovered_uncovered": 1 - recovered[attack]}
                path = folder / f"{attack}-seed-{attack_seed}"
                finished(path, "attack", attack, **found, harmless_accuracy=0.75)


def attacks_recover(low, high):
    """All attacks of the suite recover `low`, the last one `high`."""
    names = list(DefencesStudy().attacks("repnoise"))
    return dict.fromkeys(names, low) | {names[-1]: high}


def test_everything_that_is_compared_exists():
    assert {*TUNED, *ABLATED} <= {*DEFENCES}
    study = DefencesStudy()
    for name in (*TUNED, *CUSTODIES):
        assert study.attacks(name) and {*study.attacks(name).values()} <= {*ATTACKS}
    assert STUDIES["defences"][0].endswith("?") and study_options("defences") == DefencesStudy()


def test_every_model_is_attacked_in_every_way_and_what_draws_nothing_is_made_once(study):
    tuned(study)
    cells = study.cells()
    assert len({cell.path for cell in cells}) == len(cells)
    models = Counter(name for name, _, _ in study.models())
    six, two = ("repnoise", "rmu", "repnoise-no-noise", "random-initialisation"), ("undefended", "never-learned")
    assert models == Counter(dict.fromkeys(six, 6) | dict.fromkeys((*two, *CUSTODIES), 2))
    for name, world, seed in study.models():
        own = [cell for cell in cells if cell.path.is_relative_to(study.folder(name, world, seed))]
        ready = [cell for cell in own if not cell.needs]
        tasks = 0 if name in CUSTODIES else 1
        assert len(ready) == 1 and len(own) == 1 + tasks + len(study.attacks(name)) * study.attack_seeds
        assert all(cell.needs == (ready[0].path,) for cell in own if cell.needs)
    # A model's own come right after it.
    assert str(cells[1].path).startswith(str(cells[0].path.parent))


def test_worlds_are_built_once_and_tuning_has_one_of_its_own(study):
    folders = [cell.path.name for cell in study.world_cells()]
    assert folders == ["2", "0-never-learned", "1", "1-never-learned"]  # World 0 is in the package.
    assert study.tuning("rmu").inputs.data == f"sandbox:{study.output_dir / 'worlds' / '2'}"
    with pytest.raises(RepnoiseError, match="World 1 is tuned on"):
        replace(study, tuning_world=1)


def test_an_ablation_has_the_tuned_settings_less_what_it_leaves_out(study):
    tuned(study, retain_weight=7.0, noise_weight=3.0)
    full, without = (study.defending(name, 1, 2) for name in ("repnoise", "repnoise-no-noise"))
    assert full.defence.retain_weight == without.defence.retain_weight == 7.0
    assert (full.defence.noise_weight, without.defence.noise_weight) == (3.0, 0.0)
    assert replace(without.defence, noise_weight=3.0) == full.defence
    assert full.training.seed == 2 and full.inputs == study.inputs(1)


def test_a_defence_stands_where_its_worst_attack_leaves_it(study):
    measured(study, "rmu", attacks_recover(0.1, 0.4), harmless=0.95)
    (rmu,) = standings(study, collected(study))
    worst = list(study.attacks("rmu"))[-1]
    assert (rmu.covered[1], rmu.worst_run, rmu.models) == (worst, pytest.approx(0.4), (6, 6))
    assert rmu.covered[0].mean == pytest.approx(0.4)
    assert rmu.covered[0].low < 0.4 < rmu.covered[0].high  # Seeds agree, but they are 40 questions.
    # The worst attack for uncovered answers is another one.
    assert rmu.uncovered[1] != worst and rmu.uncovered[0].mean == pytest.approx(0.9)
    assert (rmu.left.mean, rmu.stability, rmu.task.mean, rmu.seconds) == pytest.approx((0.75, 0.95, 0.6, 30.0))


def test_no_advantage_is_said_and_so_is_a_model_that_is_of_no_use(study):
    measured(study, "undefended", attacks_recover(0.9, 1.0))
    measured(study, "rmu", attacks_recover(0.9, 0.975))
    measured(study, "repnoise", attacks_recover(0.0, 0.1), harmless=0.9)
    found = {one.name: one for one in standings(study, collected(study))}
    assert list(found) == ["repnoise", "rmu", "undefended"]
    assert verdict(found["rmu"], found["undefended"]).startswith("covered: no advantage")
    assert verdict(found["repnoise"], found["undefended"]) == (
        "covered: less; uncovered: more; not a useful model"  # It gives up what nobody defended.
    )
    assert [one.name for one in front([*found.values()])] == ["repnoise", "rmu"]


def test_the_document_is_written_of_what_there_is(study, tmp_path, capsys):
    assert "No model was attacked yet." in write_document(study, 1.0).read_text()
    measured(study, "undefended", attacks_recover(0.9, 1.0))
    measured(study, "rmu", attacks_recover(0.9, 0.975))
    document = tmp_path / "docs" / "defences.md"
    assert write_document(replace(study, document=document, seeds=3), 1.0) == document
    text = document.read_text()
    assert "repnoise reproduce defences --scale sandbox --defences repnoise rmu --ablations repnoise-no-noise" in text
    assert "no advantage" in text and "![Resistance of every defence against what it keeps](defences.svg)" in text
    assert "8 of 32 models are there" in text and str(tmp_path) not in text
    assert re.search(r"\| rmu \| 6 of 6 \| 98 % \[", text)
    assert "<svg" in document.with_suffix(".svg").read_text()
    rows = json.loads((study.output_dir / "results.json").read_text())["standings"]
    assert [row["name"] for row in rows] == ["rmu", "undefended"]


def test_controls_are_no_defences():
    assert not {*CONTROLS} & {*DEFENCES} and Path(DefencesStudy().world(0)) == Path("sandbox")
