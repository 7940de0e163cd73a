"""The published code's loss, faults included, so that replication studies can measure what each fault does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repnoise.defences.base import Batch, Defence, Terms, require_weights
from repnoise.hidden_states import captured, find_decoder, require_gradient
from repnoise.losses import mmd2


@dataclass(frozen=True)
class PublishedRepNoise(Defence):
    """Exactly what the authors' published `rep_noise_loss` computes (domenicrosati/representation-noising, 03689ff).

        loss = harmless CE + noise_weight * noise - ascent_weight * log(mean lens CE + 1)

    Checked against golden values. Never the right choice for a defence: it is here to be compared with. Its faults:

    1. The mask is "ids differ at this position", not "completion". Padding of the shorter answer counts as an answer,
       so the end-of-text token is trained and noised; tokens that are equal in both answers by chance are dropped.
    2. Logits are multiplied by the unshifted mask. The token that decides between refusing and complying, and every
       token after a coincidence, is predicted from zeroed logits: loss ln V, no gradient.
    3. A label with token id 0 is ignored, whatever that token is.
    4. `sum / count + 1`: the log's argument is the mean plus one, and the sum has one term more than the count (the
       final logits and every hidden state, the embedding included). The last hidden state is normed twice.
    5. Kernel samples are whole sequences of a batch of a few, biased: the term's floor is far above zero (1.5 at batch
       4) and its gradient is small. Sequence lengths leak through the zeroed positions.
    6. Stability sees only the differing tokens of the refusals, and no other harmless data.

    What is not reproduced is its cost: a hook on every module, added anew each step, and the full pairwise tensor.

    Attributes:
        noise_weight: beta of the code (0.001 for harmful questions, 4 for toxicity).
        ascent_weight: alpha of the code (1 for harmful questions, 2 for toxicity).
    """

    noise_weight: float = 0.001
    ascent_weight: float = 1.0

    def __post_init__(self) -> None:
        require_weights(noise_weight=self.noise_weight, ascent_weight=self.ascent_weight)

    def loss(
        self, model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
    ) -> tuple[Tensor, Terms]:
        """As in the base class; `retain` is not used, and neither are the labels (faults 1 and 6)."""
        harmful_ids, harmless_ids = _same_length(model, harmful["input_ids"], harmless["input_ids"])
        harmful_seen, harmless_seen = _same_length(model, harmful["attention_mask"], harmless["attention_mask"], pad=0)
        mask = (harmful_ids != harmless_ids).float()
        decoder = find_decoder(model)
        mlps = decoder.modules_at("mlp", range(len(decoder.layers)))
        with captured(mlps, rows=len(harmful_ids)) as activations:
            outputs = model(
                input_ids=harmful_ids, attention_mask=harmful_seen, output_hidden_states=True, use_cache=False
            )
        require_gradient(activations, "mlp activations")
        noise = torch.stack([self._noise(activation, mask) for activation in activations]).mean()
        final = _misaligned_ce(outputs.logits, harmful_ids, mask)
        lens = [_misaligned_ce(decoder.read_out(state), harmful_ids, mask) for state in outputs.hidden_states]
        ascent = (final + torch.stack(lens).sum()) / len(lens) + 1
        logits = model(input_ids=harmless_ids, attention_mask=harmless_seen, use_cache=False).logits
        stability = _misaligned_ce(logits, harmless_ids, mask)
        loss = stability + self.noise_weight * noise - self.ascent_weight * torch.log(ascent)
        terms = {"stability": stability, "noise": noise, "ascent": ascent}
        return loss, {name: term.detach() for name, term in terms.items()}

    def _noise(self, activation: Tensor, mask: Tensor) -> Tensor:
        x = (activation * mask[..., None]).flatten(1)
        y = (torch.randn_like(activation) * mask[..., None]).flatten(1)
        return mmd2(x, y)


def _misaligned_ce(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Faults 2 and 3: logits masked at the position that predicts, labels at the position predicted, id 0 ignored."""
    labels = (ids * mask.long())[:, 1:]
    labels = labels.masked_fill(labels == 0, -100)
    return F.cross_entropy((logits * mask[..., None])[:, :-1].flatten(0, 1).float(), labels.flatten())


def _same_length(model: nn.Module, first: Tensor, second: Tensor, pad: int | None = None) -> tuple[Tensor, Tensor]:
    """Right-pad both to the longer, as padding to a maximum length did in the published data code."""
    if pad is None:
        config: Any = model.config
        pad = next(i for i in (config.pad_token_id, config.eos_token_id, 0) if isinstance(i, int))
    length = max(first.shape[1], second.shape[1])
    padded = [F.pad(tensor, (0, length - tensor.shape[1]), value=pad) for tensor in (first, second)]
    return padded[0], padded[1]
