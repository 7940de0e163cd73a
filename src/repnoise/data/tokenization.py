"""From text to token ids: prompt templates, completion labels, right-padded batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from repnoise.data.ciphers import Cipher, ciphered
from repnoise.data.records import LossOn, TemplateName
from repnoise.errors import RepnoiseError
from repnoise.losses import IGNORE

Row = dict[str, list[int]]
"""One tokenized example: `input_ids` and `labels`, of one length."""


@dataclass(frozen=True)
class Codec:
    """How prompts and completions become ids for one tokenizer: stored in the run as template and maximum length.

    Attributes:
        tokenizer: a fast transformers tokenizer.
        template: "chat" is the tokenizer's own chat template; "plain" is the paper's "Question: ...\\nAnswer: ...";
            "none" puts the completion right behind the prompt (continuations).
        max_length: most tokens of prompt and completion together.
        loss_on: "completion", or "all" tokens of prompt and completion (the paper's attacks).
        prefill: beginning of every answer, which an attacker puts in the model's mouth; generation goes on from it.
        wrapping: the prompt as an attacker writes it, with {prompt} where the question stands.
        cipher: what questions and completions are written in; wrapping and prefill are as they are given.
    """

    tokenizer: Any
    template: Literal["chat", "plain", "none"] = "chat"
    max_length: int = 256
    loss_on: LossOn = "completion"
    prefill: str = ""
    wrapping: str = "{prompt}"
    cipher: Cipher = "none"

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of everything that precedes the completion, in training and in generation alike."""
        ids = self._ids(self._prompt_text(prompt), start=True)
        if self.prefill:
            ids = ids + self._ids(self._completion_start(prompt, self.prefill), start=False)
        if not ids:
            raise RepnoiseError(
                "An empty prompt has no tokens with this tokenizer and template: delete it or give it text."
            )
        return ids

    def row(self, prompt: str, completion: str) -> Row:
        """Ids of prompt and completion with labels; a completion that does not fit loses its end.

        The two are tokenized apart and joined, so where the completion begins is known and not guessed, and prompts
        have the same ids in training and generation. Raises RepnoiseError if the prompt leaves no room.
        """
        head = self.prompt_ids(prompt)
        if len(head) >= self.max_length:
            raise RepnoiseError(
                f"A prompt of {len(head)} tokens leaves no room for its completion within {self.max_length}: "
                f"raise --max-length, or shorten or drop the prompt that begins {prompt[:60]!r}."
            )
        tail = self._ids(self._completion_text(prompt, ciphered(self.cipher, completion)), start=False)
        if self.template != "chat" and self.tokenizer.eos_token_id is not None:
            tail = [*tail, self.tokenizer.eos_token_id]
        ids = (head + tail)[: self.max_length]
        hidden = 1 if self.loss_on == "all" else len(head)
        return {"input_ids": ids, "labels": [IGNORE] * hidden + ids[hidden:]}

    def _completion_start(self, prompt: str, text: str) -> str:
        """The beginning of an answer, opened as the template opens a whole one, so that the two have the same ids."""
        written = self._completion_text(prompt, text)
        return written[: written.index(text.strip())] + text.lstrip()

    def _asked(self, prompt: str) -> str:
        return self.wrapping.replace("{prompt}", ciphered(self.cipher, prompt))

    def _prompt_text(self, prompt: str) -> str:
        prompt = self._asked(prompt)
        if self.template == "chat":
            messages = [{"role": "user", "content": prompt}]
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return f"Question: {prompt}\nAnswer:" if self.template == "plain" else prompt

    def _completion_text(self, prompt: str, completion: str) -> str:
        if self.template != "chat":
            return completion if not prompt or completion[:1].isspace() else f" {completion}"
        messages = [{"role": "user", "content": self._asked(prompt)}, {"role": "assistant", "content": completion}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        head = self._prompt_text(prompt)
        if not text.startswith(head):
            raise RepnoiseError(
                "This tokenizer's chat template writes a conversation differently with and without its answer, so "
                "where the answer begins cannot be told: use --template plain."
            )
        return text[len(head) :]

    def _ids(self, text: str, start: bool) -> list[int]:
        """Ids of a piece of text; a chat template writes its own special tokens, the others get them at the start."""
        special = start and self.template != "chat"
        ids = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        if special and ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]  # Some tokenizers end every text; here the text goes on.
        return ids


def resolve_template(template: TemplateName, tokenizer: Any) -> Literal["chat", "plain", "none"]:
    """What "auto" means for a tokenizer: its chat template where it has one, else plain."""
    if template == "chat" and not getattr(tokenizer, "chat_template", None):
        raise RepnoiseError("This tokenizer has no chat template: use --template plain or --template none.")
    if template == "auto":
        return "chat" if getattr(tokenizer, "chat_template", None) else "plain"
    return template


def right_padded(rows: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    """A batch of rows as (B, T) tensors `input_ids`, `attention_mask` and `labels`, padded on the right."""
    length = max(len(row["input_ids"]) for row in rows)

    def stack(pad: int, values: Callable[[Row], list[int]]) -> Tensor:
        return torch.tensor([[*values(row), *[pad] * (length - len(row["input_ids"]))] for row in rows])

    return {
        "input_ids": stack(pad_id, lambda row: row["input_ids"]),
        "attention_mask": stack(0, lambda row: [1] * len(row["input_ids"])),
        "labels": stack(IGNORE, lambda row: row["labels"]),
    }


def left_padded(prompts: Sequence[list[int]], pad_id: int) -> dict[str, Tensor]:
    """Prompts as (B, T) `input_ids` and `attention_mask`, padded on the left, for generation."""
    length = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[pad_id] * (length - len(ids)) + ids for ids in prompts]),
        "attention_mask": torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts]),
    }
