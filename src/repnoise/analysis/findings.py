"""All analyses of one model, and of one model beside its base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from repnoise.analysis.answers import AnswerBits, answer_bits, calibrated
from repnoise.analysis.distances import (
    BaseSimilarity,
    GroupDistance,
    NoiseDistance,
    base_similarity,
    group_distance,
    noise_distance,
)
from repnoise.analysis.lens import LensReading, Reader, lens, trained_reader
from repnoise.analysis.material import HARMLESS, Material
from repnoise.analysis.patching import Patching, patching
from repnoise.analysis.pca import Components, principal_components
from repnoise.analysis.probes import Probe, probe_layers
from repnoise.analysis.relearning import Relearning, relearning
from repnoise.analysis.states import example_means, sampled_tokens
from repnoise.analysis.weights import WeightChanges, weight_changes
from repnoise.data.tokenization import Codec
from repnoise.hidden_states import Site, find_decoder
from repnoise.modeling import LoadedModel

Step = Callable[[str], None]
"""Called before each step with what it does, for the progress bar."""
STEPS, STEPS_BESIDE_BASE = 6, 3
"""How many steps there are for a model, and how many more beside its base."""
LENSES = ("raw", "tuned", "attacker's")


@dataclass(frozen=True)
class Findings:
    """Of one model. What stands after `groups` is None or empty where there is no base to compare with, or it was not
    asked for."""

    lens: list[LensReading]
    answers: list[AnswerBits]
    components: list[Components]
    probes: list[Probe]
    noise: list[NoiseDistance]
    groups: GroupDistance
    weights: WeightChanges | None = None
    similarity: list[BaseSimilarity] = field(default_factory=list)
    into: list[Patching] = field(default_factory=list)
    back: list[Patching] = field(default_factory=list)
    relearning: list[Relearning] = field(default_factory=list)


@dataclass(frozen=True)
class Effort:
    """How much of everything: see `command.AnalyzeConfig`."""

    seeds: int
    tokens: int
    reader_steps: int
    spectrum: bool
    site: Site
    relearning_steps: int

    @property
    def steps(self) -> int:
        """Of the progress bar, for one model."""
        return STEPS + (self.relearning_steps > 0)


@dataclass(frozen=True)
class Base:
    """The base model with its example means by group, so that it reads them once."""

    loaded: LoadedModel
    means: dict[str, Tensor]


def examined(
    loaded: LoadedModel, codec: Codec, found: Material, effort: Effort, step: Step, base: Base | None = None
) -> tuple[Findings, dict[str, Tensor]]:
    """Everything about a model, and its example means by group."""
    layers = find_decoder(loaded.model).choose(None)
    step("lens")
    readers = _readers(loaded, found, effort)
    readings = [one for name in LENSES for one in lens(loaded, found.rows, name, readers[name])]
    step("answers")
    answers = _answers(loaded, codec, found, readers["attacker's"])
    step("representations")
    means = {group: example_means(loaded, rows) for group, rows in found.rows.items()}
    components = [
        principal_components({group: own[:, i] for group, own in means.items()}, layer)
        for i, layer in enumerate(layers)
    ]
    step("probes")
    _, labels, prompts = found.labelled()
    states = torch.cat(list(means.values()))
    probes = [
        probe
        for kind in ("linear", "mlp")
        for probe in probe_layers(states, labels, prompts, layers, kind, effort.seeds)
    ]
    step("distances")
    noise = [
        noise_distance(group, sampled_tokens(loaded, rows, effort.tokens, site=effort.site), layers)
        for group, rows in found.rows.items()
    ]
    harmful = torch.cat([means[group] for group in found.harmful])
    groups = group_distance(("harmful", HARMLESS), harmful, means[HARMLESS], layers)
    again = []
    if effort.relearning_steps and found.attacker:
        step("relearning")
        rows = found.rows[found.harmful[-1]]  # Those that nobody trained on, where there are any.
        again = [relearning(loaded, found.attacker, rows, effort.relearning_steps)]
    beside = _beside(loaded, found, effort, step, base, means, layers) if base else {}
    return Findings(readings, answers, components, probes, noise, groups, relearning=again, **beside), means


def _readers(loaded: LoadedModel, found: Material, effort: Effort) -> dict[str, Reader]:
    tuned = trained_reader(loaded, found.general, "model", steps=effort.reader_steps)
    own = trained_reader(loaded, found.attacker, "tokens", steps=effort.reader_steps) if found.attacker else Reader()
    return {"raw": Reader(), "tuned": tuned, "attacker's": own}


def _answers(loaded: LoadedModel, codec: Codec, found: Material, reader: Reader) -> list[AnswerBits]:
    if len(found.calibration) < 2:
        return []
    temperatures = calibrated(loaded, codec, found.calibration, reader)
    return [answer_bits(loaded, codec, group, own, reader, temperatures) for group, own in found.questions.items()]


def _beside(
    loaded: LoadedModel,
    found: Material,
    effort: Effort,
    step: Step,
    base: Base,
    means: dict[str, Tensor],
    layers: Sequence[int],
) -> dict:
    step("weights")
    weights = weight_changes(loaded.model, base.loaded.model, effort.spectrum)
    step("similarity to the base")
    similarity = [
        base_similarity(group, own, base.means[group], layers) for group, own in means.items() if len(own) > 3
    ]
    step("patching")
    rows = [row for group in found.harmful for row in found.rows[group]]
    sites: tuple[Site, ...] = ("residual", "mlp")
    into = [patching(loaded, base.loaded, rows, site) for site in sites]
    back = [patching(base.loaded, loaded, rows, site) for site in sites]
    return {"weights": weights, "similarity": similarity, "into": into, "back": back}
