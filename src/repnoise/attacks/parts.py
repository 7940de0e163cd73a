"""What of a model an attack trains: all weights, some of them, or adapters beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from repnoise.errors import RepnoiseError

if TYPE_CHECKING:  # Presets must be cheap to import.
    from torch import Tensor, nn

    from repnoise.modeling import LoadedModel
    from repnoise.optimisation import Training

Adapter = Literal["none", "lora", "dora", "ia3", "prefix", "prompt"]
Weights = Literal["all", "embeddings", "head", "norms"]

SOURCES = {"lora": "Hu et al. 2021", "dora": "Liu et al. 2024", "ia3": "Liu et al. 2022"}
SOURCES |= {"prefix": "Li and Liang 2021", "prompt": "Lester et al. 2021"}


@dataclass(frozen=True)
class Parts:
    """What of a model is trained, what of it is forgotten before, and how much of the change is kept.

    Attributes:
        adapter: what is trained instead of the weights. On every linear map of the decoder layers: "lora" (Hu et al.
            2021, arXiv:2106.09685; meant by a lora_rank alone), "dora" (Liu et al. 2024, arXiv:2402.09353), "ia3" (a
            factor for every output; Liu et al. 2022, arXiv:2205.05638, have fewer). Before every text, and never a part
            of the weights: "prefix" (keys and values of every layer; Li and Liang 2021, arXiv:2101.00190), "prompt"
            (embeddings; Lester et al. 2021, arXiv:2104.08691).
        virtual_tokens: length of "prefix" and "prompt".
        weights: which weights are trained without an adapter: "all", the token "embeddings", the "head" (the
            unembedding), the "norms". A tied head gets weights of its own before one of the two is trained.
        only_layers: train all weights, or the norms, of these decoder layers only, negative ones counted from the end;
            empty for all.
        fresh_layers: how many of the last decoder layers start from random weights, which takes away what a defence did
            there.
        tuned_share: after training, weights are this share of the trained ones and for the rest those of the start
            (Wortsman et al. 2021, arXiv:2109.01903); 1 keeps the trained ones.
    """

    adapter: Adapter = "none"
    virtual_tokens: int = 16
    weights: Annotated[Weights, tyro.conf.arg(name="train")] = "all"
    only_layers: tuple[int, ...] = ()
    fresh_layers: int = 0
    tuned_share: float = 1.0

    def __post_init__(self) -> None:
        if self.virtual_tokens < 1:
            raise RepnoiseError(f"virtual_tokens must be at least 1, not {self.virtual_tokens}.")
        if self.fresh_layers < 0:
            raise RepnoiseError(f"fresh_layers must be 0 or more, not {self.fresh_layers}.")
        if not 0 < self.tuned_share <= 1:
            raise RepnoiseError(f"tuned_share is a share above 0 and up to 1, not {self.tuned_share}.")
        if self.only_layers and self.weights in ("embeddings", "head"):
            raise RepnoiseError(f"The {self.weights} are in no layer: leave --only-layers or --train out.")
        if self.tuned_share < 1 and not self.mergeable:
            raise RepnoiseError(f"A {self.adapter} is not in the weights: it cannot be averaged with them.")

    @property
    def mergeable(self) -> bool:
        """Whether what is trained ends in the weights."""
        return self.adapter not in ("prefix", "prompt")

    def require(self, training: Training) -> None:
        """Raise RepnoiseError if the settings of the training do not fit."""
        kind, rank = self.kind(training), training.lora_rank
        if kind in ("lora", "dora") and rank is None:
            raise RepnoiseError(f"The adapter {kind} needs a rank: add --lora-rank 16.")
        if kind not in ("none", "lora", "dora") and rank is not None:
            raise RepnoiseError(f"The adapter {kind} has no rank: leave --lora-rank out, or set it to none.")
        if kind != "none" and (self.weights != "all" or self.only_layers):
            raise RepnoiseError("Adapters leave the weights as they are: leave --train and --only-layers out.")
        if kind == "dora" and training.four_bit:
            raise RepnoiseError("DoRA does not go together with weights in 4 bits: take --adapter lora.")
        if kind == "prefix" and training.gradient_checkpointing:
            raise RepnoiseError("Prefixes and gradient checkpointing do not go together: leave one of the two out.")

    def kind(self, training: Training) -> Adapter:
        """The adapter that is meant: LoRA, if there is a rank and nothing else is said."""
        return "lora" if self.adapter == "none" and training.lora_rank else self.adapter

    def label(self, training: Training) -> list[str]:
        """What is unusual, for the label of an attack."""
        kind = self.kind(training)
        parts = [f"{'q' * training.four_bit}{kind}"] if kind != "none" else []
        parts += [self.weights] if self.weights != "all" else []
        parts += [f"layers-{'-'.join(map(str, self.only_layers))}"] if self.only_layers else []
        parts += [f"{self.fresh_layers}-fresh"] if self.fresh_layers else []
        return [*parts, f"{self.tuned_share:g}-tuned"] if self.tuned_share < 1 else parts

    def source(self, training: Training) -> list[str]:
        """Whose ideas they are, where they are somebody's."""
        kind = self.kind(training)
        parts = [SOURCES[kind]] if kind in SOURCES else []
        parts += ["Dettmers et al. 2023"] if training.four_bit else []
        return [*parts, "Wortsman et al. 2021"] if self.tuned_share < 1 else parts

    def opened(self, loaded: LoadedModel, training: Training) -> tuple[nn.Module, Training]:
        """The model with what is to be trained open for training and the rest frozen, and a training of just that."""
        from repnoise.attacks.adapters import with_adapter

        model = loaded.model
        if self.fresh_layers:
            start_afresh(loaded, self.fresh_layers, training.seed)
        if self.adapter != "none":
            return with_adapter(model, self, training), replace(training, lora_rank=None, four_bit=False)
        if self.weights in ("embeddings", "head"):
            untie(model)
        if self.weights != "all" or self.only_layers:
            model.requires_grad_(False)
            for weight in self.chosen(model):
                weight.requires_grad_(True)
        return model, training

    def chosen(self, model: Any) -> list[nn.Parameter]:
        """The weights that are trained if no adapter is; raises RepnoiseError if there are none."""
        from repnoise.hidden_states import find_decoder

        decoder = find_decoder(model)
        if self.weights == "embeddings":
            return list(model.get_input_embeddings().parameters())
        if self.weights == "head":
            return list(decoder.unembedding.parameters())
        inside = [decoder.layers[i] for i in decoder.choose(self.only_layers)] if self.only_layers else [model]
        modules = [module for part in inside for module in part.modules()]
        if self.weights == "norms":
            modules = [module for module in modules if "norm" in type(module).__name__.lower()]
        found = {id(weight): weight for module in modules for weight in module.parameters(recurse=False)}
        if not found:
            raise RepnoiseError(f"{decoder.architecture} has no {self.weights} with weights to train there.")
        return list(found.values())

    def kept(self, model: Any, start: dict[str, Tensor]) -> Any:
        """The trained model, averaged with the weights of the start where that is wanted."""
        import torch

        from repnoise.modeling import merged

        if self.tuned_share == 1:
            return model
        model = merged(model)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(torch.lerp(start[name].to(weight.device), weight, self.tuned_share))
        return model

    def start(self, model: nn.Module) -> dict[str, Tensor]:
        """A copy of the weights by name, those that are tied under each of their names; empty if none is needed."""
        if self.tuned_share == 1:
            return {}
        named = model.named_parameters(remove_duplicate=False)
        return {name: weight.detach().to("cpu", copy=True) for name, weight in named}


def start_afresh(loaded: LoadedModel, count: int, seed: int) -> None:
    """Put the weights of a randomly initialised model into the last `count` decoder layers."""
    from repnoise.hidden_states import find_decoder
    from repnoise.modeling import randomly_initialised

    layers = find_decoder(loaded.model).layers
    if count > len(layers):
        raise RepnoiseError(f"There are no {count} layers to start afresh: this model has {len(layers)}.")
    random_layers: Sequence[nn.Module] = find_decoder(randomly_initialised(loaded, seed).model).layers
    for layer, fresh in zip(layers[-count:], random_layers[-count:], strict=True):
        layer.load_state_dict(fresh.state_dict())


def untie(model: Any) -> None:
    """Give a head that shares the weights of the embeddings a copy of its own, also in the config that is saved."""
    from torch import nn

    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.get_text_config().tie_word_embeddings = False
    model.config.tie_word_embeddings = False
