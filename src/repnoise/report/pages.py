"""Pages from the templates of the package, and how text is written in Markdown and numbers in a line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any


def rendered(template: str, contents: dict[str, Any]) -> str:
    """A template with its values; in HTML they are escaped, and a value that is not there is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("repnoise"),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"inline": inline_markdown, "unbroken": unbroken}
    return pages.get_template(template).render(contents)


def inline_markdown(text: object) -> str:
    """Text that Markdown shows as it is, in a line and in a cell of a table: no tags, links, emphasis or columns."""
    return re.sub(r"([\\|`*]|<(?=[A-Za-z/!?])|(?<=\])\()", r"\\\1", " ".join(str(text).split()))


def grid(head: Sequence[str], rows: Iterable[Sequence[str]], under: Sequence[str] = ()) -> str:
    """A table in Markdown; `under` the head stand its dashes, with colons where columns are not to the left."""
    lines = [head, under or ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def unbroken(text: str) -> str:
    """A number stays in one line with its per cent sign and its interval."""
    return re.sub(r" (?=%)|(?<=%) (?=\[)|(?<=,) (?=[\d.,]+\])", "\u00a0", text)
