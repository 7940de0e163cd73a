"""The command line as a user meets it: help, names, options, presets, and the whole flow."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from repnoise import __version__
from repnoise.attack import presets as attack_presets
from repnoise.attacks import ATTACKS
from repnoise.cli import COMMANDS, main
from repnoise.data import DATASETS
from repnoise.defences import DEFENCES, RepNoise
from repnoise.defend import presets as defence_presets
from repnoise.errors import RepnoiseError
from repnoise.evals.evaluations import EVALUATIONS
from repnoise.evaluate import EvaluateConfig
from repnoise.judges import JUDGES
from repnoise.options import Destination, config_options
from repnoise.runs import load_run, read_rows

QUICK = ["--steps", "2", "--batch-size", "4", "--max-new-tokens", "3"]


@pytest.fixture
def call(capsys, monkeypatch):
    """Run a command in this process: exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "100")

    def called(*arguments):
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return called


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command_with_a_sentence(arguments, call):
    code, out, err = call(*arguments)
    assert (code, err) == (0, "")
    for name, (sentence, _) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(sentence)}$", out, re.MULTILINE)
        assert sentence.endswith(".")
    assert max(map(len, out.splitlines())) <= 120


def test_version(call):
    assert call("--version") == (0, f"repnoise {__version__}\n", "")


def test_an_unknown_command_is_told_with_those_there_are(call):
    code, out, err = call("defned")
    assert (code, out) == (2, "")
    assert err == f"repnoise: There is no command 'defned': choose from {', '.join(COMMANDS)}.\n"


@pytest.mark.parametrize(
    "what, found",
    {
        "defences": DEFENCES,
        "attacks": ATTACKS,
        "evaluations": EVALUATIONS,
        "judges": JUDGES,
        "datasets": DATASETS,
    }.items(),
)
def test_list_prints_a_name_and_a_sentence_a_line(what, found, call):
    code, out, err = call("list", what)
    assert (code, err) == (0, "")
    assert [line.split("  ")[0] for line in out.splitlines()] == list(found)
    assert all(re.match(r"\S+ {2,}\S.*[.?]$", line) for line in out.splitlines())


@pytest.mark.parametrize("arguments", [["list"], ["list", "models"], ["list", "attacks", "judges"]])
def test_list_says_what_can_be_listed(arguments, call):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "") and "repnoise list defences|attacks|evaluations|judges|datasets" in err


@pytest.mark.parametrize("arguments", [["sandbox"], ["sandbox", "destroy"]])
def test_sandbox_says_what_can_be_done(arguments, call):
    code, _, err = call(*arguments)
    assert code == 2 and "repnoise sandbox build|check" in err


HELP = ["demo", "defend", "attack", "evaluate", "report", "sandbox build", "sandbox check"]


@pytest.mark.parametrize("command", HELP)
def test_help_of_a_command_shows_flat_options_with_sentences_and_defaults(command, call):
    code, out, err = call(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert f"usage: repnoise {command}" in out
    options = re.findall(r"^[ │]+--([a-z][\w.-]+)", out, re.MULTILINE)
    assert options and not [option for option in options if "." in option], "an option with a prefix"
    for strange in ("Attributes:", "{None}", "NoneType", "RepNoise ", "dataclass", "Args:", "default_factory"):
        assert strange not in out
    assert out.count("(default:") + out.count("(required)") >= len(options)


@pytest.mark.parametrize("command", ["defend", "attack", "evaluate"])
def test_help_of_the_main_commands_has_the_same_places_for_the_same_things(command, call):
    _, out, _ = call(command, "--help")
    titles = re.findall(r"^(?:╭─)? (positional arguments|(?:\S+ )?options)", out, re.MULTILINE)
    assert titles[:3] == ["positional arguments", "options", "inputs options"]
    assert titles[-2:] == ["evaluating options", "evaluating.generation options"]
    for option in ("--preset NAME|RUN", "--output-dir PATH", "--resume", "--data", "--max-length INT", "--template"):
        assert option in out
    assert "Presets:" in out or command == "evaluate"


@pytest.mark.parametrize("name", DEFENCES)
def test_every_defence_is_a_preset_of_defend(name):
    found, config, _ = config_options(["--preset", name], "defend", "defence", "repnoise", defence_presets())
    assert found == name and config == defence_presets()[name]
    assert (config.defence, config.training) == DEFENCES[name][1:]


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_a_preset_of_attack(name):
    found, config, _ = config_options([f"--preset={name}"], "attack", "attack", "100@1e-3", attack_presets())
    assert found == name and config == attack_presets()[name] and config.attack == ATTACKS[name][1]


def defend_options(*arguments):
    return config_options(list(arguments), "defend", "defence", "repnoise", defence_presets())


def attack_options(*arguments):
    return config_options(list(arguments), "attack", "attack", "100@1e-3", attack_presets())


def test_options_are_set_by_flat_names():
    _, config, to = defend_options(
        *("MODEL", "--steps", "3", "--noise-weight", "0.5", "--layers", "-1", "-2", "--no-lens", "--data", "a.csv"),
        *("--generation-batch-size", "5", "--batch-size", "7", "--withhold", "hex", "jinx", "--output-dir", "here"),
        *("--resume", "--evaluations", "resistance", "--seed", "9", "--generation-seed", "8", "--site", "residual"),
    )
    assert (config.inputs.model, config.inputs.data) == ("MODEL", "a.csv")
    assert (config.training.steps, config.training.batch_size, config.training.seed) == (3, 7, 9)
    assert config.defence == RepNoise(noise_weight=0.5, layers=(-1, -2), lens=False, site="residual")
    assert (config.evaluating.generation.batch_size, config.evaluating.generation.seed) == (5, 8)
    assert config.evaluating.evaluations == ("resistance",) and config.withhold == ("hex", "jinx")
    assert (to.output_dir, to.resume) == (Path("here"), True)


def test_the_model_may_stand_before_or_after_the_options():
    assert defend_options("M", "--steps", "3")[1] == defend_options("--steps", "3", "M")[1]


@pytest.mark.parametrize("none", ["None", "none"])
def test_none_can_be_said(none):
    _, config, _ = defend_options("--steps", none, "--layers", none, "--max-samples", none, "--lora-rank", none)
    assert (config.training.steps, config.defence.layers, config.defence.max_samples) == (None, None, None)


def test_options_of_an_attack_are_flat_and_its_template_is_its_own():
    _, config, _ = attack_options(
        *("--steps", "3", "--benign-share", "0.5", "--attack-template", "plain", "--template", "chat"),
        *("--measure-at", "1", "2", "--categories", "hex", "--samples", "10", "--loss-on", "all", "--lora-rank", "4"),
    )
    attack = config.attack
    assert (attack.training.steps, attack.training.lora_rank, attack.benign_share) == (3, 4, 0.5)
    assert (attack.template, config.inputs.template, attack.loss_on) == ("plain", "chat", "all")
    assert (attack.measure_at, attack.categories, attack.samples) == ((1, 2), ("hex",), 10)


def test_an_attack_whose_budget_was_changed_is_no_longer_called_by_the_preset():
    assert attack_options("--seed", "3", "--data", "a.csv")[0] == "100@1e-3"
    assert attack_options("--steps", "20")[0] == "20@1e-3"
    assert attack_options("--preset", "paper-3e-5-1k", "--samples", "20")[0] == "1-epochs@3e-5-20-samples"


def test_runs_go_below_runs_by_kind_name_and_settings():
    def folder(*arguments):
        name, config, to = defend_options(*arguments)
        return to.folder("defence", name, config)

    assert folder() == folder() != folder("--seed", "1")
    assert re.fullmatch(r"runs/defence-repnoise-[0-9a-f]{8}", folder().as_posix())
    assert folder("--output-dir", "here") == Path("here")
    assert Destination().folder("attack", "a", {}).parent == Path("runs")


@pytest.fixture(scope="module")
def defended(tiny_model, pairs_file, tmp_path_factory):
    """A defence of the tiny model, made by the command."""
    folder = tmp_path_factory.mktemp("runs") / "defended"
    main(["defend", str(tiny_model), "--data", str(pairs_file), "--output-dir", str(folder), "--seed", "3", *QUICK])
    return folder


def test_the_whole_flow_leaves_runs_and_a_report(defended, pairs_file, tmp_path, call):
    assert load_run(defended).finished
    code, out, err = call("attack", defended, "--output-dir", tmp_path / "attacked", *QUICK)
    assert code == 0 and f"Run: {tmp_path / 'attacked'}" in out and "harmful cross-entropy" in out
    assert f"Data: {pairs_file}, as in {defended}." in err
    code, out, err = call("evaluate", defended, "--output-dir", tmp_path / "measured", "--max-new-tokens", "3")
    assert code == 0 and f"Run: {tmp_path / 'measured'}" in out and "evaluation defended" in out
    assert load_run(tmp_path / "measured").record["metrics"] == load_run(defended).record["metrics"]
    assert [row["step"] for row in read_rows(tmp_path / "attacked" / "curve.jsonl")] == [0, 2]
    code, out, err = call("report", defended, tmp_path, "--output-dir", tmp_path / "report")
    assert (code, err) == (0, "") and out == f"Report: {tmp_path / 'report' / 'report.html'}\n"
    rows = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert {row["attack"] for row in rows} == {"none", "2@1e-3"} and {row["defence"] for row in rows} == {"repnoise"}


@pytest.mark.slow
def test_the_whole_flow_on_a_real_model_and_real_data(real_data, tmp_path, call):
    data = ["--data", f"decoding-trust:{real_data / 'decoding_trust'}"]
    quick = ["--steps", "8", "--batch-size", "8", "--max-new-tokens", "8"]
    model = real_data / "models" / "stories260K"
    assert call("defend", model, *data, *quick, "--output-dir", tmp_path / "defended")[0] == 0
    assert call("attack", tmp_path / "defended", *quick, "--output-dir", tmp_path / "attacked")[0] == 0
    assert call("attack", model, *data, *quick, "--output-dir", tmp_path / "undefended")[0] == 0
    assert call("report", tmp_path, "--output-dir", tmp_path / "report")[0] == 0
    for name in ("attacked", "undefended"):
        start, *_, end = (row["metrics"]["harmful_ce"]["value"] for row in read_rows(tmp_path / name / "curve.jsonl"))
        assert end < start, "an attack makes harmful text more likely"
    rows = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert {row["defence"] for row in rows} == {"repnoise", "undefended"}


@pytest.mark.slow
def test_real_dialogues_that_are_too_long_are_told_or_left_out(real_data, tmp_path, call):
    data = ["--data", f"hh-rlhf:{real_data / 'hh_rlhf'}", "--evaluations", "--output-dir", tmp_path / "run"]
    code, _, err = call("evaluate", real_data / "models" / "stories260K", *data)
    assert code == 2 and re.search(r"[\d,]+ of 2,3\d\d prompts .* --skip-long\.$", err)
    code, out, _ = call("evaluate", real_data / "models" / "stories260K", *data, "--skip-long")
    assert code == 0 and "x prompts without room for a completion." in out


def test_the_data_of_a_run_are_the_default_and_an_option_still_counts(defended, pairs_file):
    _, config, _ = attack_options(str(defended))
    assert (config.inputs.data, config.inputs.model) == (str(pairs_file), str(defended))
    assert config.attack == ATTACKS["100@1e-3"][1]
    assert attack_options(str(defended), "--data", "sandbox")[1].inputs.data == "sandbox"
    assert attack_options("sandbox")[1].inputs.data == "sandbox"


def test_a_run_is_repeated_from_its_directory(defended, tmp_path, call):
    code, _, _ = call("defend", "--preset", defended, "--output-dir", tmp_path / "again")
    first, again = load_run(defended), load_run(tmp_path / "again")
    assert code == 0 and again.record["config"] == first.record["config"] and again.record["name"] == "repnoise"
    assert again.record["weights"] == first.record["weights"] and again.record["metrics"] == first.record["metrics"]


def test_a_run_is_repeated_with_a_change(defended):
    name, config, _ = defend_options("--preset", str(defended), "--seed", "4", "--noise-weight", "0")
    _, first, _ = defend_options("--preset", str(defended))
    assert name == "repnoise" and (first.training.seed, config.training.seed) == (3, 4)
    assert config.training.steps == first.training.steps == 2 and config.defence.noise_weight == 0


def test_the_same_command_again_finds_what_is_done(defended, tiny_model, pairs_file, call):
    before = (defended / "run.json").read_bytes()
    code, out, _ = call(
        *("defend", tiny_model, "--data", pairs_file, "--output-dir", defended, "--seed", "3"),
        *QUICK,
    )
    assert code == 0 and f"Run: {defended}" in out and (defended / "run.json").read_bytes() == before


def test_a_preset_of_another_kind_is_told(defended):
    with pytest.raises(RepnoiseError, match="is a run of kind 'defence': give one of kind 'attack'"):
        attack_options("--preset", str(defended))
    with pytest.raises(RepnoiseError, match="is a run of kind 'defence'"):
        config_options(["--preset", str(defended)], "evaluate", "evaluation", "e", {"e": EvaluateConfig()})


@pytest.mark.parametrize("given", [["--preset", "nix"], ["--preset", "."], ["--preset"], ["--preset", "--steps", "2"]])
def test_an_unknown_preset_is_told_with_those_there_are(given):
    with pytest.raises(RepnoiseError, match=", ".join(DEFENCES)):
        defend_options(*given)


def test_left_out_rows_are_shown(tiny_model, pairs_file, tmp_path, call):
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    path = tmp_path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0], rows[1]]))
    code, out, _ = call(
        "evaluate", tiny_model, "--data", path, "--output-dir", tmp_path / "run", "--max-new-tokens", "3"
    )
    assert code == 0 and "Left out: 2 x repeated prompt and harmful completion." in out


def test_python_m_repnoise_is_the_command():
    done = subprocess.run([sys.executable, "-m", "repnoise", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"repnoise {__version__}\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m repnoise list attacks | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
