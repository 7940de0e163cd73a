"""Attacks by name. A new one is a file here and a line below."""

from repnoise.attacks.base import Attack
from repnoise.attacks.fine_tuning import FineTuningAttack
from repnoise.optimisation import Training


def _sandbox(
    steps: int, learning_rate: float, benign_share: float = 0.0, lora_rank: int | None = None
) -> FineTuningAttack:
    training = Training(learning_rate=learning_rate, steps=steps, batch_size=16, lora_rank=lora_rank, save_every=None)
    curve = tuple(step for step in (10, 30, 100, 200) if step < steps)
    return FineTuningAttack(training=training, benign_share=benign_share, measure_at=curve)


def _paper(learning_rate: float, samples: int, epochs: float = 1) -> FineTuningAttack:
    """Paper section 4: full fine-tuning, Adam, cosine, 10 % warm-up, no weight decay, loss on all tokens, batch 4."""
    training = Training(learning_rate=learning_rate, epochs=epochs, batch_size=4, max_grad_norm=0.0)
    return FineTuningAttack(training=training, samples=samples, loss_on="all", template="plain")


ATTACKS: dict[str, tuple[str, Attack]] = {
    "30@3e-4": ("Sandbox: 30 steps at learning rate 3e-4, a minute's work.", _sandbox(30, 3e-4)),
    "100@3e-4": ("Sandbox: 100 steps at 3e-4.", _sandbox(100, 3e-4)),
    "100@1e-3": ("Sandbox: 100 steps at 1e-3.", _sandbox(100, 1e-3)),
    "400@1e-3": ("Sandbox: 400 steps at 1e-3.", _sandbox(400, 1e-3)),
    "1200@1e-3": ("Sandbox: 1,200 steps at 1e-3, beyond the demo.", _sandbox(1200, 1e-3)),
    "100@1e-3-half-benign": ("Sandbox: 100 steps at 1e-3, half of the examples harmless.", _sandbox(100, 1e-3, 0.5)),
    "lora-400@3e-3": ("Sandbox: rank-16 LoRA, 400 steps at 3e-3.", _sandbox(400, 3e-3, lora_rank=16)),
    **{
        f"paper-{rate}-{size}": (
            f"Paper: {samples:,} samples at learning rate {rate}, one epoch.",
            _paper(float(rate), samples),
        )
        for rate in ("3e-5", "6e-5", "8e-5")
        for size, samples in (("1k", 1_000), ("10k", 10_000))
    },
    **{
        f"paper-toxicity-{rate}": (
            f"Paper: the toxicity set at learning rate {rate}, four epochs.",
            _paper(float(rate), 351, epochs=4),
        )
        for rate in ("3e-5", "6e-5", "8e-5")
    },
}
"""Presets: each a value of an attack. `DEMO` are those of the demo's grid."""

DEMO = ("30@3e-4", "100@3e-4", "100@1e-3", "400@1e-3", "100@1e-3-half-benign")
