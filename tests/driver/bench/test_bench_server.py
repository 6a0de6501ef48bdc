"""`plc bench --server`: what is sent, and what the figures say of what comes back."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from stand_in_server import piece, stand_in, whole

from pl_compile.driver.bench.client import Address, Answer, events_of
from pl_compile.driver.bench.load import figures_of
from pl_compile.driver.bench.server import ServerLoad, bench_server, models_of
from pl_compile.errors import RequestError

OURS = [
    {"id": "tone", "object": "model", "owned_by": "plc", "fields": ["sentence"]},
    {"id": "ask", "object": "model", "owned_by": "plc", "fields": ["place", "question"]},
]
ANOTHER = [{"id": "smol.gguf", "object": "model", "owned_by": "llamacpp"}]


def answered(body: dict[str, Any]) -> Iterator[dict[str, Any] | str]:
    return whole(body["max_tokens"])


def test_our_server_is_sent_fields_of_its_tasks_in_turn() -> None:
    with stand_in(OURS, answered) as server:
        report = bench_server(Address.of(server.url), ServerLoad(clients=2, requests=6, tokens=3))

    assert report.ours
    assert report.load.tasks == ("tone", "ask")
    # One of each task comes before those that are counted.
    assert [body["model"] for body in server.bodies[:2]] == ["tone", "ask"]
    assert sorted(body["model"] for body in server.bodies[2:]) == ["ask"] * 3 + ["tone"] * 3
    for body in server.bodies:
        assert body.keys() == {
            *("model", "fields", "max_tokens", "min_tokens", "temperature", "constrain"),
            *("stream", "stream_options"),
        }
        assert (body["max_tokens"], body["min_tokens"], body["constrain"]) == (3, 3, False)
        assert body["stream"] is True
        fields = {"tone": {"sentence"}, "ask": {"place", "question"}}
        assert body["fields"].keys() == fields[body["model"]]
        assert sum(len(text.split()) for text in body["fields"].values()) == 64
    assert len({json.dumps(body["fields"]) for body in server.bodies}) == 8


@pytest.mark.parametrize(("fixed", "more"), [(True, {"ignore_eos": True}), (False, {})])
def test_another_server_is_sent_a_prompt_and_no_key_of_ours(
    fixed: bool, more: dict[str, Any]
) -> None:
    load = ServerLoad(clients=1, requests=2, input_tokens=5, tokens=3, fixed=fixed)

    with stand_in(ANOTHER, answered) as server:
        report = bench_server(Address.of(server.url), load)

    assert not report.ours
    for body in server.bodies:
        prompt = body.pop("prompt")
        assert len(prompt.split()) == 5
        assert body == {
            "model": "smol.gguf",
            "max_tokens": 3,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **more,
        }


def test_figures_are_those_of_the_answers() -> None:
    with stand_in(OURS, answered) as server:
        load = ServerLoad(tasks=("ask",), clients=3, requests=9, tokens=4)
        figures = bench_server(Address.of(server.url), load).figures

    assert server.most_at_once <= 3
    assert (figures.answered, figures.errors) == (9, {})
    assert figures.finish_reasons == {"length": 9}
    assert (figures.prompt_tokens, figures.written_tokens) == (40, 4)
    assert figures.tokens_per_second == pytest.approx(9 * 4 / figures.seconds)
    assert figures.requests_per_second == pytest.approx(9 / figures.seconds)
    assert figures.first_token is not None
    assert figures.between_tokens is not None
    assert figures.latency is not None
    assert (figures.first_token.count, figures.between_tokens.count) == (9, 27)
    assert figures.first_token.p50 < figures.latency.p50


def test_figures_by_hand() -> None:
    one = Answer(10.0, pieces=[11.0, 12.0, 14.0], ended=14.5, tokens=5, finish_reason="length")
    two = Answer(10.0, pieces=[13.0], ended=13.0, finish_reason="stop")
    lost = Answer(12.0, ended=20.0, error="timeout", words="too long")

    figures = figures_of([two, lost, one])

    assert figures.seconds == 10.0
    assert figures.answered == 2
    assert figures.tokens_per_second == pytest.approx(0.6)  # the piece of `two` counts as a token
    assert figures.errors == {"timeout": 1}
    assert figures.examples == {"timeout": "too long"}
    assert figures.finish_reasons == {"stop": 1, "length": 1}
    assert figures.first_token is not None
    assert figures.first_token.p50 == pytest.approx(2.0)
    assert figures.between_tokens is not None
    assert figures.between_tokens.mean == pytest.approx(1.5)
    assert figures.per_token is not None
    assert figures.per_token.mean == pytest.approx(0.75)  # 3 s for 4 tokens


def test_clients_ask_at_the_same_time() -> None:
    def slow(body: dict[str, Any]) -> Iterator[dict[str, Any] | str]:
        return whole(2, pause=0.05)

    with stand_in(OURS, slow) as server:
        bench_server(Address.of(server.url), ServerLoad(clients=4, requests=8, tokens=2))

    assert server.most_at_once == 4


def test_an_open_loop_sends_whatever_comes_back() -> None:
    def slow(body: dict[str, Any]) -> Iterator[dict[str, Any] | str]:
        return whole(1, pause=0.5)

    with stand_in(ANOTHER, slow) as server:
        load = ServerLoad(rate=200.0, requests=10, tokens=1)
        report = bench_server(Address.of(server.url), load)

    assert server.most_at_once > 5
    assert report.figures.answered == 10


def test_a_time_is_counted_from_when_a_request_was_due() -> None:
    with stand_in(ANOTHER, answered) as server:
        body = {"model": "smol.gguf", "prompt": "a", "max_tokens": 1}
        answer = Address.of(server.url).stream(body, since=time.perf_counter() - 5)

    assert answer.pieces[0] - answer.started > 5


def broken(body: dict[str, Any]) -> Iterator[dict[str, Any] | str]:
    """Each failure in turn, by the number of words in the field."""
    kind = body["prompt"]
    if kind == "status":
        yield {"status": 429, "body": {"error": {"message": "too many requests"}}}
    elif kind == "whole":
        yield {"status": 200, "body": {"choices": [{"text": "no stream"}]}}
    elif kind == "cut":
        yield piece("a")
    elif kind == "error":
        yield piece("a")
        yield {"error": {"message": "out of slots"}}
    elif kind == "empty":
        yield "[DONE]"
    elif kind == "text":
        yield "not JSON"
    elif kind == "array":
        yield "[1]"
    elif kind == "silent":
        yield piece("a")
        time.sleep(1)
        yield "[DONE]"


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("status", "HTTP 429", "too many requests"),
        ("whole", "no stream", "no stream"),
        ("cut", "a stream that broke off", ""),
        ("error", "an error in the stream", "out of slots"),
        ("empty", "an answer without tokens", ""),
        ("text", "not OpenAI's protocol", "Expecting value"),
        ("array", "not OpenAI's protocol", "an event that is no object"),
        ("silent", "timeout", "silent"),
    ],
)
def test_each_failure_has_its_kind(kind: str, error: str, words: str) -> None:
    with stand_in(ANOTHER, broken) as server:
        answer = Address.of(server.url, timeout=0.2).stream({"prompt": kind})

    assert answer.error == error
    assert words in answer.words
    assert answer.ended >= answer.started


def test_a_server_that_is_not_there_is_a_failed_answer() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    assert Address("127.0.0.1", port).stream({}).error == "connection refused"
    with pytest.raises(RequestError, match=r"v1/models: the connection was refused. Is the server"):
        models_of(Address("127.0.0.1", port))


def test_failures_are_counted_and_the_rest_is_measured() -> None:
    def every_third(body: dict[str, Any]) -> Iterator[dict[str, Any] | str]:
        if len(server.bodies) % 3 == 0:
            yield {"status": 503, "body": {"error": "busy"}}
        else:
            yield from whole(2)

    with stand_in(ANOTHER, every_third) as server:
        load = ServerLoad(clients=1, requests=8, tokens=2)
        figures = bench_server(Address.of(server.url), load).figures

    assert (figures.answered, figures.errors) == (5, {"HTTP 503": 3})
    assert figures.examples == {"HTTP 503": "busy"}


def test_a_server_that_cannot_answer_at_all_is_an_error() -> None:
    def refused(body: dict[str, Any]) -> Iterator[dict[str, Any] | str]:
        yield {"status": 400, "body": {"error": {"message": "what is ignore_eos?"}}}

    with (
        stand_in(ANOTHER, refused) as server,
        pytest.raises(RequestError, match=r"first answer of 'smol.gguf': HTTP 400: what is ignore"),
    ):
        bench_server(Address.of(server.url), ServerLoad())


def test_the_key_is_sent_and_not_shown() -> None:
    with stand_in(ANOTHER, answered) as server:
        address = Address.of(server.url, api_key="secret")
        bench_server(address, ServerLoad(requests=1, clients=1))

    assert set(server.keys) == {"Bearer secret"}
    assert "secret" not in repr(address)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("http://localhost:8000/v1", "http://localhost:8000"),
        ("http://localhost:8000/", "http://localhost:8000"),
        ("https://host/models/v1/", "https://host:443/models"),
        ("http://[::1]:9", "http://[::1]:9"),
        ("http://host", "http://host:80"),
    ],
)
def test_addresses(url: str, expected: str) -> None:
    assert Address.of(url).url == expected


@pytest.mark.parametrize("url", ["", "ftp://host", "http://", "http://host:x", "http://[::1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match=r"expected http://HOST:PORT"):
        Address.of(url)


def test_lists_that_are_none_of_models_are_refused() -> None:
    with (
        stand_in([], answered) as server,
        pytest.raises(RequestError, match=r"reading the models"),
    ):
        models_of(Address.of(server.url))


def test_events_are_read_between_other_lines() -> None:
    lines = [b": a comment\n", b"event: x\n", b'data:{"a": 1}\n', b"\n", b"data: [DONE]\n", b"data"]

    assert list(events_of(lines)) == [{"a": 1}, None]


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_the_command(plc: Any, form: list[str]) -> None:
    with stand_in(OURS, answered) as server:
        numbers = ["--clients", "2", "--requests", "4", "--tokens", "3", "--task", "tone"]
        code, out, err = plc("bench", "--server", f"{server.url}/v1", *numbers, *form)

    assert code == 0, err
    if form:
        report = json.loads(out)
        assert (report["format"], report["version"]) == ("plc.bench.server", 1)
        assert report["load"]["tasks"] == ["tone"]
        assert report["figures"]["answered"] == 4
        assert report["url"] == server.url
    else:
        assert "(plc serve): tone; 2 clients" in out
        assert "4 answers in " in out
        assert "prompts of 40, answers of 3.0 tokens" in out


def test_an_unknown_task_is_one_line(plc: Any) -> None:
    with stand_in(OURS, answered) as server:
        code, out, err = plc("bench", "--server", server.url, "--task", "tome")

    assert (code, out) == (1, "")
    assert "task 'tome' does not exist. Did you mean 'tone'? Known tasks: tone, ask." in err
