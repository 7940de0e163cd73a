"""Models small enough to be worked out by hand: what the next token is depends on the one before it alone."""

from types import SimpleNamespace

import torch
from torch import nn

from repnoise.losses import IGNORE


class Bigram(nn.Module):
    """A causal language model whose logits are `table[token]`, and nothing else."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table))

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return SimpleNamespace(logits=self.table[input_ids])


class Attention(nn.Module):
    """Its output is its scale times a state that is zero: it adds nothing, until something is added to it."""

    def __init__(self, scale):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.zeros(2)), scale

    def forward(self, state):
        return self.weight.expand_as(state), None


class Layer(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.self_attn, self.mlp, self.scale = Attention(scale), nn.Identity(), scale

    def forward(self, state):
        return state + self.scale * self.self_attn(state)[0]


class Stack(nn.Module):
    """A decoder of two tokens, as `find_decoder` expects one, whose logits are the sum over layers of scale times what
    their attention puts out, for every token: all zero, until attention is perturbed or trained."""

    def __init__(self, *scales):
        super().__init__()
        self.layers = nn.ModuleList(Layer(scale) for scale in scales)
        self.head = nn.Identity()
        inner = SimpleNamespace(num_hidden_layers=len(scales))
        self.config = SimpleNamespace(get_text_config=lambda **_: inner)

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        state = torch.zeros(*input_ids.shape, 2)
        for layer in self.layers:
            state = layer(state)
        return SimpleNamespace(logits=state)


def pair(prompt, completion):
    """A batch of one row."""
    ids = torch.tensor([[prompt, completion]])
    labels = torch.tensor([[IGNORE, completion]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
