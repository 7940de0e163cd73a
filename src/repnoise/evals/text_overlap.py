"""ROUGE: how much of a reference's wording a completion has. Trainability on a text task is measured by it."""

from __future__ import annotations

from collections.abc import Sequence

from repnoise.errors import RepnoiseError

ROUGE = ("rouge1", "rouge2", "rougeL")
"""Single words, pairs of neighbours, and the longest common subsequence of words."""


def rouge(completions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, list[float]]:
    """F-measures in [0, 1] of each completion, by the names in `ROUGE`; of several references the best one counts.

    Words are runs of a-z and 0-9 in lower case, those of more than three letters without their English endings
    (Porter's stemmer), as in gem_metrics, which the paper used: the two agree where there is one reference. For several
    gem_metrics averages the best over all sets that lack one of them, which is a little less than the best.

    Known failures: text in another script has no words and so scores 0, even against itself; and an empty completion
    scores 0 like any other that has no word in common.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise RepnoiseError("ROUGE needs the package rouge-score: pip install 'repnoise[eval]'.") from None
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    values: dict[str, list[float]] = {name: [] for name in ROUGE}
    for completion, known in zip(completions, references, strict=True):
        found = scorer.score_multi([known] if isinstance(known, str) else list(known), completion)
        for name in ROUGE:
            values[name].append(float(found[name].fmeasure))
    return values
