"""Requests from what JSON gives: each option has its name, and no other name passes."""

import math
from dataclasses import fields
from typing import Any

import pytest

from pl_compile.errors import RequestError
from pl_compile.runtime import Request, Sampling
from pl_compile.runtime.plain_requests import request_from_plain, request_from_texts
from pl_compile.runtime.requests import OPTIONS

ASK = {"question": "who?"}


def test_options_are_those_of_requests_and_of_sampling() -> None:
    own = {field.name for field in fields(Request)} - {"task", "fields", "sampling"}
    sampling = {field.name for field in fields(Sampling)}

    assert not own & sampling
    assert set(OPTIONS) == own | sampling


def test_options_go_where_they_belong() -> None:
    request = request_from_plain("ask", ASK, {"max_tokens": 9, "stop": ["."], "top_k": 3})

    assert request == Request("ask", ASK, 9, stop=(".",), sampling=Sampling(top_k=3))


def test_texts_are_json_objects() -> None:
    request = request_from_texts("ask", '{"question": "who?"}', '{"use_prompt": false}')

    assert request == Request("ask", ASK, use_prompt=False)
    assert request_from_texts("ask", '{"question": "who?"}') == Request("ask", ASK)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("ask", ASK, {"top-k": 3}), "option 'top-k' does not exist. Did you mean 'top_k'?"),
        (("ask", ASK, {"sampling": {"top_k": 3}}), "option 'sampling' does not exist"),
        (("ask", ASK, {"task": "tone"}), "option 'task' does not exist"),
        (("ask", ASK, {3: 1}), "option '3' does not exist"),
        (("ask", ASK, [1]), "options [1]; expected a mapping"),
        (("ask", ASK, {"temperature": math.nan}), "temperature nan"),
        (("ask", ASK, {"stop": "."}), "stop '.'"),
        (("ask", None), "fields None"),
        ((None, ASK), "task None"),
    ],
)
def test_anything_else_is_refused(given: tuple[Any, ...], said: str) -> None:
    with pytest.raises(RequestError) as error:
        request_from_plain(*given)

    assert said in str(error.value)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("{", "{}"), "fields: Expecting property name"),
        (("{}", "3"), "options 3; expected a mapping"),
        (("{}", '{"top_k": NaN}'), "options: NaN is not JSON"),
        (("{}", '{"top_k": 1, "top_k": 2}'), "options: the key 'top_k' is given twice"),
    ],
)
def test_texts_that_are_no_json_objects_are_refused(texts: tuple[str, str], said: str) -> None:
    with pytest.raises(RequestError) as error:
        request_from_texts("ask", *texts)

    assert said in str(error.value)
