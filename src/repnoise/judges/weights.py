"""Where a judge's own model lies, and which weights those are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from repnoise.errors import RepnoiseError


def found_at(model: str, otherwise: str = "") -> str:
    """The folder of a model (of a run, the model in it), or `model` itself where it may be a hub id.

    Raises RepnoiseError for a path that has no model; `otherwise` says what else may be given.
    """
    folder = Path(model)
    if (folder / "run.json").exists():
        folder = folder / "model"
    if (folder / "config.json").exists():
        if not any(folder.glob("*.safetensors")):
            raise RepnoiseError(f"The model in {model!r} has no weights: give a folder with *.safetensors.")
        return str(folder)
    if folder.exists() or model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise RepnoiseError(
            f"There is no model in {model!r}: give a folder with config.json, a run or a hub id{otherwise}."
        )
    return model


def files_fingerprint(place: str, config: Any) -> str:
    """Of the weights, the config and the tokenizer in a folder; of a hub model, of its commit."""
    digest = hashlib.sha256()
    folder = Path(place)
    if not folder.is_dir():
        digest.update(f"{place}@{getattr(config, '_commit_hash', None)}".encode())
    for pattern in ("*.safetensors", "config.json", "tokenizer*.json", "*.model", "vocab*", "*.jinja"):
        for path in sorted(folder.glob(pattern)) if folder.is_dir() else ():
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
