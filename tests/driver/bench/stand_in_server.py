"""A server that speaks as much of OpenAI's protocol as a test needs."""

import json
import signal
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What a test's server does with a request: its events; a status and a body instead of a stream.
Answers = Callable[[dict[str, Any]], Iterator[dict[str, Any] | str]]


@dataclass
class StandIn:
    """A server that runs.

    Attributes:
        url: of it.
        bodies: of all requests for a text, in the order in which they came.
        keys: what each of them was authorised with.
        most_at_once: most requests that were open together.
    """

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most_at_once: int = 0


def piece(text: str, reason: str | None = None) -> dict[str, Any]:
    """An event with a piece of an answer."""
    return {"choices": [{"index": 0, "text": text, "finish_reason": reason}]}


def whole(tokens: int, pause: float = 0.0) -> Iterator[dict[str, Any] | str]:
    """The events of an answer of so many tokens."""
    for number in range(tokens):
        time.sleep(pause)
        yield piece(f" {number}")
    yield piece("", "length")
    yield {"choices": [], "usage": {"prompt_tokens": 40, "completion_tokens": tokens}}
    yield "[DONE]"


@contextmanager
def stand_in(models: list[dict[str, Any]], answers: Answers, port: int = 0) -> Iterator[StandIn]:
    """A server that lists `models`, and gives `answers`."""
    server = StandIn()
    at_once = 0
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Says nothing."""

        def do_GET(self) -> None:
            self._whole(200, {"object": "list", "data": models})

        def do_POST(self) -> None:
            nonlocal at_once
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                at_once += 1
                server.most_at_once = max(server.most_at_once, at_once)
                server.bodies.append(body)
                server.keys.append(self.headers.get("Authorization"))
            with ExitStack() as under_way:
                under_way.callback(self._leave)
                self._answer(body, under_way)

        def _leave(self) -> None:
            nonlocal at_once
            with lock:
                at_once -= 1

        def _answer(self, body: dict[str, Any], under_way: ExitStack) -> None:
            begun = False
            for event in answers(body):
                if event == "[DONE]":
                    under_way.close()  # before a client that has it asks again
                if isinstance(event, dict) and "status" in event:
                    self._whole(event["status"], event["body"])
                    return
                if not begun:
                    self.send_response(200)
                    self.send_header("Content-Type", "text/event-stream")
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    begun = True
                data = event if isinstance(event, str) else json.dumps(event)
                line = f"data: {data}\n\n".encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.write(b"0\r\n\r\n")

        def _whole(self, status: int, body: Any) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    socketserver.TCPServer.request_queue_size = 64
    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


if __name__ == "__main__":  # as a process of its own: stand_in_server.py PORT
    with stand_in([{"id": "a"}], lambda body: whole(body["max_tokens"]), int(sys.argv[1])):
        signal.pause()
