"""Models in, models out: what can be loaded, what cannot and why, and that what is saved is what was trained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    logging,
)

from conftest import byte_level_tokenizer, saved
from repnoise.errors import RepnoiseError
from repnoise.modeling import (
    ensure_pad_token,
    load,
    merged,
    randomly_initialised,
    reloaded,
    save,
    save_whole,
    weights_fingerprint,
    with_lora,
    without_progress_bars,
)
from repnoise.runs import open_run

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def copy(tiny_model, tmp_path):
    """A copy of the tiny model's folder, to be spoilt."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def configured(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder):
    with pytest.raises(RepnoiseError) as caught:
        load(str(folder))
    sentence = str(caught.value)
    assert caught.value.exit_code == 2 and "\n" not in sentence and sentence.endswith(".")
    return sentence


# What can be loaded.


def test_a_model_comes_in_fp32_with_its_tokenizer_and_context(tiny_model):
    loaded = load(str(tiny_model))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert loaded.tokenizer.pad_token == "<pad>" and loaded.model.config.pad_token_id == 0
    assert loaded.context == 256 and len(loaded.fingerprint) == 16


def test_weights_stored_in_bf16_become_fp32(copy):
    weights = {name: weight.bfloat16() for name, weight in load_file(copy / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    configured(copy, dtype="bfloat16")
    loaded = load(str(copy))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


def test_weights_in_several_files_are_the_same_model(tiny_model, tmp_path):
    whole = load(str(tiny_model))
    whole.model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    whole.tokenizer.save_pretrained(tmp_path / "sharded")
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 2
    loaded = load(str(tmp_path / "sharded"))
    assert torch.equal(loaded.model(input_ids=IDS).logits, whole.model(input_ids=IDS).logits)
    shards[0].unlink()
    assert "Cannot load a model" in refusal(tmp_path / "sharded")


def test_a_head_tied_to_the_embeddings_is_not_missing(tmp_path):
    folder = saved(tmp_path / "tied", byte_level_tokenizer(), tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = load(str(folder)).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_token(copy):
    tokenizer = byte_level_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(copy)
    configured(copy, pad_token_id=None)
    loaded = load(str(copy))
    assert loaded.tokenizer.pad_token == "</s>"
    assert loaded.model.config.pad_token_id == loaded.model.generation_config.pad_token_id == 2


def test_a_tokenizer_with_nothing_to_pad_with_is_one_sentence():
    tokenizer = byte_level_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = tokenizer.unk_token = None
    with pytest.raises(RepnoiseError, match=r"no pad, end or unknown token: set tokenizer\.pad_token and save it"):
        ensure_pad_token(tokenizer)


def test_a_run_stands_for_its_model(tiny_model, tmp_path):
    run = open_run(tmp_path / "run", "defence", "test", {})
    assert "has no model: finish it with --resume" in refusal(run.path)
    shutil.copytree(tiny_model, run.model)
    assert load(str(run.path)).fingerprint == load(str(tiny_model)).fingerprint


def test_loading_and_saving_say_nothing(tiny_model, tmp_path, capfd):
    loaded = load(str(tiny_model))
    save(loaded.model, loaded.tokenizer, tmp_path / "model")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("shown", [True, False])
def test_progress_bars_of_transformers_are_left_as_they_were(shown):
    before = logging.is_progress_bar_enabled()
    try:
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
        with pytest.raises(KeyError), without_progress_bars():
            assert not logging.is_progress_bar_enabled()
            raise KeyError
        assert logging.is_progress_bar_enabled() == shown
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


# What cannot.


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/nowhere", "no/where/at/all"])
def test_a_missing_folder_is_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(name) == f"There is no model in {name!r}: give a folder with config.json and *.safetensors."


def test_a_hub_id_without_a_connection_is_one_sentence():
    sentence = refusal("fictional-owner/fictional-model")
    assert "no such folder, and the hub cannot be reached: check the path or the connection" in sentence


def test_pickled_weights_are_not_read(copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    assert refusal(copy).endswith("*.bin files, which can run code when read: convert them to safetensors.")


def test_a_folder_without_weights_is_one_sentence(copy):
    (copy / "model.safetensors").unlink()
    assert refusal(copy).endswith("it has no weights: give a folder with *.safetensors.")


def test_code_that_comes_with_the_weights_is_not_run_unless_asked_to(copy, capfd):
    code = {"AutoConfig": "their_code.Config", "AutoModelForCausalLM": "their_code.Model"}
    configured(copy, model_type="theirs", auto_map=code)
    (copy / "their_code.py").write_text("print('their code ran')\n")
    assert "if you trust it, add --trust-remote-code" in refusal(copy)
    assert "their code ran" not in capfd.readouterr().out


def test_encoders_and_encoder_decoders_are_told_from_decoders(copy):
    size = {"vocab_size": 384, "num_layers": 1, "num_heads": 1, "d_model": 16, "d_kv": 16, "d_ff": 16}
    bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    for model in (BertForMaskedLM(BertConfig(vocab_size=384, **bert)), T5ForConditionalGeneration(T5Config(**size))):
        with without_progress_bars():
            model.save_pretrained(copy)
        assert refusal(copy).endswith("is not a causal language model; repnoise defends decoders.")


def test_a_weight_that_is_missing_is_never_made_up(copy):
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    sentence = refusal(copy)
    assert "weights do not fit its config.json (model.layers.1.mlp.down_proj.weight missing" in sentence


def test_a_config_of_another_size_is_one_sentence(copy, capfd):
    configured(copy, intermediate_size=64)
    assert "weights do not fit its config.json" in refusal(copy)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [0, 5, 5_000])
def test_a_damaged_weight_file_is_one_sentence(size, copy):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert "a safetensors file is damaged" in refusal(copy)


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("config.json", "{", "not a valid JSON file"),
        ("config.json", "{}", "model"),
        ("config.json", '{"model_type": "unheard-of"}', "unheard-of"),
        ("tokenizer.json", "{", "its tokenizer cannot be read"),
        ("tokenizer.json", "{}", "its tokenizer cannot be read"),
        ("tokenizer_config.json", "[", "its tokenizer cannot be read"),
    ],
)
def test_a_damaged_config_or_tokenizer_is_one_sentence(name, content, reason, copy):
    (copy / name).write_text(content)
    assert reason in refusal(copy)


def test_a_missing_tokenizer_is_one_sentence(copy):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert "its tokenizer cannot be read: give a folder with a whole tokenizer.json" in refusal(copy)


def test_quantized_weights_are_refused(copy):
    configured(copy, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert "it is quantized, and repnoise trains full-precision weights: give the original model" in refusal(copy)


# What is saved.


def test_what_was_saved_loads_without_repnoise_and_computes_the_same(tiny_model, tmp_path):
    loaded = load(str(tiny_model))
    with torch.no_grad():
        loaded.model.lm_head.weight.add_(0.5)
    save_whole(loaded.model, loaded.tokenizer, tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(again(input_ids=IDS).logits, loaded.model(input_ids=IDS).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer("Boil it.")["input_ids"] == loaded.tokenizer("Boil it.")["input_ids"]
    assert not list((tmp_path / "model").glob("*.bin"))


def test_saving_over_a_model_leaves_nothing_of_it_nor_of_a_killed_save(tiny_model, tmp_path):
    loaded, folder = load(str(tiny_model)), tmp_path / "model"
    for place in (folder, tmp_path / "model.partial"):
        place.mkdir()
        (place / "model-00007-of-00007.safetensors").write_text("old")
    save_whole(loaded.model, loaded.tokenizer, folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert "model-00007-of-00007.safetensors" not in {path.name for path in folder.iterdir()}
    again = reloaded(loaded, folder)
    assert again.fingerprint == loaded.fingerprint and again.model is not loaded.model
    assert torch.equal(again.model(input_ids=IDS).logits, loaded.model(input_ids=IDS).logits)


def test_a_fingerprint_changes_with_any_weight(copy):
    before = weights_fingerprint(str(copy))
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-6
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert weights_fingerprint(str(copy)) != before


def test_a_random_model_has_the_same_shape_and_knows_nothing_of_the_first(tiny_model):
    loaded = load(str(tiny_model))
    other, same, another = (randomly_initialised(loaded, seed) for seed in (7, 7, 8))
    ours, theirs = loaded.model.state_dict(), other.model.state_dict()
    assert {name: weight.shape for name, weight in ours.items()} == {n: w.shape for n, w in theirs.items()}
    assert not torch.equal(ours["lm_head.weight"], theirs["lm_head.weight"])
    assert torch.equal(theirs["lm_head.weight"], same.model.lm_head.weight)
    assert not torch.equal(theirs["lm_head.weight"], another.model.lm_head.weight)


def test_adapters_sit_on_every_linear_map_of_the_layers_and_merge_away(tiny_model):
    loaded = load(str(tiny_model))
    wrapped = with_lora(loaded.model, rank=2, alpha=4)
    trained = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 7 * 2 and not any("lm_head" in name or "embed" in name for name in trained)
    plain = merged(wrapped)
    assert not any("lora" in name for name, _ in plain.named_parameters())
    assert merged(plain) is plain
