"""Which layers hold the answer back? States of one model are put in the place of another's, and the rest runs on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repnoise.analysis.states import batches, reading
from repnoise.data.tokenization import Row
from repnoise.errors import RepnoiseError
from repnoise.hidden_states import Site, captured, find_decoder
from repnoise.losses import IGNORE, next_token
from repnoise.modeling import LoadedModel
from repnoise.statistics import Interval, bootstrap_interval


@dataclass(frozen=True)
class Patching:
    """The log-probability of completions where one model's activations stand in for another's.

    Attributes:
        site: what was replaced, at every token.
        patched: which layers were patched, together, for each of the values.
        log_probability: for each, the mean over examples of the mean log-probability of a token in nats.
        receiver: that of the patched model by itself.
        donor: that of the model whose activations they are.
        recovered: for each, the share of the way from `receiver` to `donor`; None where the two do not differ.
    """

    site: Site
    patched: tuple[tuple[int, ...], ...]
    log_probability: tuple[Interval, ...]
    receiver: Interval
    donor: Interval
    recovered: tuple[float | None, ...]


def patching(
    receiver: LoadedModel,
    donor: LoadedModel,
    rows: Sequence[Row],
    site: Site = "residual",
    patched: Sequence[Sequence[int]] | None = None,
) -> Patching:
    """Put the donor's activations into the receiver, for each set of layers by itself (each single layer for None).

    Both models read the same completions. With the residual state after layer l, layers up to l are the donor's and
    the others, final norm and unembedding the receiver's; with the MLP's or the attention's output, only what that
    part adds to the residual stream. The other way round, from a defended model into the undefended one, it says
    whether the undefended layers above can make something of what the defended ones below have left. Raises
    RepnoiseError for models of another shape or tokenizer.
    """
    _require_alike(receiver, donor)
    depth = len(find_decoder(receiver.model).layers)
    sets = [(layer,) for layer in range(depth)] if patched is None else [tuple(layers) for layers in patched]
    before, given = torch.zeros(len(rows)), torch.zeros(len(rows))
    found = torch.zeros(len(sets), len(rows))
    for places, inputs in batches(receiver, rows):
        modules = find_decoder(donor.model).modules_at(site, range(depth))
        with captured(modules) as states:
            given[places] = log_probability(donor, inputs)
        before[places] = log_probability(receiver, inputs)
        for i, layers in enumerate(sets):
            own = find_decoder(receiver.model).modules_at(site, layers)
            with replaced(own, [states[layer] for layer in layers]):
                found[i, places] = log_probability(receiver, inputs)
    gap = (given - before).mean().item()
    shares = [(values - before).mean().item() / gap if gap else None for values in found]
    intervals = tuple(bootstrap_interval(values.tolist()) for values in found)
    receiving, giving = (bootstrap_interval(values.tolist()) for values in (before, given))
    return Patching(site, tuple(sets), intervals, receiving, giving, tuple(shares))


@contextmanager
def replaced(modules: Sequence[nn.Module], states: Sequence[Tensor]) -> Iterator[None]:
    """Inside the block the output of each module is the state (B, T, D) given for it, whatever it computes."""

    def stand_in(state: Tensor) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            own = output[0] if isinstance(output, tuple | list) else output
            # Some layers flatten a batch to (B * T, D).
            new = state.to(own).reshape(own.shape)
            return (new, *output[1:]) if isinstance(output, tuple | list) else new

        return hook

    handles = [module.register_forward_hook(stand_in(s)) for module, s in zip(modules, states, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def log_probability(loaded: LoadedModel, inputs: dict[str, Tensor]) -> Tensor:
    """(B,): the mean log-probability of each row's labelled tokens."""
    targets = next_token(inputs["labels"]).to(loaded.model.device)
    seen = {name: inputs[name].to(loaded.model.device) for name in ("input_ids", "attention_mask")}
    with reading(loaded) as model, torch.no_grad():
        logits = model(**seen, use_cache=False).logits.float()
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
    return (-losses.sum(1) / (targets != IGNORE).sum(1)).cpu()


def _require_alike(receiver: LoadedModel, donor: LoadedModel) -> None:
    ours, theirs = (loaded.model.config.get_text_config() for loaded in (receiver, donor))
    alike = all(getattr(ours, of) == getattr(theirs, of) for of in ("num_hidden_layers", "hidden_size", "vocab_size"))
    if not alike or receiver.tokenizer.get_vocab() != donor.tokenizer.get_vocab():
        raise RepnoiseError(
            "The two models differ in shape or tokenizer, so the states of one mean nothing in the other: give the "
            "model that this one was made from with --base."
        )
