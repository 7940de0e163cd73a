"""A real web server on this machine that answers by plan, well or badly, and remembers what it was asked."""

import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Answer:
    """One answer: JSON, or bytes as they are. `missing` bytes are promised and not sent, `drip` sends one every so many
    seconds, and with a `status` of 0 the connection is closed without a word."""

    body: object = field(default_factory=dict)
    status: int = 200
    headers: tuple = ()
    delay: float = 0.0
    missing: int = 0
    drip: float = 0.0


class Server(ThreadingHTTPServer):
    """`plan(body, tries)` says how to answer; `tries` counts how often this body came before."""

    daemon_threads, block_on_close = True, False

    def __init__(self, plan):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.plan, self.lock, self.ending = plan, threading.Lock(), threading.Event()
        self.asked, self.answered = Counter(), Counter()
        self.bodies, self.headers, self.paths, self.times = [], [], [], []
        self.now = self.most = 0

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """A client that gave up waiting is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server, raw = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        with server.lock:
            tries = server.asked[raw]
            server.asked[raw] += 1
            server.now += 1
            server.most = max(server.most, server.now)
            server.bodies.append(json.loads(raw))
            server.headers.append(dict(self.headers))
            server.paths.append(self.path)
            server.times.append(time.monotonic())
        try:
            answer = server.plan(json.loads(raw), tries)
            server.ending.wait(answer.delay)
        finally:
            with server.lock:  # Before the answer goes out, or the client's next request could come sooner.
                server.now -= 1
        self._send(answer)
        with server.lock:
            server.answered[raw] += answer.status == 200 and not answer.missing and not answer.delay

    def _send(self, answer):
        if answer.status == 0:
            self.close_connection = True
            return
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) + answer.missing))
        self.end_headers()
        for piece in [content[i : i + 1] for i in range(len(content))] if answer.drip else [content]:
            self.wfile.write(piece)
            self.wfile.flush()
            self.server.ending.wait(answer.drip)
        self.close_connection = bool(answer.missing)

    def log_message(self, format, *arguments):
        """Nothing is printed."""


@contextmanager
def serving(plan):
    server = Server(plan)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.ending.set()
        server.shutdown()
        thread.join()
        server.server_close()


TROUBLES = {
    "too many requests": Answer({"error": {"message": "slow down"}}, 429),
    "too many requests, come back at once": Answer({}, 429, (("Retry-After", "0"),)),
    "internal error": Answer(b"<html>oh dear</html>", 500),
    "bad gateway": Answer(b"", 502),
    "unavailable": Answer({}, 503, (("Retry-After", "soon"),)),
    "gateway timeout": Answer({}, 504),
    "cut short": Answer({"value": 1}, missing=50),
    "too slow": Answer({"value": 1}, delay=5.0),
    "too slow by the byte": Answer({"value": "x" * 100}, drip=0.05),
    "no JSON": Answer(b"<html>it works</html>"),
    "half of a JSON": Answer(b'{"value": '),
    "no text": Answer(b"\xff\xfe"),
    "no object": Answer([1, 2]),
    "hung up": Answer(status=0),
}
"""What a client has to try again after."""
