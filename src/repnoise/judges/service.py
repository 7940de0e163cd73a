"""What a client of a web service is told: where to send, with which key, how much, how fast, and how long to wait."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from repnoise.errors import RepnoiseError

if TYPE_CHECKING:  # A list of judges must be cheap to import.
    import httpx2

SHORTEST = 12
"""Characters of a key that is looked for in what a server sends; a made-up one for a local server may be a word."""


class Secret:
    """A key from the environment, which no repr and no error shows."""

    __slots__ = ("_text", "variable")

    def __init__(self, variable: str) -> None:
        self.variable = variable
        self._text = os.environ.get(variable, "").strip()
        if not (self._text.isascii() and self._text.isprintable() and " " not in self._text):
            raise RepnoiseError(f"{variable} holds characters that no key has: set it to the key alone.")

    def __bool__(self) -> bool:
        return bool(self._text)

    def __repr__(self) -> str:
        return f"<key from {self.variable}>"

    def __reduce__(self) -> str:
        raise TypeError("A key is not written anywhere.")

    def signing(self, header: str, prefix: str = "") -> Callable[[httpx2.Request], httpx2.Request]:
        """What puts the key into a request on its way out, so that nothing else ever holds it."""

        def sign(request: httpx2.Request) -> httpx2.Request:
            if self._text:
                request.headers[header] = prefix + self._text
            return request

        return sign

    def removed_from(self, content: bytes) -> bytes:
        """An answer without the key, should a server send it back."""
        known = self._text.encode()
        return content.replace(known, b"[key]") if len(known) >= SHORTEST else content


@dataclass(frozen=True)
class Patience:
    """How long to wait for what.

    Attributes:
        attempts: times that one text is tried.
        first_delay, longest_delay: seconds before the second try, doubled for each further one up to the longest; up to
            half of it is taken off at random, so that many clients do not come back at once.
        longest_pause: seconds that a server may ask for; beyond that it is better to stop and come back.
        deadline: seconds for one answer, from the first byte sent to the last one received.
        hopeless: texts in a row without any answer after which the server counts as gone.
    """

    attempts: int = 7
    first_delay: float = 1.0
    longest_delay: float = 60.0
    longest_pause: float = 300.0
    deadline: float = 120.0
    hopeless: int = 5

    def delay(self, failures: int, chance: random.Random) -> float:
        return min(self.longest_delay, self.first_delay * 2 ** (failures - 1)) * chance.uniform(0.5, 1)


@dataclass(frozen=True)
class Limits:
    """What a client may use: requests at once, requests a second, and of requests (retries count) and tokens in all;
    None is no limit. Requests that are under way when the tokens are spent are still received."""

    concurrency: int = 8
    per_second: float | None = None
    requests: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Reply:
    """An HTTP status with its JSON object; or, with neither, the problem that was left after all attempts."""

    status: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Service:
    """Where to send, with which key, and how to be told in errors what to mend.

    Attributes:
        name: what it is called in errors.
        address: URL that is posted to.
        address_variable: environment variable that the address comes from.
        sign: puts the key into a request.
        key: the key itself.
        budget_variable: environment variable of the budget in requests; the one for tokens is called likewise.
        fatal: from status and JSON of a refusal to what would hold for every text, or "".
        tokens: from the JSON of an answer to the tokens that it cost.
    """

    name: str
    address: str
    address_variable: str
    key: Secret
    sign: Callable[[httpx2.Request], httpx2.Request]
    budget_variable: str = ""
    fatal: Callable[[int, dict[str, Any]], str] = lambda _status, _data: ""
    tokens: Callable[[dict[str, Any]], int] = lambda _data: 0


def address_from(variable: str, otherwise: str) -> str:
    """The web address that an environment variable holds, without a slash at its end.

    Raises RepnoiseError for what is no such address, and for one that holds a password or a query: an address is
    written into logs.
    """
    import httpx2

    address = (os.environ.get(variable, "").strip() or otherwise).rstrip("/")
    try:
        httpx2.URL(address)  # Is stricter than the standard library, and not in everything.
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and parts.hostname and " " not in address
    except (ValueError, httpx2.InvalidURL):
        usable, parts = False, urlsplit("")
    if not usable:
        raise RepnoiseError(f"{variable} is not a web address: it begins with https:// or http:// and names a host.")
    if parts.username is not None or parts.query or parts.fragment:
        raise RepnoiseError(f"{variable} must be an address without a user, a password or a query.")
    return address


def host_of(address: str) -> str:
    """Host and, where there is one, port."""
    return urlsplit(address).netloc.lower()


def number_from(variable: str, kind: type[int] | type[float]) -> Any:
    """The positive number that an environment variable holds, or None where it is not set."""
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    try:
        number = kind(text)
    except ValueError:
        number = kind(0)
    if not 0 < number < float("inf"):
        what = "a whole number above 0" if kind is int else "a number above 0"
        raise RepnoiseError(f"{variable} is {text!r}: set it to {what}, or not at all.")
    return number
