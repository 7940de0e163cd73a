"""Prompts to completions: the same text in a batch as alone, whatever the architecture and the model's own habits."""

import dataclasses
import json
import re
from contextlib import contextmanager

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
)

from conftest import byte_level_tokenizer, tiny_llama
from repnoise.data.tokenization import Codec
from repnoise.errors import RepnoiseError
from repnoise.evals import generation as generation_module
from repnoise.evals.generation import Generation, generate
from repnoise.modeling import LoadedModel, with_lora

CONTEXT = 64
PROMPTS = (
    "How is the hex of the grey owl made?",
    "Owl?",
    "Who folds the moon, who burns the well, and who buries the hare under the last candle?",
    "",
    "How is the charm of the thin reed made?",
    "Tell me.",
    "Where is the blue hare?",
)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": CONTEXT}
ARCHITECTURES = {
    "llama": (LlamaConfig, SMALL | {"intermediate_size": 48}),
    "mistral-window": (MistralConfig, SMALL | {"intermediate_size": 48, "num_key_value_heads": 1, "sliding_window": 8}),
    "gemma": (GemmaConfig, SMALL | {"intermediate_size": 48, "head_dim": 16, "num_key_value_heads": 1}),
    "gpt-neox": (GPTNeoXConfig, SMALL | {"intermediate_size": 48}),
    "gpt2-learned-positions": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}),
    "opt-learned-positions": (OPTConfig, SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 24}),
}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


def loaded(model, tokenizer):
    return LoadedModel(model, tokenizer, "model", CONTEXT)


@pytest.fixture(scope="module")
def llama(tokenizer):
    return loaded(tiny_llama(tokenizer, max_position_embeddings=CONTEXT), tokenizer)


@pytest.fixture(params=ARCHITECTURES)
def any_model(request, tokenizer):
    kind, settings = ARCHITECTURES[request.param]
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(kind(vocab_size=len(tokenizer), **ids, **settings))
    with torch.no_grad():  # Random weights say the same thing to everything; louder ones do not.
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not any(part in name for part in ("embed", "wte", "wpe", "lm_head")):
                parameter.mul_(6)
    return loaded(model, tokenizer)


def codec_of(model, max_length=CONTEXT):
    return Codec(model.tokenizer, "plain", max_length)


def texts_of(model, prompts=PROMPTS, **settings):
    return generate(model, codec_of(model), prompts, Generation(**{"max_new_tokens": 12} | settings))


def test_a_batch_gives_the_same_text_as_one_by_one(any_model):
    alone = [texts_of(any_model, [prompt])[0] for prompt in PROMPTS]
    assert len(set(alone)) > 3, "the prompts must matter for this to show anything"
    assert texts_of(any_model, batch_size=7) == alone
    assert texts_of(any_model, batch_size=3) == alone
    assert texts_of(any_model, tuple(reversed(PROMPTS)), batch_size=4) == alone[::-1]


def looped(loaded, prompt, limit):
    """Greedy text of one prompt by a plain loop over the logits."""
    ids, written, end = codec_of(loaded).prompt_ids(prompt), [], loaded.tokenizer.eos_token_id
    while len(written) < limit and end not in written:
        with torch.no_grad():
            written += [int(loaded.model.eval()(torch.tensor([ids + written])).logits[0, -1].argmax())]
    return loaded.tokenizer.decode(written, skip_special_tokens=True)


def test_greedy_text_is_what_a_plain_loop_over_the_logits_gives(any_model):
    assert texts_of(any_model) == [looped(any_model, prompt, 12) for prompt in PROMPTS]


def test_long_prompts_get_what_the_context_leaves_and_do_not_change_the_others(any_model):
    codec, filler = codec_of(any_model), "abcdefghijklmnopqrstuvwxyz" * 4
    long = next(filler[:n] for n in range(len(filler)) if len(codec.prompt_ids(filler[:n])) == CONTEXT - 3)
    assert texts_of(any_model, [*PROMPTS, long]) == [*texts_of(any_model), looped(any_model, long, 3)]


def test_a_prompt_that_fills_the_context_is_told(llama):
    with pytest.raises(RepnoiseError, match=r"fills the model's context of 64.*--skip-long"):
        texts_of(llama, ["owl moon " * 40])


def test_sampling_with_a_seed_repeats_and_another_seed_differs(llama):
    def sampled(seed):
        return texts_of(llama, temperature=1.0, seed=seed)

    torch.manual_seed(5)
    first = sampled(0)
    torch.manual_seed(6)  # What happened before does not matter.
    assert sampled(0) == first != sampled(1)
    assert first != texts_of(llama)


def test_generating_leaves_the_random_state_and_the_model_as_they_were(llama):
    llama.model.train()
    llama.model.generation_config.repetition_penalty = 1.3
    state, config = torch.get_rng_state(), llama.model.generation_config
    texts_of(llama, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert llama.model.training and llama.model.generation_config is config and config.repetition_penalty == 1.3
    config.repetition_penalty = None
    llama.model.eval()


HABITS = {
    "do_sample": True,
    "temperature": 3.0,
    "top_k": 5,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": 11,
    "num_beams": 3,
    "max_length": 20,
}


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_models_own_generation_settings_change_nothing(habit, temperature, tokenizer):
    plain = loaded(tiny_llama(tokenizer, max_position_embeddings=CONTEXT), tokenizer)
    wanted = texts_of(plain, temperature=temperature)
    setattr(plain.model.generation_config, habit, HABITS[habit])
    assert texts_of(plain, temperature=temperature) == wanted


def test_text_ends_at_any_of_the_models_own_ends(llama, tokenizer):
    config = llama.model.generation_config
    config.eos_token_id = [tokenizer.eos_token_id, *range(5, len(tokenizer))]
    try:
        assert texts_of(llama) == texts_of(llama, max_new_tokens=1)
    finally:
        config.eos_token_id = tokenizer.eos_token_id


def test_a_model_with_adapters_on_writes_with_them(tokenizer):
    model = tiny_llama(tokenizer, max_position_embeddings=CONTEXT)
    before = texts_of(loaded(model, tokenizer))
    model.generation_config.repetition_penalty = 5.0
    wrapped = with_lora(model, rank=2, alpha=16)
    assert texts_of(loaded(wrapped, tokenizer)) == before  # Adapters begin at zero.
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    changed = texts_of(loaded(wrapped, tokenizer))
    assert changed != before
    assert texts_of(loaded(wrapped.merge_and_unload(), tokenizer)) == changed


class Killed(BaseException):
    """What no code catches, as if the process were gone."""


def killed_after(monkeypatch, llama, batches, keep, **settings):
    """Generate into `keep` until some batches are finished; returns how many batches there were before the end."""
    real, calls = llama.model.generate, []

    def generate_or_die(**arguments):
        if len(calls) == batches:
            raise Killed
        calls.append(arguments)
        return real(**arguments)

    with monkeypatch.context() as patched:
        patched.setattr(llama.model, "generate", generate_or_die)
        try:
            return kept_texts(llama, keep, **settings), len(calls)
        except Killed:
            return None, len(calls)


def kept_texts(llama, keep, prompts=PROMPTS, **settings):
    settings = Generation(**{"max_new_tokens": 12, "batch_size": 2} | settings)
    return generate(llama, codec_of(llama), prompts, settings, keep)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_interrupted_generation_goes_on_and_gives_the_same_text(llama, tmp_path, monkeypatch, temperature):
    whole = kept_texts(llama, None, temperature=temperature)
    for stop in range(4):
        keep = tmp_path / f"{stop}.jsonl"
        assert killed_after(monkeypatch, llama, stop, keep, temperature=temperature) == (None, stop)
        assert killed_after(monkeypatch, llama, 9, keep, temperature=temperature) == (whole, 4 - stop)
    assert killed_after(monkeypatch, llama, 0, keep, temperature=temperature) == (whole, 0)


def test_a_line_that_was_left_unfinished_is_generated_again(llama, tmp_path, monkeypatch):
    whole, keep = kept_texts(llama, None), tmp_path / "kept.jsonl"
    kept_texts(llama, keep)
    lines = keep.read_bytes()
    for length in (len(lines) - 2, len(lines) - 40, 30, 1, 0):
        keep.write_bytes(lines[:length])
        found, generated = killed_after(monkeypatch, llama, 9, keep)
        assert found == whole and generated > 0
        assert killed_after(monkeypatch, llama, 0, keep) == (whole, 0), "what followed the torn line must be readable"


@pytest.mark.parametrize("change", ["model", "prompts", "template", "max_new_tokens", "seed", "batch_size"])
def test_what_was_kept_of_other_inputs_is_not_used(llama, tmp_path, change):
    keep = tmp_path / "kept.jsonl"
    kept_texts(llama, keep)
    rows = [json.loads(line) | {"texts": ["stale"] * 2} for line in keep.read_text().split("\n") if line]
    keep.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, prompts, settings = llama, PROMPTS, {"max_new_tokens": 12, "batch_size": 2}
    codec = codec_of(llama)
    if change == "model":
        model = dataclasses.replace(llama, fingerprint="another")
    elif change == "prompts":
        prompts = PROMPTS[::-1]
    elif change == "template":
        codec, prompts = Codec(llama.tokenizer, "none", CONTEXT), [prompt or "Moon?" for prompt in PROMPTS]
    else:
        settings |= {change: 3}
    assert "stale" not in generate(model, codec, prompts, Generation(**settings), keep)


def test_a_model_without_a_fingerprint_is_never_taken_for_another(llama, tmp_path):
    keep = tmp_path / "kept.jsonl"
    assert kept_texts(dataclasses.replace(llama, fingerprint=""), keep) == kept_texts(llama, None)
    assert not keep.exists()


def test_a_bar_is_shown_only_when_it_takes_a_while(llama, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # As in a terminal.
    codec, settings = codec_of(llama), Generation(max_new_tokens=2)
    generate(llama, codec, PROMPTS, settings, progress="asking [the] owl")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(generation_module, "PATIENCE", 0.0)
    generate(llama, codec, PROMPTS, settings, progress="asking [the] owl")
    shown = capsys.readouterr()
    assert "asking [the] owl" in shown.err and "7/7" in shown.err and shown.out == ""
    assert float(re.findall(r"([\d,]+) tokens/s", shown.err)[-1].replace(",", "")) > 0


def test_nothing_to_ask_gives_nothing(llama):
    assert texts_of(llama, []) == []


@pytest.mark.parametrize(
    "setting, value",
    [
        *(("max_new_tokens", 0), ("batch_size", 0), ("temperature", -1.0), ("temperature", float("nan"))),
        *(("top_p", 0.0), ("top_p", 1.5), ("top_p", float("nan"))),
    ],
)
def test_impossible_settings_are_told(setting, value):
    with pytest.raises(RepnoiseError, match=setting):
        dataclasses.replace(Generation(), **{setting: value})


@contextmanager
def room_for(model, rows):
    """The model's memory has room for so many rows: more raise what a GPU raises. Yields the sizes that were tried."""
    tried = []

    def run_out(_module, _positional, arguments):
        if len(arguments["input_ids"]) != (tried[-1:] or [0])[0]:
            tried.append(len(arguments["input_ids"]))
        if len(arguments["input_ids"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    hook = model.model.register_forward_pre_hook(run_out, with_kwargs=True)
    try:
        yield tried
    finally:
        hook.remove()


def test_a_batch_that_runs_out_of_memory_is_halved_and_greedy_text_stays_the_same(any_model):
    whole = texts_of(any_model, batch_size=7)
    for rows in (1, 2, 3, 6):
        with room_for(any_model, rows) as tried:
            assert texts_of(any_model, batch_size=7) == whole
        assert tried[0] == 7 and max(tried[1:]) <= max(rows, 3)


def test_batches_after_one_that_ran_out_of_memory_are_no_larger(llama):
    with room_for(llama, 2) as tried:
        texts_of(llama, batch_size=4)
    assert tried.count(4) == 1, "memory must not run out in every batch"


def test_a_prompt_that_memory_has_no_room_for_is_told_with_what_to_do(llama):
    with room_for(llama, 0), pytest.raises(RepnoiseError, match=r"no room for a batch of one.*--max-new-tokens"):
        texts_of(llama)


def test_sampled_text_of_a_halved_batch_depends_on_where_it_was_cut_alone(llama):
    def sampled(rows, prompts=PROMPTS):
        with room_for(llama, rows):
            return texts_of(llama, prompts, batch_size=4, temperature=1.0)

    assert sampled(2) == sampled(3), "what was tried and failed must not matter"
    assert sampled(2) != sampled(4), "else this shows nothing: the parts of a batch are drawn anew"
    assert len(set(sampled(2, PROMPTS[:1] * 4))) == 4, "parts of one batch must not be drawn from one seed"


def test_a_generation_that_was_interrupted_after_memory_ran_out_gives_the_same_text(llama, tmp_path, monkeypatch):
    settings = {"prompts": (*PROMPTS, "Who?"), "temperature": 1.0, "batch_size": 3}
    with room_for(llama, 2):
        whole = kept_texts(llama, None, **settings)
    for stop in (0, 2, 4, 8):  # The first batch takes a try in vain and three parts; the last would have room for two.
        keep = tmp_path / f"{stop}.jsonl"
        with room_for(llama, 2):
            assert killed_after(monkeypatch, llama, stop, keep, **settings) == (None, stop)
        with room_for(llama, 2) as tried:
            assert killed_after(monkeypatch, llama, 9, keep, **settings)[0] == whole
        assert (3 in tried) == (stop < 4), "what had no room before must not be tried again"
