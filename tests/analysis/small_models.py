"""What the tests of the analyses start from: a tiny model, rows, and a copy that was changed in its layers only."""

import copy

import torch

from conftest import byte_level_tokenizer, fictional_pairs, tiny_llama
from repnoise.data.tokenization import Codec
from repnoise.hidden_states import find_decoder
from repnoise.modeling import LoadedModel

TOKENIZER = byte_level_tokenizer()
CODEC = Codec(TOKENIZER, "plain", 256)
QUESTIONS = [(row["prompt"], row["harmful"]) for row in fictional_pairs()]
REFUSALS = [(row["prompt"], row["harmless"]) for row in fictional_pairs()]


def rows(count=6, questions=QUESTIONS):
    return [CODEC.row(*question) for question in questions[:count]]


def fresh(**changes):
    return LoadedModel(tiny_llama(TOKENIZER, **changes), TOKENIZER, "model", 256)


def changed(loaded, size=0.1):
    """Every weight of every layer moved, and nothing outside of the layers."""
    model = copy.deepcopy(loaded.model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in find_decoder(model).layers:
            for parameter in layer.parameters():
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return LoadedModel(model, loaded.tokenizer, "changed", loaded.context)


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
