"""Classifiers of three architectures, tiny, with random weights and a real tokenizer."""

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from conftest import byte_level_tokenizer
from repnoise.modeling import save

SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
TWO = {"id2label": {0: "safe", 1: "harmful"}, "label2id": {"safe": 0, "harmful": 1}}
THREE = {"id2label": {0: "toxic", 1: "rude", 2: "fond"}, "label2id": {"toxic": 0, "rude": 1, "fond": 2}}
KINDS = {
    "deberta": (DebertaV2Config, DebertaV2ForSequenceClassification, TWO),
    "bert": (BertConfig, BertForSequenceClassification, THREE | {"problem_type": "multi_label_classification"}),
    "llama": (LlamaConfig, LlamaForSequenceClassification, TWO),
}


def made(folder, kind="deberta", with_pad=True, **changes):
    """Write a classifier to the folder, which is returned."""
    configs, models, labels = KINDS[kind]
    tokenizer = byte_level_tokenizer()
    if not with_pad:
        tokenizer.pad_token = None
    torch.manual_seed(1)
    model = models(configs(vocab_size=len(tokenizer), max_position_embeddings=128, **SIZE | labels | changes))
    for parameter in model.parameters():
        parameter.data.mul_(8)  # Random weights of the usual size would call everything 0.5.
    save(model, tokenizer, folder)
    return folder
