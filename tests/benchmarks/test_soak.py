"""The soak in its small form, and that it finds what it looks for."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from stand_in_server import stand_in, whole

from pl_compile.config.sampling import Sampling
from pl_compile.driver.bench.client import LEFT, Address, Answer
from pl_compile.runtime import Request, Result, Session

HOME = Path(__file__).parents[2]


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(HOME / "benchmarks"))
    import soak

    monkeypatch.setattr(soak, "SECONDS_TO_END", 0.2)
    return soak


@pytest.fixture
def run(soak: ModuleType, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the script on a tiny bundle; gives its exit code and its report."""

    def run_(*more: str) -> tuple[int, dict[str, Any]]:
        more = more or ("--change-every", "0")
        numbers = ["--minutes", "0.03", "--rate", "60", "--requests", "6", "--words", "6"]
        code = 0
        try:
            soak.main([str(work / "bundle"), *numbers, "--output", str(tmp_path), *more])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return run_


def test_a_session_gives_each_answer_as_alone(run: Any, tmp_path: Path) -> None:
    code, report = run()

    assert code == 0, report
    assert report["answered"] > 5
    assert report["left"] > 0
    assert (report["differences"], report["failed"], report["slots_not_free"]) == (0, {}, 0)
    assert json.loads((tmp_path / "soak.json").read_text()) == report
    with (tmp_path / "memory.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0].keys() == {
        *("seconds", "resident_mib", "anonymous_mib", "answered", "left"),
    }
    assert float(rows[-1]["resident_mib"]) > 0


def test_tasks_come_and_go(run: Any) -> None:
    code, report = run("--change-every", "0.1", "--minutes", "0.05")

    assert code == 0, report
    assert report["changes"] > 0
    assert report["not_served"] > 0
    assert (report["differences"], report["failed"]) == (0, {})


def test_a_task_that_goes_and_comes_is_odd_meanwhile(soak: ModuleType) -> None:
    counts, seen = soak.Counts(), []
    changes: Any = None
    subject = soak.Subject(
        ask=None,
        process=1,
        in_use=None,
        remove=lambda task: seen.append(("remove", task, changes.versions[task] % 2)),
        add=lambda task: seen.append(("add", task, changes.versions[task] % 2)),
    )

    changes = soak.Changes(subject, ["a"], counts, every=0.01, seed=0)
    with changes:
        while counts.changes < 2:
            pass

    assert seen[:2] == [("remove", "a", 1), ("add", "a", 1)]
    assert changes.versions["a"] == 2 * counts.changes


def test_a_change_that_fails_is_counted(soak: ModuleType) -> None:
    def refuse(_: str) -> None:
        raise ValueError("no")

    counts = soak.Counts()
    subject = soak.Subject(ask=None, process=1, in_use=None, remove=refuse, add=refuse)
    with soak.Changes(subject, ["a"], counts, every=0.001, seed=0):
        while not counts.failed:
            pass

    assert counts.failed == {"changing a task: no": 1}


def test_another_answer_is_a_difference(
    run: Any, soak: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_session = soak.ask_session

    def wrong(session: Session) -> Any:
        ask = ask_session(session)

        def ask_wrongly(request: Request, leave_after: int | None) -> Answer:
            answer: Answer = ask(request, leave_after)
            answer.texts.append("!")
            return answer

        return ask_wrongly

    monkeypatch.setattr(soak, "ask_session", wrong)

    code, report = run()

    assert code == 1
    assert report["differences"] == report["answered"] > 0
    assert report["examples"][0]["found"][0].endswith("!")


def test_a_slot_that_stays_taken_is_found(
    run: Any, soak: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []

    def forgetful(session: Session) -> Any:
        def ask(request: Request, leave_after: int | None) -> Answer:
            if not kept:
                stream = session.stream([replace(request, max_tokens=9, constrain=False)])
                next(stream)
                kept.append(stream)
            return Answer(0.0, error=LEFT)

        return ask

    monkeypatch.setattr(soak, "ask_session", forgetful)

    code, report = run()

    assert code == 1
    assert report["slots_not_free"] > 0


def test_a_request_that_fails_is_counted(soak: ModuleType) -> None:
    counts = soak.Counts()
    request, alone = Request("a", {}), Result("a", "yes", (1,), "stop", 3)

    gone = Answer(0.0, error="HTTP 404", words="task 'a' does not exist")
    counts.take(request, alone, gone, away=True)
    assert (counts.not_served, counts.failed) == (1, {})
    counts.take(request, alone, gone)
    assert counts.failed == {"HTTP 404 task 'a' does not exist": 1}
    counts.failed.clear()
    counts.take(request, alone, Answer(0.0, error="HTTP 429", words="queue full"))
    assert (counts.turned_away, counts.failed) == (1, {})
    for answer in (
        Answer(0.0, error="HTTP 500", words="broken"),
        Answer(0.0, error=LEFT),
        Answer(0.0, texts=["y", "es"], tokens=1, finish_reason="stop"),
        Answer(0.0, texts=["y", "es"], tokens=2, finish_reason="stop"),
    ):
        counts.take(request, alone, answer)

    assert counts.failed == {"HTTP 500 broken": 1}
    assert (counts.left, counts.answered, len(counts.differences)) == (1, 2, 1)


def test_a_server_is_asked_for_the_same(soak: ModuleType) -> None:
    drawn = Request("tone", {"a": "b"}, max_tokens=3, sampling=Sampling(temperature=0.8, seed=5))

    with stand_in([], lambda body: whole(body["max_tokens"])) as server:
        ask = soak.ask_server(Address.of(server.url))
        answer = ask(drawn, None)
        left = ask(Request("tone", {"a": "b"}, max_tokens=9), 2)

    assert (answer.text, answer.tokens, answer.error) == (" 0 1 2", 3, None)
    assert (left.text, left.error) == (" 0 1", LEFT)
    more = {"stream": True, "stream_options": {"include_usage": True}}
    asked = {"model": "tone", "fields": {"a": "b"}}
    assert server.bodies == [
        {**asked, "max_tokens": 3, "temperature": 0.8, "seed": 5, **more},
        {**asked, "max_tokens": 9, "temperature": 0.0, **more},
    ]


def test_slots_of_a_server_are_those_of_its_metrics(soak: ModuleType) -> None:
    page = "# HELP plc_slots x\nplc_requests_running 2.0\nplc_requests_waiting 1.0\nplc_slots 16.0"

    assert soak.slots_of_server(SimpleNamespace(text=lambda *_: page)) == 3


def test_growth_is_that_of_the_last_quarter(soak: ModuleType, tmp_path: Path) -> None:
    curve = soak.Curve(tmp_path / "memory.csv", 1, soak.Counts())
    assert curve.growth() is None

    curve.rows = [(t, mib, 0.0, 0, 0) for t, mib in enumerate((9, 9, 20, 20, 20, 20, 25, 25))]

    assert curve.growth() == 5
