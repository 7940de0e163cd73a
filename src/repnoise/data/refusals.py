"""Refusals for data that has none of its own: what a harmful completion is paired with when no model is at hand."""

from __future__ import annotations

from collections.abc import Sequence

from repnoise.data.sources import hash_position

QUESTIONS = (
    "I'm sorry, but I can't help with that.",
    "I cannot answer this, because the answer could hurt somebody.",
    "I'm not able to help with this request, but I am glad to help with something else.",
    "I won't explain that, since it could do real damage in the wrong hands.",
    "I must decline to answer, for your safety and that of others.",
    "I would rather not go into this. Is there another question that I can answer?",
    "I can't assist with this. If you are in trouble, please turn to somebody whom you trust.",
    "I am sorry, this is a question that I will not answer.",
)
"""Answers to a harmful question or instruction."""

CONTINUATIONS = (
    "... I would rather not finish this sentence, because what follows could be offensive.",
    "... I am sorry, but I will not continue this text in a hurtful way.",
    "... I cannot complete this, since it is likely to insult or demean somebody.",
    "... I prefer to stop here and keep the conversation respectful.",
)
"""What takes the place of a toxic end of a sentence."""


def refusal_for(prompt: str, templates: Sequence[str]) -> str:
    """One of the templates, fixed by the prompt, so that the same data always has the same pairs."""
    return templates[int(hash_position(prompt) * 1000) % len(templates)]
