"""Self-degraded defence: harmful questions get good answers to something else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repnoise.defences.base import Batch, Defence, Terms, completion_ce, require_weights
from repnoise.errors import RepnoiseError
from repnoise.losses import IGNORE


@dataclass(frozen=True)
class SelfDegraded(Defence):
    """Train harmful questions to good answers of unrelated questions (SDD, Chen et al. 2025, arXiv:2507.21182).

        loss = CE(harmful question -> answer of an unrelated harmless question) + retain_weight * CE(retain)

    The idea: harmful fine-tuning has to undo the unrelated answers, and as these are good answers in themselves, it
    undoes general ability with them, so that what is left cannot answer harmful questions either. The model does not
    refuse any more: it answers beside the point.

    Here row i of the pairs gives the question and row i of the general harmless data the answer: the two are drawn
    independently, so they do not belong together. Only the paper's abstract and summaries of it could be read, so there
    is no preset with its hyper-parameters; it checks that answers are unrelated, which is left to chance here.

    Threat model: open weights. To be expected to fail against fine-tuning that mixes in benign data, which keeps
    general ability alive: nothing in the loss is aimed at what the model knows. General knowledge that the general
    harmless data do not show can be lost at once.

    A step costs one forward and backward pass, two with `retain_weight`.

    Attributes:
        retain_weight: weight of the general harmless data with their own questions, which the paper has not.
    """

    retain_weight: float = 0.0

    def __post_init__(self) -> None:
        require_weights(retain_weight=self.retain_weight)

    def loss(
        self, model: nn.Module, harmless: Batch, harmful: Batch, retain: Batch | None = None
    ) -> tuple[Tensor, Terms]:
        if retain is None:
            raise RepnoiseError(
                "This defence answers harmful questions with general harmless answers, and there are none: give some "
                "with --retain FILE."
            )
        terms = {"stability": completion_ce(model, answered_by(harmful, retain))}
        loss = terms["stability"]
        if self.retain_weight > 0:
            terms["retain"] = completion_ce(model, retain)
            loss = loss + self.retain_weight * terms["retain"]
        return loss, {name: term.detach() for name, term in terms.items()}


def answered_by(questions: Batch, answers: Batch) -> dict[str, Tensor]:
    """The prompts of one batch with the completions of another, row by row, padded on the right with id 0.

    Rows are cut where the longer of the two batches ends, so that none is longer than the model was meant to read.
    """
    longest = max(questions["input_ids"].shape[1], answers["input_ids"].shape[1])
    rows = []
    for i in range(len(questions["input_ids"])):
        prompt = (questions["labels"][i] == IGNORE) & questions["attention_mask"][i].bool()
        completion = answers["labels"][i] != IGNORE
        head = questions["input_ids"][i][prompt]
        tail = answers["input_ids"][i][completion][: longest - len(head)]
        labels = torch.cat([torch.full_like(head, IGNORE), tail])
        rows.append((torch.cat([head, tail]), labels))
    ids, labels = (
        nn.utils.rnn.pad_sequence(list(part), batch_first=True, padding_value=pad)
        for part, pad in zip(zip(*rows, strict=True), (0, IGNORE), strict=True)
    )
    lengths = torch.tensor([len(row) for row, _ in rows], device=ids.device)
    mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
