"""Defences by name, each with the training that goes with it. A new one is a file here and a line below."""

from repnoise.defences.adversarial_loss import AdversarialLoss
from repnoise.defences.base import Defence
from repnoise.defences.booster import Booster
from repnoise.defences.gradient_ascent import GradientAscent
from repnoise.defences.latent_adversarial import LatentAdversarial
from repnoise.defences.npo import NPO
from repnoise.defences.published import PublishedRepNoise
from repnoise.defences.repnoise import RepNoise
from repnoise.defences.representation_rerouting import RepresentationRerouting
from repnoise.defences.rmu import RMU
from repnoise.defences.safety_training import SafetyTraining
from repnoise.defences.self_degraded import SelfDegraded
from repnoise.defences.simnpo import SimNPO
from repnoise.defences.t_vaccine import TVaccine
from repnoise.defences.tar import TAR
from repnoise.defences.vaccine import Vaccine
from repnoise.optimisation import Training

SANDBOX = Training(learning_rate=1e-3, steps=500, batch_size=16)
"""On the sandbox all begin from the same training; `repnoise tune` finds what suits each."""

DEFENCES: dict[str, tuple[str, Defence, Training]] = {
    "repnoise": ("Representation Noising as it works best in minutes on the sandbox.", RepNoise(), SANDBOX),
    "safety-training": ("Additional safety training: refusals, and nothing else.", SafetyTraining(), SANDBOX),
    "gradient-ascent": ("Ascent on harmful completions, bounded by its logarithm.", GradientAscent(), SANDBOX),
    "adversarial-loss": ("Ascent on harmful completions beside descent on refusals.", AdversarialLoss(), SANDBOX),
    "vaccine": ("Refusals under perturbed hidden states (Vaccine).", Vaccine(), SANDBOX),
    "t-vaccine": ("Vaccine in a few layers a step.", TVaccine(), SANDBOX),
    "rmu": ("Harmful states steered to one random vector (RMU).", RMU(), SANDBOX),
    "representation-rerouting": ("Harmful states turned away.", RepresentationRerouting(), SANDBOX),
    "npo": ("Negative preference optimisation of harmful completions.", NPO(), SANDBOX),
    "simnpo": ("The same without a reference model.", SimNPO(), SANDBOX),
    "latent-adversarial": ("Refusals under worst-case hidden states.", LatentAdversarial(), SANDBOX),
    "tar": ("Meta-learning against an inner attack (TAR), both phases at once.", TAR(), SANDBOX),
    "booster": ("What one harmful step would gain is attenuated (Booster).", Booster(retain_weight=4.0), SANDBOX),
    "self-degraded": ("Harmful questions answered beside the point.", SelfDegraded(retain_weight=4.0), SANDBOX),
    "repnoise-no-noise": ("RepNoise without its noise.", RepNoise(noise_weight=0.0), SANDBOX),
    "repnoise-no-ascent": ("RepNoise without its ascent.", RepNoise(ascent_weight=0.0), SANDBOX),
    "repnoise-no-mask": ("RepNoise without its mask.", RepNoise(harmful_tokens="all"), SANDBOX),
    "repnoise-no-lens": ("RepNoise with ascent at the last layer only.", RepNoise(lens=False), SANDBOX),
    "repnoise-top-directions": ("RepNoise in the 16 largest directions only.", RepNoise(top_directions=16), SANDBOX),
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
    "safety-training-paper": (
        "As the RepNoise paper compares with it.",
        SafetyTraining(retain_weight=0.0),
        Training(learning_rate=2e-5, batch_size=8, max_grad_norm=0.0),
    ),
    "gradient-ascent-paper": (
        "Pure ascent at the output, as in the RepNoise paper.",
        GradientAscent(stability_weight=0.0, retain_weight=0.0, log_ascent=False),
        Training(learning_rate=2e-5, batch_size=8, max_grad_norm=0.0),
    ),
    "gradient-ascent-layerwise-paper": (
        "Ascent at every layer beside refusals, the layer-wise version of the RepNoise paper.",
        GradientAscent(retain_weight=0.0, lens=True),
        Training(learning_rate=2e-5, batch_size=8, max_grad_norm=0.0),
    ),
    "adversarial-loss-paper": (
        "As the authors of RepNoise released it.",
        AdversarialLoss(retain_weight=0.0),
        Training(learning_rate=1e-5, epochs=4, batch_size=4, max_grad_norm=0.0),
    ),
    "vaccine-paper-1": (
        "Vaccine with the smaller radius that the RepNoise paper compares with.",
        Vaccine(perturbation_radius=1.0, retain_weight=0.0),
        Training(learning_rate=2e-5, batch_size=8, max_grad_norm=0.0),
    ),
    "vaccine-paper-10": (
        "Vaccine with the larger radius that the RepNoise paper compares with.",
        Vaccine(perturbation_radius=10.0, retain_weight=0.0),
        Training(learning_rate=2e-5, batch_size=8, max_grad_norm=0.0),
    ),
    "rmu-paper": (
        "RMU as for a model of 7 billion parameters and 32 layers.",
        RMU(layer=7, steering=6.5, retain_weight=1200.0, stability_weight=0.0),
        Training(learning_rate=5e-5, batch_size=4),
    ),
    "representation-rerouting-paper": (
        "Circuit breakers as for Llama-3-8B, at the mean of their changing weights.",
        RepresentationRerouting(layers=(9, 19), stability_weight=0.0),
        Training(learning_rate=1e-4, steps=150, batch_size=16, lora_rank=16, lora_alpha=16),
    ),
    "simnpo-paper": (
        "SimNPO as for Llama-2-7B on TOFU's forget05.",
        SimNPO(beta=2.5, forget_weight=0.1375, retain_weight=1.0, stability_weight=0.0),
        Training(learning_rate=1e-5, batch_size=32),
    ),
    "latent-adversarial-paper": (
        "Latent adversarial training as for Llama-2-7B's jailbreaks.",
        LatentAdversarial(
            layers=(8, 16, 24, 30),
            embeddings=True,
            epsilon=6.0,
            inner_steps=16,
            inner_rate=5e-2,
            adversary_away_weight=0.5,
            refusal_weight=0.5,
            away_weight=0.5,
            retain_weight=1.5,
            stability_weight=0.0,
        ),
        Training(learning_rate=2e-5, steps=400, batch_size=16, lora_rank=64, lora_alpha=64),
    ),
    "repnoise-published": (
        "What the published code computes, faults included: to compare with, not to use.",
        PublishedRepNoise(),
        Training(learning_rate=5e-5, steps=150, batch_size=8),
    ),
}

__all__ = ["DEFENCES", "Defence", "PublishedRepNoise", "RepNoise"]
