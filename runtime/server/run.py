"""Runs the server: listens, loads, answers, and ends when it is told to."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from pl_compile.errors import (
    ArtifactError,
    FingerprintError,
    PlcError,
    RequestError,
    reason_of,
)
from pl_compile.runtime.async_session import AsyncSession
from pl_compile.runtime.requests import Request
from pl_compile.runtime.server.app import make_app
from pl_compile.runtime.server.limits import Limits
from pl_compile.runtime.server.service import Keys, Service, log
from pl_compile.runtime.session import Session

# More connections than this are refused: each takes memory before it sends a request.
_MOST_CONNECTIONS = 1024


@dataclass(frozen=True)
class Listening:
    """Where a server answers.

    Attributes:
        url: of its root.
        tasks: that it serves.
    """

    url: str
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where a server listens.

    Attributes:
        host: a name or an address.
        port: 0 takes a free one.
    """

    host: str = "127.0.0.1"
    port: int = 8000

    def listen(self) -> socket.socket:
        """A socket at this place; it listens once the server runs.

        Raises:
            RequestError: the address cannot be taken.
        """
        try:
            ((family, kind, proto, _, address), *_) = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            with ExitStack() as until_bound:
                listener = until_bound.enter_context(socket.socket(family, kind, proto))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
                until_bound.pop_all()
        except OSError as error:
            raise RequestError(
                f"listening on {self.host} port {self.port}",
                found=reason_of(error),
                fix="Choose another --host or --port; port 0 takes a free one.",
            ) from error
        return listener


def serve(
    open_session: Callable[[], Session],
    *,
    bundles: Sequence[Path],
    place: Place,
    limits: Limits,
    keys: Keys,
    announce: Callable[[Listening], None],
    playground: bool = True,
) -> int:
    """Serves until a signal ends it.

    It listens at once, loads then, and calls `announce` when it is ready. The first SIGTERM or
    SIGINT ends it when the requests under way have ended, the second at once.

    Args:
        open_session: opens the bundles.
        bundles: whose tasks may be added while the server runs.
        place: where it listens.
        limits: what is let in.
        keys: that clients must send.
        announce: is told once, when requests are answered.
        playground: whether `/` is a page to try the tasks on.

    Returns:
        How many requests were cut short at the end.

    Raises:
        PlcError: the bundles cannot be opened, or the address cannot be taken.
    """
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s")
    log.setLevel(logging.INFO)
    service = Service(limits, keys, bundles)
    with place.listen() as listener:
        return asyncio.run(_Run(open_session, service, listener, announce, playground).run())


def open_intact(bundles: Sequence[Path], open_one: Callable[[Path], Session]) -> Session:
    """A session on those of several bundles that are intact; what the others have is logged.

    Args:
        bundles: at least one.
        open_one: opens a session on the first that is intact.

    Raises:
        ArtifactError: none is intact; then what is wrong with the first one.
        PlcError: bundles that do not go together.
    """
    session: Session | None = None
    damaged: list[ArtifactError] = []
    for bundle in bundles:
        try:
            if session is None:
                session = open_one(bundle)
            else:
                session.add_tasks(bundle)
        except PlcError as error:
            # Another base is no damage, but a mistake of who starts the server.
            if isinstance(error, ArtifactError) and not isinstance(error, FingerprintError):
                damaged.append(error)
                continue
            if session is not None:
                session.close()
            raise
    if session is None:
        raise damaged[0]
    for each in damaged:
        log.error("a bundle is not served: %s", each)
    return session


def warm(session: Session) -> None:
    """Runs a request, so that the first client does not wait for what is made at first use."""
    name, task = next(iter(session.tasks.items()))
    fields = dict.fromkeys(task.renderer.template.input_fields, "a")
    session.generate([Request(name, fields, max_tokens=2, constrain=False)])


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own handling of signals, which knows no draining."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass
class _Run:
    open_session: Callable[[], Session]
    service: Service
    listener: socket.socket
    announce: Callable[[Listening], None]
    playground: bool
    error: Exception | None = None
    cut: int = 0
    kept: list["asyncio.Task[None]"] = field(default_factory=list)

    async def run(self) -> int:
        config = uvicorn.Config(
            make_app(self.service, playground=self.playground),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        self.server = _Uvicorn(config)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop, number)
        self.kept.append(asyncio.ensure_future(self._load()))
        await self.server.serve(sockets=[self.listener])
        await self.service.close()
        if self.error is not None:
            raise self.error
        return self.cut

    async def _load(self) -> None:
        def opened() -> Session:
            session = self.open_session()
            warm(session)
            return session

        try:
            session = await asyncio.to_thread(opened)
            self.service.open(AsyncSession(session))
            host, port = self.listener.getsockname()[:2]
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            self.announce(Listening(url, tuple(session.tasks)))
        except Exception as error:
            self.error, self.server.should_exit = error, True

    def _told_to_stop(self, number: int) -> None:
        service = self.service
        if service.draining or not service.is_open:
            log.info("signal %d: ends at once", number)
            sys.stderr.flush()
            os._exit(128 + number if service.draining else 0)
        service.draining = True
        log.info("signal %d: %d requests end first", number, service.gate.under_way)
        self.kept.append(asyncio.ensure_future(self._drain()))

    async def _drain(self) -> None:
        self.cut = await self.service.gate.until_idle(self.service.limits.drain_seconds)
        if self.cut:
            log.warning("%d requests are cut short", self.cut)
            await self.service.cut_short()
        self.server.should_exit = True
