"""Representation Noising without the Trainer, to be read: `repnoise defend` does the same and more.

    python examples/minimal_loop.py [MODEL [DATA [STEPS]]]

The paper's method and numbers (eq. 5, Algorithm 1), with masks that cover the completions and nothing else.
"""

import math
import sys
from typing import Any

import torch
from torch.utils.data import DataLoader

from repnoise.data.collators import PairCollator
from repnoise.data.mixtures import epochs
from repnoise.hidden_states import captured, fill, find_decoder
from repnoise.inputs import Inputs
from repnoise.losses import IGNORE, causal_ce, mmd2, next_token, read_out_ce

NOISE_WEIGHT, ASCENT_WEIGHT = 0.001, 1.0  # The paper's beta and alpha.
LEARNING_RATE, BATCH_SIZE, SEED = 2e-5, 8, 0


def rep_noise_loss(model: Any, harmless: dict[str, Any], harmful: dict[str, Any]) -> torch.Tensor:
    """Harmless completions stay likely, harmful ones turn to noise inside and unlikely at every depth."""
    logits = model(input_ids=harmless["input_ids"], attention_mask=harmless["attention_mask"], use_cache=False).logits
    stability = causal_ce(logits, harmless["labels"])

    decoder = find_decoder(model)
    layers = range(len(decoder.layers))
    with captured([*decoder.modules_at("mlp", layers), *decoder.modules_at("residual", layers)]) as states:
        fill(model, harmful["input_ids"], harmful["attention_mask"])
    activations, residuals = states[: len(layers)], states[len(layers) :]

    # A sample is a whole sequence, as in the paper: (B, T * D), zero off the completion.
    completion = (harmful["labels"] != IGNORE)[..., None]
    pairs = [(activation * completion, torch.randn_like(activation) * completion) for activation in activations]
    noise = torch.stack([mmd2(ours.flatten(1), gaussian.flatten(1)) for ours, gaussian in pairs]).mean()

    # The lens: what each layer's state would predict, if it were the last.
    targets = next_token(harmful["labels"])
    predicting = targets != IGNORE
    read = torch.cat([residual[predicting] for residual in residuals])
    ascent = read_out_ce(decoder.read_out, read, targets[predicting].repeat(len(residuals)))

    return stability + NOISE_WEIGHT * noise - ASCENT_WEIGHT * torch.log1p(ascent)


def defend(model: Any, examples: list[Any], pad_id: int) -> list[float]:
    """Adam with 10 % warm-up and a cosine, no weight decay, no clipping. Returns the loss of every step."""
    steps = len(examples) // BATCH_SIZE
    warmup = math.ceil(0.1 * steps)

    def schedule(step: int) -> float:
        falling = (step - warmup) / max(1, steps - warmup)
        return step / warmup if step < warmup else (1 + math.cos(math.pi * falling)) / 2

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    torch.manual_seed(SEED)
    losses = []
    for batch in DataLoader(examples, BATCH_SIZE, collate_fn=PairCollator(pad_id)):  # type: ignore[arg-type]
        loss = rep_noise_loss(model.train(), **batch)
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses += [loss.item()]
    return losses


if __name__ == "__main__":
    name, source, steps = [*sys.argv[1:], *["sandbox", "sandbox", "100"][len(sys.argv) - 1 :]]
    loaded, data, codec = Inputs(model=name, data=source).open()
    pairs = epochs(data.defender_pairs(), int(steps) * BATCH_SIZE, SEED)
    rows = [{"harmless": codec.row(p.prompt, p.harmless), "harmful": codec.row(p.prompt, p.harmful)} for p in pairs]
    for step, loss in enumerate(defend(loaded.model.cpu(), rows, loaded.tokenizer.pad_token_id), 1):
        print(f"{step}: {loss:.4f}")
