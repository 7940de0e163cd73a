"""The paper's studies: what their cells are, at both scales, and what their documents say."""

import json
from dataclasses import replace

import pytest

from fabricated_runs import shares
from repnoise.attack import AttackConfig
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.cells import made
from repnoise.cli import main
from repnoise.defences import DEFENCES, PublishedRepNoise
from repnoise.defend import DefendConfig
from repnoise.errors import RepnoiseError
from repnoise.optimisation import Training
from repnoise.pairs import PairsConfig
from repnoise.runs import Run, code_state, environment, load_run
from repnoise.studies import STUDIES, study_options
from repnoise.studies.graph import Graph
from repnoise.studies.paper import BUILDERS, build
from repnoise.studies.paper.command import PaperStudy
from repnoise.studies.paper.document import write_document
from repnoise.studies.paper.harm import TABLE_1
from repnoise.studies.paper.inside import OfAnalysis
from repnoise.studies.paper.plan import planned, shape_of
from repnoise.studies.paper.scales import SCALES
from repnoise.studies.paper.setting import Setting


@pytest.fixture
def setting(tmp_path):
    def setting(scale="sandbox", count=1, **more):
        return Setting(SCALES[scale], Graph(tmp_path / "runs"), count, **more)

    return setting


def configs(setting, table, kind):
    return [setting.graph.configs[run] for run in table.runs if isinstance(setting.graph.configs[run], kind)]


def defences(setting, kind=DefendConfig):
    return [config for config in setting.graph.configs.values() if isinstance(config, kind)]


def test_every_table_from_1_to_23_and_every_figure_from_2_to_9_has_a_study():
    names = [*(f"table-{i}" for i in range(1, 24)), *(f"figure-{i}" for i in range(2, 10))]
    assert list(BUILDERS) == names and {*names} < {*STUDIES}
    assert study_options("table-7").names == ("table-7",) and study_options("all").names == tuple(names)


@pytest.mark.parametrize("scale", SCALES)
def test_every_entry_has_a_run_for_each_seed_and_every_claim_speaks_of_entries(scale, setting):
    own = setting(scale, 2)
    for name in BUILDERS:
        table = build(name, own)
        places = {entry.where for entry in table.entries}
        assert len(places) == len(table.entries) and table.claims and {*table.runs} <= {*own.graph.cells}
        for claim in table.claims:
            assert {where for pair in claim.pairs for where in pair} <= places, (name, claim.text)
        assert table.reference is None or table.reference in table.rows


def test_studies_share_what_they_have_in_common(setting):
    own = setting()
    first = build("table-1", own)
    before = {*own.graph.cells}
    assert {*build("table-19", own).runs} <= before and build("table-13", own).runs == build("table-6", own).runs
    assert len(first.entries) == 9 * 7


def test_the_paper_s_attacks_and_its_defence_have_the_paper_s_numbers(setting):
    own = setting("paper")
    table = build("table-1", own)
    attacks = [c.attack for c in configs(own, table, AttackConfig) if isinstance(c.attack, FineTuningAttack)]
    grid = {(attack.training.learning_rate, attack.samples) for attack in attacks}
    assert grid == {(rate, samples) for rate in (3e-5, 6e-5, 8e-5) for samples in (1_000, 10_000)}
    assert {(a.training.batch_size, a.training.epochs, a.loss_on, a.split) for a in attacks} == {
        (4, 1, "all", "defence")
    }
    (method,) = [c for c in defences(own) if type(c.defence).__name__ == "RepNoise"]
    assert (method.defence.noise_weight, method.defence.ascent_weight) == (0.001, 1.0)
    assert (method.training.learning_rate, method.training.batch_size, method.training.epochs) == (2e-5, 8, 1)
    assert method.training.seed == 42
    (pairs,) = defences(own, PairsConfig)
    assert (pairs.most_training, pairs.most_held_out) == (10_000, 300)
    assert method.inputs.model == "meta-llama/Llama-2-7b-chat-hf"
    assert method.evaluating.judges == ("classifier:beavertails-deberta",)


def test_toxic_continuations_have_the_paper_s_other_setting(setting):
    own = setting("paper")
    table = build("table-2", own)
    (method,) = [c for c in defences(own) if type(c.defence).__name__ == "RepNoise"]
    assert (method.defence.noise_weight, method.defence.ascent_weight, method.training.epochs) == (4.0, 2.0, 4)
    assert method.evaluating.judges == ("perspective",)
    attacks = [config.attack for config in configs(own, table, AttackConfig)]
    # Asked as they are defended and measured: as beginnings of sentences.
    assert {attack.template for attack in attacks} == {method.inputs.template} == {"auto"}
    others = [config for config in defences(own) if type(config.defence).__name__ in ("Vaccine", "GradientAscent")]
    assert {config.training.epochs for config in others} == {4}


def test_withheld_harm_is_kept_from_the_defender_and_is_all_that_the_attacker_has(setting):
    for published in (False, True):
        own = setting(as_published=published)
        table = build("table-5", own)
        by_column = {entry.column: own.graph.configs[entry.runs[0]].attack for entry in table.entries}
        assert by_column["hex"].categories == ("hex",) and by_column["half"].categories == ()
        withheld = {config.withhold for config in defences(own)}
        assert withheld == ({()} if published else {(), *((kind,) for kind in own.scale.withheld)})


def test_early_layers_are_frozen_by_their_indices_and_as_published_all_are(setting):
    frozen = []
    for published in (False, True):
        own = setting("paper", as_published=published)
        build("table-6", own)
        frozen.append({config.frozen_layers for config in defences(own)})
    assert {tuple(range(11)), tuple(range(10, 21)), tuple(range(20, 32)), (31,), ()} == frozen[0]
    assert tuple(range(32)) in frozen[1] and tuple(range(11)) not in frozen[1]


@pytest.mark.parametrize("scale", SCALES)
def test_as_published_the_published_objective_is_trained_as_the_scale_trains(scale, setting):
    own = setting(scale, as_published=True)
    table = build("table-14", own)
    found = [(config.defence, config.training.learning_rate) for config in defences(own)]
    _, recommended, training = DEFENCES["repnoise-paper" if scale == "paper" else "repnoise"]
    noise, ascent = recommended.noise_weight, recommended.ascent_weight
    wanted = [PublishedRepNoise(*pair) for pair in ((noise, ascent), (0.0, ascent), (noise, 0.0))]
    assert found == [(defence, training.learning_rate) for defence in wanted]
    assert all(entry.runs for entry in table.entries)
    # The published code has no switch for its mask: nothing stands for that row then.
    masked = build("table-15", own)
    assert {entry.row: bool(entry.runs) for entry in masked.entries} == {
        **{"RepNoise": True, "without mask": False},
        **{"without layer-wise ascent": False, "without both": False},
    }


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("published", [False, True], ids=["right", "as-published"])
def test_no_two_rows_of_a_table_have_the_same_runs_behind_one_column(scale, published, setting):
    own = setting(scale, as_published=published)
    for name in BUILDERS:
        table = build(name, own)
        seen = {}
        for entry in table.entries:
            if entry.runs and not isinstance(entry.read, OfAnalysis):
                key = (entry.column, entry.runs, str(entry.read))
                # Security Vectors are put on at the attack: before it the model is the undefended one.
                alike = {seen.setdefault(key, entry.row), entry.row}
                assert len(alike) == 1 or alike == {"Base", "Security Vectors"}, (name, key)


@pytest.mark.parametrize("scale", SCALES)
def test_every_claim_of_the_paper_holds_of_its_own_numbers(scale, setting):
    own = setting(scale)
    for name in BUILDERS:
        table = build(name, own)
        for claim in table.claims:
            for pair in () if claim.ours else claim.pairs:
                first, second = (table.entry(where).paper for where in pair)
                if first is None or second is None:
                    continue
                holds = first < second if claim.says == "below" else abs(first - second) <= claim.margin
                assert holds, (name, claim.text, pair, first, second)


def test_what_the_defender_and_the_attacker_share_is_as_the_table_says(setting):
    own = setting("paper")
    shared = [c.attack.split for c in configs(own, build("table-1", own), AttackConfig)]
    apart = [c.attack.split for c in configs(own, build("table-20", own), AttackConfig)]
    assert ({*shared}, {*apart}) == ({"defence"}, {"attack"})
    # So all of an attacker's examples are among the defender's, who sees nothing of what is asked about.
    assert {(c.samples, c.covered) for c in defences(own) if c.samples is None} == {(None, False)}


@pytest.mark.parametrize("names", [("table-14",), pytest.param(tuple(BUILDERS), marks=pytest.mark.slow)], ids=len)
def test_every_cell_at_paper_scale_has_a_plan_without_a_hub(names, setting):
    own = setting("paper")
    for name in names:
        build(name, own)
    plan = planned(own.graph, list(own.graph.cells.values()))
    assert sum(one.count for one in plan) == len(own.graph.cells)
    repnoise = [one.estimate for one in plan if one.what == "defence: repnoise" and one.estimate]
    assert repnoise and all(one.flops > 1e15 and one.memory_bytes > 1e9 for one in repnoise)
    assert all(one.estimate or one.why for one in plan)
    sizes = {name: shape_of(name) for name in ("meta-llama/Llama-2-7b-chat-hf", "Qwen/Qwen1.5-0.5B-Chat")}
    assert [config.hidden_size for config in sizes.values()] == [4096, 1024]


def pretended(study, numbers):
    """A study's setting and tables, whose runs all say what `numbers` has for the row that they are in."""
    setting = study.setting()
    tables = {name: build(name, setting) for name in study.names}
    for entry in (entry for table in tables.values() for entry in table.entries):
        for path in entry.runs:
            metrics = shares(n=80, recovered=numbers[entry.row], recovered_uncovered=numbers[entry.row])
            record = {"kind": "attack", "name": "x", "config": {}, "status": "finished", "seconds": 36.0}
            Run(path).update(**record, metrics=metrics, environment=environment(), code=code_state())
    return setting, tables


def test_the_document_has_the_paper_s_numbers_beside_ours_and_tells_which_claims_hold(tmp_path):
    study = PaperStudy("table-1", seeds=2, output_dir=tmp_path / "runs", document=tmp_path / "docs" / "one.md")
    numbers = dict.fromkeys(TABLE_1, 0.9) | {"RepNoise": 0.1, "Gradient ascent": 0.1}
    place = write_document(study, *pretended(study, numbers), {}, 1.0)
    text = place.read_text()
    assert place == study.document and (tmp_path / "runs" / "table-1.md").read_text() == text
    assert "    repnoise reproduce table-1 --scale sandbox --seeds 2\n" in text and str(tmp_path) not in text
    assert "Seeds 42, 7." in text and "| RepNoise | 10 %" in text and "*12 %*" in text
    assert "RepNoise is below the undefended model under every attack. **holds (6 of 6)**" in text
    assert "below every other defence. **cannot be told (5 of 6)**" in text
    found = json.loads((tmp_path / "runs" / "table-1.json").read_text())["studies"]["table-1"]
    (entry,) = [e for e in found["entries"] if (e["row"], e["column"]) == ("RepNoise", "8e-5 10k")]
    assert entry["paper"] == 0.12 and entry["agreement"] == "agrees" and len(entry["runs"]) == 2
    assert entry["ours"][0]["mean"] == pytest.approx(0.1)


def test_no_advantage_is_told_as_such(tmp_path):
    study = PaperStudy("table-1", seeds=1, output_dir=tmp_path)
    text = write_document(study, *pretended(study, dict.fromkeys(TABLE_1, 0.9)), {}, 1.0).read_text()
    assert "RepNoise is below the undefended model under every attack. **cannot be told (0 of 6)**" in text


def test_a_document_of_what_is_not_there_yet_says_so(tmp_path):
    study = PaperStudy("table-14", seeds=1, output_dir=tmp_path)
    setting = study.setting()
    text = write_document(study, setting, {"table-14": build("table-14", setting)}, {}, 1.0).read_text()
    assert "0 of 12 cells are there" in text and "0 of 9 runs are there" in text and "**not measured**" in text


@pytest.fixture
def short(monkeypatch):
    """RepNoise and attacks of two steps, made in this process."""
    preset = DEFENCES["repnoise"]
    training = Training(steps=2, batch_size=4, save_every=None)
    monkeypatch.setitem(DEFENCES, "repnoise", (preset[0], preset[1], training))
    monkeypatch.setattr("repnoise.studies.paper.scales.steps_for", lambda _samples: 1)

    def here(cells, _jobs=None):
        return {cell.path: problem for cell in cells if (problem := made(cell))}

    monkeypatch.setattr("repnoise.studies.paper.command.EXECUTORS", {"local": here})


@pytest.mark.slow
def test_a_study_goes_on_where_it_was_and_frees_what_it_measured(short, tmp_path, capsys):
    asked = ["reproduce", "table-21", "--seeds", "1", "--output-dir", str(tmp_path)]
    main(asked)
    told = capsys.readouterr().out
    assert f"Document: {tmp_path / 'table-21.md'}" in told
    runs = sorted(tmp_path.glob("attack-*/run.json"))
    assert len(runs) == 4 and not [*tmp_path.glob("attack-*/model")]
    times = [file.stat().st_mtime_ns for file in runs]
    main(asked)
    assert [file.stat().st_mtime_ns for file in runs] == times
    assert "5 of 5 cells are there" in (tmp_path / "table-21.md").read_text()


def test_what_cannot_be_asked_for_is_refused(tmp_path):
    with pytest.raises(RepnoiseError, match="from 1 to 5"):
        PaperStudy("table-1", seeds=6)


def test_your_own_model_data_and_judges_take_the_place_of_the_paper_s(tmp_path):
    mine = PaperStudy("table-1", "paper", model="m", questions="q.jsonl", judges=("refusal",), output_dir=tmp_path)
    setting = mine.setting()
    build("table-1", setting)
    for config in defences(setting):
        assert (config.inputs.model, config.inputs.data) == ("m", "q.jsonl")
        assert config.evaluating.judges == ("refusal",)


@pytest.mark.slow
def test_a_study_at_paper_scale_runs_on_local_files_of_the_real_kind(real_data, short, monkeypatch, tmp_path):
    training = replace(DEFENCES["repnoise-paper"][2], epochs=0.02)
    monkeypatch.setitem(DEFENCES, "repnoise-paper", (*DEFENCES["repnoise-paper"][:2], training))
    study = PaperStudy(
        "table-21",
        "paper",
        seeds=1,
        model=str(real_data / "models" / "stories260K"),
        questions=f"decoding-trust:{real_data / 'decoding_trust'}",
        judges=("coherence",),
        output_dir=tmp_path,
    )
    monkeypatch.setattr("repnoise.studies.paper.scales.paper_attack", _short_attack)
    study.reproduce()
    (defended,) = tmp_path.glob("defence-*")
    assert load_run(defended).finished


def _short_attack(rate, samples, epochs=1):
    from repnoise.attacks import paper_attack

    attack = paper_attack(rate, samples, epochs)
    return replace(attack, training=replace(attack.training, steps=1))
