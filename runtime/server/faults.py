"""What the server answers where it cannot do what was asked: one table, in OpenAI's form.

A message to a client never holds paths, addresses or texts of the server's own errors: those are
logged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pl_compile.errors import AnswerError, RequestError, unknown_name
from pl_compile.text.render import TooLongError


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Attributes:
        status: of HTTP.
        kind: `error.type` of the answer.
        about: when it happens, for the documentation.
    """

    status: int
    kind: str
    about: str


_ASKED, _SERVER = "invalid_request_error", "server_error"

# By `error.code`. docs/server.md has the same table: a test compares them.
FAULTS = {
    "invalid_json": Fault(
        400, _ASKED, "the body is not JSON, or JSON that programs read differently"
    ),
    "invalid_request": Fault(400, _ASKED, "a key is unknown, or its value cannot be followed"),
    "context_length_exceeded": Fault(
        400, _ASKED, "the prompt is longer than the cache, and the task cuts no field"
    ),
    "invalid_api_key": Fault(401, "authentication_error", "no key, or another one"),
    "model_not_found": Fault(404, _ASKED, "no task has this name"),
    "not_found": Fault(404, _ASKED, "no such route"),
    "method_not_allowed": Fault(405, _ASKED, "the route has other methods"),
    "body_timeout": Fault(408, _ASKED, "the body took too long to arrive"),
    "task_refused": Fault(
        409, _ASKED, "a task is served already, or its bundle is damaged or has another base"
    ),
    "body_too_large": Fault(413, _ASKED, "the body has more bytes than `--max-body`"),
    "unsupported_media_type": Fault(415, _ASKED, "the body is not `application/json`"),
    "queue_full": Fault(
        429, "rate_limit_error", "as many requests wait as `--queue` allows; see `Retry-After`"
    ),
    "internal_error": Fault(500, _SERVER, "the server's own fault; the log has the details"),
    "no_answer": Fault(500, _SERVER, "the numbers of the request are not finite: it has no answer"),
    "starting": Fault(503, _SERVER, "the bundle is being checked and loaded"),
    "draining": Fault(503, _SERVER, "the server is shutting down"),
    "queue_timeout": Fault(504, "timeout_error", "no token within `--queue-timeout`"),
    "request_timeout": Fault(
        504, "timeout_error", "no token within `--timeout`, or the request's own `timeout`"
    ),
}


class HttpError(Exception):
    """An answer that is an error.

    Args:
        code: a key of `FAULTS`.
        message: what was found, what was expected, what to do.
        param: the key of the body that is wrong.
        headers: of the answer.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.code, self.fault = code, FAULTS[code]
        self.message, self.param, self.headers = message, param, dict(headers)

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        error = {"message": self.message, "type": self.fault.kind}
        return {"error": {**error, "param": self.param, "code": self.code}}


def refusal_of(error: Exception) -> HttpError:
    """What a client is told of an error: of its own mistakes all, of the server's nothing."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, RequestError):
        too_long = isinstance(error.__cause__, TooLongError)
        return HttpError("context_length_exceeded" if too_long else "invalid_request", str(error))
    if isinstance(error, AnswerError):
        message = "The numbers of this request are not finite: its prompt or the base overflows."
        return HttpError("no_answer", message)
    return HttpError("internal_error", "The server failed; its log says why.")


def is_mistake(error: Exception) -> bool:
    """Whether an error is the client's: what is not is logged with its traceback."""
    return isinstance(error, HttpError | RequestError)


def unknown_task(name: str, known: tuple[str, ...]) -> HttpError:
    """The refusal of a task that does not exist."""
    found, fix = unknown_name(f"{name:.80}", known[:20], what="task")
    return HttpError("model_not_found", f"{found}. {fix}", param="model")
