"""HarmBench's text behaviours: requests of which some come with a text that they are about."""

from __future__ import annotations

from repnoise.data.records import Example, ExampleSet
from repnoise.data.sets.requests import load_requests
from repnoise.data.tables import TableRow, proper_text

COLUMNS = ("Behavior", "SemanticCategory", "ContextString")


def load_harmbench(path: str) -> ExampleSet:
    """Requests of harmbench_behaviors_text_all.csv, _val or _test, or of another table with these columns.

    All functional categories are kept, those about copyright too; `category` is the semantic one. The context of a
    contextual behaviour stands before the request, with a line of three dashes between them, as the authors ask it.
    Raises RepnoiseError that names file and row.
    """
    return load_requests(path, COLUMNS, _request)


def _request(row: TableRow) -> Example:
    request, context = row.text("Behavior"), row.value("ContextString")
    context = "" if context is None else proper_text(context, f"{row.where}: 'ContextString'")
    prompt = f"{context}\n\n---\n\n{request}" if context.strip() else request
    return Example(prompt, "", row.text("SemanticCategory"))
