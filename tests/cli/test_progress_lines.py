"""Where standard error is no terminal, a long step writes lines: in time, but not too many."""

import time

import pytest

from pl_compile.cli import terminal
from pl_compile.cli.terminal import TerminalProgress


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is due after 0.1 s, not 5."""
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", 0.1)


@pytest.mark.usefixtures("often")
def test_lines_come_while_a_part_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalProgress().bar("training", 3) as bar:
        bar.advance(note="loss 2.5")
        time.sleep(1)

    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 10
    assert lines[0] == "training: 1/3 loss 2.5 (0 s)"


@pytest.mark.usefixtures("often")
def test_short_parts_have_no_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalProgress().bar("training", 1001) as bar:
        for _ in range(1000):
            bar.advance()
            time.sleep(0.0005)

    assert 2 <= len(capsys.readouterr().err.splitlines()) <= 100


@pytest.mark.usefixtures("often")
def test_nothing_is_said_after_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), TerminalProgress().bar("training", 3):
        raise KeyboardInterrupt
    capsys.readouterr()

    time.sleep(0.3)

    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("often")
def test_what_follows_the_last_part_is_not_silent(capsys: pytest.CaptureFixture[str]) -> None:
    """A run's last validation comes after its last step."""
    with TerminalProgress().bar("training", 1) as bar:
        bar.advance(note="loss 2.5")
        bar.advance(0, note="validating")
        time.sleep(1)

    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == "training: 1/1 loss 2.5"
    assert second.startswith("training: 1/1 validating (")


def test_a_short_step_has_one_line_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalProgress().bar("self-tests", 2) as bar:
        bar.advance(note="tone")
        bar.advance()
        bar.advance(0)

    assert capsys.readouterr().err == "self-tests: 2/2 tone\n"
