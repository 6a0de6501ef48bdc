"""One request to a server that speaks OpenAI's protocol, its answer piece by piece.

Each request has a connection of its own, as from a client that asks for the first time.
"""

import json
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from pl_compile.errors import RequestError, first_line_of

# Characters of a server's own words that are kept.
_MOST_WORDS = 300

# What an answer has as its error that was not read to its end.
LEFT = "left"


@dataclass(frozen=True)
class Address:
    """Where a server is.

    Attributes:
        host: its name or number.
        port: it listens to.
        path: before `/v1`; mostly empty.
        secure: whether it speaks TLS.
        api_key: is sent with each request; empty for none.
        timeout: seconds that a server may be silent.
        key_option: how a command is given the key, for errors.
    """

    host: str
    port: int
    path: str = ""
    secure: bool = False
    api_key: str = field(default="", repr=False)
    timeout: float = 60.0
    key_option: str = "--api-key"

    @classmethod
    def of(
        cls, url: str, *, api_key: str = "", timeout: float = 60.0, key_option: str = "--api-key"
    ) -> "Address":
        """The address that a URL names, with or without `/v1` at its end.

        Raises:
            RequestError: it is not a URL of HTTP.
        """
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RequestError(
                "reading the server's address", found=f"'{url}'", expected="http://HOST:PORT"
            )
        secure = parts.scheme == "https"
        path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
        port = port or (443 if secure else 80)
        return cls(parts.hostname, port, path, secure, api_key, timeout, key_option)

    @property
    def url(self) -> str:
        """The address as people write it."""
        scheme = "https" if self.secure else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}{self.path}"

    def _connection(self) -> HTTPConnection:
        kind = HTTPSConnection if self.secure else HTTPConnection
        return kind(self.host, self.port, timeout=self.timeout)

    def call(self, method: str, path: str) -> Any:
        """What a server answers, read from JSON.

        Raises:
            RequestError: it does not answer, or not with JSON.
        """
        try:
            return json.loads(self.text(method, path))
        except ValueError as error:
            doing = f"asking {self.url}{path}"
            raise RequestError(doing, found="no JSON", expected="OpenAI's protocol") from error

    def text(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> str:
        """What a server answers, as a text.

        Args:
            method: of HTTP.
            path: after the address.
            body: is sent as JSON, if there is one.

        Raises:
            RequestError: it does not answer, or refuses.
        """
        doing = f"asking {self.url}{path}"
        try:
            with closing(self._connection()) as connection:
                response = self._send(connection, method, path, body)
                data = response.read()
        except (OSError, HTTPException) as error:
            kind, words = kind_of(error)
            raise RequestError(
                doing, found=words or kind, fix="Is the server running, and this its address?"
            ) from error
        if response.status >= 400:
            fix = f"Give {self.key_option}." if response.status in (401, 403) else ""
            raise RequestError(doing, found=f"HTTP {response.status}: {words_of(data)}", fix=fix)
        return data.decode("utf-8", "replace")

    def _send(
        self, connection: HTTPConnection, method: str, path: str, body: Mapping[str, Any] | None
    ) -> HTTPResponse:
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body)
        connection.connect()
        if connection.sock is not None:
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.request(method, self.path + path, data, headers)
        return connection.getresponse()

    def stream(
        self,
        body: Mapping[str, Any],
        *,
        since: float | None = None,
        leave_after: int | None = None,
    ) -> "Answer":
        """Sends a request for a text, and notes when each piece of the answer comes.

        It raises nothing: what goes wrong is in the answer.

        Args:
            body: for `/v1/completions`; `stream` is set here.
            since: when the request was to be sent, by `time.perf_counter`; now if None.
            leave_after: pieces after which the connection is closed; None stays to the end.
        """
        answer = Answer(time.perf_counter() if since is None else since)
        try:
            with closing(self._connection()) as connection:
                wanted = {**body, "stream": True, "stream_options": {"include_usage": True}}
                response = self._send(connection, "POST", "/v1/completions", wanted)
                if response.status >= 400:
                    answer.fail(f"HTTP {response.status}", words_of(response.read()))
                elif "text/event-stream" not in response.getheader("Content-Type", ""):
                    answer.fail("no stream", words_of(response.read()))
                else:
                    answer.take(response, leave_after=leave_after)
        except (OSError, HTTPException, ValueError) as error:
            answer.fail(*kind_of(error))
        answer.ended = time.perf_counter()
        return answer


@dataclass
class Answer:
    """What came back of a request, by `time.perf_counter`.

    Attributes:
        started: when the request was sent, or was to be sent.
        pieces: when each piece of the text came; the first one is the first token.
        texts: the pieces.
        ended: when the answer was complete, or failed.
        tokens: of the answer, as the server counts them; None where it does not say.
        prompt_tokens: of the prompt, as the server counts them.
        finish_reason: why the answer ended, in the server's word.
        error: the kind of what went wrong; None where all is well.
        words: what the server, or the system, says about it.
    """

    started: float
    pieces: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ended: float = 0.0
    tokens: int | None = None
    prompt_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    words: str = ""

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.texts)

    @property
    def written(self) -> int:
        """Tokens of the answer; its pieces where the server does not count."""
        return len(self.pieces) if self.tokens is None else self.tokens

    def fail(self, kind: str, words: str = "") -> None:
        """Notes what went wrong."""
        self.error, self.words = kind, words[:_MOST_WORDS]

    def take(self, lines: Iterable[bytes], *, leave_after: int | None = None) -> None:
        """Reads a stream of events to its end, or until it has so many pieces."""
        for event in events_of(lines):
            if leave_after is not None and len(self.pieces) >= leave_after:
                self.fail(LEFT)
                return
            if event is None:
                if not self.pieces:
                    self.fail("an answer without tokens")
                return
            if "error" in event:
                self.fail("an error in the stream", json.dumps(event["error"]))
                return
            self._take_event(event)
        self.fail("a stream that broke off")

    def _take_event(self, event: Mapping[str, Any]) -> None:
        choices = event.get("choices") or ()
        for choice in choices[:1]:
            reason, text = choice.get("finish_reason"), choice.get("text") or ""
            # A token may have no text yet: it may be part of a character.
            if text or reason is None:
                self.pieces.append(time.perf_counter())
                self.texts.append(text)
            self.finish_reason = reason or self.finish_reason
        usage = event.get("usage")
        if isinstance(usage, Mapping):
            self.tokens = usage.get("completion_tokens", self.tokens)
            self.prompt_tokens = usage.get("prompt_tokens", self.prompt_tokens)


def events_of(lines: Iterable[bytes]) -> Iterator[dict[str, Any] | None]:
    """The events of a stream (server-sent events), each one line of JSON; None at its end.

    Raises:
        ValueError: an event that is no JSON object.
    """
    for line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            yield None
            return
        event = json.loads(data)
        if not isinstance(event, dict):
            raise ValueError("an event that is no object")
        yield event


def kind_of(error: Exception) -> tuple[str, str]:
    """The kind of an error of the network, and its words."""
    if isinstance(error, TimeoutError):
        return "timeout", "the server was silent for too long"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused", "the connection was refused"
    if isinstance(error, ConnectionError):
        return "connection lost", first_line_of(error)
    if isinstance(error, OSError):
        return "network", error.strerror or first_line_of(error)
    return "not OpenAI's protocol", first_line_of(error)


def words_of(data: bytes) -> str:
    """What a server says about an error, as a line."""
    text = data.decode("utf-8", "replace")
    try:
        error = json.loads(text)["error"]
        text = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(text.split())[:_MOST_WORDS]
