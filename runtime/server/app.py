"""The application: one table of routes, which also gives `/openapi.json`."""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from pl_compile import __version__
from pl_compile.runtime.server import routes
from pl_compile.runtime.server.faults import FAULTS, HttpError
from pl_compile.runtime.server.openai import Kind, body_schema
from pl_compile.runtime.server.playground import page_routes
from pl_compile.runtime.server.routes import Call, ClientLeftError, Noted, note_error
from pl_compile.runtime.server.schema import Schema
from pl_compile.runtime.server.service import Service, log, same_key

Handler = Callable[[Call], Awaitable[Response | None]]

# nginx's status for a client that left; nobody receives it, the log shows it.
_CLIENT_LEFT = 499


@dataclass(frozen=True)
class Operation:
    """A row of the table.

    Attributes:
        method: of HTTP.
        path: with parameters in braces.
        handler: what answers.
        about: for `/openapi.json`.
        key: which key it needs, where the server has one.
        body: what its body may hold.
        gives: media types of its answer.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handler: Handler
    about: str
    key: Literal["api", "admin"] | None = None
    body: Schema | None = None
    gives: tuple[str, ...] = ("application/json",)


def operations(service: Service) -> list[Operation]:
    """The table of a server's routes."""

    def asks(path: str, handler: Handler, kind: Kind, about: str) -> Operation:
        gives = (
            ("application/json",)
            if kind == "classify"
            else ("application/json", "text/event-stream")
        )
        return Operation(
            "POST", path, handler, about, "api", body_schema(kind, service.limits), gives
        )

    async def openapi(_: Call) -> Response:
        return JSONResponse(document(table))

    table = [
        Operation("GET", "/v1/models", routes.models, "All tasks, and what each needs.", "api"),
        Operation("GET", "/v1/models/{model}", routes.model, "One task.", "api"),
        asks(
            "/v1/completions", routes.completions, "completion", "An answer to fields or a prompt."
        ),
        asks("/v1/chat/completions", routes.chat_completions, "chat", "The same for chat clients."),
        asks("/v1/classify", routes.classify, "classify", "The probability of each label."),
        Operation("GET", "/health/live", routes.live, "Whether the process works."),
        Operation("GET", "/health/ready", routes.ready, "Whether requests are answered."),
        Operation("GET", "/metrics", routes.metrics, "For Prometheus.", gives=("text/plain",)),
        Operation("GET", "/openapi.json", openapi, "This document."),
    ]
    if service.keys.admin is not None:
        table += [
            Operation("GET", "/admin/tasks", routes.list_tasks, "Tasks, served or not.", "admin"),
            Operation(
                "POST",
                "/admin/tasks",
                routes.add_task,
                "Serves a task of the server's bundles.",
                "admin",
                routes.ADD_TASK,
            ),
            Operation(
                "DELETE", "/admin/tasks/{task}", routes.remove_task, "Serves it no more.", "admin"
            ),
        ]
    return table


def make_app(service: Service, *, playground: bool = True) -> Starlette:
    """The ASGI application of a server.

    Args:
        service: the server's state.
        playground: whether `/` is a page to try the tasks on. It is not part of the API, so
            `/openapi.json` does not list it.
    """
    pages = page_routes() if playground else {}
    table = [
        *operations(service),
        *(Operation("GET", path, page, "The playground.") for path, page in pages.items()),
    ]
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in table:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    app = Starlette(routes=[Route(path, _Endpoint(service, by)) for path, by in by_path.items()])
    app.router.redirect_slashes = False
    app.router.default = _Endpoint(service, {})
    return app


class _Endpoint:
    """All methods of one path."""

    def __init__(self, service: Service, by_method: Mapping[str, Operation]) -> None:
        self._service, self._by_method = service, by_method

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()
        status = [0]
        noted = Noted()

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", noted.id.encode())]
            await send(message)

        call = Call(self._service, HttpRequest(scope, receive), watched, noted)
        try:
            response = await self._respond(call, scope["method"])
            if response is not None and not status[0]:
                await response(scope, receive, watched)
        except (ClientLeftError, ClientDisconnect):
            status[0], noted.code = _CLIENT_LEFT, "client_left"
            self._service.metrics.refused.labels("client_left").inc()
        finally:
            _log(scope, status[0], noted, time.monotonic() - began)

    async def _respond(self, call: Call, method: str) -> Response | None:
        try:
            if not self._by_method:
                raise HttpError("not_found", "There is no such route; see /openapi.json.")
            operation = self._by_method.get("GET" if method == "HEAD" else method)
            if operation is None:
                allowed = ", ".join(self._by_method)
                message = f"method {method[:20]}, expected {allowed}."
                raise HttpError("method_not_allowed", message, headers={"allow": allowed})
            _check_key(call, operation)
            return await operation.handler(call)
        except (ClientLeftError, ClientDisconnect):
            raise
        except Exception as error:
            return error_response(note_error(call, error))


def _check_key(call: Call, operation: Operation) -> None:
    keys = call.service.keys
    key = {"api": keys.api, "admin": keys.admin, None: None}[operation.key]
    if key is None:
        return
    scheme, _, given = call.http.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not same_key(given.strip(), key):
        raise HttpError(
            "invalid_api_key",
            "This route needs a key: send 'Authorization: Bearer KEY'.",
            headers={"www-authenticate": "Bearer"},
        )


def error_response(refusal: HttpError) -> Response:
    """A refusal as an answer."""
    return JSONResponse(refusal.body(), status_code=refusal.fault.status, headers=refusal.headers)


def _log(scope: Scope, status: int, noted: Noted, seconds: float) -> None:
    """One line a request: no text of a prompt or an answer, and a bounded length."""
    if scope["path"].startswith(("/health/", "/metrics")) and status == 200:
        return
    read, written = noted.tokens
    log.info(
        "%s %s %s %d code=%s task=%s prompt=%d written=%d seconds=%.3f",
        noted.id,
        scope["method"][:10],
        ascii(scope["path"][:60])[1:-1],
        status,
        noted.code,
        noted.task,
        read,
        written,
        seconds,
    )


# /openapi.json


def document(table: list[Operation]) -> dict[str, Any]:
    """The OpenAPI document of a table of routes."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in table:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "plc", "version": __version__},
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _ERROR},
        },
    }


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"enum": list(FAULTS)},
            },
        }
    },
}


def _described(operation: Operation) -> dict[str, Any]:
    good = {"description": "Done.", "content": {kind: {} for kind in operation.gives}}
    error = {"$ref": "#/components/schemas/Error"}
    bad = {"description": "An error.", "content": {"application/json": {"schema": error}}}
    described: dict[str, Any] = {
        "summary": operation.about,
        "responses": {"200": good, "default": bad},
    }
    if operation.body is not None:
        content = {"application/json": {"schema": operation.body}}
        described["requestBody"] = {"required": True, "content": content}
    if operation.key is not None:
        described["security"] = [{"key": []}, {}]
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    if names:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    return described
