"""Batches for the two kinds of training: pairs for a defence, single examples for an attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from repnoise.data.tokenization import Row, right_padded


@dataclass(frozen=True)
class PairCollator:
    """Rows `{"harmless": Row, "harmful": Row, "retain": Row | absent}` to a batch of each, padded apart."""

    pad_id: int

    def __call__(self, rows: Sequence[dict[str, Row]]) -> dict[str, dict[str, Tensor]]:
        return {name: right_padded([row[name] for row in rows], self.pad_id) for name in rows[0]}


@dataclass(frozen=True)
class ExampleCollator:
    """Rows to one right-padded batch."""

    pad_id: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        return dict(right_padded(rows, self.pad_id))
