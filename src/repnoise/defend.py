"""`repnoise defend`: a model, paired data and a defence -> a run with the defended model."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import nn

from repnoise.data.collators import PairCollator
from repnoise.data.mixtures import epochs
from repnoise.data.records import Example, Pair
from repnoise.data.sources import PairedData
from repnoise.data.tokenization import Codec
from repnoise.defences import DEFENCES, AdversarialLoss, Defence, GradientAscent, RepNoise, SafetyTraining
from repnoise.distributed.processes import alone, first, on_first, recorded, share_of, together
from repnoise.errors import RepnoiseError
from repnoise.evaluate import EvaluateConfig, Evaluating, measure, open_panel, parent_of
from repnoise.hidden_states import check_lens, find_decoder
from repnoise.inputs import FLAT, Inputs
from repnoise.modeling import LoadedModel, merged, randomly_initialised, reloaded, save_whole, weights_fingerprint
from repnoise.optimisation import Training
from repnoise.report.model_card import write_card
from repnoise.runs import Run, fingerprint, open_run, read_rows, recording, write_rows
from repnoise.training import train


@dataclass(frozen=True)
class DefendConfig:
    """Immunise a model.

    Attributes:
        inputs: model and data.
        defence: the method with its hyper-parameters.
        training: optimiser settings.
        covered: let the defender see the covered half of the held-out pairs, so that both halves can be compared.
        withhold: categories of harm kept from the defender.
        samples: how many of the pairs are used, drawn by the training's seed; None for all (paper Table 20).
        frozen_layers: indices of decoder layers whose weights stay as they are, negative ones counted from the end.
        frozen_head: the weights of the unembedding stay as they are.
        evaluating: how the defended model is measured afterwards.
    """

    inputs: Annotated[Inputs, FLAT] = field(default_factory=Inputs)
    defence: Annotated[Defence, FLAT] = field(default_factory=RepNoise)
    training: Annotated[Training, FLAT] = field(default_factory=Training)
    covered: bool = True
    withhold: tuple[str, ...] = ()
    samples: Annotated[int | None, tyro.conf.arg(name="pairs")] = None  # RepNoise has --samples.
    frozen_layers: tuple[int, ...] = ()
    frozen_head: bool = False
    evaluating: Annotated[Evaluating, FLAT] = field(default_factory=Evaluating)

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise RepnoiseError(f"samples must be at least 1 (or None for all), not {self.samples}.")

    def pairs(self, data: PairedData) -> list[Pair]:
        """What the defender trains on."""
        found = data.defender_pairs(self.covered, self.withhold)
        if self.samples is not None and self.samples < len(found):
            found = random.Random(self.training.seed).sample(found, self.samples)
        return found


def presets() -> dict[str, DefendConfig]:
    """The defences of `repnoise list defences` on the sandbox, as configs to start from."""
    return {name: DefendConfig(defence=defence, training=training) for name, (_, defence, training) in DEFENCES.items()}


SHARED = (RepNoise, SafetyTraining, GradientAscent, AdversarialLoss)
"""Defences whose batches, or whose model, several processes may divide: the sums that they are made of are known."""


def defend(config: DefendConfig, output_dir: Path, name: str = "", resume: bool = False, progress: bool = False) -> Run:
    """Train the defence and write the run: model, log, metrics. A finished run of the same config is left as it is.

    Raises RepnoiseError for bad input, an unreadable architecture, a directory of another run, or a term that is not
    finite; whatever was finished stays on disk. In several processes of a launcher, the first writes it.
    """
    with together():
        return _defend(config, output_dir, name, resume, progress)


def _defend(config: DefendConfig, output_dir: Path, name: str, resume: bool, progress: bool) -> Run:
    config.training.require_packages()
    require_shared(config)
    require_room(config)
    loaded, data, codec = config.inputs.open()
    # All that bad input can break comes before the run exists.
    freeze(loaded.model, config)
    pairs = config.pairs(data)
    examples = training_examples(codec, pairs, data.retain, config.training)
    panel = alone(lambda: open_panel(config.evaluating, data))
    collator = PairCollator(loaded.tokenizer.pad_token_id)
    check = collator(examples[:1])["harmful"]
    check_lens(loaded.model, *(check[key].to(loaded.model.device) for key in ("input_ids", "attention_mask")))
    run = on_first(
        lambda: open_run(
            output_dir,
            "defence",
            name or type(config.defence).__name__,
            config,
            resume,
            parent=parent_of(config.inputs, loaded),
            data=_facts(pairs, data),
        )
    )
    if run.finished:
        return run

    def training() -> tuple[nn.Module, list[dict[str, Any]]]:
        torch.manual_seed(config.training.seed)  # What it draws to begin with belongs to the run.
        loss = config.defence.begin(loaded.model)

        def objective(model: nn.Module, batch: Any) -> Any:
            return loss(model, **batch)

        title = run.record["name"] if progress else None
        return train(
            loaded.model, examples, collator, objective, config.training, run.checkpoints, resume, progress=title
        )

    with recorded(run, config.training):
        defended, _ = trained_once(run, loaded, training)
        if panel is not None:
            metrics = measure(defended, codec, data, config.evaluating, panel, run.path / "evaluations", progress)
            run.update(metrics=metrics, weights=defended.fingerprint)
            write_card(run)
    return run


def require_shared(config: DefendConfig) -> None:
    """Raise RepnoiseError if several processes cannot share the work on a defence as they would have to."""
    share, defence = share_of(config.training), config.defence
    if not (share.pooled or share.sharded):
        return
    if not isinstance(defence, SHARED) or (isinstance(defence, RepNoise) and defence.samples == "sequences"):
        way = "have its model sharded" if share.sharded else f"have its batches divided among {share.processes}"
        raise RepnoiseError(
            f"{type(defence).__name__} with these settings cannot {way}: let --accumulation be a multiple of the "
            f"number of processes{', and train without FSDP' if share.sharded else ''}."
        )


def require_room(config: DefendConfig) -> None:
    """Raise RepnoiseError for a defence that would hold a copy of the model in full precision beside 4 bits."""
    if config.training.four_bit and config.defence.keeps_start:
        raise RepnoiseError(
            f"{type(config.defence).__name__} with these settings keeps a copy of the model in full precision: "
            "leave --four-bit out."
        )


def freeze(model: nn.Module, config: DefendConfig) -> None:
    """Close the weights of the layers, and of the unembedding, that the config says are frozen.

    Weights are found where they are and not by name: the paper's code looked for digits in names, and what it called
    freezing layers 0 to 10 froze all of them. Raises RepnoiseError if they cannot be frozen alone.
    """
    if not (config.frozen_layers or config.frozen_head):
        return
    if config.training.lora_rank is not None:
        raise RepnoiseError("Adapters leave all weights as they are: drop --frozen-layers and --frozen-head, or LoRA.")
    decoder = find_decoder(model)
    layers = decoder.choose(config.frozen_layers) if config.frozen_layers else []
    frozen = [decoder.layers[i] for i in layers]
    if config.frozen_head:
        shared = {id(weight) for weight in model.get_input_embeddings().parameters()}  # type: ignore[operator]
        if any(id(weight) in shared for weight in decoder.unembedding.parameters()):
            raise RepnoiseError(
                f"The head of {decoder.architecture} is tied to its embeddings and cannot be frozen alone: leave "
                "--frozen-head out."
            )
        frozen.append(decoder.unembedding)
    for module in frozen:
        module.requires_grad_(False)


def _facts(pairs: Sequence[Pair], data: PairedData) -> dict[str, Any]:
    parts = {"pairs": pairs, "retain": data.retain}
    facts = {name: {"rows": len(rows), "fingerprint": fingerprint(rows)} for name, rows in parts.items()}
    return {**facts, "skipped": data.skipped}


def initialise(
    output_dir: Path, name: str, seed: int = 0, inputs: Inputs | None = None, evaluating: Evaluating | None = None
) -> Run:
    """The two controls as runs, measured like a defence: "undefended" is the model as it is; "random-initialisation"
    has its shape and knows nothing, so no attack can recover anything from it: the limit of any defence."""
    inputs, evaluating = inputs or Inputs(), evaluating or Evaluating()
    loaded, data, codec = inputs.open()
    config = EvaluateConfig(inputs, evaluating)
    parent, panel = parent_of(inputs, loaded), open_panel(evaluating, data)
    run = open_run(output_dir, "initialisation", name, config, parent=parent, seed=seed)
    if run.finished:
        return run
    with recording(run):
        if name == "random-initialisation":
            loaded = randomly_initialised(loaded, seed)
        kept = keep_model(run, loaded.model, loaded, [])
        metrics = measure(kept, codec, data, evaluating, panel, run.path / "evaluations")
        run.update(metrics=metrics, weights=kept.fingerprint)
    return run


def training_examples(
    codec: Codec, pairs: Sequence[Pair], retain: Sequence[Example], training: Training
) -> list[dict[str, Any]]:
    """Tokenized pairs, each with a general harmless example where there are any, in the order of training."""
    rows = [
        {"harmless": codec.row(pair.prompt, pair.harmless), "harmful": codec.row(pair.prompt, pair.harmful)}
        for pair in pairs
    ]
    if len(rows) < training.batch_size:
        raise RepnoiseError(
            f"There are {len(rows)} pairs for the defence and a batch is {training.batch_size}: lower --batch-size or "
            "give more data."
        )
    count = training.examples_seen(len(rows))
    ordered = epochs(rows, count, training.seed)
    if not retain:
        return ordered
    general = [codec.row(example.prompt, example.completion) for example in retain]
    return [
        row | {"retain": extra} for row, extra in zip(ordered, epochs(general, count, training.seed + 1), strict=True)
    ]


def trained_once(
    run: Run, start: LoadedModel, training: Callable[[], tuple[nn.Module, list[dict[str, Any]]]]
) -> tuple[LoadedModel, list[dict[str, Any]]]:
    """The run's model and log: those on disk if the training had ended before an interruption, else made now."""
    if on_first(run.model.exists):
        return reloaded(start, run.model), read_rows(run.path / "log.jsonl")
    model, log = training()
    return (keep_model(run, model, start, log) if first() else start), log


def keep_model(run: Run, model: nn.Module, start: LoadedModel, log: list[dict[str, Any]]) -> LoadedModel:
    """Write the log and the trained model; the checkpoints have served their purpose then.

    The model comes after the log, and whole or not at all: where it is, training has ended.
    """
    trained = merged(model)
    write_rows(run.path / "log.jsonl", log)
    save_whole(trained, start.tokenizer, run.model)
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    return LoadedModel(trained, start.tokenizer, weights_fingerprint(str(run.model)), start.context)
