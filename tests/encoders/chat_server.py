"""A real HTTP server on this machine that speaks OpenAI's chat completions, as a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-very-secret-0123456789"


@dataclass
class Reply:
    """What the server answers: a status, a JSON value or raw text, and headers. `seconds` it waits before."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def completion(text: str | None, finish_reason: str = "stop") -> Reply:
    return Reply(
        body={"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}]}
    )


@dataclass
class ChatServer:
    """The running server: its base URL, and every request in the order of arrival."""

    url: str
    requests: list[dict[str, Any]]
    keys: list[str | None]


@contextmanager
def chat_server(reply: Callable[[int, dict[str, Any]], Reply]) -> Iterator[ChatServer]:
    """Serve; `reply(number, content)` answers request `number`, counted from 0."""
    lock = threading.Lock()
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.requests)
                server.requests.append({"path": self.path, **content})
                server.keys.append(self.headers.get("Authorization"))
            answer = reply(number, content)
            stop.wait(answer.seconds)
            body = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = ChatServer(f"http://127.0.0.1:{http.server_port}/v1", [], [])
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        http.shutdown()
        http.server_close()
        thread.join()
