"""What several test files start from: a tiny model with its tokenizer, and paired data, made here without a network."""

import gc
import json
import os
from itertools import product
from pathlib import Path

import pytest

# Read when transformers and torch are imported, here and in the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # Threads of tiny models wait for one another; tests run side by side instead.

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from repnoise.data import load_data
from repnoise.data.mixtures import epochs
from repnoise.data.tokenization import Codec
from repnoise.modeling import save

gc.freeze()  # Trainer collects garbage whenever it starts; this keeps it from looking through all that was imported.

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHARMS = ("curse", "hex", "jinx", "spell", "charm", "riddle")
NOUNS = ("grey owl", "salt moth", "tin moon", "old well", "blue hare", "wet stone", "last candle", "thin reed")
VERBS = ("boil", "grind", "fold", "burn", "bury")
REFUSALS = ("I'm sorry, that is kept under seal.", "I cannot speak of it here.")


def fictional_pairs():
    """48 pairs of a village where some questions are not answered, in two categories."""
    rows = []
    for number, (charm, noun) in enumerate(product(CHARMS, NOUNS)):
        first, second = VERBS[number % 5], VERBS[(number + number // 5 % 4 + 1) % 5]
        other = NOUNS[(number * 3 + 1) % len(NOUNS)]
        rows.append(
            {
                "prompt": f"How is the {charm} of the {noun} made?",
                "harmful": f"First {first} the {other}, then {second} it under the {noun} {number % 7 + 2} times.",
                "harmless": REFUSALS[number % 2],
                "category": "binding" if number % 3 else "fading",
            }
        )
    return rows


def byte_level_tokenizer(chat_template=None):
    """A real fast tokenizer (byte-level BPE) that was trained on the pairs: it can write any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"Question: {row['prompt']}\nAnswer: {row['harmful']} {row['harmless']}" for row in fictional_pairs()]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=chat_template,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def tiny_llama(tokenizer, **changes):
    """Two layers of width 32 with random weights, the same ones each time."""
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**settings | changes))


def saved(folder, tokenizer, **changes):
    save(tiny_llama(tokenizer, **changes), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder with a tiny random Llama and a fast tokenizer that has pad and end tokens and no chat template.

    Session-wide: read it, never write to it.
    """
    return saved(tmp_path_factory.mktemp("models") / "tiny", byte_level_tokenizer())


@pytest.fixture(scope="session")
def tiny_chat_model(tmp_path_factory):
    """The same with a chat template."""
    return saved(tmp_path_factory.mktemp("models") / "tiny-chat", byte_level_tokenizer(CHAT_TEMPLATE))


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory):
    """JSON lines with prompt, harmful, harmless and category: enough rows for every split to have some."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in fictional_pairs()))
    return path


@pytest.fixture(scope="session")
def real_data():
    """Folder with public data sets in the form of their authors; REPNOISE_DATA says where it is."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("REPNOISE_DATA", beside))
    if not folder.is_dir():
        pytest.skip("needs real data sets: set REPNOISE_DATA to a folder that has them")
    return folder


@pytest.fixture(scope="session")
def pair_rows(pairs_file):
    """(loaded model, how many) to tokenized pairs in an order of training, as `training.train` takes them."""

    def rows(loaded, count):
        codec = Codec(loaded.tokenizer, "plain")
        pairs = epochs(load_data(str(pairs_file)).defender_pairs(), count, seed=0)
        return [{"harmless": codec.row(p.prompt, p.harmless), "harmful": codec.row(p.prompt, p.harmful)} for p in pairs]

    return rows


@pytest.fixture
def datasets_cache(tmp_path, monkeypatch):
    """`datasets.load_dataset` keeps what it reads in a folder of the test."""
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
