"""`plc tasks` with `--server`: the tasks of a server that runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server_process import Process

pytest_plugins = ["server_fixtures"]


@pytest.fixture
def url(start: Callable[..., Process], bundle: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PLC_ADMIN_KEY", "admin-key")
    return start(bundle).url


def test_tasks_of_a_server_are_listed_removed_and_added(plc: Any, url: str) -> None:
    def served() -> list[str]:
        return [
            task["id"]
            for task in json.loads(plc("tasks", "ls", "--server", url, "--json")[1])["tasks"]
        ]

    code, out, _ = plc("tasks", "ls", "--server", url)
    assert code == 0
    assert "question, place" in out
    assert "positive, negative, neutral" in out

    assert plc("tasks", "rm", "tone", "ask", "--server", url)[:2] == (0, "removed: tone, ask\n")
    assert served() == []

    code, out, _ = plc("tasks", "add", "--server", url, "--task", "ask", "--json")
    assert (code, json.loads(out)) == (0, {"added": ["ask"]})
    assert served() == ["ask"]


def test_what_a_server_refuses_is_said(plc: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = plc("tasks", "rm", "tune", "--server", url)
    twice = plc("tasks", "add", "--server", url, "--task", "tone")
    monkeypatch.setenv("PLC_ADMIN_KEY", "other")
    closed = plc("tasks", "rm", "tone", "--server", url)

    assert missing[0] == twice[0] == closed[0] == 1
    assert "HTTP 404: task 'tune' does not exist. Did you mean 'tone'?" in missing[2]
    assert "a task of this name is served already" in twice[2]
    assert closed[2].endswith("send 'Authorization: Bearer KEY'. Give --admin-key.\n")


def test_what_was_done_before_an_error_is_said(plc: Any, url: str) -> None:
    code, _, err = plc("tasks", "rm", "ask", "tone", "tune", "--server", url)

    assert code == 1
    assert "task 'tune' does not exist" in err
    assert "(removed before: ask, tone)" in err


def test_a_server_without_the_routes_for_tasks_says_how_to_get_them(
    plc: Any, start: Callable[..., Process], bundle: Path
) -> None:
    code, _, err = plc("tasks", "rm", "tone", "--server", start(bundle).url)

    assert code == 1
    assert "Start plc serve with --admin-key-file or PLC_ADMIN_KEY" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ls"], "Give either PATH or --server."),
        (["ls", "bundle", "--server", "x:1"], "Give either PATH or --server."),
        (["add", "--server", "x:1"], "--server goes with --task alone."),
        (["add", "table", "--server", "x:1", "--task", "t"], "--server goes with --task alone."),
        (["add", "table"], "Give TABLE and OTHER, or --server and --task."),
        (["rm", "table"], "Missing argument 'TASK...'."),
        (["rm", "--server", "x:1"], "Missing argument"),
    ],
)
def test_misuse_is_exit_code_2(plc: Any, arguments: list[str], said: str) -> None:
    code, out, err = plc("tasks", *arguments)

    assert (code, out) == (2, "")
    assert said in err
