"""The example on Ray Serve, with two replicas on this machine; skipped where Ray is missing."""

import importlib.util
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pl_compile.runtime import Request, Session

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
import ray
from ray import serve
import app
ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
port, given = sys.argv[1:]
serve.start(http_options={"port": int(port)})
serve.run(app.build(json.loads(given)))
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""
ASK = {"task": "ask", "fields": {"question": "who?", "place": "a"}}

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="needs Ray Serve: pip install 'ray[serve]'; the session alone: tests/runtime/",
)


@pytest.fixture(scope="module")
def bundle(tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pl_compile.driver.export import export_bundle
    from pl_compile.driver.export_request import ExportRequest
    from pl_compile.testing import random_table

    folder, base = tmp_path_factory.mktemp("ray"), tiny_bases["llama"]
    table = random_table(base, folder / "table.safetensors")
    return export_bundle(
        ExportRequest(table, base, folder / "bundle", capacity=80, measure_parity=False)
    ).bundle


@pytest.fixture(scope="module")
def address(bundle: Path) -> Iterator[str]:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    paths = [str(ROOT / "examples" / "ray_serve"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    given = json.dumps({"bundle": str(bundle), "max_batch": "4"})
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(port), given],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:  # Ray writes there, too
            if line == "ready\n":
                break
        else:
            pytest.fail("the application did not start")
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.stdin.close()
            process.wait(120)


def ask(address: str, body: Any, **headers: str) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/generate", data, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read().decode()


def test_answers_are_those_of_a_session(address: str, bundle: Path) -> None:
    questions = ["who? " * n for n in range(1, 13)]

    def answer(question: str) -> Any:
        fields = {"question": question, "place": "a"}
        return json.loads(ask(address, {"task": "ask", "fields": fields}))

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(answer, questions))

    with Session.open(bundle) as session:
        expected = session.generate(
            [Request("ask", {"question": question, "place": "a"}) for question in questions]
        )
    assert [each["token_ids"] for each in answers] == [list(each.token_ids) for each in expected]


def test_a_stream_comes_in_pieces(address: str) -> None:
    options = {"max_tokens": 20, "min_tokens": 20}
    lines = ask(address, {**ASK, "options": options, "stream": True}).split("\n\n")

    *pieces, last = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert len(pieces) > 3
    text = "".join(piece["text"] for piece in [*pieces, last])
    assert text == last["result"]["text"]
    assert len(last["result"]["token_ids"]) == 20


def test_a_task_in_the_header_changes_no_answer(address: str) -> None:
    answers = {ask(address, ASK, serve_multiplexed_model_id="ask") for _ in range(6)}

    assert answers == {ask(address, ASK)}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "Expecting property name"),
        (b"[]", "expected only"),
        ({**ASK, "task": "nobody"}, "task 'nobody' does not exist"),
        ({**ASK, "options": {"max_token": 1}}, "Did you mean 'max_tokens'?"),
        ({**ASK, "stream": 1}, "stream 1"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(address: str, body: Any, said: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(address, body)

    assert error.value.code == 400
    assert said in json.loads(error.value.read())["detail"]
    error.value.close()
