"""Data sets by name. Importing this is cheap: each loader is imported when it is used."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from repnoise.data.sources import PairedData
from repnoise.errors import RepnoiseError

Loader = Callable[[str], PairedData]
"""From the part behind "NAME:" to the data."""


def _sandbox(path: str) -> PairedData:
    from repnoise.data.sandbox import load_sandbox

    return load_sandbox(path or None)


def _rumours(path: str) -> PairedData:
    from repnoise.data.sandbox import load_rumours

    return load_rumours(path or None)


def _generic(path: str) -> PairedData:
    from repnoise.data.generic import load_generic

    return load_generic(path)


def _decoding_trust(path: str) -> PairedData:
    from repnoise.data.decoding_trust import load_decoding_trust

    return load_decoding_trust(path)


def _hh_rlhf(path: str) -> PairedData:
    from repnoise.data.hh_rlhf import load_hh_rlhf

    return load_hh_rlhf(path)


DATASETS: dict[str, tuple[str, Loader]] = {
    "sandbox": ("The embedded fictional world; sandbox:FOLDER is one made by `repnoise sandbox build`.", _sandbox),
    "sandbox-rumours": ("The same world's second kind of harm: sentences to be continued.", _rumours),
    "generic": ("Your own table: prompt, harmful, harmless, and perhaps category and split.", _generic),
    "decoding-trust": ("DecodingTrust's toxicity split: its folder, or one of its two files.", _decoding_trust),
    "hh-rlhf": ("HH-RLHF harmless-base: a .jsonl or .jsonl.gz file, a folder of them, or the hub id.", _hh_rlhf),
}
EMBEDDED = ("sandbox", "sandbox-rumours")
"""The data sets that need no path."""


def load_data(source: str) -> PairedData:
    """The data of "sandbox", of NAME:PATH for a named format, or else of a generic file, folder or hub id.

    Raises RepnoiseError for a name that there is none of, a missing path, or data that cannot be read.
    """
    name, colon, path = source.partition(":")
    # A path may hold a colon too, and one letter before it is a drive of Windows.
    is_path = len(name) == 1 if colon else name not in DATASETS
    if is_path or (os.path.exists(source) and source not in EMBEDDED):
        name, path = "generic", source
    if name not in DATASETS:
        raise RepnoiseError(f"There is no data format {name!r}; there are: {', '.join(DATASETS)}.")
    if not path and name not in EMBEDDED:
        raise RepnoiseError(f"{name} needs a path: write {name}:PATH.")
    _, load = DATASETS[name]
    return replace(load(path), name=source)
