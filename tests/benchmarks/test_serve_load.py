"""Servers side by side: what each is asked, and the table, with servers that stand in."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pl_compile.driver.bench.client import Address, Answer

HOME = Path(__file__).parents[2]
STAND_IN = HOME / "tests" / "driver" / "bench" / "stand_in_server.py"


@pytest.fixture
def serve_load(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(HOME / "benchmarks"))
    import serve_load

    return serve_load


class Noting:
    """An address that notes what it is sent."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    def stream(self, body: dict[str, Any], *, since: float | None = None) -> Answer:
        self.bodies.append(body)
        return Answer(0.0)


def bodies_of(serve_load: ModuleType, kind: str, count: int) -> list[dict[str, Any]]:
    address = Noting()
    ask = serve_load.ask_of(serve_load.System(kind, kind, "path", "python"), address)
    for number in range(count):
        ask(number, None)
    return address.bodies


def test_ours_is_asked_for_its_four_tasks(serve_load: ModuleType) -> None:
    bodies = bodies_of(serve_load, "plc", 5)

    assert [body["model"] for body in bodies] == [
        *("virtual10", "virtual40", "virtual70", "virtual100", "virtual10"),
    ]
    for body in bodies:
        assert len(body["fields"]["text"].split()) == 60
        assert (body["max_tokens"], body["min_tokens"], body["temperature"]) == (32, 32, 0)


def test_the_tasks_are_those_of_the_bundle(serve_load: ModuleType) -> None:
    import make_bundles

    assert [task["taskname"] for task in make_bundles.SERVED] == [
        f"virtual{count}" for count in serve_load.VIRTUAL
    ]
    assert make_bundles.VIRTUAL == serve_load.VIRTUAL


def test_others_get_the_opening_as_text_and_the_same_text(serve_load: ModuleType) -> None:
    ours, theirs = bodies_of(serve_load, "plc", 8), bodies_of(serve_load, "llama", 8)

    openings = []
    for mine, other in zip(ours, theirs, strict=True):
        opening, text = other["prompt"].split("\n")
        openings.append(opening)
        assert text == mine["fields"]["text"]
        assert (other["max_tokens"], other["ignore_eos"]) == (32, True)
    assert [len(opening.split()) for opening in openings] == [10, 40, 70, 100] * 2
    assert openings[:4] == openings[4:]


def test_samples_of_two_servers_become_a_table_and_json(
    serve_load: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    started = []

    def command_of(system: Any, clients: int, port: int) -> list[str]:
        started.append((system.kind, clients))
        return [sys.executable, str(STAND_IN), str(port)]

    monkeypatch.setattr(serve_load, "command_of", command_of)
    numbers = ["--clients", "2", "3", "--rounds", "2", "--per-client", "2", "--json"]

    serve_load.main(["plc:a=x", "llama:b=y", *numbers, "--logs", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(lines[-1])

    assert started == [("plc", 2), ("llama", 2), ("plc", 3), ("llama", 3)] * 2
    assert [line.split("|")[1] for line in lines if line.startswith("| ")] == [
        *(" system ", " plc a ", " llama b "),
        *(" system ", " plc a ", " llama b "),
    ]
    assert report["medians"].keys() == {"2", "3"}
    for samples in report["samples"].values():
        for found in samples.values():
            assert [sample["written tokens"] for sample in found] == [32, 32]
            assert all(sample["tokens/s"] > 0 for sample in found)


def test_a_server_that_ends_at_once_is_said(
    serve_load: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = [sys.executable, "-c", "raise SystemExit('no such model')"]
    monkeypatch.setattr(serve_load, "command_of", lambda *_: broken)

    with pytest.raises(SystemExit, match="no such model"):
        serve_load.main(["plc:a=x", "--clients", "2", "--logs", str(tmp_path)])


@pytest.mark.parametrize("given", ["x:a=b", "plc:a", "plc:=b", "plc"])
def test_what_is_no_system_is_refused(
    serve_load: ModuleType, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        serve_load.main([given])

    assert "expected KIND:NAME=PATH" in capsys.readouterr().err


def test_ratios_are_those_to_the_first_system(
    serve_load: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    serve_load.show(8, {"a": {"tokens/s": 200.0}, "b": {"tokens/s": 50.0}})

    assert capsys.readouterr().out.splitlines()[-2:] == [
        *("| a | 200 (1.00) |", "| b | 50 (0.25) |"),
    ]


def test_a_busy_machine_is_said(serve_load: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    serve_load.show(8, {"a": {"tokens/s": 200.0, "other load": 0.05}})
    assert "Other processes" not in capsys.readouterr().out

    serve_load.show(8, {"a": {"tokens/s": 200.0, "other load": 0.5}})
    assert "Other processes took 50% of the processors" in capsys.readouterr().out


def test_our_server_is_started_as_its_command_takes_it(serve_load: ModuleType) -> None:
    system = serve_load.System("plc", "plc a", "/bundle", "python")

    assert serve_load.command_of(system, 8, 1234) == [
        *("python", "-m", "pl_compile.cli", "serve", "/bundle"),
        *("--host", "127.0.0.1", "--port", "1234", "--batch", "8"),
    ]


def test_a_port_is_free(serve_load: ModuleType) -> None:
    assert Address("127.0.0.1", serve_load.free_port()).stream({}).error == "connection refused"
