"""`plc serve` as a process: the official client, leaving clients, signals, hostile bodies."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from server_process import Process

from pl_compile.runtime import Request, Session

pytest_plugins = ["server_fixtures"]

ASK = {"question": "why?", "place": "a field"}


@pytest.fixture(scope="module")
def server(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Process, openai.OpenAI]]:
    """A server for tests that leave it as it was, and OpenAI's client."""
    command = [sys.executable, "-m", "pl_compile.cli", "serve", str(bundle), "--port", "0"]
    started = subprocess.Popen(
        [*command, "--json", "--max-batch", "4"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PLC_API_KEY": "secret-key"},
    )
    process = Process(started)
    with openai.OpenAI(base_url=f"{process.url}/v1", api_key="secret-key", max_retries=0) as client:
        yield process, client
    process.signalled(signal.SIGTERM)
    assert process.ended() == 0
    assert "Traceback" not in "".join(process.lines)


def test_openais_client_works_unchanged(
    server: tuple[Process, openai.OpenAI], bundle: Path
) -> None:
    process, client = server
    with Session.open(bundle) as session:
        tone, ask = session.generate(
            [Request("tone", {"sentence": "so cold"}), Request("ask", ASK, max_tokens=9)]
        )

    models = client.models.list().data
    text = client.completions.create(model="tone", prompt="so cold")
    chat = client.chat.completions.create(
        model="tone", messages=[{"role": "user", "content": "so cold"}], user="me", store=False
    )
    more = client.chat.completions.create(
        model="ask", messages=[], max_completion_tokens=9, extra_body={"fields": ASK}
    )

    assert [model.id for model in models] == process.tasks == ["tone", "ask"]
    assert client.models.retrieve("tone").id == "tone"
    assert text.choices[0].text == tone.text
    assert chat.choices[0].message.content == tone.text
    assert more.choices[0].message.content == ask.text
    assert more.choices[0].finish_reason == ask.finish_reason
    assert more.usage is not None
    assert more.usage.prompt_tokens_details is not None
    assert (more.usage.prompt_tokens, more.usage.completion_tokens) == (
        ask.prompt_tokens,
        len(ask.token_ids),
    )
    assert more.usage.prompt_tokens_details.cached_tokens == 3


def test_openais_client_reads_streams(server: tuple[Process, openai.OpenAI]) -> None:
    _, client = server
    options = {"model": "ask", "max_tokens": 12, "extra_body": {"fields": ASK, "min_tokens": 12}}
    whole = client.chat.completions.create(messages=[], **options)  # type: ignore[call-overload]

    pieces = list(
        client.chat.completions.create(  # type: ignore[call-overload]
            messages=[], stream=True, stream_options={"include_usage": True}, **options
        )
    )
    texts = [
        piece.choices[0].text
        for piece in client.completions.create(prompt=None, stream=True, **options)  # type: ignore[call-overload]
    ]

    said = whole.choices[0].message.content
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == said
    assert "".join(texts) == said
    assert pieces[-1].usage == whole.usage
    assert len(pieces) > 5


def test_openais_client_raises_its_errors(server: tuple[Process, openai.OpenAI]) -> None:
    process, client = server

    with pytest.raises(openai.NotFoundError, match="task 'tune' does not exist") as missing:
        client.completions.create(model="tune", prompt="x")
    with pytest.raises(openai.BadRequestError, match="key 'n' is 2, expected 1") as wrong:
        client.completions.create(model="tone", prompt="x", n=2)
    other = openai.OpenAI(base_url=f"{process.url}/v1", api_key="x", max_retries=0)
    with other, pytest.raises(openai.AuthenticationError):
        other.models.list()

    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert (wrong.value.code, wrong.value.param) == ("invalid_request", "n")


def test_many_requests_at_once_have_the_answers_they_have_alone(
    server: tuple[Process, openai.OpenAI], bundle: Path
) -> None:
    process, _ = server
    requests = [
        Request("ask", {"question": f"{n}?" * (n + 1), "place": "x"}, max_tokens=2 + n)
        for n in range(12)
    ]
    with Session.open(bundle) as session:
        expected = [session.generate([request])[0].text for request in requests]

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{process.url}/v1", api_key="secret-key") as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="ask",
                        messages=[],
                        max_tokens=request.max_tokens,
                        extra_body={"fields": request.fields},
                    )
                    for request in requests
                )
            )
        return [answer.choices[0].message.content or "" for answer in answers]

    assert asyncio.run(ask()) == expected


def test_bytes_that_are_not_http_do_no_harm(server: tuple[Process, openai.OpenAI]) -> None:
    process, client = server
    port = int(process.url.rsplit(":", 1)[1])
    for data in (b"\x00\xff" * 500, b"GET\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\n" * 99):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            assert b"500" not in connection.recv(4096)[:20]

    assert client.completions.create(model="tone", prompt="x").choices[0].text


BODY = {"model": "ask", "fields": ASK, "min_tokens": 60, "max_tokens": 60}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(
    start: Callable[..., Process], bundle: Path, tmp_path: Path, stream: bool
) -> None:
    hold = tmp_path / "hold"
    process = start(bundle, "--max-batch", "1", hold=hold)
    hold.touch()
    with (
        pytest.raises(httpx.TimeoutException),
        httpx.Client(timeout=0.2) as client,
    ):
        client.post(f"{process.url}/v1/completions", json={**BODY, "stream": stream})

    process.wait_for_line("code=client_left")
    hold.unlink()
    process.wait_for("plc_requests_running", 0)

    answer = httpx.post(f"{process.url}/v1/completions", json={"model": "tone", "prompt": "x"})
    assert answer.status_code == 200
    process.signalled(signal.SIGTERM)
    assert process.ended() == 0
    left = [line for line in process.lines if "code=client_left" in line]
    assert len(left) == 1
    assert " 499 " in left[0]


def test_a_stream_that_is_left_in_its_middle_frees_its_slot(
    start: Callable[..., Process], bundle: Path, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    process = start(bundle, "--max-batch", "1", hold=hold)
    with httpx.stream(
        "POST", f"{process.url}/v1/completions", json={**BODY, "stream": True}
    ) as response:
        assert response.status_code == 200
        next(response.iter_lines())
        hold.touch()
    hold.unlink()

    process.wait_for("plc_requests_running", 0)
    process.signalled(signal.SIGTERM)
    assert process.ended() == 0


def posted(process: Process, results: list[Any]) -> threading.Thread:
    """A thread that asks, and waits for its answer."""

    def post() -> None:
        try:
            results.append(httpx.post(f"{process.url}/v1/completions", json=BODY, timeout=60))
        except httpx.HTTPError as error:
            results.append(error)

    thread = threading.Thread(target=post)
    thread.start()
    return thread


@dataclass
class Busy:
    """A server whose steps wait, and a client of it."""

    process: Process
    hold: Path
    client: threading.Thread
    results: list[Any]


@pytest.fixture
def busy(start: Callable[..., Process], bundle: Path, tmp_path: Path) -> Callable[..., Busy]:
    """Starts a server with a request under way, which ends once `hold` is gone."""

    def make(*options: str) -> Busy:
        hold = tmp_path / "hold"
        process = start(bundle, *options, hold=hold)
        hold.touch()
        results: list[Any] = []
        client = posted(process, results)
        process.wait_for("plc_requests_running", 1)
        return Busy(process, hold, client, results)

    return make


def test_a_signal_lets_requests_end_and_takes_no_more(busy: Callable[..., Busy]) -> None:
    under_way = busy()
    process = under_way.process

    process.signalled(signal.SIGTERM)
    while httpx.get(f"{process.url}/health/ready").json() != {"status": "draining"}:
        time.sleep(0.005)
    refused = httpx.post(f"{process.url}/v1/completions", json=BODY)
    assert httpx.get(f"{process.url}/health/live").status_code == 200
    under_way.hold.unlink()
    under_way.client.join()

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    (answer,) = under_way.results
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 60
    assert process.ended() == 0


def test_draining_has_an_end(busy: Callable[..., Busy]) -> None:
    under_way = busy("--drain-timeout", "0.1")
    process = under_way.process

    process.signalled(signal.SIGTERM)
    process.wait_for_line("are cut short")
    under_way.client.join()
    under_way.hold.unlink()  # the step that runs ends

    assert process.ended() == 1
    assert "1 requests are cut short" in "".join(process.lines)
    (answer,) = under_way.results
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")


def test_a_stream_that_is_cut_short_says_so(
    start: Callable[..., Process], bundle: Path, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    process = start(bundle, "--drain-timeout", "0.1", hold=hold)
    hold.write_text("3")
    with httpx.stream(
        "POST", f"{process.url}/v1/completions", json={**BODY, "stream": True}, timeout=60
    ) as stream:
        lines = (line.removeprefix("data: ") for line in stream.iter_lines() if line)
        assert "choices" in json.loads(next(lines))
        process.signalled(signal.SIGTERM)
        *_, last = lines
    hold.unlink()

    assert json.loads(last)["error"]["code"] == "draining"
    assert process.ended() == 1
    assert "Traceback" not in "".join(process.lines)


def test_a_bundle_that_is_damaged_leaves_the_others_served(
    start: Callable[..., Process], bundle: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle, damaged)
    model = damaged / "base" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])

    process = start(damaged, bundle)
    answer = httpx.post(f"{process.url}/v1/completions", json=BODY)
    process.signalled(signal.SIGTERM)

    assert answer.status_code == 200
    assert process.ended() == 0
    assert f"a bundle is not served: opening the bundle {damaged}" in "".join(process.lines)


def test_a_second_signal_ends_at_once(busy: Callable[..., Busy]) -> None:
    under_way = busy()
    process = under_way.process

    process.signalled(signal.SIGTERM)
    process.wait_for_line("requests end first")
    process.signalled(signal.SIGTERM)

    assert process.ended() == 128 + signal.SIGTERM
    under_way.client.join()
    assert isinstance(under_way.results[0], httpx.HTTPError)


def test_what_is_wrong_with_a_command_is_said(bundle: Path, tmp_path: Path) -> None:
    def run(*arguments: str | Path, **env: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "pl_compile.cli", "serve", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **env},
            timeout=60,
        )
        assert done.stdout == ""
        return done.returncode, done.stderr

    (tmp_path / "key").write_text("\n")
    (tmp_path / "two").write_text("a b\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])

        busy = run(bundle, "--port", port)
    missing = run(tmp_path / "nothing", "--port", "0")
    empty = run(bundle, "--admin-key-file", tmp_path / "key")
    two = run(bundle, "--api-key-file", tmp_path / "two")
    absent = run(bundle, "--api-key-file", tmp_path / "absent")
    from_variable = run(bundle, PLC_ADMIN_KEY=" ")

    assert busy[0] == missing[0] == empty[0] == two[0] == absent[0] == from_variable[0] == 1
    assert f"error: listening on 127.0.0.1 port {port}: Address already in use" in busy[1]
    assert "error: opening the bundle" in missing[1]
    assert "there is no such folder" in missing[1]
    assert "Traceback" not in missing[1]
    assert "no key; expected one line: a key of ASCII characters" in empty[1]
    assert "blanks, or characters that are not ASCII" in two[1]
    assert "No such file or directory; expected a text file" in absent[1]
    assert "reading the key in PLC_ADMIN_KEY: no key" in from_variable[1]
    assert run()[0] == 2
