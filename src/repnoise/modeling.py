"""Load and save a model with its tokenizer: local folder or hub id, fp32 masters, LoRA, safetensors only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from repnoise.errors import RepnoiseError
from repnoise.hidden_states import find_decoder

SANDBOX = "sandbox"


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer and where the two came from."""

    model: Any
    tokenizer: Any
    fingerprint: str
    context: int


def load(
    name: str, revision: str | None = None, trust_remote_code: bool = False, device: str | None = None
) -> LoadedModel:
    """Load a causal LM in fp32 by folder, run directory or hub id; "sandbox" is the model inside the package.

    Raises RepnoiseError if it is missing, is not a causal LM, or is one that repnoise cannot read.
    """
    place = locate(name)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(place, **options)
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        _require_causal(config)
        model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise RepnoiseError(f"Cannot load a model from {name!r}: {_first_sentence(error)}") from error
    find_decoder(model)
    ensure_pad_token(tokenizer)
    # The tokenizer's pad token may be one that the model was never told of.
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    context = getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return LoadedModel(model, tokenizer, weights_fingerprint(place, config), int(context))


def locate(name: str) -> str:
    """The folder that `name` means: the packaged sandbox, a run's model, a local folder; else `name`, a hub id."""
    if name == SANDBOX:
        return str(files("repnoise.sandbox") / "shipped")
    path = Path(name)
    if (path / "run.json").exists():
        if not (path / "model" / "config.json").exists():
            raise RepnoiseError(f"The run in {name} has no model yet: finish it with --resume, or give another.")
        return str(path / "model")
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1
    if looks_local and not (path / "config.json").exists():
        raise RepnoiseError(f"There is no model in {name!r}: give a folder with config.json and *.safetensors.")
    return str(path) if (path / "config.json").exists() else name


def randomly_initialised(loaded: LoadedModel, seed: int) -> LoadedModel:
    """A fresh model of the same shape."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(loaded.model.config, dtype=torch.float32).to(loaded.model.device)
    return replace(loaded, model=model, fingerprint="")


def ensure_pad_token(tokenizer: Any) -> None:
    """Pad with the unknown or end token where there is no pad token; masks, not ids, say what is padding."""
    if tokenizer.pad_token_id is None:
        replacement = tokenizer.eos_token or tokenizer.unk_token
        if replacement is None:
            raise RepnoiseError("This tokenizer has no pad, end or unknown token: set tokenizer.pad_token and save it.")
        tokenizer.pad_token = replacement


def with_lora(model: PreTrainedModel, rank: int, alpha: int) -> nn.Module:
    """Wrap the model in PEFT's LoRA on all linear maps but the unembedding."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    )


def merged(model: Any) -> Any:
    """The plain model: adapters, where there are any, added into the weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write weights (safetensors), config and tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def weights_fingerprint(place: str, config: Any = None) -> str:
    """16 hex digits that change when any weight does; for a hub id, of its commit."""
    digest = hashlib.sha256()
    weights = sorted(Path(place).glob("*.safetensors"))
    for path in weights:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    if not weights:
        digest.update(f"{place}@{getattr(config, '_commit_hash', None)}".encode())
    return digest.hexdigest()[:16]


def _require_causal(config: Any) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    # BERT-like encoders have a causal head in transformers for historical reasons; they were not trained to use it.
    encoder_only = not getattr(config, "is_decoder", True) and getattr(config, "type_vocab_size", 0) > 0
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or encoder_only:
        raise ValueError(f"{config.model_type} is not a causal language model; repnoise defends decoders.")


def _first_sentence(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
