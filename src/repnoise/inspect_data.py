"""repnoise data inspect: what a data set holds, before anything is trained on it."""

from __future__ import annotations

import math
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from repnoise.data import DATASETS, EMBEDDED, OPTIONS, Kind, load_data, load_set
from repnoise.data.records import Example, ExampleSet, Pair
from repnoise.data.sources import PairedData
from repnoise.data.tables import read_table
from repnoise.errors import RepnoiseError

if TYPE_CHECKING:
    from rich.table import Table

Rows = dict[str, Sequence[Pair | Example]]
VISIBLE = 4
"""Characters of a masked text that are shown as they are."""
LONGEST = 400
"""Characters of an example that are shown."""
QUANTILES = (0.05, 0.5, 0.95, 1.0)


@dataclass(frozen=True)
class InspectOptions:
    """Print kind, counts, categories, lengths and some examples of a data set.

    Attributes:
        source: NAME:PATH for a format that `repnoise list datasets` names, or a file, folder or hub id.
        model: whose tokenizer counts the tokens: a folder, a run, a hub id, or "sandbox".
        show: show harmful text as it is; without it the letters of harmful text are masked.
        examples: how many examples to print.
    """

    source: Annotated[str, tyro.conf.arg(metavar="NAME|PATH"), tyro.conf.Positional]
    model: str = "sandbox"
    show: bool = False
    examples: int = 3

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise RepnoiseError(f"--examples is the number of examples to print, 0 or more, not {self.examples}.")


def inspect(options: InspectOptions) -> None:
    """Print what the data set holds; raises RepnoiseError where it or the tokenizer cannot be read."""
    from rich.console import Console

    kind = kind_of(options.source)
    data = load_data(options.source) if kind == "pairs" else load_set(options.source, kind)
    groups = _groups(data)
    console = Console()
    console.print(f"{data.name}: {kind}, for {OPTIONS[kind]}.", markup=False, highlight=False, soft_wrap=True)
    console.print(_counts(groups))
    for line in _remarks(data, groups):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(_lengths(groups, options.model))
    for line in _examples(kind, groups, options):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def kind_of(source: str) -> Kind:
    """The kind of a named format, or of a table by its columns.

    With harmful and harmless it has pairs, with completion examples, with prompt alone requests. Raises RepnoiseError
    if it has none of these.
    """
    name, colon, _ = source.partition(":")
    on_disk = os.path.exists(source) and source not in EMBEDDED
    if name in DATASETS and not on_disk:
        return DATASETS[name][1]
    if colon and not on_disk:
        return "pairs"  # No such format: loading it says which there are.
    found = read_table(source, ("prompt", "completion", "harmful", "harmless", "category", "split"))[0].values
    if {"harmful", "harmless"} <= found.keys():
        return "pairs"
    if "prompt" not in found:
        raise RepnoiseError(
            f"{source} has no column 'prompt': give a table with prompt and completion, or with prompt, harmful and "
            "harmless, or name its format as NAME:PATH (repnoise list datasets)."
        )
    return "examples" if "completion" in found else "requests"


def masked(text: str) -> str:
    """The text in its length, with "x" for all but its first characters, spaces and punctuation."""
    kept = [char if char.isspace() or unicodedata.category(char)[0] == "P" else "x" for char in text[VISIBLE:]]
    return text[:VISIBLE] + "".join(kept)


def _groups(data: PairedData | ExampleSet) -> Rows:
    """Rows by what they are for, the empty groups left out."""
    if isinstance(data, ExampleSet):
        return {name: rows for name, rows in data.splits.items() if rows}
    groups: Rows = dict(data.pairs)
    for name in ("retain", "benign", "retained_test", "harmless_test", "lookalikes", "unsafe", "requests"):
        groups[name.replace("_", " ")] = getattr(data, name)
    for task, found in data.tasks.items():
        groups |= {f"task {task}, {split}": rows for split, rows in found.splits.items()}
    return {name: rows for name, rows in groups.items() if rows}


def _counts(groups: Rows) -> Table:
    from rich.table import Table

    table = Table("part", title="Rows", title_justify="left")
    for name in ("rows", "repeated prompts", "categories"):
        table.add_column(name, justify="left" if name == "categories" else "right")
    for name, rows in groups.items():
        repeated = len(rows) - len({row.prompt for row in rows})
        categories = Counter(row.category for row in rows if row.category)
        named = ", ".join(f"{category} {count:,}" for category, count in categories.most_common())
        table.add_row(_plain(name), f"{len(rows):,}", f"{repeated:,}", _plain(named))
    return table


def _remarks(data: PairedData | ExampleSet, groups: Rows) -> list[str]:
    """What was left out and why, prompts that stand in several groups, and plain text."""
    lines = [f"Left out: {count:,} x {reason}." for reason, count in data.skipped.items()]
    held_by = Counter(prompt for rows in groups.values() for prompt in {row.prompt for row in rows})
    if shared := sum(count > 1 for count in held_by.values()):
        lines.append(f"Prompts that are in more than one of these: {shared:,}.")
    if isinstance(data, PairedData) and data.plain_text:
        lines.append(f"{len(data.plain_text):,} pieces of plain text.")
    return lines


def _lengths(groups: Rows, model: str) -> Table:
    from rich.table import Table

    tokenizer = _tokenizer(model)
    table = Table("text", title=f"Tokens, by the tokenizer of {_plain(model)}", title_justify="left")
    for name in ("texts", "5 %", "median", "95 %", "most"):
        table.add_column(name, justify="right")
    rows = [row for found in groups.values() for row in found]
    for part, texts in _parts(rows).items():
        lengths = sorted(len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
        places = [math.ceil(share * len(lengths)) - 1 for share in QUANTILES]
        table.add_row(part, f"{len(lengths):,}", *(f"{lengths[place]:,}" for place in places))
    return table


def _parts(rows: Sequence[Pair | Example]) -> dict[str, list[str]]:
    """The texts of the rows, by what they are; blank completions, as requests have, are left out."""
    pairs = [row for row in rows if isinstance(row, Pair)]
    parts = {
        "prompts": [row.prompt for row in rows],
        "harmful completions": [pair.harmful for pair in pairs],
        "harmless completions": [pair.harmless for pair in pairs],
        "completions": [row.completion for row in rows if isinstance(row, Example) and row.completion],
    }
    return {name: texts for name, texts in parts.items() if texts}


def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    from repnoise.modeling import locate

    place = locate(model)
    try:
        return AutoTokenizer.from_pretrained(place)
    except Exception as error:  # The tokenizers library raises bare ones.
        raise RepnoiseError(
            f"Cannot read a tokenizer from {model!r}: give a folder with tokenizer.json, or a hub id."
        ) from error


def _examples(kind: Kind, groups: Rows, options: InspectOptions) -> list[str]:
    """Examples from all over the data set, harmful text masked unless it is to be shown."""
    rows = [(name, row) for name, found in groups.items() for row in found]
    count = min(options.examples, len(rows))
    lines, hidden = [], False
    for name, row in (rows[place * (len(rows) - 1) // max(1, count - 1)] for place in range(count)):
        lines.append(f"\nExample, {name}{f', {row.category}' if row.category else ''}:")
        for part, text, harmful in _texts(kind, name, row):
            hidden = hidden or (harmful and not options.show)
            lines.append(f"  {part}: {_printable(masked(text) if harmful and not options.show else text)}")
    if hidden:
        lines.append("\nThe letters of harmful text are masked: --show shows it as it is.")
    return lines


def _texts(kind: Kind, group: str, row: Pair | Example) -> list[tuple[str, str, bool]]:
    """The texts of a row, what each is, and whether it is harmful. The prompts of harm are taken to be."""
    if isinstance(row, Pair):
        return [("prompt", row.prompt, True), ("harmful", row.harmful, True), ("harmless", row.harmless, False)]
    harmful = kind == "requests" or group in ("requests", "unsafe")
    texts = [("prompt", row.prompt, harmful), ("completion", row.completion, harmful)]
    return [text for text in texts if text[1]]


def _printable(text: str) -> str:
    """The text in one line, cut, and without characters that a terminal would obey."""
    line = text.replace("\r\n", "\n").replace("\n", " / ")
    line = "".join("?" if unicodedata.category(character)[0] == "C" else character for character in line)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}... ({len(text):,} characters)"


def _plain(text: str) -> Any:
    """The text for a table that would take its brackets for markup."""
    from rich.markup import escape

    return escape(_printable(text))
