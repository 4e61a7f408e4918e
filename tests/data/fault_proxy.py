"""A proxy before an S3 server that makes faults on demand: in the answers, in the time they take, in the connection."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

# What may happen to a request; decided by the path and the number of requests for it so far.
Fault = Callable[[str, int], str | None]


class FaultProxy:
    """Forwards to `target` what comes to `url`.

    `fault` names what happens to a GET of a shard, or of another object whose name ends with `suffix`; None is nothing.
    """

    def __init__(self, target: str, suffix: str = ".mds") -> None:
        self.target = urlsplit(target).netloc
        self.suffix = suffix
        self.fault: Fault = lambda path, count: None
        self.gets: Counter[str] = Counter()
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, on the same port as before."""
        server = _Server(("127.0.0.1", self._port), _Handler)
        server.proxy = self
        self._server, self._port = server, server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Close the port and every connection, as the death of a server does."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._server.cut()

    def fault_of(self, path: str) -> str | None:
        name = urlsplit(path).path.rsplit("/", 1)[-1]
        if not name.endswith(self.suffix):
            return None
        with self._lock:
            self.gets[name] += 1
            return self.fault(name, self.gets[name])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    proxy: FaultProxy

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.open: set[socket.socket] = set()

    def process_request(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:  # type: ignore[no-untyped-def]
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        """A client that goes away is part of the tests."""

    def cut(self) -> None:
        for connection in list(self.open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _forward(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = proxy.fault_of(self.path) if self.command == "GET" else None
        if fault == "hang":
            proxy.ended.wait(60)
            self.close_connection = True
            return
        if fault in ("503", "403", "404"):
            code = {"503": "SlowDown", "403": "SignatureDoesNotMatch", "404": "NoSuchKey"}[fault]
            answer = f"<Error><Code>{code}</Code><Message>made up</Message></Error>".encode()
            self._answer(int(fault), [("Content-Type", "application/xml")], answer)
            return
        upstream = http.client.HTTPConnection(proxy.target, timeout=30)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        data = answer.read()
        headers = [h for h in answer.getheaders() if h[0].lower() not in ("content-length", "transfer-encoding")]
        if fault == "flip":
            data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]
        length = int(answer.getheader("Content-Length") or 0) if self.command == "HEAD" else len(data)
        self._answer(answer.status, headers, data, length, fault)

    def _answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        data: bytes,
        length: int | None = None,
        fault: str | None = None,
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif fault == "trickle":
            for i in range(len(data)):
                self.wfile.write(data[i : i + 1])
                time.sleep(0.05)
        else:
            if fault == "slow":
                time.sleep(0.3)
            self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward

    def log_message(self, format: str, *args: object) -> None:
        """Tests have their own output."""
