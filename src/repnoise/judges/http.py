"""JSON over HTTP from servers that fail now and then: retries, pace, concurrency, a budget, and a key that is not told.

Whatever goes wrong on the way is tried again; what a server says about one text is that text's own; what would go wrong
for every text ends everything, with a sentence that says what to mend.
"""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from json import JSONDecodeError, dumps, loads
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from repnoise.errors import RepnoiseError
from repnoise.judges.base import Completion, Score
from repnoise.judges.coherence import broken
from repnoise.judges.service import Limits, Patience, Reply, Service

if TYPE_CHECKING:  # A list of judges must be cheap to import.
    import httpx2

RETRIED = {408, 425, 429, 500, 502, 503, 504, 529}
LARGEST = 2**24
"""Bytes of an answer from which it is none."""

KEPT = "What has been judged is kept, and the next run goes on from there"


class _Failed(Exception):
    """One attempt that came to nothing; `pause` is what the server asks for, in seconds."""

    def __init__(self, problem: str, pause: float = 0.0) -> None:
        super().__init__(problem)
        self.problem, self.pause = problem, pause


class _Spent(Exception):
    """A budget that is spent; what it was spent on is told once all that is under way has come in."""

    def __init__(self, kind: str, most: int) -> None:
        super().__init__(kind)
        self.kind, self.most = kind, most


class _Progress:
    """What has come of the bodies so far: whether anything was answered, what was not, and what ends everything."""

    def __init__(self, client: JsonClient) -> None:
        self.client, self.alive = client, False
        self.error: RepnoiseError | _Spent | None = None
        self.unanswered: list[tuple[int, Reply]] = []

    def settle(self, index: int, future: Future[Reply]) -> list[tuple[int, Reply]]:
        """What may be yielded now that one more body is settled."""
        try:
            reply = future.result()
        except (RepnoiseError, _Spent) as error:
            self.stop(error)
            return []
        if reply.problem:
            self.unanswered.append((index, reply))
            if len(self.unanswered) >= self.client.patience.hopeless:
                self.stop(self.client.gone(reply.problem))
            return []
        self.alive = True
        proven = [] if self.error else self.unanswered
        self.unanswered = []
        return [*proven, (index, reply)]

    def stop(self, error: RepnoiseError | _Spent) -> None:
        self.error = self.error or error
        self.client.stopped.set()

    def end(self) -> list[tuple[int, Reply]]:
        """What is left to yield; raises what ended everything."""
        if self.unanswered and not self.alive:
            self.stop(self.client.gone(self.unanswered[-1][1].problem))
        if isinstance(self.error, _Spent):
            raise self.client.spent(self.error.kind, self.error.most)
        if self.error:
            raise self.error
        return self.unanswered


class JsonClient:
    """Posts JSON bodies and yields the replies as they come. What has been used counts over the client's life."""

    def __init__(self, service: Service, limits: Limits, patience: Patience | None = None) -> None:
        self.service, self.limits, self.patience = service, limits, patience or Patience()
        self.requests = self.tokens = self.answered = 0
        self.stopped = Event()
        self._lock, self._next_slot = Lock(), 0.0
        self._chance = random.Random()  # Not the global one: a seeded run must not depend on a server's moods.

    def ask(self, bodies: Iterable[bytes]) -> Iterator[tuple[int, Reply]]:
        """Index and reply of each body, in any order.

        A body that got no answer after all attempts is yielded with its problem once another one is answered; until
        then it may be the server that is gone. Raises RepnoiseError for what would go wrong for every body, a spent
        budget, and a server that is gone; before that all that was on its way has been received and yielded.
        """
        import httpx2

        self.stopped.clear()
        progress, todo, most = _Progress(self), enumerate(bodies), self.limits.concurrency
        under_way: dict[Future[Reply], int] = {}
        options: dict[str, Any] = {
            "verify": _trust(),
            "timeout": httpx2.Timeout(self.patience.deadline),
            "limits": httpx2.Limits(max_connections=most, max_keepalive_connections=most),
        }
        with httpx2.Client(auth=self.service.sign, **options) as http, ThreadPoolExecutor(most, "judge") as pool:
            try:
                while True:
                    while not progress.error and len(under_way) < most and (following := next(todo, None)):
                        under_way[pool.submit(self._answer, http, following[1])] = following[0]
                    if not under_way:
                        break
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        yield from progress.settle(under_way.pop(future), future)
            finally:
                self.stopped.set()
        yield from progress.end()

    def _answer(self, http: httpx2.Client, body: bytes) -> Reply:
        """One body's reply, after as many attempts as it takes."""
        problem = ""
        for failures in range(self.patience.attempts):
            if failures:
                self._wait(self.patience.delay(failures, self._chance))
            self._take_turn()
            try:
                reply = self._attempt(http, body)
            except _Failed as failed:
                problem = failed.problem
                self._pause(failed.pause)
                continue
            with self._lock:
                self.answered += reply.status == 200
                self.tokens += self.service.tokens(reply.data) if reply.status == 200 else 0
            return reply
        return Reply(problem=f"no answer after {self.patience.attempts} attempts; the last time: {problem}")

    def _attempt(self, http: httpx2.Client, body: bytes) -> Reply:
        import httpx2

        problem = ""
        try:
            status, headers, content = self._exchange(http, body)
        except httpx2.TimeoutException:
            problem = f"it took longer than {self.patience.deadline:g} seconds"
        except httpx2.HTTPError as error:  # Its text names the fault, such as a connection that was refused.
            problem = f"the connection failed: {' '.join(str(error).split()) or type(error).__name__}"
        if problem:
            raise _Failed(problem)
        return self._understood(status, headers, content)

    def _exchange(self, http: httpx2.Client, body: bytes) -> tuple[int, httpx2.Headers, bytes]:
        """Status, headers and body, without the key; a server that sends a byte now and then is late as well."""
        import httpx2

        start, content, kind = time.monotonic(), bytearray(), {"Content-Type": "application/json"}
        with http.stream("POST", self.service.address, content=body, headers=kind) as response:
            for chunk in response.iter_bytes():
                content += chunk
                if time.monotonic() - start > self.patience.deadline:
                    raise httpx2.ReadTimeout("")
                if len(content) > LARGEST:
                    raise httpx2.DecodingError("the answer does not end")
            return response.status_code, response.headers, self.service.key.removed_from(bytes(content))

    def _understood(self, status: int, headers: httpx2.Headers, content: bytes) -> Reply:
        service, fault = self.service, ""
        try:
            data = loads(content)
        except (JSONDecodeError, UnicodeDecodeError, RecursionError):
            data = None
        known = data if isinstance(data, dict) else {}
        if status != 200 and (fault := service.fatal(status, known)):
            raise RepnoiseError(f"{service.name} {fault} {KEPT}.", exit_code=1)
        if status in (401, 403):
            what = f"does not accept the key in {service.key.variable}" if service.key else "wants a key"
            raise RepnoiseError(f"{service.name} {what} (status {status}): set {service.key.variable} to a valid key.")
        if 300 <= status < 400 or status in (404, 405, 410):
            what = "there is nothing for judges at its address"
            raise RepnoiseError(f"{service.name} says that {what} (status {status}): check {service.address_variable}.")
        if status in RETRIED:
            raise _Failed(f"status {status}", self._asked_for(headers))
        if status == 200 and not isinstance(data, dict):
            raise _Failed("its answer is no JSON object")
        return Reply(status, known)

    def _asked_for(self, headers: httpx2.Headers) -> float:
        """Seconds of a Retry-After header, which has a number or a date."""
        text = headers.get("retry-after", "")
        try:
            seconds = float(text)
        except ValueError:
            try:
                date = parsedate_to_datetime(text)
                seconds = (date - datetime.now(UTC if date.tzinfo else None)).total_seconds()
            except (TypeError, ValueError):
                return 0.0
        if seconds > self.patience.longest_pause:
            raise RepnoiseError(f"{self.service.name} asks to come back in {seconds:.0f} seconds. {KEPT}.", exit_code=1)
        return max(0.0, seconds) if seconds == seconds else 0.0

    def _take_turn(self) -> None:
        """Wait for the pace and for pauses that the server asked for, then take one request from the budget."""
        with self._lock:
            now = time.monotonic()
            slot = max(now, self._next_slot)
            if self.limits.per_second:
                self._next_slot = slot + 1 / self.limits.per_second
        self._wait(slot - now)
        with self._lock:
            for kind, used, most in (
                ("requests", self.requests, self.limits.requests),
                ("tokens", self.tokens, self.limits.tokens),
            ):
                if most is not None and used >= most:
                    raise _Spent(kind, most)
            self.requests += 1

    def _pause(self, seconds: float) -> None:
        """A server that is asked too much is asked less by everybody."""
        with self._lock:
            self._next_slot = max(self._next_slot, time.monotonic() + seconds)

    def _wait(self, seconds: float) -> None:
        """Raises RepnoiseError when another text has met what ends everything; that one's error is told."""
        if self.stopped.wait(max(0.0, seconds)):
            raise RepnoiseError(f"{self.service.name} is not asked any more. {KEPT}.", exit_code=1)

    def spent(self, kind: str, most: int) -> RepnoiseError:
        variable = self.service.budget_variable + ("_TOKENS" if kind == "tokens" else "")
        done = f"after {self.requests} requests and {self.tokens} tokens, with {self.answered} answers"
        return RepnoiseError(
            f"The budget of {most} {kind} for {self.service.name} is spent {done}. {KEPT}, with a higher {variable} or "
            "the same one again.",
            exit_code=1,
        )

    def gone(self, problem: str) -> RepnoiseError:
        service = self.service
        return RepnoiseError(
            f"{service.name} gives no answer ({problem}): check the connection and {service.address_variable}, or come "
            f"back later. {KEPT}.",
            exit_code=1,
        )


@cache
def _trust() -> ssl.SSLContext:
    """Which certificates are trusted; read once, since that takes longer than a request."""
    import httpx2

    return httpx2.create_ssl_context()


def verdicts_of(
    client: JsonClient,
    completions: Sequence[Completion],
    body: Callable[[Completion], dict[str, Any]],
    score: Callable[[Reply], Score],
) -> Iterator[tuple[int, Score]]:
    """The verdicts on completions: a broken one is not asked about, and what is the same question is asked once."""
    places: dict[bytes, list[int]] = {}
    for index, completion in enumerate(completions):
        if why := broken(completion.text):
            yield index, Score(0.0, "incoherent", why)
        else:
            # In ASCII: half of a character pair, which no UTF-8 can hold, must not stop anything.
            places.setdefault(dumps(body(completion)).encode("ascii"), []).append(index)
    asked = list(places)
    for number, reply in client.ask(asked) if asked else ():
        verdict = score(reply)
        for index in places[asked[number]]:
            yield index, verdict
