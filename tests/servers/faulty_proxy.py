"""A proxy on loopback that fails some requests, delays some, and cuts some bodies off: by chance, the same in each run.

Headers pass as they are, so that signatures stay valid. It counts what goes through.
"""

import http.client
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass(frozen=True)
class Faults:
    """Shares of requests, 0 to 1: answered 503, kept waiting, and, of GET requests, with a body that ends too early."""

    failed: float = 0.0
    slow: float = 0.0
    cut: float = 0.0
    seconds: float = 1.0
    """that a slow one waits"""
    seed: int = 0


SOME_OF_EACH = Faults(0.05, 0.05, 0.05)


@dataclass
class Proxy:
    """A running proxy. `faults` may be changed while it runs."""

    address: str
    target: str
    faults: Faults
    requests: list[tuple[str, str, str | None, int]] = field(default_factory=list)
    """method, path, range and bytes of the body of each answer that passed"""
    injected: dict[str, int] = field(default_factory=lambda: {"failed": 0, "slow": 0, "cut": 0})
    """how often by now"""
    most_at_once: int = 0
    """requests that were under way together"""
    _under_way: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.faults.seed)

    @property
    def bytes_read(self) -> int:
        return sum(size for method, _, _, size in self.requests if method == "GET")

    def clear(self) -> None:
        self.requests.clear()

    @contextmanager
    def one_more(self) -> Iterator[None]:
        with self._lock:
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1

    def draw(self, method: str) -> str:
        """What happens to the next request: failed, slow, cut, or nothing."""
        with self._lock:
            value = self._chance.random()
            shares = [("failed", self.faults.failed), ("slow", self.faults.slow), ("cut", self.faults.cut)]
            for what, share in shares:
                if value < share:
                    what = what if what != "cut" or method == "GET" else ""
                    if what:
                        self.injected[what] += 1
                    return what
                value -= share
            return ""


class Handler(BaseHTTPRequestHandler):
    """Of a server that keeps connections open, and says nothing."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def log_message(self, *words: object) -> None:
        pass


class _Handler(Handler):
    proxy: Proxy

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.draw(self.command)
        if fault == "failed":
            self._answer(503, [], b"<Error><Code>ServiceUnavailable</Code></Error>")
            return
        with self.proxy.one_more():
            if fault == "slow":
                time.sleep(self.proxy.faults.seconds)
            status, headers, answer = self._ask(body)
        self.proxy.requests.append((self.command, self.path, self.headers.get("Range"), len(answer)))
        self._answer(status, headers, answer, cut=fault == "cut" and len(answer) > 1)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        link = http.client.HTTPConnection(urlsplit(self.proxy.target).netloc, timeout=60)
        try:
            link.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "connection":
                    link.putheader(name, value)
            link.endheaders(body or None)
            found = link.getresponse()
            return found.status, found.getheaders(), found.read()
        finally:
            link.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        length = str(len(body))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.wfile.flush()
        self.close_connection = self.close_connection or cut


class Server(ThreadingHTTPServer):
    """Serves each connection in a thread; says nothing of clients that went away."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@contextmanager
def faulty_proxy(target: str, faults: Faults = SOME_OF_EACH) -> Iterator[Proxy]:
    """Starts a proxy in threads of this process, before the server at `target`."""
    handler = type("Handler", (_Handler,), {})
    server = Server(("127.0.0.1", 0), handler)
    handler.proxy = proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}", target, faults)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
