"""Where standard error is no terminal, a long step writes lines: in time, but not too many."""

from types import SimpleNamespace

import pytest

from pl_compile.cli import terminal
from pl_compile.cli.terminal import TerminalProgress


class Clock:
    """A clock that moves when it is told to."""

    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def times_of_lines(
    clock: Clock, capsys: pytest.CaptureFixture[str], parts: list[float], amount: int = 1
) -> list[float]:
    """When lines came, from the start of a step whose parts take so many seconds each."""
    times = []
    started = clock.now
    with TerminalProgress().bar("training", len(parts)) as bar:
        for seconds in parts:
            clock.now += seconds
            bar.advance(amount)
            times += [clock.now - started] * capsys.readouterr().err.count("\n")
    return times


@pytest.mark.parametrize("seconds", [0.01, 0.7, 1.5, 2.4, 3.0, 4.9])
def test_a_line_comes_at_least_every_five_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str], seconds: float
) -> None:
    parts = [seconds] * round(60 / seconds)

    times = times_of_lines(clock, capsys, parts)

    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert max(gaps) <= 5.0 + 1e-6
    assert len(times) <= 60 / 2.5 + 1


def test_signs_of_life_within_a_part_are_lines_too(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    times = times_of_lines(clock, capsys, [2.0] * 6, amount=0)

    assert times == [4.0, 8.0, 12.0]


def test_a_long_part_gives_no_line_to_every_short_one_after_it(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    times = times_of_lines(clock, capsys, [20.0, *[0.1] * 200])

    assert times[0] == 20.0
    assert 5 <= len(times) <= 10


def test_a_short_step_has_one_line_at_its_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with TerminalProgress().bar("self-tests", 2) as bar:
        bar.advance(note="tone")
        bar.advance()
        bar.advance(0)

    assert capsys.readouterr().err == "self-tests: 2/2 tone\n"
