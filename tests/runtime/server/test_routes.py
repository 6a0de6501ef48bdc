"""What each route answers, and what it refuses."""

import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import RankError
from pl_compile.runtime import Request, Result, Sampling, Session, TokenLogProbs, kernels
from pl_compile.runtime.rows import Row
from pl_compile.runtime.server import metrics
from pl_compile.runtime.server.faults import FAULTS
from pl_compile.runtime.server.limits import Limits
from pl_compile.runtime.server.openai import NOT_SERVED, WITHOUT_EFFECT, Shape
from pl_compile.runtime.server.service import Keys
from pl_compile.runtime.stepping import Batch
from pl_compile.testing import random_table, write_tiny_base

pytest_plugins = ["server_fixtures"]

ASK = {"question": "why?", "place": "a field"}


def error_of(response: Any) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.status_code == FAULTS[error["code"]].status
    assert error["type"] == FAULTS[error["code"]].kind
    return error


def pieces_of(text: str) -> list[Any]:
    """The JSON of each piece of a stream."""
    *lines, done, nothing = text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def values_of(shared: Any) -> dict[str, float]:
    """Each metric by its name and labels."""
    page = shared.client.get("/metrics")
    assert page.headers["content-type"] == metrics.CONTENT_TYPE
    return {
        " ".join(
            [sample.name, *(value for _, value in sorted(sample.labels.items()))]
        ): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }


def test_models_are_the_tasks_and_say_what_they_need(shared: Any) -> None:
    listed = shared.client.get("/v1/models").json()

    created = shared.service.started
    tone = {
        "id": "tone",
        "object": "model",
        "created": created,
        "owned_by": "plc",
        "fields": ["sentence"],
        "labels": ["positive", "negative", "neutral"],
        "virtual_tokens": 3,
        "truncate_field": None,
    }
    assert listed["object"] == "list"
    assert listed["data"][0] == tone
    assert [each["id"] for each in listed["data"]] == ["tone", "ask"]
    assert listed["data"][1]["fields"] == ["question", "place"]
    assert listed["data"][1]["truncate_field"] == "question"
    assert shared.client.get("/v1/models/tone").json() == tone
    assert error_of(shared.client.get("/v1/models/tune"))["message"] == (
        "task 'tune' does not exist. Did you mean 'tone'? Known tasks: tone, ask."
    )


OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"max_tokens": 3}, {"max_tokens": 3}),
    ({"min_tokens": 9, "max_tokens": 9}, {"min_tokens": 9, "max_tokens": 9}),
    (
        {"temperature": 1.5, "top_p": 0.9, "seed": 3, "top_k": 40, "min_p": 0.01},
        {"sampling": Sampling(temperature=1.5, top_p=0.9, seed=3, top_k=40, min_p=0.01)},
    ),
    ({"repetition_penalty": 1.8}, {"sampling": Sampling(repetition_penalty=1.8)}),
    ({"stop": ["a", "e"]}, {"stop": ("a", "e")}),
    ({"stop": "o"}, {"stop": ("o",)}),
    ({"use_prompt": False}, {"use_prompt": False}),
    ({"temperature": None, "stop": None, "n": 1, "echo": False, "frequency_penalty": 0}, {}),
    (dict.fromkeys(WITHOUT_EFFECT, "x"), {}),
]


@pytest.mark.parametrize(("given", "meant"), OPTIONS, ids=lambda value: ",".join(value) or "-")
def test_an_answer_is_that_of_the_session(
    shared: Any, given: dict[str, Any], meant: dict[str, Any]
) -> None:
    result = shared.session.generate([Request("ask", ASK, **meant)])[0]
    held = shared.session.tasks["ask"].prefix_kv.shape[3]

    answer = shared.post("/v1/completions", model="ask", fields=ASK, **given).json()

    assert answer["object"] == "text_completion"
    assert answer["model"] == "ask"
    assert answer["choices"] == [
        {
            "index": 0,
            "text": result.text,
            "logprobs": None,
            "finish_reason": result.finish_reason,
        }
    ]
    written = len(result.token_ids)
    assert held == 3
    assert answer["usage"] == {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": result.prompt_tokens + written,
        "prompt_tokens_details": {
            "cached_tokens": held if meant.get("use_prompt", True) else 0,
            "cut_tokens": 0,
        },
    }


def test_options_of_labels_reach_the_session(shared: Any) -> None:
    fields = {"sentence": "so cold"}
    sampling = Sampling(logit_bias={"n": 90.0})
    texts = [
        shared.session.generate([request])[0].text
        for request in (
            Request("tone", fields),
            Request("tone", fields, sampling=sampling),
            Request("tone", fields, constrain=False),
        )
    ]

    answers = [
        shared.post("/v1/completions", model="tone", prompt="so cold", **given).json()
        for given in ({}, {"text_bias": {"n": 90}}, {"constrain": False})
    ]

    assert [answer["choices"][0]["text"] for answer in answers] == texts
    assert len(set(texts)) == 3


def test_a_lone_field_is_given_as_a_prompt_or_as_a_message(shared: Any) -> None:
    """A message's content is a text, or parts of text."""
    parts = [{"type": "text", "text": "so "}, {"type": "text", "text": "cold"}]
    by_fields = shared.post("/v1/completions", model="tone", fields={"sentence": "so cold"}).json()

    by_prompt = shared.post("/v1/completions", model="tone", prompt="so cold").json()
    chats = [
        shared.post(
            "/v1/chat/completions",
            model="tone",
            messages=[{"role": "user", "content": content}],
            max_completion_tokens=20,
            response_format={"type": "text"},
        ).json()
        for content in ("so cold", parts)
    ]
    empty = shared.post(
        "/v1/chat/completions", model="tone", messages=[], fields={"sentence": "so cold"}
    ).json()

    said = by_fields["choices"][0]["text"]
    assert by_prompt["choices"] == by_fields["choices"]
    for chat in [*chats, empty]:
        assert chat["object"] == "chat.completion"
        assert chat["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": said, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ]
        assert chat["usage"] == by_fields["usage"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_the_pieces_of_a_stream_make_the_answer(shared: Any, path: str) -> None:
    chat = path.endswith("chat/completions")
    body = {"model": "ask", "fields": ASK, "max_tokens": 12, "min_tokens": 12}
    body |= {"messages": []} if chat else {}
    whole = shared.post(path, **body).json()

    response = shared.post(path, **body, stream=True, stream_options={"include_usage": True})
    plain = shared.post(path, **body, stream=True)

    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *pieces, usage = pieces_of(response.text)
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]
    assert len({piece["id"] for piece in [*pieces, usage]}) == 1
    choices = [piece["choices"][0] for piece in pieces]
    texts = [c["delta"].get("content", "") if chat else c["text"] for c in choices]
    said = whole["choices"][0]
    assert "".join(texts) == (said["message"]["content"] if chat else said["text"])
    assert len(pieces) > 5
    ends = [choice["finish_reason"] for choice in choices]
    assert ends == [None] * (len(ends) - 1) + ["length"]
    assert {piece["object"] for piece in pieces} == {
        "chat.completion.chunk" if chat else "text_completion"
    }
    assert len(pieces_of(plain.text)) == len(pieces)


def test_the_probabilities_of_all_labels(shared: Any) -> None:
    scores = shared.session.score([Request("tone", {"sentence": "so cold"})])[0]

    answer = shared.post("/v1/classify", model="tone", prompt="so cold").json()

    assert answer["label"] == max(scores, key=lambda score: score.probability).label
    assert [label["label"] for label in answer["labels"]] == ["positive", "negative", "neutral"]
    assert [label["probability"] for label in answer["labels"]] == pytest.approx(
        [score.probability for score in scores]
    )


TONE = {"model": "tone", "prompt": "x"}
WRONG: list[tuple[str, dict[str, Any], str, str | None, str]] = [
    ("completions", {}, "invalid_request", "model", "key 'model' is missing"),
    ("completions", {"model": 3}, "invalid_request", "model", "key 'model' is 3, expected a text"),
    ("completions", {"model": "nobody"}, "model_not_found", "model", "task 'nobody' does not"),
    ("completions", {"model": "tone"}, "invalid_request", None, "field 'sentence' is missing"),
    ("completions", {**TONE, "fields": {"sentence": "x"}}, "invalid_request", "prompt", "both 'p"),
    (
        "completions",
        {"model": "ask", "prompt": "x"},
        "invalid_request",
        "prompt",
        "key 'prompt', and a task with 2 input fields: 'question', 'place'. Give 'fields'",
    ),
    (
        "completions",
        {"model": "tone", "fields": {"sentense": "x"}},
        "invalid_request",
        None,
        "field 'sentence' is missing. Did you mean 'sentense'?",
    ),
    (
        "completions",
        {"model": "tone", "fields": {"sentence": ["x"]}},
        "invalid_request",
        "fields.sentence",
        "key 'fields.sentence' is a list, expected a text or a number",
    ),
    (
        "completions",
        {**TONE, "temprature": 1},
        "invalid_request",
        "temprature",
        "unknown key 'temprature'. Did you mean 'temperature'?",
    ),
    (
        "completions",
        {**TONE, "temperature": "hot"},
        "invalid_request",
        "temperature",
        "key 'temperature' is 'hot', expected a number, 0 or more",
    ),
    ("completions", {**TONE, "temperature": True}, "invalid_request", "temperature", "is true"),
    (
        "completions",
        {**TONE, "top_p": 0},
        "invalid_request",
        "top_p",
        "a number above 0, at most 1",
    ),
    ("completions", {**TONE, "max_tokens": 0}, "invalid_request", "max_tokens", "from 1 to 4096"),
    ("completions", {**TONE, "max_tokens": 5000}, "invalid_request", "max_tokens", "1 to 4096"),
    ("completions", {**TONE, "max_tokens": 1.5}, "invalid_request", "max_tokens", "whole number"),
    ("completions", {**TONE, "seed": -1}, "invalid_request", "seed", "key 'seed' is -1, expected"),
    ("completions", {**TONE, "seed": 10**30}, "invalid_request", "seed", "expected a whole"),
    ("completions", {**TONE, "n": 2}, "invalid_request", "n", "key 'n' is 2, expected 1"),
    ("completions", {**TONE, "n": True}, "invalid_request", "n", "key 'n' is true, expected 1"),
    ("completions", {**TONE, "prompt": ["x"]}, "invalid_request", "prompt", "is a list, expected"),
    ("completions", {**TONE, "stop": ["x"] * 17}, "invalid_request", "stop", "at most 16 items"),
    ("completions", {**TONE, "stop": ""}, "invalid_request", None, "an empty stop text"),
    ("completions", {**TONE, "stop": "x" * 257}, "invalid_request", "stop", "256 characters"),
    ("completions", {**TONE, "bad_words": ["x"] * 17}, "invalid_request", "bad_words", "16 items"),
    (
        "completions",
        {**TONE, "bad_words": ["y", "x" * 257]},
        "invalid_request",
        "bad_words[1]",
        "expected a text of at most 256 characters",
    ),
    ("completions", {**TONE, "echo": True}, "invalid_request", "echo", "key 'echo' is true"),
    ("completions", {**TONE, "frequency_penalty": 1}, "invalid_request", "frequency_penalty", "0"),
    ("completions", {**TONE, "timeout": 0}, "invalid_request", "timeout", "a number above 0"),
    (
        "completions",
        {**TONE, "logit_bias": {"50256": -100}},
        "invalid_request",
        "logit_bias",
        "key 'logit_bias' is not served. OpenAI's is by token id; use 'text_bias'",
    ),
    (
        "completions",
        {**TONE, "text_bias": {"sad": 1}},
        "invalid_request",
        None,
        "sad",
    ),
    (
        "completions",
        {**TONE, "top_k": 4},
        "invalid_request",
        "top_k",
        "top_k without temperature, which is 0 here if left out",
    ),
    (
        "completions",
        {**TONE, "stream_options": {"include_usage": True}},
        "invalid_request",
        "stream_options",
        "key 'stream_options' without 'stream': true",
    ),
    (
        "completions",
        {"model": "ask", "fields": ASK, "min_tokens": 5, "max_tokens": 2},
        "invalid_request",
        None,
        "min_tokens 5, max_tokens 2",
    ),
    (
        "completions",
        {"model": "tone", "fields": {"sentence": "so cold " * 90}},
        "context_length_exceeded",
        None,
        "tokens with the longest choice, no truncate_field; expected at most 96",
    ),
    ("chat/completions", {"model": "tone"}, "invalid_request", "messages", "'messages' is missing"),
    (
        "chat/completions",
        {
            "model": "tone",
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "x"},
            ],
        },
        "invalid_request",
        "messages",
        "messages of system, user: a task's template is its whole prompt",
    ),
    (
        "chat/completions",
        {"model": "tone", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "invalid_request",
        "messages[0].content[0].text",
        "key 'messages[0].content[0].text' is missing; key 'messages[0].content[0].type' is",
    ),
    (
        "chat/completions",
        {
            "model": "tone",
            "messages": [{"role": "user", "content": "x"}],
            "max_tokens": 3,
            "max_completion_tokens": 4,
        },
        "invalid_request",
        "max_completion_tokens",
        "max_tokens 3 and max_completion_tokens 4",
    ),
    (
        "chat/completions",
        {"model": "tone", "messages": [], "response_format": {"type": "json_object"}},
        "invalid_request",
        "response_format.type",
        'expected "text"',
    ),
    ("classify", {"model": "ask", "fields": ASK}, "invalid_request", None, "has no choices"),
    ("classify", {**TONE, "temperature": 1}, "invalid_request", "temperature", "unknown key"),
]


@pytest.mark.parametrize(("route", "body", "code", "param", "said"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_refused_by_name(
    shared: Any, route: str, body: dict[str, Any], code: str, param: str | None, said: str
) -> None:
    error = error_of(shared.post(f"/v1/{route}", **body))

    assert (error["code"], error["param"]) == (code, param), error
    assert said in error["message"]


@pytest.mark.parametrize("key", NOT_SERVED)
def test_openais_keys_that_would_be_ignored_are_refused(shared: Any, key: str) -> None:
    error = error_of(shared.post("/v1/completions", **TONE, **{key: [1]}))

    assert f"key '{key}' is not served" in error["message"]
    assert NOT_SERVED[key].rstrip(".") in error["message"]


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (b"", "invalid_json", "Expecting value"),
        (b"{", "invalid_json", "expected JSON"),
        (b'{"model": NaN}', "invalid_json", "NaN is not JSON"),
        (b'{"model": "a", "model": "b"}', "invalid_json", "the key 'model' is given twice"),
        (b'{"model": "\\ud800"}', "invalid_json", "half of a surrogate pair"),
        (b'{"model": "\xff"}', "invalid_json", "not UTF-8 at byte 11"),
        (b"[" * 100_000, "invalid_json", "nested too deep"),
        (b'"text"', "invalid_request", "the body is 'text', expected an object"),
        (b"[1]", "invalid_request", "the body is a list, expected an object"),
        (b"null", "invalid_request", "the body is null, expected an object"),
        (b"9" * 5000, "invalid_json", "beyond the range of a double"),
    ],
    ids=range(11),
)
def test_bodies_that_are_not_json(shared: Any, data: bytes, code: str, said: str) -> None:
    headers = {"content-type": "application/json"}
    error = error_of(shared.client.post("/v1/completions", content=data, headers=headers))

    assert error["code"] == code
    assert said in error["message"]


def test_only_json_is_read(shared: Any) -> None:
    """So no page of another site can make a browser ask: it may send texts only."""
    data = json.dumps(TONE)

    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        response = shared.client.post(
            "/v1/completions", content=data, headers={"content-type": kind}
        )
        assert error_of(response)["message"] == (
            f"content-type '{kind}', expected 'application/json'."
        )
    kind = "application/json; charset=utf-8"
    assert (
        shared.client.post(
            "/v1/completions", content=data, headers={"content-type": kind}
        ).status_code
        == 200
    )


def test_large_bodies_are_refused_whether_announced_or_not(serve: Callable[..., Any]) -> None:
    served = serve(limits=Limits(body_bytes=100))
    headers = {"content-type": "application/json"}
    long = b'{"model": "%s"}' % (b"x" * 200)

    announced = served.client.post("/v1/completions", content=long, headers=headers)
    in_parts = served.client.post(
        "/v1/completions", content=(long[i : i + 9] for i in range(0, 200, 9)), headers=headers
    )

    for response in (announced, in_parts):
        assert error_of(response)["message"] == (
            "The body has more than 100 bytes, the most that this server takes."
        )


def test_routes_and_methods_that_are_not_there(shared: Any) -> None:
    assert error_of(shared.client.get("/v1/embeddings"))["code"] == "not_found"
    refused = shared.client.put("/v1/models")
    assert error_of(refused)["message"] == "method PUT, expected GET."
    assert refused.headers["allow"] == "GET"
    assert error_of(shared.client.get("/v1/completions"))["code"] == "method_not_allowed"


def test_keys_are_asked_for(serve: Callable[..., Any]) -> None:
    served = serve(keys=Keys(api="api-key", admin="admin-key"))

    def status(path: str, key: str | None) -> int:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        code: int = served.client.get(path, headers=headers).status_code
        return code

    for key in (None, "", "other", "api-keys", "ärger"):
        assert status("/v1/models", None if key == "ärger" else key) == 401
    assert status("/v1/models", "api-key") == 200
    assert status("/v1/models", "admin-key") == 401
    assert status("/admin/tasks", "api-key") == 401
    assert status("/admin/tasks", "admin-key") == 200
    assert status("/health/live", None) == status("/health/ready", None) == 200
    assert status("/metrics", None) == 200
    refused = served.client.get("/v1/models", headers={"authorization": "Basic api-key"})
    assert refused.headers["www-authenticate"] == "Bearer"
    assert "api-key" not in refused.text


def test_without_a_key_there_is_no_admin(serve: Callable[..., Any]) -> None:
    served = serve(keys=Keys())

    assert error_of(served.client.get("/admin/tasks"))["code"] == "not_found"
    assert "/admin/tasks" not in served.client.get("/openapi.json").json()["paths"]


def test_a_full_queue_turns_requests_away(serve: Callable[..., Any], hold: Any) -> None:
    served = serve(max_batch=1, limits=Limits(queue=2))
    held = hold(served.session)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(served.post, "/v1/completions", **TONE) for _ in range(3)]
        while served.service.gate.under_way < 3:
            time.sleep(0.001)
        held.entered.wait(60)

        refused = served.post("/v1/completions", **TONE)
        seen = values_of(served)
        held.go.set()
        statuses = [future.result().status_code for future in asked]

    assert error_of(refused)["message"] == (
        "3 requests are under way, and the server takes at most 3. Ask again in 1 s."
    )
    assert refused.headers["retry-after"] == "1"
    assert statuses == [200] * 3
    assert (seen["plc_requests_running"], seen["plc_requests_waiting"]) == (1, 2)
    assert seen["plc_cache_entries_in_use"] > 0
    assert served.post("/v1/completions", **TONE).status_code == 200


@pytest.mark.parametrize("route", ["completions", "classify"])
def test_a_request_that_takes_too_long_is_ended(
    serve: Callable[..., Any], hold: Any, route: str
) -> None:
    served = serve(max_batch=1, limits=Limits(queue_seconds=0.05, late_seconds=0.01))
    held = hold(served.session)

    in_queue = served.post(f"/v1/{route}", **TONE)
    own = served.post(f"/v1/{route}", **TONE, timeout=0.01)
    held.go.set()

    assert error_of(in_queue)["message"] == "No token within 0.05 s. Ask again later."
    assert error_of(own)["message"] == "No end within 0.01 s."
    assert served.service.gate.under_way == 0
    # Not by the server: a busy machine may need longer than these limits.
    (answer,) = served.session.generate([Request("tone", {"sentence": "x"}, max_tokens=2)])
    assert answer.token_ids


def test_labels_are_not_waited_for_beyond_the_clients_own_time(
    serve: Callable[..., Any], hold: Any
) -> None:
    """An answer may come a little later, with the text so far. Labels come as a whole or not."""
    served = serve(limits=Limits(queue_seconds=600, late_seconds=600))
    held = hold(served.session)

    refused = served.post("/v1/classify", **TONE, timeout=0.01)
    held.go.set()

    assert error_of(refused)["code"] == "request_timeout"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_tokens_is_not_taken_for_one_that_was_late(
    shared: Any, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """No token may follow where all are blocked: that ends an answer, and says nothing of time."""
    monkeypatch.setattr(Row, "_choose", lambda *_: None)
    body = {"model": "ask", "fields": ASK, "stream": stream}

    answer = shared.post("/v1/completions", **body)

    assert answer.status_code == 200
    last = pieces_of(answer.text)[-1] if stream else answer.json()
    assert last["choices"][0]["finish_reason"] == "stop"


def test_a_request_that_takes_too_long_has_the_text_so_far(serve: Callable[..., Any]) -> None:
    served = serve(limits=Limits(request_seconds=0.2))
    step, count = served.session.engine.step, [0]

    def slow(given: Any) -> Any:
        count[0] += 1
        if count[0] > 2:
            time.sleep(0.1)
        return step(given)

    served.session.engine.step = slow
    body = {"model": "ask", "fields": ASK, "min_tokens": 40, "stream": True}

    pieces = pieces_of(served.post("/v1/completions", **body).text)

    assert pieces[-1]["choices"][0]["finish_reason"] == "timeout"
    assert len(pieces) >= 2


def test_log_probabilities_of_tokens(shared: Any) -> None:
    request = Request("ask", ASK, max_tokens=5, min_tokens=5, log_probs=2)
    tokens = shared.session.generate([request])[0].log_probs
    body = {"model": "ask", "fields": ASK, "max_tokens": 5, "min_tokens": 5}

    plain = shared.post("/v1/completions", **body, logprobs=2).json()
    chat = shared.post(
        "/v1/chat/completions", **body, messages=[], logprobs=True, top_logprobs=2
    ).json()
    last = pieces_of(shared.post("/v1/completions", **body, logprobs=2, stream=True).text)[-1]
    refused = shared.post("/v1/chat/completions", **body, messages=[], top_logprobs=2)

    given = plain["choices"][0]["logprobs"]
    assert given["tokens"] == [token.text for token in tokens]
    assert given["token_logprobs"] == pytest.approx([token.log_prob for token in tokens])
    assert given["top_logprobs"] == [{t: pytest.approx(p) for _, t, p in k.top} for k in tokens]
    content = chat["choices"][0]["logprobs"]["content"]
    assert [each["token"] for each in content] == [token.text for token in tokens]
    assert [len(each["top_logprobs"]) for each in content] == [2] * 5
    assert last["choices"][0]["logprobs"] == given
    assert "'top_logprobs' without 'logprobs': true" in error_of(refused)["message"]


def test_of_tokens_with_the_same_text_the_likeliest_is_listed() -> None:
    token = TokenLogProbs(3, "a", -0.5, ((3, "a", -0.5), (7, "\ufffd", -1.5), (9, "\ufffd", -2.5)))
    result = Result("ask", "a", (3,), "stop", 1, log_probs=(token,))

    (choice,) = Shape("completion", "cmpl-1", 0, "ask").whole(result)["choices"]

    assert choice["logprobs"]["top_logprobs"] == [{"a": -0.5, "\ufffd": -1.5}]


@pytest.mark.parametrize("error", [MemoryError("secret"), RuntimeError("secret /etc/passwd")])
def test_a_step_that_fails_ends_requests_and_not_the_server(
    serve: Callable[..., Any],
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    served = serve()

    def fail(_: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(served.session.engine, "step", fail)
        refused = [
            served.post("/v1/completions", **TONE),
            served.post("/v1/completions", **TONE, stream=True),
            served.post("/v1/classify", **TONE),
        ]

    for response in refused:
        told = error_of(response)
        assert told["code"] == "internal_error"
        assert told["message"] == "The server failed; its log says why."
    assert "secret" in caplog.text
    assert served.post("/v1/completions", **TONE).status_code == 200
    assert served.client.get("/health/live").status_code == 200


def test_numbers_that_are_not_finite_are_no_answer(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    step = served.session.engine.step

    def broken(given: Any) -> Any:
        logits, tokens = step(given)
        logits[:] = float("nan")
        return logits, tokens

    with monkeypatch.context() as patch:
        patch.setattr(served.session.engine, "step", broken)
        told = [error_of(served.post(f"/v1/{r}", **TONE)) for r in ("completions", "classify")]

    assert [each["code"] for each in told] == ["no_answer"] * 2
    assert served.post("/v1/completions", **TONE).status_code == 200


@pytest.mark.parametrize("route", ["completions", "classify"])
def test_a_rank_that_ended_makes_the_server_not_live(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    served = serve()

    def ended(_: Any) -> Any:
        raise RankError("answering", found="rank 1 has ended")

    monkeypatch.setattr(served.session.engine, "step", ended)
    served.post(f"/v1/{route}", **TONE)

    assert served.client.get("/health/live").status_code == 503
    assert served.client.get("/health/ready").json() == {"status": "broken"}


def test_a_server_that_starts_or_ends_says_so(serve: Callable[..., Any]) -> None:
    served = serve()
    served.service.draining = True

    refused = served.post("/v1/completions", **TONE)

    assert error_of(refused)["code"] == "draining"
    assert refused.headers["connection"] == "close"
    assert served.client.get("/health/ready").json() == {"status": "draining"}
    assert served.client.get("/health/live").status_code == 200
    served.service.draining, served.service._session = False, None
    refused = served.post("/v1/completions", **TONE)
    assert error_of(refused)["code"] == "starting"
    assert refused.headers["retry-after"] == "2"
    ready = served.client.get("/health/ready")
    assert (ready.status_code, ready.json()) == (503, {"status": "starting"})
    assert "plc_slots" not in served.client.get("/metrics").text


def test_what_was_answered_and_refused_is_counted(serve: Callable[..., Any]) -> None:
    served = serve()
    answer = served.post("/v1/completions", **TONE).json()
    open_ = served.post("/v1/completions", model="ask", fields=ASK, max_tokens=5).json()
    served.post("/v1/completions", model="none")

    seen = values_of(served)

    usage = answer["usage"]
    assert seen["plc_requests_total stop tone"] == 1
    assert seen["plc_prompt_tokens_total tone"] == usage["prompt_tokens"]
    assert seen["plc_generation_tokens_total tone"] == usage["completion_tokens"]
    assert seen["plc_time_to_first_token_seconds_count tone"] == 1
    # Forced tokens of a choice come with the one before.
    assert seen["plc_inter_token_latency_seconds_count tone"] < usage["completion_tokens"]
    between = open_["usage"]["completion_tokens"] - 1
    assert seen["plc_inter_token_latency_seconds_count ask"] == between > 0
    assert seen["plc_request_latency_seconds_count tone"] == 1
    assert seen["plc_refusals_total model_not_found"] == 1
    assert (seen["plc_slots"], seen["plc_cache_entries"]) == (4, 4 * 96)
    assert (seen["plc_requests_running"], seen["plc_cache_entries_in_use"]) == (0, 0)
    assert (seen["plc_tasks"], seen["plc_prefixes_resident"]) == (2, 2)
    prefixes = [task.prefix_kv.nbytes for task in served.session.tasks.values()]
    assert seen["plc_prefix_bytes"] == sum(prefixes)


def test_labels_are_counted_as_answers(serve: Callable[..., Any]) -> None:
    served = serve()
    served.post("/v1/classify", **TONE)
    served.post("/v1/classify", **TONE, best=True)

    seen = values_of(served)

    assert seen["plc_requests_total labels tone"] == 2
    assert seen["plc_request_latency_seconds_count tone"] == 2


def test_the_likeliest_label_alone_is_that_of_all(shared: Any) -> None:
    every = shared.post("/v1/classify", **TONE).json()
    best = shared.post("/v1/classify", **TONE, best=True).json()

    likeliest = max(every["labels"], key=lambda label: label["log_probability"])
    assert best == {
        "object": "classification",
        "model": "tone",
        "label": likeliest["label"],
        "log_probability": pytest.approx(likeliest["log_probability"], abs=1e-6),
    }


def test_the_limit_of_tokens_holds_where_none_are_asked_for(serve: Callable[..., Any]) -> None:
    served = serve(limits=Limits(max_tokens=3))

    answer = served.post("/v1/completions", model="ask", fields=ASK).json()

    assert answer["usage"]["completion_tokens"] <= 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stop": ["x"] * 17}, "key 'stop' is 17 items, expected a list of at most 16 items"),
        ({"stop": ["x", 1]}, "key 'stop[1]' is 1, expected a text"),
    ],
)
def test_what_is_wrong_within_one_of_several_forms_is_named(
    shared: Any, given: dict[str, Any], said: str
) -> None:
    error = error_of(shared.post("/v1/completions", model="ask", fields=ASK, **given))

    assert said in error["message"]


def test_what_prompts_share_is_told_and_counted(serve: Callable[..., Any], tmp_path: Path) -> None:
    if kernels.library_path() is None:
        pytest.skip("no compiler: test_what_was_answered_and_refused_is_counted has the others")
    base = write_tiny_base(tmp_path / "base", "llama", blocks=True)
    table = random_table(base, tmp_path / "table.safetensors")
    request = ExportRequest(table, base, tmp_path / "bundle", target="native-cpu", capacity=96)
    request = replace(request, options=BuildOptions("int8"), measure_parity=False)
    served = serve(of=export_bundle(request).bundle)
    asked = {"question": "the lazy dog is not here " * 5, "place": "a field"}

    usages = [
        served.post("/v1/completions", model="ask", fields=asked, max_tokens=2).json()["usage"]
        for _ in range(2)
    ]

    first, second = (usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    seen = values_of(served)
    assert second - first == seen["plc_shared_tokens_total"] >= 32
    assert seen["plc_shared_hits_total"] == 1
    assert seen["plc_shared_evicted_total"] == 0
    assert 32 <= seen["plc_shared_entries"] <= seen["plc_shared_entries_limit"] == 96
    graph = served.session.engine.contract
    entry_bytes = 2 * graph.layers * graph.kv_heads * graph.head_dim * 4
    assert seen["plc_shared_bytes"] == seen["plc_shared_entries"] * entry_bytes


def test_task_labels_are_bounded_in_number(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MOST_TASK_LABELS", 1)
    served = serve()
    served.post("/v1/completions", **TONE)
    served.post("/v1/completions", model="ask", fields=ASK)
    served.post("/v1/completions", **TONE)

    seen = values_of(served)

    assert seen["plc_time_to_first_token_seconds_count tone"] == 2
    assert seen["plc_time_to_first_token_seconds_count other"] == 1
    assert not [name for name in seen if " ask" in name]


def test_the_log_has_a_line_for_each_request_and_no_text_of_it(
    shared: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "plc.server")
    secret = "my secret parcel"
    long = "/v1/" + "x" * 9000 + "%0Aforged"

    answer = shared.post("/v1/completions", model="tone", prompt=secret)
    shared.post("/v1/completions", model=secret, prompt=secret)
    shared.client.get(long)
    shared.client.get("/health/live")

    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert all(len(line) < 250 and "\n" not in line for line in lines)
    assert secret not in caplog.text
    used = answer.json()["usage"]
    id_ = answer.headers["x-request-id"]
    assert answer.json()["id"] == f"cmpl-{id_}"
    assert lines[0].startswith(
        f"{id_} POST /v1/completions 200 code=- task=tone prompt={used['prompt_tokens']} "
        f"written={used['completion_tokens']} seconds="
    )
    assert "404 code=model_not_found task=- prompt=0" in lines[1]


ADMIN = {"authorization": "Bearer admin-key"}


def test_tasks_come_and_go_under_load_and_no_request_is_dropped(
    serve: Callable[..., Any],
) -> None:
    """`ask` is asked all the time; `tone` is removed and added again and again."""
    served = serve(max_batch=3)
    body = {"model": "ask", "fields": ASK, "max_tokens": 8, "min_tokens": 8}
    expected = served.post("/v1/completions", **body).json()["choices"]
    label = served.post("/v1/completions", **TONE).json()["choices"]
    over = threading.Event()
    answers: list[Any] = []
    tones: list[Any] = []

    def ask() -> None:
        while not over.is_set():
            answers.append(served.post("/v1/completions", **body))

    def ask_tone() -> None:
        while not over.is_set():
            tones.append(served.post("/v1/completions", **TONE))

    threads = [threading.Thread(target=target) for target in (ask, ask, ask_tone)]
    for thread in threads:
        thread.start()
    for _ in range(8):
        gone = served.client.delete("/admin/tasks/tone", headers=ADMIN)
        assert (gone.status_code, gone.json()) == (200, {"removed": "tone"})
        listed = served.client.get("/admin/tasks", headers=ADMIN).json()
        assert listed == {"served": ["ask"], "in_bundles": ["ask", "tone"]}
        back = served.client.post("/admin/tasks", json={"task": "tone"}, headers=ADMIN)
        assert (back.status_code, back.json()) == (200, {"added": "tone"})
    over.set()
    for thread in threads:
        thread.join()

    assert len(answers) > 8
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.json()["choices"] == expected for answer in answers)
    # Each request of the task that came and went was answered right, or told that there is none.
    assert {answer.status_code for answer in tones} <= {200, 404}
    assert all(a.json()["choices"] == label for a in tones if a.status_code == 200)


def test_tasks_that_cannot_be_added_are_refused_and_the_others_serve(
    serve: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    served = serve(of=copy)

    def add(**body: Any) -> dict[str, Any]:
        return error_of(served.client.post("/admin/tasks", json=body, headers=ADMIN))

    assert "a task of this name is served already" in add(task="tone")["message"]
    assert add(task="nobody")["code"] == "model_not_found"
    assert add(task="../../etc")["code"] == "model_not_found"
    assert "unknown key 'bundle'" in add(task="tone", bundle="/tmp/x")["message"]
    served.client.delete("/admin/tasks/tone", headers=ADMIN)
    assert error_of(served.client.delete("/admin/tasks/tone", headers=ADMIN))["code"] == (
        "model_not_found"
    )
    path = copy / "tasks/tone/prompt.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    refused = add(task="tone")

    assert refused["code"] == "task_refused"
    assert (
        "task 'tone' was not added: tasks/tone/prompt.safetensors has sha256"
        in (refused["message"])
    )
    assert str(tmp_path) not in refused["message"]
    assert served.post("/v1/completions", model="ask", fields=ASK).status_code == 200
    path.write_bytes((bundle / "tasks/tone/prompt.safetensors").read_bytes())
    added = served.client.post("/admin/tasks", json={"task": "tone"}, headers=ADMIN)
    assert added.status_code == 200
    assert served.post("/v1/completions", **TONE).status_code == 200


def test_warming_runs_a_request(bundle: Path) -> None:
    from pl_compile.runtime.server.run import warm

    with Session.open(bundle) as session:
        feed, seen = Batch.feed, []

        def noted(batch: Batch, *given: Any, **more: Any) -> Any:
            seen.append(given)
            return feed(batch, *given, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Batch, "feed", noted)
            warm(session)

    assert len(seen) >= 1
