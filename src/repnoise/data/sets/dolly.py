"""Dolly: instructions written by people, some with a context to answer from, in eight categories."""

from __future__ import annotations

from repnoise.data.records import ExampleSet
from repnoise.data.sets.alpaca import load_instructions


def load_dolly(path: str) -> ExampleSet:
    """Examples of databricks-dolly-15k.jsonl or any table with instruction, context, response and category, or of the
    hub id databricks/databricks-dolly-15k.

    The prompt is the instruction, and the context after an empty line, where there is one. Rows with a blank
    instruction or response, and repeated ones, are left out and counted.
    """
    return load_instructions(path, "instruction", "context", "response", "category")
