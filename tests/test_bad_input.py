"""What goes wrong for a user: one clear sentence, exit code 1 or 2, never a traceback, nothing lost."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from conftest import byte_level_tokenizer, fictional_pairs, saved
from repnoise.cli import main
from repnoise.runs import load_run

QUICK = ["--steps", "2", "--batch-size", "4", "--max-new-tokens", "3"]


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run a command in this process and in an empty folder: exit code and what it said on standard error."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def called(*arguments):
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return code, capsys.readouterr().err

    return called


def run_here(name="run"):
    return load_run(Path(name))


def one_sentence(answer, *parts, code=2):
    """The command said one sentence of ours that holds all parts, and ended with the code."""
    assert answer[0] == code, answer
    beside = (" of 2, ", "Data: ")  # Progress of two steps, and whose data it is.
    lines = [line for line in answer[1].splitlines() if not any(part in line for part in beside)]
    assert len(lines) == 1 and lines[0].startswith("repnoise: ") and lines[0].endswith((".", "?")), answer[1]
    for part in parts:
        assert str(part) in lines[0]


def table(folder, rows):
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


COMMANDS = ("defend", "attack", "evaluate")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_data_file(command, call, tiny_model):
    one_sentence(call(command, tiny_model, "--data", "nowhere.jsonl"), "There is no file 'nowhere.jsonl'")
    assert not os.listdir(), "nothing is left behind"


@pytest.mark.parametrize("option", ["--retain", "--benign", "--plain-text"])
def test_a_missing_file_beside_the_data(option, call, tiny_model, pairs_file):
    one_sentence(call("defend", tiny_model, "--data", pairs_file, option, "nowhere.txt"), "nowhere.txt")


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "no/where/at/all", "/nowhere"])
def test_a_missing_model(name, call, pairs_file):
    one_sentence(call("evaluate", name, "--data", pairs_file), "no model", name, "config.json")


def test_a_folder_that_is_no_model(call, tmp_path, pairs_file):
    one_sentence(call("evaluate", tmp_path, "--data", pairs_file), tmp_path)


def test_a_run_without_a_model(call, tiny_model, pairs_file):
    assert call("evaluate", tiny_model, "--data", pairs_file, "--output-dir", "run", "--max-new-tokens", "3")[0] == 0
    one_sentence(call("attack", "run", "--data", pairs_file), "run in run has no model")


def test_a_wrong_column(call, tiny_model, tmp_path):
    rows = [{"question": row["prompt"], "harmful": row["harmful"], "harmless": "No."} for row in fictional_pairs()]
    answer = call("defend", tiny_model, "--data", table(tmp_path, rows))
    one_sentence(answer, "own.jsonl, line 1 has no column 'prompt'", "it has: harmful, harmless, question")


@pytest.mark.parametrize("column", ["prompt", "harmful", "harmless"])
@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text(column, text, call, tiny_model, tmp_path):
    rows = fictional_pairs()
    rows[7][column] = text
    one_sentence(call("defend", tiny_model, "--data", table(tmp_path, rows)), f"line 8: '{column}' is empty")


def test_equal_harmful_and_harmless_answers(call, tiny_model, tmp_path):
    rows = fictional_pairs()
    rows[3]["harmless"] = rows[3]["harmful"] + " "
    answer = call("defend", tiny_model, "--data", table(tmp_path, rows))
    one_sentence(answer, "line 4: 'harmful' and 'harmless' are the same")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_prompt_longer_than_the_context(command, call, tiny_model, tmp_path):
    rows = [*fictional_pairs(), {"prompt": "owl " * 600, "harmful": "Boil it.", "harmless": "No."}]
    path = table(tmp_path, rows)
    answer = call(command, tiny_model, "--data", path)
    one_sentence(answer, "1 of 49 prompts", "256 tokens, the context of the model", "--skip-long")
    assert not os.listdir()


def test_a_prompt_longer_than_the_context_is_left_out_when_asked_for(call, tiny_model, tmp_path, capsys):
    rows = [*fictional_pairs(), {"prompt": "owl " * 600, "harmful": "Boil it.", "harmless": "No."}]
    path = str(table(tmp_path, rows))
    main(["defend", str(tiny_model), "--data", path, "--skip-long", "--output-dir", "run", *QUICK])
    assert "Left out: 1 x prompts without room for a completion." in capsys.readouterr().out
    assert run_here().record["data"]["skipped"] == {"prompts without room for a completion": 1}


def test_a_completion_longer_than_the_context_loses_its_end_and_works(call, tiny_model, tmp_path):
    rows = fictional_pairs()
    for row in rows:
        row["harmful"] += " and bury it" * 200
    assert call("defend", tiny_model, "--data", table(tmp_path, rows), "--output-dir", "run", *QUICK)[0] == 0


def without_pad_token(folder):
    tokenizer = byte_level_tokenizer()
    tokenizer.pad_token = None
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=256)
    config.eos_token_id = config.bos_token_id = tokenizer.eos_token_id
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_without_a_pad_token_works(call, tmp_path, pairs_file):
    model = without_pad_token(tmp_path / "model")
    assert call("defend", model, "--data", pairs_file, "--output-dir", "run", *QUICK)[0] == 0
    assert call("attack", "run", "--output-dir", "attacked", *QUICK)[0] == 0
    metrics = run_here("attacked").record["metrics"]
    assert metrics["harmful_ce"]["value"] > 0 and metrics["harmful_ce"]["unscored"] == 0


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder"])
def test_a_model_that_is_no_decoder(kind, command, call, tmp_path, pairs_file):
    tokenizer = byte_level_tokenizer()
    if kind == "encoder":
        small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **small))
    else:
        small = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 24, "d_kv": 8, "decoder_start_token_id": 0}
        model = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **small))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    one_sentence(call(command, tmp_path / "model", "--data", pairs_file), "is not a causal language model")
    assert not os.listdir()


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_directory_of_another_run(command, call, tiny_model, pairs_file):
    def made(*options):
        return call("evaluate", tiny_model, "--data", pairs_file, "--output-dir", "run", *options)

    assert made("--max-new-tokens", "3")[0] == 0
    before = {path: path.read_bytes() for path in run_here().path.rglob("*") if path.is_file()}
    answer = call(command, tiny_model, "--data", pairs_file, "--output-dir", "run", "--max-new-tokens", "4")
    one_sentence(answer, "run belongs to another run (evaluation 'tiny'", "choose another --output-dir")
    assert {path: path.read_bytes() for path in run_here().path.rglob("*") if path.is_file()} == before


def test_an_output_directory_with_other_files(call, tiny_model, pairs_file, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    answer = call("evaluate", tiny_model, "--data", pairs_file, "--output-dir", tmp_path)
    one_sentence(answer, "exists and is no run of repnoise", "choose another --output-dir")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300])
def test_an_output_directory_that_cannot_be_one(place, call, tiny_model, pairs_file):
    open("file", "w").close()
    code, said = call("evaluate", tiny_model, "--data", pairs_file, "--output-dir", place)
    one_sentence((code, said), "choose another --output-dir", code=code)
    assert code in (1, 2)


def test_layers_out_of_range(call, tiny_model, pairs_file):
    answer = call("defend", tiny_model, "--data", pairs_file, "--layers", "1", "5", *QUICK)
    one_sentence(answer, "There is no layer 5: this model has layers 0 to 1")


def test_a_batch_bigger_than_the_data(call, tiny_model, pairs_file):
    answer = call("defend", tiny_model, "--data", pairs_file, "--batch-size", "100")
    one_sentence(answer, "a batch is 100: lower --batch-size or give more data")
    assert not os.listdir()


def test_an_attack_may_have_a_batch_bigger_than_its_data(call, tiny_model, pairs_file):
    options = ["--batch-size", "64", "--steps", "1", "--max-new-tokens", "3"]
    assert call("attack", tiny_model, "--data", pairs_file, "--output-dir", "run", *options)[0] == 0


def test_an_unknown_category(call, tiny_model, pairs_file):
    known = "it has: binding, fading"
    one_sentence(call("defend", tiny_model, "--data", pairs_file, "--withhold", "luck"), "no category 'luck'", known)
    one_sentence(call("attack", tiny_model, "--data", pairs_file, "--categories", "luck"), "no category 'luck'", known)


def test_no_category_is_left(call, tiny_model, pairs_file):
    answer = call("defend", tiny_model, "--data", pairs_file, "--withhold", "binding", "fading")
    one_sentence(answer, "withhold fewer categories")


def test_an_unknown_data_format(call, tiny_model):
    one_sentence(call("evaluate", tiny_model, "--data", "beaver:here"), "no data format 'beaver'", "hh-rlhf")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_evaluation(command, call):
    known = "resistance, stability, over-refusal"
    one_sentence(call(command, "--evaluations", "charm"), "no evaluation 'charm'", known)


@pytest.mark.parametrize(
    "option, value, part",
    [
        *(("--learning-rate", value, "learning_rate must be above 0") for value in ("-1", "0", "nan", "inf")),
        *(("--steps", value, "steps must be above 0") for value in ("0", "-3")),
        ("--batch-size", "0", "batch_size must be above 0"),
        ("--warmup", "2", "warmup must be 0 to 1"),
        ("--noise-weight", "-1", "noise_weight must be 0 or more"),
        ("--noise-weight", "nan", "noise_weight must be 0 or more"),
        ("--max-samples", "1", "max_samples must be at least 2"),
        ("--max-length", "0", "max_length must be at least 2"),
        ("--max-new-tokens", "0", "max_new_tokens"),
        ("--temperature", "-1", "temperature must be 0 (greedy) or more"),
        ("--top-p", "0", "top_p is a share"),
        ("--lora-rank", "0", "lora_rank must be above 0"),
    ],
)
def test_a_number_that_makes_no_sense(option, value, part, call):
    one_sentence(call("defend", option, value), part)
    assert not os.listdir()


@pytest.mark.parametrize(
    "option, value, part",
    [
        ("--benign-share", "1.5", "benign_share is a share"),
        ("--benign-share", "nan", "benign_share is a share"),
        ("--samples", "0", "samples must be at least 1"),
        ("--learning-rate", "nan", "learning_rate must be above 0"),
    ],
)
def test_a_number_of_an_attack_that_makes_no_sense(option, value, part, call):
    one_sentence(call("attack", option, value), part)


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["--steps", "abc"], "Error parsing --steps: 'abc' is not a whole number."),
        (["--steps", "1.5"], "Error parsing --steps: '1.5' is not a whole number."),
        (["--batch-size", "many"], "Error parsing --batch-size: 'many' is not a whole number."),
        (["--learning-rate", "fast"], "Error parsing --learning-rate: 'fast' is not a number."),
        (["--layers", "0", "top"], "Error parsing --layers: 'top' is not a whole number."),
        (["--site", "moon"], "invalid choice 'moon' for argument '--site'"),
        (["--stepz", "3"], "Unrecognized options: --stepz, 3"),
        (["a", "b"], "Unrecognized options: b"),
        (["--steps"], "Missing value for argument '--steps'"),
    ],
)
def test_options_that_cannot_be_read(arguments, part, call):
    code, said = call("defend", *arguments)
    assert code == 2 and part in " ".join(said.split()) and "repnoise defend --help" in said
    assert "Traceback" not in said and len(said.splitlines()) < 15
    assert not os.listdir()


@pytest.mark.parametrize("option", ["--optimizer", "--schedule"])
def test_an_unknown_optimiser_or_schedule(option, call, tiny_model, pairs_file):
    code, said = call("defend", tiny_model, "--data", pairs_file, option, "fancy", *QUICK)
    one_sentence((code, said), "fancy", code=code)
    assert code in (1, 2)


def test_a_training_that_blows_up_stops_with_the_step_and_the_remedy(call, tiny_model, pairs_file):
    options = ["--learning-rate", "1e30", "--steps", "8", "--max-grad-norm", "0", "--batch-size", "4", "--warmup", "0"]
    code, said = call("defend", tiny_model, "--data", pairs_file, "--output-dir", "run", *options)
    assert code == 1
    assert said.splitlines()[-1].startswith("repnoise: Training stopped at step ") and "--learning-rate" in said
    assert run_here().record["status"] == "failed"


@pytest.mark.parametrize("damage", ["{", "", "[]", '{"kind": "defence"}'])
def test_a_damaged_run(damage, call, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(damage)
    for arguments in (["report", run], ["attack", run], ["defend", "--preset", run]):
        one_sentence(call(*arguments), "run.json is damaged", "delete that run")


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_nothing_to_report_on(place, call):
    one_sentence(call("report", place), "There are no runs in", place)


def test_damaged_weights(call, tiny_model, tmp_path, pairs_file):
    folder = saved(tmp_path / "model", byte_level_tokenizer())
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    one_sentence(call("evaluate", folder, "--data", pairs_file), "Cannot load a model", folder)


def process(*arguments, **options):
    """A real process of the command."""
    command = [sys.executable, "-m", "repnoise", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes, **options)


def wait_for(condition, running, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert running.poll() is None and time.monotonic() < end, running.communicate()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("command", ["defend", "attack"])
def test_ctrl_c_loses_nothing(command, tiny_model, pairs_file, tmp_path):
    options = ["--data", pairs_file, "--steps", "60", "--batch-size", "4", "--save-every", "1", "--max-new-tokens", "3"]
    running = process(command, tiny_model, *options, "--output-dir", tmp_path / "run")
    wait_for(lambda: list(tmp_path.glob("run/checkpoints/checkpoint-*/complete")), running)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 1
    assert said.splitlines()[-1] == (
        "repnoise: Interrupted. What was finished is kept; the same command with --resume goes on."
    )
    assert "Traceback" not in said
    assert load_run(tmp_path / "run").record["status"] == "failed"
    main([command, str(tiny_model), *map(str, options), "--output-dir", str(tmp_path / "run"), "--resume"])
    main([command, str(tiny_model), *map(str, options), "--output-dir", str(tmp_path / "whole")])
    resumed, whole = load_run(tmp_path / "run").record, load_run(tmp_path / "whole").record
    assert resumed["status"] == "finished" and resumed["weights"] == whole["weights"]
    assert resumed["metrics"] == whole["metrics"]


@contextmanager
def mounted(folder, options):
    """A small file system of its own, where the tests may mount one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount a tmpfs")


SIZES = ["60k", *(pytest.param(size, marks=pytest.mark.slow) for size in ("4k", "160k", "350k"))]


@needs_root
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("size", SIZES)
def test_with_a_full_disk_and_then_more_space_the_run_finishes(command, size, call, tiny_model, pairs_file, tmp_path):
    """From a disk that takes no file at all to one that holds the model but no checkpoint beside it."""
    options = [tiny_model, "--data", pairs_file, "--max-new-tokens", "40"]
    options += [] if command == "evaluate" else ["--steps", "2", "--batch-size", "4", "--save-every", "1"]
    with mounted(tmp_path / "disk", f"size={size}") as disk:
        answer = call(command, *options, "--output-dir", disk / "run")
        if answer[0] != 0:
            one_sentence(answer, "The disk is full", "with --resume", code=1)
            assert not list(disk.rglob("*.tmp")), "half-written files are taken away"
        else:
            assert command == "evaluate", "a model does not fit"
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        assert call(command, *options, "--output-dir", disk / "run", "--resume")[0] == 0
        record = load_run(disk / "run").record
        assert record["status"] == "finished" and "error" not in record and record["metrics"]
        assert call(command, *options, "--output-dir", tmp_path / "whole")[0] == 0
        assert record["metrics"] == load_run(tmp_path / "whole").record["metrics"]


@needs_root
def test_a_read_only_disk(call, tiny_model, pairs_file, tmp_path):
    with mounted(tmp_path / "disk", "size=1m,ro") as disk:
        answer = call("evaluate", tiny_model, "--data", pairs_file, "--output-dir", disk / "run")
    one_sentence(answer, disk / "run", "choose another --output-dir", code=1)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_directory_without_permission(call, tiny_model, pairs_file, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    answer = call("evaluate", tiny_model, "--data", pairs_file, "--output-dir", tmp_path / "locked" / "run")
    one_sentence(answer, "locked", "choose another --output-dir", code=1)
