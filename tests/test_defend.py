"""`defend` as a whole: from a model and pairs to a run, and what is in the way of it."""

import json
from dataclasses import dataclass, replace

import pytest
import torch

from conftest import byte_level_tokenizer, saved
from repnoise.cli import main
from repnoise.defences import Defence, PublishedRepNoise, RepNoise
from repnoise.defend import DefendConfig, defend, initialise, training_examples
from repnoise.errors import RepnoiseError
from repnoise.evals.generation import Generation
from repnoise.evaluate import Evaluating
from repnoise.inputs import Inputs
from repnoise.modeling import load
from repnoise.optimisation import Training
from repnoise.runs import load_run, read_rows, restored

EVALUATING = Evaluating(generation=Generation(max_new_tokens=4))
TRAINING = Training(learning_rate=1e-3, steps=4, batch_size=4, save_every=None)
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def config(tiny_model, pairs_file):
    return DefendConfig(Inputs(str(tiny_model), data=str(pairs_file)), training=TRAINING, evaluating=EVALUATING)


def examples(config):
    _, data, codec = config.inputs.open()
    pairs = data.defender_pairs(config.covered, config.withhold)
    return training_examples(codec, pairs, data.retain, config.training)


def order(config):
    return [tuple(row["harmful"]["input_ids"]) for row in examples(config)]


# The run.


def test_a_run_holds_the_defended_model_the_log_and_what_was_measured(config, tmp_path, capfd):
    run = defend(config, tmp_path / "run", "ours")
    assert capfd.readouterr() == ("", "")
    record = load_run(run.path).record
    assert (record["kind"], record["name"], record["status"]) == ("defence", "ours", "finished")
    assert {"refusal_rate", "harmful_ce"} <= record["metrics"].keys()
    assert record["data"]["pairs"]["rows"] == 25
    log = read_rows(run.path / "log.jsonl")
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert all({"loss", "stability", "noise", "noise_floor", "ascent"} <= row.keys() for row in log)
    assert sorted(path.name for path in run.path.iterdir()) == ["evaluations", "log.jsonl", "model", "run.json"]
    assert "# ours" in (run.model / "README.md").read_text()  # Its card.

    before, after = load(config.inputs.model), load(str(run.path))
    assert record["parent"]["fingerprint"] == before.fingerprint and record["weights"] == after.fingerprint
    assert not torch.equal(before.model(input_ids=IDS).logits, after.model(input_ids=IDS).logits)


def test_the_same_command_again_changes_nothing(config, tmp_path):
    run = defend(config, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    assert defend(config, tmp_path / "run").record == run.record
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_the_same_settings_give_the_same_weights_and_another_seed_others(config, tmp_path):
    other = replace(config, training=replace(TRAINING, seed=1))
    runs = [defend(setting, tmp_path / name) for name, setting in (("a", config), ("b", config), ("c", other))]
    first, second, third = (run.record["weights"] for run in runs)
    assert first == second != third


@dataclass(frozen=True)
class TowardsRandomLogits(Defence):
    """Draws something to begin with, from torch's default generator."""

    def begin(self, model):
        target = torch.randn(model.config.vocab_size)

        def loss(model, harmless, harmful, retain=None):
            distance = (model(harmful["input_ids"]).logits - target).square().mean()
            return distance, {"distance": distance.detach()}

        return loss

    def loss(self, model, harmless, harmful, retain=None):
        return self.begin(model)(model, harmless, harmful, retain)


def test_what_a_defence_draws_to_begin_with_is_fixed_by_the_seed(config, tmp_path):
    drawing = replace(config, defence=TowardsRandomLogits())
    other = replace(drawing, training=replace(TRAINING, seed=1))
    logs = []
    for name, setting in (("a", drawing), ("b", drawing), ("c", other)):
        torch.rand(3)  # What else has been drawn in the process has no say.
        logs.append(read_rows(defend(setting, tmp_path / name).path / "log.jsonl"))
    assert logs[0] == logs[1] != logs[2]


def test_a_defence_with_adapters_leaves_a_plain_model(config, tmp_path):
    lora = replace(config, training=replace(TRAINING, lora_rank=2, learning_rate=1e-2))
    run = defend(lora, tmp_path / "run")
    assert not list(run.path.rglob("adapter*"))
    model = load(str(run.path)).model
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert not torch.equal(model(input_ids=IDS).logits, load(config.inputs.model).model(input_ids=IDS).logits)


def test_the_chat_template_is_used_where_there_is_one(config, tiny_chat_model):
    config = replace(config, inputs=replace(config.inputs, model=str(tiny_chat_model)))
    row, (_, _, codec) = examples(config)[0]["harmful"], config.inputs.open()
    assert codec.tokenizer.decode(row["input_ids"]).startswith("<|user|>How is the ")


def test_general_harmless_examples_become_a_term(config, tmp_path):
    path = tmp_path / "retain.jsonl"
    rows = [{"prompt": f"What is {number} and {number}?", "completion": f"It is {2 * number}."} for number in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = defend(replace(config, inputs=replace(config.inputs, retain=str(path))), tmp_path / "run")
    assert all("retain" in row for row in read_rows(run.path / "log.jsonl"))
    assert 0 < run.record["data"]["retain"]["rows"] < 20  # Some are kept for measuring stability.


# What it trains on.


def test_every_pair_is_seen_once_an_epoch_in_an_order_that_the_seed_fixes(config):
    def with_seed(seed):
        return order(replace(config, training=Training(epochs=2, batch_size=5, seed=seed)))

    first = with_seed(0)
    assert len(first) == 50 and sorted(first[:25]) == sorted(first[25:]) == sorted(set(first))
    assert first[:25] != first[25:]
    assert first == with_seed(0) != with_seed(1)


def test_covered_pairs_and_withheld_categories_decide_what_the_defender_sees(config, pairs_file):
    def count(**changes):
        return len(set(order(replace(config, training=Training(epochs=1, batch_size=1), **changes))))

    everything, blind, withheld = count(), count(covered=False), count(withhold=("binding",))
    assert blind < everything and withheld < everything
    _, data, _ = config.inputs.open()
    assert blind == len(data.pairs["defence"]) and everything == blind + len(data.pairs["covered"])
    with pytest.raises(RepnoiseError, match="no category 'bindings'; it has: binding, fading"):
        count(withhold=("bindings",))


# What is in the way.


def test_bad_input_leaves_no_directory(config, tmp_path):
    for wrong, reason in (
        (replace(config, training=replace(TRAINING, batch_size=100)), "There are 25 pairs .* lower --batch-size"),
        (replace(config, inputs=replace(config.inputs, model=str(tmp_path))), "There is no model in"),
        (replace(config, inputs=replace(config.inputs, data=str(tmp_path / "no.jsonl"))), "There is no file"),
    ):
        with pytest.raises(RepnoiseError, match=reason):
            defend(wrong, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_mistake_that_shows_in_the_first_step_can_be_corrected_in_the_same_directory(config, tmp_path):
    with pytest.raises(RepnoiseError, match="There is no layer 9: this model has layers 0 to 1"):
        defend(replace(config, defence=RepNoise(layers=(9,))), tmp_path / "run")
    assert defend(replace(config, defence=RepNoise(layers=(1,))), tmp_path / "run").finished


def test_a_directory_of_another_defence_is_left_alone(config, tmp_path):
    run = defend(config, tmp_path / "run")
    before = (run.path / "run.json").read_bytes()
    for resume in (False, True):
        with pytest.raises(RepnoiseError, match="belongs to another run"):
            defend(replace(config, defence=PublishedRepNoise()), run.path, resume=resume)
    assert (run.path / "run.json").read_bytes() == before


def test_data_that_changed_since_is_noticed(config, pairs_file, tmp_path):
    data = tmp_path / "pairs.jsonl"
    data.write_bytes(pairs_file.read_bytes())
    own = replace(config, inputs=replace(config.inputs, data=str(data)))
    run = defend(own, tmp_path / "run")
    data.write_text(data.read_text().replace("sorry", "afraid"))
    with pytest.raises(RepnoiseError, match="a run with the same settings, but other data"):
        defend(own, run.path)


def test_a_term_that_is_not_finite_is_one_sentence_with_exit_code_1(config, tmp_path, capsys):
    arguments = ["defend", config.inputs.model, "--data", config.inputs.data, "--output-dir", str(tmp_path / "run")]
    arguments += ["--steps", "20", "--batch-size", "4", "--save-every", "1", "--learning-rate", "1e9"]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "Training stopped at step" in last and "not finite. Lower --learning-rate" in last
    assert "The last good checkpoint stays in" in last
    assert load_run(tmp_path / "run").record["status"] == "failed"


# The controls.


def test_the_controls_are_the_model_itself_and_a_random_one_of_its_shape(config, tmp_path):
    inputs = config.inputs
    same = initialise(tmp_path / "same", "undefended", inputs=inputs, evaluating=EVALUATING)
    fresh = initialise(tmp_path / "fresh", "random-initialisation", seed=3, inputs=inputs, evaluating=EVALUATING)
    start = load(inputs.model)
    assert load(str(same.path)).fingerprint == start.fingerprint == same.record["weights"]
    assert load(str(fresh.path)).fingerprint != start.fingerprint
    assert same.record["metrics"].keys() == fresh.record["metrics"].keys()
    with pytest.raises(RepnoiseError, match="another seed"):
        initialise(fresh.path, "random-initialisation", seed=4, inputs=inputs, evaluating=EVALUATING)


# Real data.


@pytest.mark.slow
def test_a_real_model_is_defended_with_real_pairs(real_data, tmp_path):
    inputs = Inputs(str(real_data / "models" / "stories260K"), data=f"decoding-trust:{real_data / 'decoding_trust'}")
    config = DefendConfig(inputs, training=replace(TRAINING, steps=10), evaluating=EVALUATING)
    run = defend(config, tmp_path / "run")
    log = read_rows(run.path / "log.jsonl")
    assert log[-1]["stability"] < log[0]["stability"]
    assert run.finished and load(str(run.path)).fingerprint == run.record["weights"]


# Frozen layers.


@pytest.mark.parametrize(
    "frozen, inside",
    [
        ({"frozen_layers": (1,)}, ("model.layers.1.",)),
        ({"frozen_layers": (0, -1), "frozen_head": True}, ("model.layers.0.", "model.layers.10.", "lm_head.")),
    ],
)
def test_exactly_the_weights_of_frozen_layers_and_head_keep_their_bits(frozen, inside, config, tmp_path):
    """Of eleven layers, so that there are names in which the digit of a frozen one is another's, too."""
    deep = replace(config.inputs, model=str(saved(tmp_path / "deep", byte_level_tokenizer(), num_hidden_layers=11)))
    run = defend(replace(config, inputs=deep, **frozen), tmp_path / "run")
    before, after = (dict(load(name).model.named_parameters()) for name in (deep.model, str(run.path)))
    kept = {name for name, weight in before.items() if torch.equal(weight, after[name])}
    assert kept == {name for name in before if name.startswith(inside)}
    assert restored(run.record["config"], [DefendConfig(), config]) == replace(config, inputs=deep, **frozen)


def test_what_cannot_be_frozen_is_refused_before_there_is_a_run(config, tmp_path):
    tied = replace(config.inputs, model=str(saved(tmp_path / "tied", byte_level_tokenizer(), tie_word_embeddings=True)))
    lora = replace(config, training=replace(TRAINING, lora_rank=2))
    for wrong, sentence in (
        (replace(config, inputs=tied, frozen_head=True), "tied to its embeddings and cannot be frozen alone"),
        (replace(lora, frozen_head=True), "Adapters leave all weights as they are: drop --frozen-layers"),
        (replace(lora, frozen_layers=(0,)), "Adapters leave all weights as they are: drop --frozen-layers"),
        (replace(config, frozen_layers=(2,)), "There is no layer 2"),
    ):
        with pytest.raises(RepnoiseError, match=sentence) as refusal:
            defend(wrong, tmp_path / "run")
        assert "\n" not in str(refusal.value) and not (tmp_path / "run").exists()
