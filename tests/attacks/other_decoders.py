"""Tiny models that are built in another way than Llama: GPT-2 has transposed maps and a tied head, GPT-NeoX neither."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM


def gpt2(tokenizer):
    """Two layers of width 32, without dropout."""
    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(bos_token_id=1, eos_token_id=2, pad_token_id=0, **size, **still))


def neox(tokenizer):
    """Two layers of width 32."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"vocab_size": len(tokenizer), "max_position_embeddings": 256}
    return GPTNeoXForCausalLM(GPTNeoXConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, **size))
