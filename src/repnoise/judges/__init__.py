"""Judges by name. A new one is a file here and a line below."""

from repnoise.judges.base import Completion, Judge, Score
from repnoise.judges.exact import Content, Exact
from repnoise.judges.refusal import RefusalPhrases

JUDGES: dict[str, tuple[str, type[Judge]]] = {
    "exact": ("Sandbox: is the completion the forbidden answer, word for word?", Exact),
    "content": ("Sandbox: what share of the answer's ingredients, verbs and times is right?", Content),
    "refusal": ("Any model: does the completion begin with a refusal phrase?", RefusalPhrases),
}

__all__ = ["JUDGES", "Completion", "Judge", "Score"]
