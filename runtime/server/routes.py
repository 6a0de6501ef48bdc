"""What each route does."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.types import Send

from pl_compile.artifact.bundle import TASK_NAME, files_of_bundle
from pl_compile.config.strict_json import parse_json
from pl_compile.errors import PlcError, RequestError
from pl_compile.runtime.requests import Event, Result
from pl_compile.runtime.server.faults import HttpError, is_mistake, refusal_of
from pl_compile.runtime.server.metrics import CONTENT_TYPE
from pl_compile.runtime.server.openai import (
    Asked,
    Kind,
    Shape,
    asked_of,
    body_schema,
    check_body,
    labels_of,
    likeliest_of,
    model_of,
)
from pl_compile.runtime.server.schema import object_of, text
from pl_compile.runtime.server.service import Clock, Service, log

T = TypeVar("T")

# Seconds that a client has to take the rest of an answer that has ended.
_TO_TAKE = 5


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


@dataclass
class Noted:
    """What the log says of a request.

    Attributes:
        id: of the request, and of its answer.
        task: that was asked; only names that exist.
        tokens: of prompt and answer.
        code: of the error, if it got one.
    """

    id: str = field(default_factory=lambda: secrets.token_hex(12))
    task: str = "-"
    tokens: tuple[int, int] = (0, 0)
    code: str = "-"


@dataclass(frozen=True)
class Call:
    """One call of a route.

    Attributes:
        service: the server's state.
        http: the request.
        send: takes the answer; for routes that send it themselves.
        noted: for the log.
    """

    service: Service
    http: HttpRequest
    send: Send
    noted: Noted


# Asking for answers.


async def completions(call: Call) -> Response | None:
    """`POST /v1/completions`."""
    return await _answer(call, "completion")


async def chat_completions(call: Call) -> Response | None:
    """`POST /v1/chat/completions`."""
    return await _answer(call, "chat")


async def classify(call: Call) -> Response:
    """`POST /v1/classify`."""
    asked, clock = await _asked(call, "classify")
    with call.service.admitted():
        if asked.best:
            best = await unless_gone(call.http, call.service.likeliest(asked.request, clock))
            return JSONResponse(likeliest_of(asked.request.task, best))
        scores = await unless_gone(call.http, call.service.scores(asked.request, clock))
    return JSONResponse(labels_of(asked.request.task, scores))


async def _answer(call: Call, kind: Kind) -> Response | None:
    asked, clock = await _asked(call, kind)
    shape = Shape(
        kind,
        f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{call.noted.id}",
        int(time.time()),
        asked.request.task,
    )
    with call.service.admitted():
        async with aclosing(call.service.events(asked.request, clock)) as events:
            if asked.stream:
                await unless_gone(call.http, _stream(call, asked, shape, events, clock))
                return None
            result = await unless_gone(call.http, _last(events))
    _note(call.noted, result)
    return JSONResponse(shape.whole(result))


async def _asked(call: Call, kind: Kind) -> tuple[Asked, Clock]:
    service = call.service
    service.check_open()  # before the body is read
    began = time.monotonic()
    body = parse_body(await _body(call))
    check_body(body, body_schema(kind, service.limits))
    task = service.task(body["model"])
    call.noted.task = body["model"]
    asked = asked_of(kind, body, task, service.limits)
    return asked, Clock(service.limits, asked.timeout, began)


async def _last(events: AsyncGenerator[Event, None]) -> Result:
    async for event in events:
        if event.result is not None:
            return event.result
    raise AssertionError("an answer without an end")


async def _stream(
    call: Call, asked: Asked, shape: Shape, events: AsyncGenerator[Event, None], clock: Clock
) -> None:
    """Sends an answer in pieces. What fails before the first piece is an answer of its own."""
    event = await anext(events)
    sender = _Sender(call, clock)
    await sender.start()
    try:
        await sender.piece(shape.piece(event.text, first=True))
        while event.result is None:
            event = await anext(events)
            if event.text:
                await sender.piece(shape.piece(event.text, first=False))
        result = event.result
        _note(call.noted, result)
        await sender.piece(shape.piece("", first=False, last=result))
        if asked.include_usage:
            await sender.piece(shape.usage(result))
        await sender.end(b"data: [DONE]\n\n")
    except ClientLeftError:
        raise
    except Exception as error:
        refusal = note_error(call, error)
        await sender.end(_line(refusal.body()))


class _Sender:
    """Sends pieces to a client, which must take them in time."""

    def __init__(self, call: Call, clock: Clock) -> None:
        self._call, self._clock = call, clock

    async def start(self) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # nginx would gather the pieces
        ]
        await self._call.send({"type": "http.response.start", "status": 200, "headers": headers})

    async def piece(self, value: Any) -> None:
        await self._send(_line(value), more=True)

    async def end(self, data: bytes) -> None:
        await self._send(data, more=False)

    async def _send(self, data: bytes, *, more: bool) -> None:
        message = {"type": "http.response.body", "body": data, "more_body": more}
        left = self._clock.ends + _TO_TAKE - time.monotonic()
        try:
            async with asyncio.timeout(left):
                await self._call.send(message)
        except TimeoutError:
            raise ClientLeftError from None


def _line(value: Any) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def _note(noted: Noted, result: Result) -> None:
    noted.tokens = result.prompt_tokens, len(result.token_ids)


# Tasks that come and go.


async def list_tasks(call: Call) -> Response:
    """`GET /admin/tasks`."""
    served = list(call.service.tasks)
    found = await asyncio.to_thread(lambda: list(map(_tasks_in, call.service.bundles)))
    return JSONResponse({"served": served, "in_bundles": sorted(set().union(*found))})


async def add_task(call: Call) -> Response:
    """`POST /admin/tasks`: serves a task of a bundle that the server was started with."""
    session = call.service.session.session
    body = parse_body(await _body(call))
    check_body(body, ADD_TASK)
    name = body["task"]
    # Files are read in threads, so that no answer waits.
    places = await asyncio.to_thread(
        lambda: [bundle for bundle in call.service.bundles if name in _tasks_in(bundle)]
    )
    if not places:
        raise HttpError("model_not_found", f"no bundle holds a task {name!r:.80}.", param="task")
    if len(places) > 1:
        raise HttpError("task_refused", f"{len(places)} bundles hold a task '{name}'.")
    try:
        await asyncio.to_thread(session.add_tasks, places[0], [name])
    except PlcError as error:
        log.warning("task %s was not added: %s", name, error)
        raise HttpError("task_refused", f"task '{name}' was not added: {error.found}") from error
    log.info("task %s was added", name)
    return JSONResponse({"added": name})


async def remove_task(call: Call) -> Response:
    """`DELETE /admin/tasks/{task}`: its requests under way end normally."""
    name = call.http.path_params["task"]
    session = call.service.session.session
    call.service.task(name)  # refuses
    try:
        await asyncio.to_thread(session.remove_task, name)
    except RequestError as error:  # another call was faster
        raise HttpError("model_not_found", error.found, param="task") from error
    log.info("task %s was removed", name)
    return JSONResponse({"removed": name})


ADD_TASK = object_of(
    {"task": text("A task of a bundle that the server was started with.", most=64)},
    required=("task",),
)


def _tasks_in(bundle: Path) -> set[str]:
    """The tasks that a bundle says it has; none where it cannot be read now."""
    try:
        files = files_of_bundle(bundle)
    except OSError:
        return set()
    paths = (PurePosixPath(name).parts for name in files)
    return {parts[1] for parts in paths if parts[::2] == ("tasks", TASK_NAME) and len(parts) == 3}


# Looking.


async def models(call: Call) -> Response:
    """`GET /v1/models`."""
    service = call.service
    tasks = [model_of(name, task, service.started) for name, task in service.tasks.items()]
    return JSONResponse({"object": "list", "data": tasks})


async def model(call: Call) -> Response:
    """`GET /v1/models/{model}`."""
    name = call.http.path_params["model"]
    return JSONResponse(model_of(name, call.service.task(name), call.service.started))


async def live(call: Call) -> Response:
    """`GET /health/live`."""
    broken = call.service.broken
    status = {"status": "broken" if broken else "live"}
    return JSONResponse(status, status_code=503 if broken else 200)


async def ready(call: Call) -> Response:
    """`GET /health/ready`."""
    service = call.service
    if service.is_ready:
        return JSONResponse({"status": "ready"})
    reason = "broken" if service.broken else "draining" if service.draining else "starting"
    return JSONResponse({"status": reason}, status_code=503)


async def metrics(call: Call) -> Response:
    """`GET /metrics`."""
    # In a thread: a page about many tasks takes a while, and answers wait for the loop.
    page = await asyncio.to_thread(call.service.metrics.page)
    return Response(page, media_type=CONTENT_TYPE)


# What routes share.


def note_error(call: Call, error: Exception) -> HttpError:
    """Logs and counts an error; gives what the client is told."""
    refusal = refusal_of(error)
    if not is_mistake(error):
        log.error("request %s failed", call.noted.id, exc_info=error)
    call.noted.code = refusal.code
    call.service.metrics.refused.labels(refusal.code).inc()
    return refusal


async def unless_gone(http: HttpRequest, work: Awaitable[T]) -> T:
    """What `work` gives; it is cancelled when the client leaves.

    Raises:
        ClientLeftError: it left.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeftError
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _gone(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _body(call: Call) -> bytes:
    """The body of a request, within the limits of its size and time."""
    kind = call.http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page of another site can send a text without being asked, but not this type.
        message = f"content-type '{kind:.60}', expected 'application/json'."
        raise HttpError("unsupported_media_type", message)
    limits, parts, size = call.service.limits, [], 0
    announced = call.http.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limits.body_bytes:
        raise _too_large(limits.body_bytes)
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in call.http.stream():
                size += len(part)
                if size > limits.body_bytes:
                    raise _too_large(limits.body_bytes)
                parts.append(part)
    except TimeoutError:
        message = f"The body did not arrive within {limits.body_seconds:g} s."
        raise HttpError("body_timeout", message, headers={"connection": "close"}) from None
    return b"".join(parts)


def _too_large(most: int) -> HttpError:
    message = f"The body has more than {most} bytes, the most that this server takes."
    return HttpError("body_too_large", message, headers={"connection": "close"})


def parse_body(data: bytes) -> Any:
    """The JSON of a body.

    Raises:
        HttpError: it is not JSON.
    """
    try:
        return parse_json(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise HttpError(
            "invalid_json", f"reading the body: not UTF-8 at byte {error.start}."
        ) from None
    except ValueError as error:
        raise HttpError("invalid_json", f"reading the body: {error}, expected JSON.") from None
