"""What every command starts from: a model, a data set, and a way of prompting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from repnoise.data import load_data
from repnoise.data.records import TemplateName
from repnoise.data.sources import PairedData, with_extras

if TYPE_CHECKING:
    from repnoise.data.tokenization import Codec
    from repnoise.modeling import LoadedModel

FLAT = tyro.conf.arg(name="")
"""Marks a part of a config whose options carry no prefix on the command line: `--steps`, not `--training.steps`."""


@dataclass(frozen=True)
class Inputs:
    """Model and data of a command.

    Attributes:
        model: a folder, a run of repnoise, a hub id, or "sandbox" for the model inside the package.
        data: "sandbox", NAME:PATH for a format that `repnoise list datasets` names, or a file, folder or hub id with
            the columns prompt, harmful, harmless and perhaps category and split.
        retain: file of general harmless examples (columns prompt, completion) that the defender must not forget.
        benign: file of harmless examples that an attacker may mix in.
        plain_text: text file for perplexity.
        template: how prompts are written; "auto" is what fits the data and the tokenizer.
        max_length: most tokens of a prompt with its completion.
        revision: commit or tag of a hub model.
        trust_remote_code: run model code that comes with the weights.
    """

    model: Annotated[str, tyro.conf.arg(metavar="MODEL"), tyro.conf.Positional] = "sandbox"
    data: str = "sandbox"
    retain: str | None = None
    benign: str | None = None
    plain_text: str | None = None
    template: TemplateName = "auto"
    max_length: int = 256
    revision: str | None = None
    trust_remote_code: bool = False

    def open(self) -> tuple[LoadedModel, PairedData, Codec]:
        """Load the model and the data, and say how prompts are written for the two."""
        from repnoise.modeling import load

        data = self.open_data()
        loaded = load(self.model, self.revision, self.trust_remote_code)
        return loaded, data, self.codec(loaded, data)

    def open_data(self) -> PairedData:
        return with_extras(load_data(self.data), self.retain, self.benign, self.plain_text)

    def codec(self, loaded: LoadedModel, data: PairedData, template: TemplateName | None = None) -> Codec:
        """How prompts and completions become ids, for a template or the inputs' own."""
        from repnoise.data.tokenization import Codec, resolve_template

        chosen: Any = template if template not in (None, "auto") else self.template
        chosen = chosen if chosen != "auto" else data.template
        return Codec(loaded.tokenizer, resolve_template(chosen, loaded.tokenizer), min(self.max_length, loaded.context))
