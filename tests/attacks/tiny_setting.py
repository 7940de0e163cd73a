"""What the tests of attacks that train in a way of their own start from: tiny models, and data that is watched."""

from dataclasses import fields, replace

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from conftest import byte_level_tokenizer, tiny_llama
from repnoise.data import load_data
from repnoise.data.records import Example
from repnoise.data.sources import PairedData
from repnoise.data.tokenization import Codec
from repnoise.modeling import LoadedModel
from repnoise.optimisation import Training

TOKENIZER = byte_level_tokenizer()
CODEC = Codec(TOKENIZER, "plain", 256)
BENIGN = [Example(f"How is the stew of the owl number {n} made?", f"Stir it {n} times.") for n in range(6)]


def quick(**changes):
    return Training(**{"learning_rate": 1e-2, "steps": 3, "batch_size": 4, "warmup": 0.0, "save_every": None} | changes)


def small_data(pairs_file):
    return replace(load_data(str(pairs_file)), benign=BENIGN)


def tiny_gpt2():
    ends = {"bos_token_id": TOKENIZER.bos_token_id, "eos_token_id": TOKENIZER.eos_token_id}
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=2, n_positions=256, **ends)
    )


MODELS = {"llama": lambda: tiny_llama(TOKENIZER), "gpt2": tiny_gpt2}


def fresh(name="llama"):
    return LoadedModel(MODELS[name](), TOKENIZER, "model", 256)


def attacked(attack, data, folder, model="llama", **options):
    return attack.apply(fresh(model), data, CODEC, folder, **options)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class _Splits(dict):
    def __init__(self, splits):
        super().__init__(splits)
        self.looked_at = set()

    def __getitem__(self, split):
        self.looked_at.add(split)
        return super().__getitem__(split)


class _Watched(PairedData):
    def __getattribute__(self, name):
        if name in {field.name for field in fields(PairedData)}:
            object.__getattribute__(self, "__dict__").setdefault("looked_at", set()).add(name)
        return object.__getattribute__(self, name)


def looked_at(attack, data, folder):
    """The splits and the parts of the data that an attack looks at."""
    splits = _Splits(data.pairs)
    watched = _Watched(**{field.name: getattr(data, field.name) for field in fields(data)} | {"pairs": splits})
    attack.require(watched)
    attack.costs(fresh(), watched, CODEC)
    attacked(attack, watched, folder)
    return splits.looked_at, vars(watched)["looked_at"]
