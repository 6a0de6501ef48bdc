"""A bundle on Ray Serve: replicas that each hold the whole bundle, one address before them.

    serve run --app-dir examples/ray_serve app:build bundle=/absolute/path/to/bundle

README.md beside this file says how to ask it, and what routing by task is good for.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi import Request as HttpRequest
from fastapi.responses import StreamingResponse
from ray import serve

from pl_compile.config.strict_json import parse_json, with_null
from pl_compile.errors import PlcError, RequestError
from pl_compile.runtime import AsyncSession, Event, Request, Session
from pl_compile.runtime.plain_requests import request_from_plain

# Most tasks that a replica is the preferred one for. Nothing is unloaded beyond it.
PREFERRED_TASKS = 64

app = FastAPI()


# Ray Serve copies the class where it is defined, with what is there by then: helpers come first.


def _read(body: bytes) -> tuple[Request, bool]:
    doing = "reading a request"
    try:
        given = parse_json(body.decode("utf-8"))
    except ValueError as error:
        raise RequestError(doing, found=str(error), expected="a JSON object") from error
    known = {"task", "fields", "options", "stream"}
    if not isinstance(given, dict) or not given.keys() <= known:
        raise RequestError(doing, found=f"{given!r:.80}", expected=f"only {sorted(known)}")
    stream = given.get("stream", False)
    if not isinstance(stream, bool):
        raise RequestError(doing, found=f"stream {stream!r:.80}", expected="true or false")
    request = request_from_plain(given.get("task"), given.get("fields"), given.get("options"))
    return request, stream


async def _as_lines(events: AsyncGenerator[Event, None]) -> AsyncGenerator[str, None]:
    """Server-sent events: pieces of text, then the result, or an error."""
    try:
        async with aclosing(events):
            async for event in events:
                piece: dict[str, Any] = {"text": event.text}
                if event.result is not None:
                    piece["result"] = with_null(asdict(event.result))
                yield f"data: {json.dumps(piece)}\n\n"
    except PlcError as error:
        yield f"data: {json.dumps({'error': str(error)})}\n\n"


@serve.deployment
@serve.ingress(app)
class Tasks:
    """A replica: one session, whose slots all its requests share.

    Args:
        bundle: the folder that `plc export` wrote, by the same path on every node.
        max_batch: slots of the session.
        threads: of the engine.
    """

    def __init__(self, bundle: str, max_batch: int, threads: int) -> None:
        self._session = AsyncSession(Session.open(bundle, max_batch=max_batch, threads=threads))

    @app.get("/tasks")
    async def tasks(self) -> list[str]:
        """The names of all tasks."""
        return list(self._session.session.tasks)

    @app.post("/generate")
    async def generate(self, http: HttpRequest) -> Any:
        """The answer to `{"task": …, "fields": {…}, "options": {…}, "stream": false}`.

        With `"stream": true` it comes in pieces, as server-sent events; the last one has `result`.
        """
        try:
            request, stream = _read(await http.body())
            if preferred := serve.get_multiplexed_model_id():
                await self._prefer(preferred)
            if not stream:
                return with_null(asdict(await self._session.generate(request)))
            # Before the first piece, so that the status can still say it; in a thread, since it
            # waits for the step that runs.
            await asyncio.to_thread(self._session.session.check, request)
            events = _as_lines(self._session.stream(request))
            return StreamingResponse(events, media_type="text/event-stream")
        except RequestError as error:
            raise HTTPException(400, str(error)) from error

    @serve.multiplexed(max_num_models_per_replica=PREFERRED_TASKS)
    async def _prefer(self, task: str) -> str:
        """Tells Ray Serve that this replica has served a task. There is nothing to load."""
        return task


def build(arguments: dict[str, str]) -> Any:
    """The application, from what `serve run` was given as `name=value`.

    Args:
        arguments: `bundle`, and where they should differ from 2, 16 and 1: `replicas`, `max_batch`
            and `threads` (cores of a replica).
    """
    slots, threads = int(arguments.get("max_batch", 16)), int(arguments.get("threads", 1))
    return Tasks.options(
        num_replicas=int(arguments.get("replicas", 2)),
        # As many as there are slots: more requests wait before the replicas, where any may take
        # them. Ray's default of 5 would leave slots empty.
        max_ongoing_requests=slots,
        ray_actor_options={"num_cpus": threads},
    ).bind(arguments["bundle"], slots, threads)
