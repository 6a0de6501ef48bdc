"""A request from plain data, as JSON gives it: for whatever serves a session to other programs."""

from collections.abc import Mapping
from typing import Any

from pl_compile.config.plain_values import shown
from pl_compile.config.strict_json import parse_json
from pl_compile.errors import RequestError, reason_of, unknown_name
from pl_compile.runtime.requests import OPTIONS, Request, with_options


def request_from_plain(task: Any, fields: Any, options: Any = None) -> Request:
    """A request from values of any type.

    Args:
        task: its name.
        fields: a mapping from name to value.
        options: a mapping from names of `OPTIONS` to values; None for none.

    Raises:
        RequestError: an option that does not exist, or a value that is not as a request needs it.
    """
    doing = f"reading a request for task {shown(task)}"
    given = {} if options is None else options
    if not isinstance(given, Mapping):
        raise RequestError(
            doing, found=f"options {shown(given)}", expected="a mapping from name to value"
        )
    for name in given:
        if name not in OPTIONS:
            found, fix = unknown_name(str(name), OPTIONS, what="option")
            raise RequestError(doing, found=found, fix=fix)
    return with_options(Request(task, fields), given)


def request_from_texts(task: str, fields: str, options: str = "{}") -> Request:
    """A request whose fields and options are the texts of JSON objects.

    Raises:
        RequestError: a text is not JSON, or as for `request_from_plain`.
    """
    doing = f"reading a request for task {shown(task)}"
    values = []
    for name, text in (("fields", fields), ("options", options)):
        try:
            values.append(parse_json(text))
        except ValueError as error:
            found = f"{name}: {reason_of(error)}"
            raise RequestError(doing, found=found, expected="a JSON object") from error
    return request_from_plain(task, *values)
