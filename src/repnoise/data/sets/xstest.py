"""XSTest: safe prompts that look unsafe, and unsafe ones that look like them."""

from __future__ import annotations

from repnoise.data.records import Example, ExampleSet
from repnoise.data.sets.requests import once_each
from repnoise.data.tables import TableRow, read_table, shortened
from repnoise.errors import RepnoiseError

COLUMNS = ("prompt", "type", "label")


def load_xstest(path: str) -> ExampleSet:
    """Prompts of xstest_prompts.csv, or of an older or another table like it, divided into "safe" and "unsafe".

    Older files have no column `label`: there the types of unsafe prompts begin with "contrast_". `category` is the
    type. Raises RepnoiseError that names file and row, and for a file that lacks either kind.
    """
    splits: dict[str, list[Example]] = {"safe": [], "unsafe": []}
    for row in read_table(path, COLUMNS):
        splits[_label(row)].append(Example(row.text("prompt"), "", row.text("type")))
    for label, examples in splits.items():
        if not examples:
            raise RepnoiseError(f"{path} has no {label} prompt: give all of XSTest.")
    return once_each(path, splits)


def _label(row: TableRow) -> str:
    if "label" not in row.values:
        return "unsafe" if row.text("type").startswith("contrast_") else "safe"
    label = row.text("label")
    if label not in ("safe", "unsafe"):
        raise RepnoiseError(f"{row.where}: label {shortened(label, 20)!r} is neither safe nor unsafe: correct it.")
    return label
