"""Whatever a body holds: a client's mistake is never the server's error."""

from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode

from pl_compile.runtime.server.app import make_app
from pl_compile.runtime.server.limits import Limits
from pl_compile.runtime.server.openai import body_schema
from pl_compile.runtime.server.schema import (
    Schema,
    count,
    expected,
    flag,
    list_of,
    named,
    number,
    object_of,
    one_of,
    only,
    or_null,
    problems_of,
    text,
)

pytest_plugins = ["server_fixtures"]

FIELDS = {"tone": {"sentence": "so cold"}, "ask": {"question": "why?", "place": "x"}}
HEADERS = {"authorization": "Bearer admin-key"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_body_that_the_document_suggests_or_forbids_is_an_error_of_the_server(
    shared: Any,
) -> None:
    """Schemathesis makes them from `/openapi.json`: those that fit, and those that nearly fit."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(shared.service))
    operations: list[Any] = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
    labels = {operation.label for operation in operations}
    assert labels >= {"POST /v1/completions", "POST /v1/chat/completions", "POST /v1/classify"}
    seen: set[tuple[str, int]] = set()

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.one_of(
            [
                operation.as_strategy(generation_mode=mode)
                for operation in operations
                for mode in GenerationMode
                if operation.path != "/admin/tasks/{task}"  # it would remove the tasks
            ]
        ),
        st.sampled_from([None, *FIELDS]),
    )
    def check(case: Case[Any], task: str | None) -> None:
        body: Any = case.body
        if isinstance(body, dict) and "model" in body and task is not None:
            # Else hardly any body would name a task that exists, or fit its fields.
            body["model"] = task
            if body.get("fields") is not None:
                body["fields"] = FIELDS[task]
        response = case.call(headers=HEADERS)
        # A body may ask for an answer within a millisecond.
        asked_to_hurry = response.status_code == 504 and body.get("timeout") is not None
        assert response.status_code < 500 or asked_to_hurry, (case.as_curl_command(), response.text)
        seen.add((case.operation.label, response.status_code))

    check()
    assert {label for label, status in seen if status == 400} >= {
        "POST /v1/completions",
        "POST /v1/chat/completions",
        "POST /v1/classify",
    }


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 5000),
        st.floats(-2, 3, allow_nan=False),
        st.sampled_from(["tone", "ask", "user", "text", "x" * 70]),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "a"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_what_is_accepted_fits_the_published_schema(data: st.DataObject) -> None:
    """Ours is a little stricter: 1.0 and true are not taken for 1."""
    kind = data.draw(st.sampled_from(["completion", "chat", "classify"]))
    schema = body_schema(kind, Limits())  # type: ignore[arg-type]
    keys = st.sampled_from([*schema["properties"], "other"])
    body = {"model": "tone", "messages": []} | data.draw(st.dictionaries(keys, JSON, max_size=3))
    if kind != "chat":
        body.pop("messages", None)
    problems = list(problems_of(body, schema))

    if not problems:
        assert jsonschema_rs.is_valid(dict(schema), body)
    if not jsonschema_rs.is_valid(dict(schema), body):
        assert all(message for _, message in problems)
        assert problems


@pytest.mark.parametrize(
    ("value", "schema", "said"),
    [
        (3, text(), "the body is 3, expected a text"),
        ("abc", text(most=2), "the body is 'abc', expected a text of at most 2 characters"),
        (1, flag(), "the body is 1, expected true or false"),
        (True, count(), "the body is true, expected a whole number, 0 or more"),
        (9, count(least=1, most=8), "the body is 9, expected a whole number from 1 to 8"),
        (0, number(least=0, most=None, above=True), "the body is 0, expected a number above 0"),
        (None, number(least=0, most=1), "the body is null, expected a number from 0 to 1"),
        (2, or_null(number(least=0, most=1)), "the body is 2, expected a number from 0 to 1"),
        ({}, list_of(text(), most=2), "the body is an object, expected a list of at most 2 items"),
        ([], list_of(text(), most=2, least=1), "the body is 0 items, expected a list of 1 to 2"),
        (["a", 1], list_of(text(), most=2), "key '[1]' is 1, expected a text"),
        (2, only(1, "one"), 'the body is 2, expected 1 or "one"'),
        (2, or_null(one_of(text(), flag())), "the body is 2, expected a text or true or false"),
        ({"a": 1, "b": 2}, named(count(), most=1), "the body is 2 keys, expected at most 1"),
        ({"a": "x"}, named(count(), most=1), "key 'a' is 'x', expected a whole number, 0 or more"),
        ({}, object_of({"a": text()}, required=("a",)), "key 'a' is missing"),
        ({"b": 1}, object_of({"a": text()}), "unknown key 'b'"),
        ({"aab": 1}, object_of({"aaa": text()}), "unknown key 'aab'. Did you mean 'aaa'?"),
    ],
    ids=range(18),
)
def test_messages_say_what_was_found_and_expected(value: Any, schema: Schema, said: str) -> None:
    ((_, message),) = problems_of(value, schema)

    assert message.startswith(said)


def test_null_is_accepted_for_what_is_left_out_and_not_named() -> None:
    for schema in (or_null(text()), or_null(only(1)), or_null(one_of(text(), flag()))):
        assert list(problems_of(None, schema)) == []
        assert "null" not in expected(schema)
