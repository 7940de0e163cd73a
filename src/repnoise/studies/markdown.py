"""What the documents of studies have in common: the command that made them, and what made their runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from repnoise.runs import PROVENANCE_PACKAGES
from repnoise.statistics import Interval


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


def versions(record: Mapping[str, Any]) -> str:
    """The packages that a run was made with, as a sentence; nothing where it does not say."""
    packages = (record.get("environment") or {}).get("packages") or {}
    told = ", ".join(f"{name} {packages[name]}" for name in PROVENANCE_PACKAGES if packages.get(name))
    return f"Versions: {told}." if told else ""


def as_json(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else dict(vars(interval))
