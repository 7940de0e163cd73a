"""What every command starts from: a model, a data set, and a way of prompting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from repnoise.data import load_data
from repnoise.data.extras import with_extras
from repnoise.data.records import TemplateName
from repnoise.data.sources import PairedData
from repnoise.errors import RepnoiseError

if TYPE_CHECKING:
    from repnoise.data.tokenization import Codec
    from repnoise.modeling import LoadedModel

FLAT = tyro.conf.OmitArgPrefixes
"""Marks a part of a config whose options carry no prefix on the command line: `--steps`, not `--training.steps`."""

TEMPLATE_TOKENS = 64
"""What a prompt template may add; a guess that costs nothing when wrong, for every prompt is checked again in use."""
_EXAMPLES = ("retain", "benign", "retained_test", "harmless_test", "lookalikes", "unsafe", "requests")


@dataclass(frozen=True)
class Inputs:
    """Model and data of a command.

    Attributes:
        model: a folder, a run of repnoise, a hub id, or "sandbox" for the model inside the package.
        data: "sandbox", NAME:PATH for a format that `repnoise list datasets` names, or a file, folder or hub id with
            the columns prompt, harmful, harmless and perhaps category and split.
        retain: general harmless examples that the defender must not forget: NAME:PATH of a format that
            `repnoise list datasets` names, or a table with the columns prompt and completion.
        benign: harmless examples that an attacker may mix in, likewise.
        plain_text: text file for perplexity.
        requests: harmful questions without answers, likewise: a judge of harm says what came of them.
        contrast: safe and unsafe prompts to test over-refusal with, likewise.
        tasks: harmless tasks to be trained on, likewise.
        template: how prompts are written; "auto" is what fits the data and the tokenizer.
        max_length: most tokens of a prompt with its completion; the model's context, where that is less.
        skip_long: leave out prompts that leave no room for a completion, and count them, instead of stopping.
        revision: commit or tag of a hub model.
        trust_remote_code: run model code that comes with the weights.
    """

    model: Annotated[str, tyro.conf.arg(metavar="MODEL"), tyro.conf.Positional] = "sandbox"
    data: str = "sandbox"
    retain: str | None = None
    benign: str | None = None
    plain_text: str | None = None
    requests: str | None = None
    contrast: str | None = None
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME:PATH ...")] = ()
    template: TemplateName = "auto"
    max_length: int = 256
    skip_long: bool = False
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise RepnoiseError(f"max_length must be at least 2 (a prompt and a completion), not {self.max_length}.")

    def open(self, template: TemplateName = "auto") -> tuple[LoadedModel, PairedData, Codec]:
        """Load the model and the data, and say how prompts are written for the two: by `template`, where it is given.

        Raises RepnoiseError for whatever cannot be loaded, and for prompts that leave no room for a completion.
        """
        data = with_extras(
            load_data(self.data),
            self.retain,
            self.benign,
            self.plain_text,
            self.requests,
            self.contrast,
            self.tasks,
        )
        loaded, codec = self.open_model(template, self.template, data.template)
        return loaded, self._fitting(data, codec, loaded.context), codec

    def open_model(self, *templates: TemplateName) -> tuple[LoadedModel, Codec]:
        """The model alone, and how prompts are written for it: by the first of the templates that says it."""
        from repnoise.data.tokenization import Codec, resolve_template
        from repnoise.modeling import load

        loaded = load(self.model, self.revision, self.trust_remote_code)
        said: list[TemplateName] = [name for name in templates if name != "auto"]
        template = resolve_template(said[0] if said else "auto", loaded.tokenizer)
        return loaded, Codec(loaded.tokenizer, template, min(self.max_length, loaded.context))

    def _fitting(self, data: PairedData, codec: Codec, context: int) -> PairedData:
        """The data without prompts that leave no room for a completion; raises unless they are to be left out."""
        prompts = _prompts(data)
        long = long_prompts(prompts, codec)
        if not long or (self.skip_long and len(long) < len(prompts)):
            return _without(data, {*long}) if long else data
        full = codec.max_length == context
        remedies = ["shorten them"] if full else ["raise --max-length", "shorten them"]
        remedies += ["leave them out with --skip-long"] if len(long) < len(prompts) else []
        raise RepnoiseError(
            f"{len(long):,} of {len(prompts):,} prompts in {data.name} leave no room for a completion within "
            f"{codec.max_length} tokens{', the context of the model' if full else ''} (the longest has "
            f"{max(long.values()):,}): {', or '.join(remedies)}."
        )


def long_prompts(prompts: Iterable[str], codec: Codec) -> dict[str, int]:
    """The prompts that leave no room for a completion, with their lengths in tokens."""
    # A token is at least a byte, so that most need not be tokenized to be told short.
    doubtful = {prompt for prompt in prompts if 2 * len(prompt.encode()) >= codec.max_length - TEMPLATE_TOKENS}
    lengths = {prompt: len(codec.prompt_ids(prompt)) for prompt in doubtful}
    return {prompt: length for prompt, length in lengths.items() if length >= codec.max_length}


def _prompts(data: PairedData) -> set[str]:
    groups = [*data.pairs.values(), *data.held_out.values(), *(getattr(data, name) for name in _EXAMPLES)]
    return {row.prompt for group in groups for row in group}


def _without(data: PairedData, prompts: set[str]) -> PairedData:
    def kept(rows: Sequence[Any]) -> list[Any]:
        return [row for row in rows if row.prompt not in prompts]

    return replace(
        data,
        pairs={split: kept(pairs) for split, pairs in data.pairs.items()},
        held_out={split: kept(pairs) for split, pairs in data.held_out.items()},
        skipped=data.skipped | {"prompts without room for a completion": len(prompts)},
        **{name: kept(getattr(data, name)) for name in _EXAMPLES},
    )
