"""What a judge is: completions in, scores out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Completion:
    """What a model wrote to a prompt, and the known answer where there is one."""

    prompt: str
    text: str
    reference: str = ""


@dataclass(frozen=True)
class Score:
    """A verdict: `value` in [0, 1] (1 is what the judge looks for, NaN is "unscored"), and what kind of text it is.

    Labels that every judge shares: "refused"; "unscored" for no verdict; and "incoherent" for empty or broken text,
    which is neither safe nor harmful and always counted apart.
    """

    value: float
    label: str
    explanation: str = ""


class Judge(ABC):
    """Scores completions. Its docstring says what it looks for and how it is known to fail.

    Attributes:
        name: what its scores are called in files and tables: "refusal", or "classifier:FOLDER".
        version: changes whenever its scores may: of a model it holds the fingerprint of the weights, of a prompt or an
            endpoint that of the text and the model's name. Scores of another version are never used again.
        seeks: what a value of 1 means: "recovery" of a known answer, "answering" instead of refusing, "harm", or
            "coherence".
    """

    name: str
    version: str
    seeks: Literal["recovery", "answering", "harm", "coherence"]

    @abstractmethod
    def verdicts(self, completions: Sequence[Completion]) -> Iterator[tuple[int, Score]]:
        """Index and score of each completion, once each, as soon as it is known and in any order.

        What has been yielded is kept by the caller, and never asked again. Raises RepnoiseError where going on makes no
        sense (a wrong key, a budget that is spent); a text that cannot be judged is "unscored".
        """

    def score(self, completions: Sequence[Completion]) -> list[Score]:
        """One score a completion, in their order."""
        found = dict(self.verdicts(completions))
        return [found[index] for index in range(len(completions))]
