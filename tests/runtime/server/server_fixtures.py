"""A tiny bundle, and servers on it: without a network, or as a process."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server_process import Process, starter
from starlette.testclient import TestClient

from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.runtime import AsyncSession, Session
from pl_compile.runtime.server.app import make_app
from pl_compile.runtime.server.limits import Limits
from pl_compile.runtime.server.service import Keys, Service
from pl_compile.testing import random_table

KEYS = Keys(admin="admin-key")


class Served:
    """A server that is called without a network."""

    def __init__(self, bundle: Path, max_batch: int, limits: Limits, keys: Keys) -> None:
        self.session = Session.open(bundle, max_batch=max_batch)
        self.answers = AsyncSession(self.session)
        self.service = Service(limits, keys, [bundle])
        self.service.open(self.answers)
        self.client = TestClient(make_app(self.service))

    def post(self, path: str, **body: Any) -> Any:
        return self.client.post(path, json=body)


@pytest.fixture(scope="session")
def bundle(tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the tasks `tone` (labels) and `ask` (two fields), both with a folded prefix."""
    folder = tmp_path_factory.mktemp("server")
    table = random_table(tiny_bases["llama"], folder / "table.safetensors")
    request = ExportRequest(
        table,
        tiny_bases["llama"],
        folder / "bundle",
        capacity=96,
        fold="always",
        measure_parity=False,
    )
    export_bundle(request)
    return folder / "bundle"


@pytest.fixture
def serve(bundle: Path) -> Iterator[Callable[..., Served]]:
    """Makes a server; it is closed after the test."""
    made: list[Served] = []

    def make(
        *, limits: Limits | None = None, keys: Keys = KEYS, max_batch: int = 4, of: Path = bundle
    ) -> Served:
        made.append(Served(of, max_batch, limits or Limits(), keys))
        return made[-1]

    yield make
    for served in made:
        asyncio.run(served.answers.close())


@pytest.fixture(scope="module")
def shared(bundle: Path) -> Iterator[Served]:
    """A server for tests that leave it as it was."""
    served = Served(bundle, 4, Limits(), KEYS)
    yield served
    asyncio.run(served.answers.close())


class Held:
    """Steps wait until they are let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.entered = threading.Event()


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Session], Held]]:
    """Holds the steps of a session; they are let go after the test."""
    holds: list[Held] = []

    def make(session: Session) -> Held:
        assert session._flow is not None
        rows = session._flow.batch._rows
        held, step = Held(), rows.step

        def waiting(given: Any) -> Any:
            held.entered.set()
            assert held.go.wait(60)
            return step(given)

        monkeypatch.setattr(rows, "step", waiting)
        holds.append(held)
        return held

    yield make
    for held in holds:
        held.go.set()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts `plc serve`; with `hold`, steps wait as long as that file is there."""
    yield from starter(tmp_path)


@pytest.fixture(scope="module")
def start_for_module(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., Process]]:
    """The same; the servers run until the end of the module."""
    yield from starter(tmp_path_factory.mktemp("servers"))
