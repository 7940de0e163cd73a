"""Two tiny decoders of different architectures, and batches for them."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from repnoise.data.tokenization import right_padded
from repnoise.losses import IGNORE

LAYERS = 2
ENDS = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}


def tiny_llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=48, **sizes, **ENDS)).eval()


def tiny_gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=48, n_embd=16, n_layer=LAYERS, n_head=2, n_positions=32, **ENDS)
    ).eval()


DECODERS = {"llama": tiny_llama, "gpt2": tiny_gpt2}


def example_batch(seed, rows=4):
    """Rows of a prompt of three tokens and a completion of three to five."""
    generator = torch.Generator().manual_seed(seed)
    completions = [torch.randint(4, 48, (3 + i % 3,), generator=generator).tolist() for i in range(rows)]
    prompt = [10, 11, 12]
    return right_padded([{"input_ids": prompt + tail, "labels": [IGNORE] * 3 + tail} for tail in completions], pad_id=1)


def weights_of(model):
    return [parameter.detach().clone() for parameter in model.parameters()]
