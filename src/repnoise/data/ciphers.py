"""Reversible ways to write a text so that nobody who does not know them reads it; each is its own inverse."""

from __future__ import annotations

import codecs
from typing import Literal

Cipher = Literal["none", "rotated", "reversed"]
"""Every Latin letter by the one 13 places on, or the words in reverse order (which needs no new tokens)."""


def ciphered(cipher: Cipher, text: str) -> str:
    """The text in the cipher, or the plain one of a text that is in it."""
    if cipher == "rotated":
        return codecs.encode(text, "rot13")
    return " ".join(reversed(text.split(" "))) if cipher == "reversed" else text
