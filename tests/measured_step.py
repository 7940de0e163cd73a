"""Run by tests in a process of its own: a few steps of a training on random tokens, and the peak of its memory.

Arguments: a JSON object with `model` (fields of a LlamaConfig), `training` (fields of a Training), `length`, and `what`
("defend" or "attack"). Prints the bytes that the process had at its peak beyond what it had before the model.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from repnoise.data.tokenization import right_padded
from repnoise.defences import RepNoise
from repnoise.defences.base import completion_ce
from repnoise.losses import IGNORE
from repnoise.modeling import with_activation_checkpointing, with_lora
from repnoise.optimisation import Training

STEPS = 2  # The optimiser has its moments from the first step on, so the second is the largest.


def resident(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def batch(rows, length, vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (rows, length), generator=generator).tolist()
    prompt = length // 4
    return right_padded([{"input_ids": row, "labels": [IGNORE] * prompt + row[prompt:]} for row in ids], 1)


def loss_of(what, model, size, length, vocabulary):
    if what == "attack":
        return completion_ce(model, batch(size, length, vocabulary, 0))
    return RepNoise().loss(model, *(batch(size, length, vocabulary, seed) for seed in range(3)))[0]


def main(asked):
    torch.set_num_threads(1)
    torch.randn(64, 64).matmul(torch.randn(64, 64))
    before = resident("VmRSS")
    training = Training(**asked["training"])
    model = LlamaForCausalLM(LlamaConfig(**asked["model"])).train()
    if training.lora_rank:
        model = with_lora(model, training.lora_rank, training.lora_alpha)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    with with_activation_checkpointing(model, training.gradient_checkpointing):
        for _ in range(STEPS):
            with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bf16"):
                loss = loss_of(asked["what"], model, training.batch_size, asked["length"], asked["model"]["vocab_size"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
