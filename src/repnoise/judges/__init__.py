"""Judges by name. A new one is a file here and a line below."""

from __future__ import annotations

import importlib

from repnoise.errors import RepnoiseError
from repnoise.judges.base import Completion, Judge, Score

JUDGES: dict[str, tuple[str, str]] = {
    "exact": ("Sandbox: is the completion the forbidden answer, word for word?", "exact:Exact"),
    "content": ("Sandbox: what share of the answer's ingredients, verbs and times is right?", "exact:Content"),
    "refusal": ("Any model: does the completion begin with a refusal phrase?", "refusal:RefusalPhrases"),
    "coherence": ("Any model: is the completion a text, neither empty nor broken?", "coherence:Coherence"),
    "classifier": (
        "classifier:MODEL asks a text classifier: a folder, a run of `repnoise judge train`, a hub id, or one of "
        "beavertails-deberta, toxic-bert and beaver-dam.",
        "classifier:Classifier",
    ),
    "linear": (
        "linear:FOLDER is the small classifier of `repnoise judge train linear`, which needs no downloads.",
        "linear:Linear",
    ),
    "rubric": (
        "rubric:RUBRIC@MODEL asks a local language model: RUBRIC is yes-no, safe-unsafe, five-point, strongreject, "
        "xstest or a file, MODEL a folder or a hub id.",
        "rubric:LocalRubric",
    ),
    "endpoint": (
        "endpoint:RUBRIC@MODEL asks a model behind an OpenAI-compatible endpoint (OPENAI_BASE_URL, OPENAI_API_KEY).",
        "endpoint:Endpoint",
    ),
    "perspective": (
        "Any model: how toxic does the Perspective API (PERSPECTIVE_API_KEY) call the completion?",
        "perspective:Perspective",
    ),
}
"""Name to what it asks, and what makes it: a class or function of a module here. One whose sentence begins with
"NAME:" takes what stands behind the colon; the others take nothing."""


def load_judge(source: str) -> Judge:
    """The judge of NAME, or of NAME:WHAT for one that needs a model, a rubric or an address.

    Raises RepnoiseError for a name that there is none of, a missing or needless WHAT, or a judge that cannot be loaded.
    """
    name, _, what = source.partition(":")
    if name not in JUDGES:
        raise RepnoiseError(f"There is no judge {name!r}: choose from {', '.join(JUDGES)}.")
    sentence, maker = JUDGES[name]
    takes = sentence.partition(" ")[0].startswith(f"{name}:")
    if takes and not what:
        raise RepnoiseError(f"The judge {name} needs more: {sentence}")
    if what and not takes:
        raise RepnoiseError(f"The judge {name} takes nothing behind a colon: write {name}.")
    module, function = maker.split(":")
    make = getattr(importlib.import_module(f"repnoise.judges.{module}"), function)
    return make(what) if takes else make()


__all__ = ["JUDGES", "Completion", "Judge", "Score", "load_judge"]
