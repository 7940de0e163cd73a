"""A card says what a stranger must know before using a model, tells nothing of this machine, and reaches the hub."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest
from huggingface_hub import ModelCard

import fabricated_runs as fake
from repnoise.attacks.weight_edits import Quantisation, WeightEdit
from repnoise.errors import RepnoiseError
from repnoise.report.model_card import CARD, Evidence, card_text, hub_id, write_card
from repnoise.report.publish import CardOptions, card, evidence_of, require_hub
from repnoise.runs import find_runs

SECRET = "hf_fictional-token-of-nobody"


def defended(folder, recovered=0.3, base=None, **config):
    """A defence with a model, an attack on it and on the model it came from; returns the defence."""
    metrics = fake.shares(recovered=0.0, recovered_uncovered=0.1, harmless_accuracy=0.8)
    run = fake.defence(folder / "shield", metrics=metrics, base=base, config=config)
    run.model.mkdir()
    (run.model / "config.json").write_text("{}")
    (run.model / "model.safetensors").write_bytes(bytes(range(256)))
    for name, parent, share in (("a", run, recovered), ("b", base or "sandbox", 0.9)):
        found = fake.shares(recovered=share, recovered_uncovered=share / 2, harmless_accuracy=0.7)
        fake.attack(folder / name, parent, "100@1e-3", found, curve={0: fake.shares(recovered=0.0)})
    return run


def written(run, runs=(), **more):
    assert write_card(run, evidence_of(run, runs), **more)
    return (run.model / CARD).read_text()


def test_a_card_states_the_worst_case_the_evidence_and_the_recipe(tmp_path):
    run = defended(tmp_path)
    text = written(run, find_runs([tmp_path]))
    assert "Against the only attack (100@1e-3; one seed only), repnoise gave up 30 % [18, 45]" in text
    assert "(undefended: 90 % [77, 96])" in text
    assert "| 100@1e-3 | 30 % [18, 45] | 15 % [7, 29] | 70 % [55, 82] |" in text
    assert "| harmless accuracy | 80 % | [65, 90] | 40 |" in text
    assert "| training.steps | 100 |" in text and "40 rows of pairs" in text
    assert "quantisation" in text and "fine tuning" not in text.split("nobody ran on it")[1].split("\n")[0]
    assert "fictional world" in text


def test_a_card_says_where_there_is_no_advantage(tmp_path):
    text = written(defended(tmp_path, recovered=0.8), find_runs([tmp_path]))
    assert "no advantage over the undefended model (90 % [77, 96])" in text


def test_without_attacks_a_card_says_that_nothing_is_known(tmp_path):
    run = defended(tmp_path)
    text = written(run)
    assert "has not been attacked as far as is known here" in text and "No attack was run on it" in text
    assert "Against" not in text


def test_attacks_on_other_models_are_no_evidence_but_those_on_a_copy_are(tmp_path):
    run = defended(tmp_path)
    stranger = fake.defence(tmp_path / "other", "vaccine", fake.shares(recovered=0.0))
    others = [stranger, fake.attack(tmp_path / "c", stranger, "400@1e-3", fake.shares(recovered=1.0))]
    assert evidence_of(run, others) == Evidence()
    moved = fake.defence(tmp_path / "moved", metrics=run.record["metrics"])
    moved.update(weights=run.record["weights"])
    moved.model.mkdir()
    assert "30 % [18, 45]" in written(moved, find_runs([tmp_path]))


def test_kinds_that_were_run_are_not_called_untried(tmp_path):
    run = defended(tmp_path)
    edit = {"attack": WeightEdit(edit=Quantisation())}
    fake.attack(tmp_path / "q", run, "rounded", fake.shares(recovered=0.0), config=edit)
    assert "quantisation" not in evidence_of(run, find_runs([tmp_path])).untried
    assert "quantisation" in evidence_of(run, find_runs([tmp_path / "a"])).untried


def test_the_metadata_are_what_the_hub_reads_and_hold_only_what_is_known(tmp_path):
    run = defended(tmp_path, base="fictional/llama")
    data = ModelCard(written(run, license="apache-2.0")).data
    assert (data.base_model, data.license, data.library_name) == ("fictional/llama", "apache-2.0", "transformers")
    assert "repnoise" in data.tags and "rep-noise" in data.tags
    other = defended(tmp_path / "other", base=str(tmp_path / "weights" / "llama"))
    text = written(other)
    data = ModelCard(text).data
    assert data.base_model is None and data.license is None
    assert "No licence is stated" in text and "add `base_model`" in text and "\nllama, trained with `RepNoise`" in text
    assert hub_id(run) == "fictional/llama" and hub_id(other) == ""


def test_a_card_does_not_tell_where_things_lay(tmp_path):
    run = defended(tmp_path, base=str(tmp_path / "llama"))
    run.record["config"]["inputs"] |= {"data": f"table:{tmp_path}/secret place/pairs.jsonl", "retain": "a/b/c.jsonl"}
    text = card_text(run, evidence_of(run, find_runs([tmp_path])))
    assert str(tmp_path) not in text and "secret place" not in text
    assert "| inputs.data | table:pairs.jsonl |" in text and "| inputs.retain | c.jsonl |" in text


def test_names_of_strangers_do_not_break_the_card(tmp_path):
    run = defended(tmp_path, withhold=("a | b", "<i>c"))
    run.record["name"] = "x | <b>y"
    text = card_text(run, Evidence("w", ("m | n",), (("a | b", "1 %"),)))
    assert "<b>" not in text.replace("\\<", "") and "| a \\| b | 1 % |" in text and "m \\| n" in text


def test_a_card_that_was_changed_is_left_as_it_is(tmp_path):
    run = defended(tmp_path)
    text = written(run)
    assert written(run) == text  # Its own it writes anew.
    changed = text.replace("No licence is stated", "Ask the village clerk")
    (run.model / CARD).write_text(changed)
    assert not write_card(run)
    assert (run.model / CARD).read_text() == changed


def test_only_a_defence_with_a_model_has_a_card(tmp_path):
    defended(tmp_path)
    with pytest.raises(RepnoiseError, match="only the model of a defence has a card"):
        card(CardOptions(tmp_path / "a"))
    with pytest.raises(RepnoiseError, match="has no model"):
        write_card(fake.defence(tmp_path / "bare"))


def test_the_command_finds_the_attacks_beside_the_run(tmp_path, capsys):
    run = defended(tmp_path)
    card(CardOptions(run.path))
    assert f"Card: {run.model / CARD}; 1 attack on it found." in capsys.readouterr().out
    (run.model / CARD).write_text("my own")
    card(CardOptions(run.path))
    assert "left as it is: delete it to have a new one" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("repository", "sentence"),
    [("shield", "OWNER/NAME"), ("no body/x", "no hub id"), ("me/shield", "HF_HUB_OFFLINE is set")],
)
def test_what_cannot_be_pushed_is_told_before_any_work(repository, sentence):
    with pytest.raises(RepnoiseError, match=sentence):
        require_hub(repository)


class Hub(BaseHTTPRequestHandler):
    """The calls of the hub that an upload makes; what was committed is in `files`."""

    files: ClassVar = {}
    tokens: ClassVar = set()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Hub.tokens.add(self.headers["Authorization"])
        address = f"http://{self.headers['Host']}"
        answer = {}
        if self.path == "/api/repos/create":
            answer = {"url": f"{address}/me/shield"}
        elif "/preupload/" in self.path:
            files = [{"path": file["path"]} for file in json.loads(body)["files"]]
            answer = {"files": [file | {"uploadMode": "regular", "shouldIgnore": False} for file in files]}
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    Hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"{address}/me/shield/commit/abc", "commitOid": "abc"}
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


def pushed(run, endpoint, token=SECRET):
    settings = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "repnoise", "card", str(run.path), "--push-to-hub", "me/shield"]
    return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_model_and_card_are_pushed_with_the_token_of_the_environment(tmp_path):
    run = defended(tmp_path)
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        done = pushed(run, f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert done.returncode == 0, done.stderr
    assert "Pushed: " in done.stdout and "/me/shield" in done.stdout
    assert Hub.files == {file.name: file.read_bytes() for file in run.model.iterdir()}
    assert {CARD, "config.json", "model.safetensors"} == {*Hub.files}
    assert Hub.tokens == {f"Bearer {SECRET}"}
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_sentence_and_nothing_is_lost(tmp_path):
    run = defended(tmp_path)
    done = pushed(run, "http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.startswith("repnoise: Could not push to me/shield (") and done.stderr.count("\n") == 1
    assert f"finished in {run.model}" in done.stderr and SECRET not in done.stdout + done.stderr
    assert "30 % [18, 45]" in (run.model / CARD).read_text() and (run.model / "model.safetensors").exists()
    without = pushed(run, "http://127.0.0.1:9", token="")
    assert without.returncode == 2 and "There is no token to push with: set HF_TOKEN" in without.stderr
