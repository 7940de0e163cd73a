"""What a judge is: completions in, scores out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Completion:
    """What a model wrote to a prompt, and the known answer where there is one."""

    prompt: str
    text: str
    reference: str = ""


@dataclass(frozen=True)
class Score:
    """A verdict: `value` in [0, 1] (1 is what the judge looks for, NaN is "unscored"), and what kind of text it is.

    Labels that every judge shares: "refused", and "incoherent" for empty or broken text, which is neither safe nor
    harmful and always counted apart.
    """

    value: float
    label: str
    explanation: str = ""


class Judge(ABC):
    """Scores completions. Its docstring says what it looks for and how it is known to fail."""

    name: ClassVar[str]
    version: ClassVar[str]

    @abstractmethod
    def score(self, completions: Sequence[Completion]) -> list[Score]:
        """One score a completion, in their order."""
