"""Alpaca: instructions, some with an input, and answers to them."""

from __future__ import annotations

from collections import Counter

from repnoise.data.records import Example, ExampleSet
from repnoise.data.tables import read_table
from repnoise.errors import RepnoiseError


def load_alpaca(path: str) -> ExampleSet:
    """Examples of alpaca_data.json or any table with instruction, input and output, or of the hub id tatsu-lab/alpaca.

    The prompt is the instruction, and the input after an empty line, where there is one; Alpaca's own preamble is left
    to the template. Rows with a blank instruction or output, and repeated ones, are left out and counted.
    """
    return load_instructions(path, "instruction", "input", "output")


def load_instructions(path: str, instruction: str, context: str, answer: str, category: str = "") -> ExampleSet:
    """Examples of a table with columns of these names, of which the context may be null or blank in any row.

    Raises RepnoiseError with file and row for a missing column or one that holds no text.
    """
    skipped: Counter[str] = Counter()
    kept: dict[tuple[str, str], Example] = {}
    for row in read_table(path, [name for name in (instruction, context, answer, category) if name]):
        row.value(context)
        parts = [row.maybe_blank(instruction), row.optional(context)]
        completion = row.maybe_blank(answer)
        if not parts[0] or not completion:
            skipped["blank instruction or answer"] += 1
            continue
        prompt = "\n\n".join(part for part in parts if part)
        if (prompt, completion) in kept:
            skipped["repeated rows"] += 1
        else:
            kept[prompt, completion] = Example(prompt, completion, row.optional(category))
    if not kept:
        raise RepnoiseError(f"{path} has no row with an instruction and an answer: give another file.")
    return ExampleSet(path, {"train": list(kept.values())}, dict(skipped))
