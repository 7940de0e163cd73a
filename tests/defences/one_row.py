"""A model whose every prediction is one row of logits: what its losses and gradients are can be written down."""

from types import SimpleNamespace

import torch
from torch import nn

from repnoise.losses import IGNORE


class OneRow(nn.Module):
    """Logits (B, T, V) that are the same row (V,) everywhere, whatever is read."""

    def __init__(self, row):
        super().__init__()
        self.row = nn.Parameter(torch.tensor(row))
        self.start = self.row.detach().clone()

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return SimpleNamespace(logits=self.row.expand(*input_ids.shape, -1))


def batch_of(completions):
    """Completions behind a prompt of one token, all of one length."""
    ids = torch.tensor([[0, *row] for row in completions])
    labels = ids.clone()
    labels[:, 0] = IGNORE
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def shares(completions, vocabulary=4):
    """How often each token is the right one. The gradient of the cross-entropy is softmax(row) less these shares."""
    tokens = torch.tensor(completions).flatten()
    return torch.bincount(tokens, minlength=vocabulary) / len(tokens)
