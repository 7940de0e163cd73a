"""A user's own paired data: a table with the columns prompt, harmful, harmless, and perhaps category and split."""

from __future__ import annotations

from collections.abc import Sequence

from repnoise.data.records import SPLITS, Pair
from repnoise.data.sources import PairedData, paired, prompt_key, split_by_prompt
from repnoise.data.tables import TableRow, read_table, shortened
from repnoise.errors import RepnoiseError

COLUMNS = ("prompt", "harmful", "harmless", "category", "split")


def load_generic(path: str) -> PairedData:
    """Pairs of a file, a folder of `datasets.save_to_disk`, or a data set of the hub.

    With a column `split` (one of `records.SPLITS` in every row) the division is the user's, and no prompt may be in two
    splits; without it pairs are divided by a hash of the prompt. Rows that repeat prompt and harmful completion are
    dropped and counted. Raises RepnoiseError that names file, row and fix.
    """
    rows = read_table(path, COLUMNS)
    pairs = [_pair(row) for row in rows]
    # Before repeated rows go, so that none of them can hide that its prompt is in two splits.
    given = _given_splits(rows, pairs) if any("split" in row.values for row in rows) else None
    kept: dict[tuple[str, str], Pair] = {}
    for pair in pairs:
        kept.setdefault((pair.prompt, pair.harmful), pair)
    if given is None:
        splits = split_by_prompt(list(kept.values()))
    else:
        splits = {name: [pair for pair in kept.values() if given[prompt_key(pair.prompt)] == name] for name in SPLITS}
    repeated = len(pairs) - len(kept)
    return paired(path, splits, skipped={"repeated prompt and harmful completion": repeated} if repeated else {})


def _pair(row: TableRow) -> Pair:
    pair = Pair(row.text("prompt"), row.text("harmful"), row.text("harmless"), row.optional("category"))
    if pair.harmful.strip() == pair.harmless.strip():
        raise RepnoiseError(f"{row.where}: 'harmful' and 'harmless' are the same text: correct or delete the row.")
    return pair


def _given_splits(rows: Sequence[TableRow], pairs: Sequence[Pair]) -> dict[str, str]:
    """The split of each prompt, by `prompt_key`; raises RepnoiseError for an unknown one or a prompt in two."""
    splits: dict[str, str] = {}
    for row, pair in zip(rows, pairs, strict=True):
        split = row.text("split").strip()
        if split not in SPLITS:
            split = shortened(split, 40)
            raise RepnoiseError(f"{row.where}: split {split!r} is none of {', '.join(SPLITS)}: correct it.")
        earlier = splits.setdefault(prompt_key(pair.prompt), split)
        if earlier != split:
            raise RepnoiseError(f"{row.where}: its prompt is in split {earlier!r} too: keep every prompt in one split.")
    return splits
