"""What the documents of studies have in common: tables, and the command that made them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def typed_options(study: Any, hidden: Sequence[str]) -> str:
    """What differs from the defaults of a study's dataclass, as it is typed, less what says nothing of the results."""
    default = type(study)()
    told = ""
    for name, value in vars(study).items():
        if name in hidden or value == getattr(default, name):
            continue
        flag = f" --{name.replace('_', '-')}"
        values = "" if value is True else f" {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
        told += flag + values
    return told
