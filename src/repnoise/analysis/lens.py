"""How likely completions are when read out after each layer, through the lens of the model's own last steps or through
one that was trained (paper, Figures 3, 7 and 9)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from repnoise.analysis.states import reading, streamed
from repnoise.data.tokenization import Row, right_padded
from repnoise.hidden_states import captured, fill, find_decoder
from repnoise.losses import IGNORE, next_token, rows_at_once
from repnoise.modeling import LoadedModel
from repnoise.statistics import Interval, bootstrap_interval

Target = Literal["model", "tokens"]


@dataclass(frozen=True)
class Reader:
    """An affine map of the states of each layer, before final norm and unembedding read them: h + W h + b.

    Layers without a map are read as they are, and so are all of the empty reader: the raw ("logit") lens.
    """

    maps: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, layer: int, states: Tensor) -> Tensor:
        if layer not in self.maps:
            return states
        weight, bias = self.maps[layer]
        return states + states @ weight.T + bias


@dataclass(frozen=True)
class LensReading:
    """The completions of one group, read through one lens.

    Attributes:
        layers: after which layers they were read.
        log_probability: for each layer the mean over examples of the mean log-probability of a token, in nats, with its
            interval over examples.
        last: that of each example after the last of the layers, for a histogram.
    """

    lens: str
    group: str
    layers: tuple[int, ...]
    log_probability: tuple[Interval, ...]
    last: tuple[float, ...]


def lens(
    loaded: LoadedModel,
    groups: Mapping[str, Sequence[Row]],
    name: str = "raw",
    reader: Reader | None = None,
    layers: Sequence[int] | None = None,
) -> list[LensReading]:
    """Read each group of rows after each layer. After the last layer, the raw lens is the model itself.

    The paper's curves have one more point, the embeddings, which have seen no other token.
    """
    chosen = find_decoder(loaded.model).choose(layers)
    found = []
    for group, rows in groups.items():
        totals, counts = read_log_probabilities(loaded, rows, chosen, reader)
        means = (totals / counts[:, None]).T.tolist()
        intervals = tuple(bootstrap_interval(values) for values in means)
        found.append(LensReading(name, group, tuple(chosen), intervals, tuple(means[-1])))
    return found


def read_log_probabilities(
    loaded: LoadedModel, rows: Sequence[Row], layers: Sequence[int], reader: Reader | None = None
) -> tuple[Tensor, Tensor]:
    """For each row and layer the log-probability of the labelled tokens in nats, summed, (n, L) in fp64, and how many
    tokens that are, (n,)."""
    decoder, reader = find_decoder(loaded.model), reader or Reader()
    totals = torch.zeros(len(rows), len(layers), dtype=torch.float64)
    counts = torch.zeros(len(rows), dtype=torch.long)
    for seen in streamed(loaded, rows, layers):
        targets = next_token(seen.inputs["labels"])
        read = targets != IGNORE
        counts[seen.places] = read.sum(1).cpu()
        for column, (layer, states) in enumerate(seen.states.items()):
            with torch.no_grad():
                values = _log_probabilities(decoder.read_out, reader(layer, states[read].float()), targets[read])
            by_token = torch.zeros(read.shape, dtype=torch.float64).masked_scatter_(read.cpu(), values.cpu())
            totals[seen.places, column] = by_token.sum(1)
    return totals, counts


def trained_reader(
    loaded: LoadedModel,
    rows: Sequence[Row],
    target: Target,
    layers: Sequence[int] | None = None,
    steps: int = 200,
    batch_size: int = 16,
    learning_rate: float = 5e-3,
    seed: int = 0,
) -> Reader:
    """Train a map for each layer on the labelled tokens of rows; the model itself stays as it is.

    "model" is the tuned lens (Belrose et al. 2023, arXiv:2303.08112, equations 7 and 8): it minimises the divergence of
    what it reads from the model's own last distribution, so it shows what the model itself will make of a state.
    "tokens" minimises the cross-entropy of the tokens themselves, so it shows what somebody who has such texts can
    read from a state, whatever the model makes of it. Both begin as the raw lens. Belrose et al. train with momentum
    on millions of tokens; here it is Adam with a linear decay, for a few seconds.
    """
    decoder = find_decoder(loaded.model)
    every = range(len(decoder.layers))
    chosen = [i for i in decoder.choose(layers) if target == "tokens" or i != every[-1]]
    width, device = loaded.model.config.get_text_config().hidden_size, loaded.model.device
    maps = {i: (torch.zeros(width, width, device=device), torch.zeros(width, device=device)) for i in chosen}
    parameters = [tensor.requires_grad_() for pair in maps.values() for tensor in pair]
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / max(steps, 1))
    reader, generator = Reader(maps), random.Random(seed)
    for _ in range(steps if maps else 0):
        drawn = generator.sample(rows, min(batch_size, len(rows)))
        states, targets = _to_read(loaded, drawn, [*chosen, every[-1]] if target == "model" else chosen)
        with torch.no_grad():
            own = decoder.read_out(states[every[-1]]).float().log_softmax(-1) if target == "model" else None
        optimiser.zero_grad()
        for layer in chosen:  # A backward pass each, so that the logits of one layer exist at a time.
            logits = decoder.read_out(reader(layer, states[layer]), detached=True).float()
            loss = F.cross_entropy(logits, targets) if own is None else _divergence(logits, own)
            loss.backward()
        optimiser.step()
        decay.step()
    return Reader({layer: (weight.detach(), bias.detach()) for layer, (weight, bias) in maps.items()})


def _divergence(logits: Tensor, own: Tensor) -> Tensor:
    return F.kl_div(logits.log_softmax(-1), own, reduction="batchmean", log_target=True)


def _to_read(loaded: LoadedModel, rows: Sequence[Row], layers: Sequence[int]) -> tuple[dict[int, Tensor], Tensor]:
    """The states (N, D) that have to predict the labelled tokens, by layer, and those tokens (N,)."""
    inputs = right_padded(rows, loaded.tokenizer.pad_token_id)
    inputs = {name: tensor.to(loaded.model.device) for name, tensor in inputs.items()}
    modules = find_decoder(loaded.model).modules_at("residual", layers)
    with reading(loaded) as model, torch.no_grad(), captured(modules, rows=len(rows)) as states:
        fill(model, inputs["input_ids"], inputs["attention_mask"])
    targets = next_token(inputs["labels"])
    read = targets != IGNORE
    return {layer: state[read].float() for layer, state in zip(layers, states, strict=True)}, targets[read]


def _log_probabilities(read_out: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor) -> Tensor:
    """Log-probability (N,) of each target under the read-out of its state (N, D), a chunk of logits at a time."""
    vocabulary = read_out(states[:1]).shape[-1] if len(states) else 1
    size = rows_at_once(vocabulary)
    chunks = zip(states.split(size), targets.split(size), strict=True)
    found = [-F.cross_entropy(read_out(part).float(), ids, reduction="none").double() for part, ids in chunks]
    return torch.cat(found) if found else states.new_zeros(0).double()
