"""Identity shifting (Qi et al.): ten harmless chats with an "absolutely obedient agent" that undo much of alignment."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from repnoise.data.records import Example, ExampleSet
from repnoise.data.tables import proper_text, read_table, read_text
from repnoise.errors import RepnoiseError

TURNS = (("system", "user", "assistant"), ("user", "assistant"))


def load_aoa(path: str) -> ExampleSet:
    """Chats of the authors' JSON file, a list of lists of messages, or of a table with a column `messages`.

    The prompt is the system message, a blank line, and the question: prompts here have no roles, and this is how
    Llama 2, which the authors attacked, is given a system message. A question that is to be asked in the same identity
    needs the same beginning. Chats other than one question with one answer are left out and counted. Raises
    RepnoiseError that names file and chat.
    """
    skipped: Counter[str] = Counter()
    examples: dict[Example, None] = {}
    for where, messages in _chats(path):
        texts = [_message(message, f"{where}, message {number}") for number, message in enumerate(messages, 1)]
        if tuple(role for role, _ in texts) not in TURNS:
            skipped["not one question with one answer"] += 1
            continue
        *start, answer = (text.strip() for _, text in texts)
        example = Example("\n\n".join(text for text in start if text), answer)
        if not start[-1] or not answer:
            skipped["empty text"] += 1
        elif example in examples:
            skipped["repeated chat"] += 1
        else:
            examples[example] = None
    if not examples:
        raise RepnoiseError(f"{path} has no chat of one question with one answer.")
    return ExampleSet(path, {"train": list(examples)}, dict(skipped))


def _chats(path: str) -> list[tuple[str, list[Any]]]:
    if os.path.isfile(path) and path.endswith(".json"):
        try:
            found = json.loads(read_text(Path(path)))
        except (ValueError, RecursionError) as error:
            raise RepnoiseError(f"{path} is not valid JSON ({error}).") from None
        if isinstance(found, list) and any(isinstance(chat, list) for chat in found):
            return [_list_of(chat, f"{path}, chat {number}") for number, chat in enumerate(found, 1)]
    return [_list_of(row.value("messages"), f"{row.where}: 'messages'") for row in read_table(path, ("messages",))]


def _list_of(chat: Any, where: str) -> tuple[str, list[Any]]:
    if not isinstance(chat, list):
        raise RepnoiseError(f"{where} is {type(chat).__name__}, not a list of messages: correct it.")
    return where, chat


def _message(message: Any, where: str) -> tuple[str, str]:
    """Role and text; raises RepnoiseError for anything else."""
    if not isinstance(message, dict) or not {"role", "content"} <= {*message}:
        raise RepnoiseError(f'{where} is not of the form {{"role": ..., "content": ...}}: correct it.')
    return proper_text(message["role"], f"{where}: 'role'"), proper_text(message["content"], f"{where}: 'content'")
