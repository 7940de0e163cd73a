"""Load and save a model with its tokenizer: local folder or hub id, fp32 masters, LoRA, safetensors only."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from repnoise.distributed.processes import sharded
from repnoise.errors import RepnoiseError
from repnoise.four_bit import give_back, hold_in_four_bits
from repnoise.hidden_states import find_decoder
from repnoise.runs import flush_to_disk

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

    Raises RepnoiseError if it is missing, incomplete or damaged, is not a causal LM, or is one that repnoise cannot
    read.
    """
    place = locate(name)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(place, **options)
        _require_readable(config, place)
        tokenizer = _tokenizer(place, **options)
        model = _weights(place, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise RepnoiseError(f"Cannot load a model from {name!r}: {_remedy(error)}") from error
    find_decoder(model)
    ensure_pad_token(tokenizer)
    # The tokenizer's pad token may be one that the model was never told of.
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    context = getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length
    # What is to be sharded need not fit on one device.
    model.to(device or ("cuda" if torch.cuda.is_available() and not sharded() else "cpu"))
    return LoadedModel(model, tokenizer, weights_fingerprint(place, config), int(context))


def reloaded(start: LoadedModel, folder: Path) -> LoadedModel:
    """The model that `save` wrote to a folder: of the class, tokenizer and device of the one that it was made from."""
    with without_progress_bars():
        model = type(start.model).from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    model.to(start.model.device)
    return replace(start, model=model, fingerprint=weights_fingerprint(str(folder)))


def _tokenizer(place: str, **options: Any) -> Any:
    try:
        return AutoTokenizer.from_pretrained(place, **options)
    except Exception as error:  # The tokenizers library raises bare ones.
        if "trust_remote_code" in str(error) or not Path(place).is_dir():
            raise
        raise ValueError("its tokenizer cannot be read: give a folder with a whole tokenizer.json.") from error


def _weights(place: str, **options: Any) -> Any:
    """The model in fp32, with every weight from the files: a missing one would silently be random."""
    # The bars of a download are worth seeing, those of a load are not.
    quiet = without_progress_bars() if Path(place).is_dir() else nullcontext()
    with quiet, _errors_only():  # Its table of weights that do not fit is replaced by the sentence below.
        both: Any = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    model, found = both
    wrong = sorted(found["missing_keys"]) + sorted(key for key, *_ in found["mismatched_keys"])
    if wrong:
        which = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise ValueError(f"its weights do not fit its config.json ({which} missing or of another size).")
    return model


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Without transformers' progress bars for the reading and writing of weights."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _errors_only() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def locate(name: str) -> str:
    """The folder that `name` means: the packaged sandbox, a run's model, a local folder; else `name`, a hub id."""
    if name == SANDBOX:
        return str(files("repnoise.sandbox") / "shipped")
    path = Path(name)
    if (path / "run.json").exists():
        if not (path / "model" / "config.json").exists():
            what = "finish it with --resume, repeat an attack with --keep-model, or give another"
            raise RepnoiseError(f"The run in {name} has no model: {what}.")
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


def with_lora(model: PreTrainedModel, rank: int, alpha: int, dora: bool = False, four_bit: bool = False) -> nn.Module:
    """Wrap the model in PEFT's LoRA, or its DoRA, on all linear maps but the unembedding; hold these in 4 bits if that
    is wanted."""
    from peft import LoraConfig, get_peft_model

    settings: Any = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "use_dora": dora}
    config = LoraConfig(r=rank, lora_alpha=alpha, **settings)
    with warnings.catch_warnings():
        # PEFT uses old names of transformers, and says that it transposes GPT-2's weights.
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, config)
    if four_bit:
        hold_in_four_bits(wrapped)
    return wrapped


@contextmanager
def with_activation_checkpointing(model: Any, wanted: bool) -> Iterator[None]:
    """Recompute activations in backward passes inside the block, where that is wanted.

    Always the non-re-entrant kind: the other would cut captured activations off from the graph.
    """
    if not wanted:
        yield
        return
    # The names of transformers 5.24, and those before it.
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{name}_checkpointing_enable")(**{f"{name}_checkpointing_kwargs": {"use_reentrant": False}})
    try:
        yield
    finally:
        getattr(model, f"{name}_checkpointing_disable")()


def merged(model: Any) -> Any:
    """The plain model: adapters, where there are any that can be, added into the weights, which are the original ones
    where adapters were trained over 4 bits."""
    give_back(model)
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write weights (safetensors), config and tokenizer."""
    with without_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_whole(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write them so that the folder, if it exists, is whole, whenever the process is killed."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # What a killed process left.
    save(model, tokenizer, partial)
    flush_to_disk(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


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


def _require_readable(config: Any, place: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    # BERT-like encoders have a causal head in transformers for historical reasons; they were not trained to use it.
    encoder_only = not getattr(config, "is_decoder", True) and getattr(config, "type_vocab_size", 0) > 0
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if (type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not own_code) or encoder_only:
        raise ValueError(f"{config.model_type} is not a causal language model; repnoise defends decoders.")
    if getattr(config, "quantization_config", None):
        raise ValueError("it is quantized, and repnoise trains full-precision weights: give the original model.")
    folder = Path(place)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        if any(folder.glob("*.bin")):
            raise ValueError("its weights are *.bin files, which can run code when read: convert them to safetensors.")
        raise ValueError("it has no weights: give a folder with *.safetensors.")


def _remedy(error: BaseException) -> str:
    """Another library's message, or where that is of no help, a better one."""
    text = " ".join(str(error).split())
    if isinstance(error, SafetensorError):
        return f"a safetensors file is damaged ({text}): download or copy it again."
    if "trust_remote_code" in text:
        return "it brings its own Python code: read that, and if you trust it, add --trust-remote-code."
    if "couldn't connect" in text:
        return "there is no such folder, and the hub cannot be reached: check the path or the connection."
    return text.split(". ")[0].removesuffix(".")[:300] + "."
