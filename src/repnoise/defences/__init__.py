"""Defences by name, each with the training that goes with it. A new one is a file here and a line below."""

from repnoise.defences.base import Defence
from repnoise.defences.published import PublishedRepNoise
from repnoise.defences.repnoise import RepNoise
from repnoise.optimisation import Training

DEFENCES: dict[str, tuple[str, Defence, Training]] = {
    "repnoise": (
        "Representation Noising as it works best in minutes on the sandbox.",
        RepNoise(),
        Training(learning_rate=1e-3, steps=500, batch_size=16),
    ),
    "repnoise-thorough": (
        "The same, longer and with a larger batch: holds back more, and costs more.",
        RepNoise(),
        Training(learning_rate=1e-3, steps=1500, batch_size=32),
    ),
    "repnoise-paper": (
        "The paper's numbers for harmful questions, with the masks and averages done right.",
        RepNoise(noise_weight=0.001, ascent_weight=1.0, retain_weight=0.0, samples="sequences", max_samples=None),
        Training(learning_rate=2e-5, batch_size=8, max_grad_norm=0.0),
    ),
    "repnoise-published": (
        "What the published code computes, faults included: to compare with, not to use.",
        PublishedRepNoise(),
        Training(learning_rate=5e-5, steps=150, batch_size=8),
    ),
}

__all__ = ["DEFENCES", "Defence", "PublishedRepNoise", "RepNoise"]
