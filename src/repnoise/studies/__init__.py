"""Studies by name: each a graph of runs that ends in a document. A new one is a file here and a line below."""

from __future__ import annotations

from importlib import import_module
from typing import Any

STUDIES: dict[str, tuple[str, str]] = {
    "defences": (
        "Every defence, tuned with the same number of tries, under the same attacks: which of them is worth it?",
        "repnoise.studies.defences:DefencesStudy",
    ),
}
"""Name to a sentence and the dataclass of its options, whose `reproduce()` makes it."""


def study_options(name: str) -> Any:
    """The dataclass of a study's options."""
    module, _, options = STUDIES[name][1].partition(":")
    return getattr(import_module(module), options)
