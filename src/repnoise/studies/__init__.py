"""Studies by name: each a graph of runs that ends in a document. A new one is a file here and a line below."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from repnoise.studies.paper import BUILDERS

PAPER_STUDY = "repnoise.studies.paper.command:PaperStudy"

STUDIES: dict[str, tuple[str, str]] = {
    "defences": (
        "Every defence, tuned with the same number of tries, under the same attacks: which of them is worth it?",
        "repnoise.studies.defences:DefencesStudy",
    ),
    "all": ("All tables and figures of the paper.", PAPER_STUDY),
    **{name: (sentence, PAPER_STUDY) for name, (sentence, _) in BUILDERS.items()},
}
"""Name to a sentence and the dataclass of its options, whose `reproduce()` makes it."""


def study_options(name: str) -> Any:
    """The options of a study, as they are by default. Those of the paper share a dataclass that knows its name."""
    module, _, options = STUDIES[name][1].partition(":")
    made = getattr(import_module(module), options)
    return made(name=name) if STUDIES[name][1] == PAPER_STUDY else made()
