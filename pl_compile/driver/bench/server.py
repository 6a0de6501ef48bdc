"""A server under load, measured from here: ours, or any other that speaks OpenAI's protocol."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pl_compile.driver.bench.client import Address, Answer
from pl_compile.driver.bench.load import Figures, closed_loop, figures_of, open_loop
from pl_compile.driver.bench.machine import Machine, this_machine, versions
from pl_compile.driver.bench.texts import words
from pl_compile.errors import RequestError, check_all, unknown_name
from pl_compile.progress import SILENT, Progress

FORMAT = "plc.bench.server"
VERSION = 1

# How our server names itself in its list of models.
OWNER = "plc"


@dataclass(frozen=True)
class ServerLoad:
    """What a server is asked.

    Attributes:
        tasks: names of its models, taken in turn; if empty, all tasks of our server, and the first
            model of another.
        clients: that wait for their answers (closed loop).
        rate: requests a second, sent whatever comes back (open loop); None for a closed loop.
        requests: how many are counted. One for each task comes before them and is not.
        input_tokens: about how many tokens the fields of a prompt, or the prompt, have.
        tokens: of an answer.
        fixed: whether no end token may end an answer. Our server can do that always; others are
            sent `ignore_eos`, which llama.cpp and vLLM know.
    """

    tasks: tuple[str, ...] = ()
    clients: int = 8
    rate: float | None = None
    requests: int = 64
    input_tokens: int = 64
    tokens: int = 32
    fixed: bool = True

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be asked for."""
        checks = {
            f"{name} {getattr(self, name)}, expected at least 1": getattr(self, name) >= 1
            for name in ("clients", "requests", "input_tokens", "tokens")
        }
        checks[f"rate {self.rate}, expected more than 0"] = self.rate is None or self.rate > 0
        check_all(RequestError, "reading what to ask for", checks)


@dataclass(frozen=True)
class Model:
    """A model that a server lists; with ours, a task.

    Attributes:
        name: as requests name it.
        fields: that a request fills; None where the server is not ours.
    """

    name: str
    fields: tuple[str, ...] | None

    def body(self, load: ServerLoad, number: int) -> dict[str, Any]:
        """A request to it: always the same one for the same number."""
        limits: dict[str, Any] = {"model": self.name, "max_tokens": load.tokens, "temperature": 0}
        if self.fields is None:
            # No key is sent that OpenAI's own server does not know, unless it was asked for.
            ends = {"ignore_eos": True} if load.fixed else {}
            return {**limits, "prompt": words(load.input_tokens, number), **ends}
        each = max(1, load.input_tokens // max(1, len(self.fields)))
        texts = {
            name: words(each, number * len(self.fields) + place)
            for place, name in enumerate(self.fields)
        }
        more = {"min_tokens": load.tokens, "constrain": False} if load.fixed else {}
        return {**limits, "fields": texts, **more}


@dataclass(frozen=True)
class ServerReport:
    """What `bench_server` found. docs/performance.md describes it as JSON.

    Attributes:
        url: of the server.
        ours: whether it is `plc serve`.
        machine: that asked. The server may run on another.
        versions: of the client's packages.
        load: what was asked, every default filled in.
        figures: what came back.
        client_load: processors that the client kept busy on average: it takes them from a server on
            the same machine, and near 1 it may itself be what limits the figures.
        format: what this is.
        version: of the format; it grows when a key changes its meaning or goes.
    """

    url: str
    ours: bool
    machine: Machine
    versions: dict[str, str]
    load: ServerLoad
    figures: Figures
    client_load: float
    format: str = FORMAT
    version: int = VERSION


def bench_server(
    address: Address, load: ServerLoad, *, progress: Progress = SILENT
) -> ServerReport:
    """Measures a server from here.

    Args:
        address: of the server.
        load: what to ask.
        progress: is told how far it is.

    Raises:
        RequestError: the server does not answer, has no such task, or answers no request.
    """
    models = models_of(address)
    chosen = _chosen(models, load, address)
    load = replace(load, tasks=tuple(model.name for model in chosen))

    def ask(number: int, since: float | None) -> Answer:
        body = chosen[number % len(chosen)].body(load, number)
        return address.stream(body, since=since)

    for number in range(len(chosen)):
        # Others than those that are counted: a server may keep what it has seen.
        answer = ask(load.requests + number, None)
        if answer.error is not None:
            raise RequestError(
                f"asking {address.url} for a first answer of '{chosen[number].name}'",
                found=": ".join(filter(None, (answer.error, answer.words))),
            )
    busy = time.process_time()
    if load.rate is None:
        answers = closed_loop(ask, clients=load.clients, requests=load.requests, progress=progress)
    else:
        answers = open_loop(ask, rate=load.rate, requests=load.requests, progress=progress)
    busy = time.process_time() - busy
    figures = figures_of(answers)
    return ServerReport(
        url=address.url,
        ours=any(model.fields is not None for model in models),
        machine=this_machine(),
        versions=versions(),
        load=load,
        figures=figures,
        client_load=busy / figures.seconds,
    )


def models_of(address: Address) -> list[Model]:
    """The models that a server lists.

    Raises:
        RequestError: it does not answer, or lists none.
    """
    listed = address.call("GET", "/v1/models")
    entries = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(entries, list) or not entries:
        raise RequestError(
            f"reading the models of {address.url}", found="none", expected="OpenAI's list of models"
        )
    return [_model_of(entry) for entry in entries if isinstance(entry, dict)]


def _model_of(entry: Mapping[str, Any]) -> Model:
    fields = entry.get("fields") if entry.get("owned_by") == OWNER else None
    return Model(str(entry.get("id")), None if fields is None else tuple(map(str, fields)))


def _chosen(models: list[Model], load: ServerLoad, address: Address) -> list[Model]:
    by_name = {model.name: model for model in models}
    for name in load.tasks:
        if name not in by_name:
            found, fix = unknown_name(name, tuple(by_name), what="task")
            raise RequestError(f"choosing what to ask {address.url}", found=found, fix=fix)
    if load.tasks:
        return [by_name[name] for name in load.tasks]
    return [model for model in models if model.fields is not None] or models[:1]
