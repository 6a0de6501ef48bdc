"""What commands share at the terminal: progress on standard error, tables, JSON, extras."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import click

from pl_compile.config.strict_json import with_null
from pl_compile.errors import MissingExtraError
from pl_compile.progress import Bar

_SECONDS_BETWEEN_LINES = 5.0

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on standard output."
)


class InputPath(click.Path):
    """A path to read from; with `allow_dash`, - is standard input."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The path."""
        value = "/dev/stdin" if value == "-" and self.allow_dash else value
        return super().convert(value, param, ctx)


class OutputPath(click.Path):
    """A path to write to; with `allow_dash`, - is standard output.

    An empty path, such as an unset variable of a shell gives, is refused. So is a path inside a
    bundle: a bundle with foreign files cannot be opened.
    """

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The path; `Path` would take an empty one for the current folder."""
        # Imported here, since --help does not need them.
        from pl_compile.artifact.bundle import bundle_around
        from pl_compile.artifact.files import is_open_descriptor

        if value == "":
            self.fail("it is empty; write . for the current folder.", param, ctx)
        if value == "-":
            if not self.allow_dash:
                self.fail("- is not written to here; write ./- for that name.", param, ctx)
            value = "/dev/stdout"
        path = Path(value)
        if not is_open_descriptor(path) and (bundle := bundle_around(path)) is not None:
            self.fail(
                f"{value} is inside the bundle {bundle}, which could then no longer be opened; "
                "choose a path outside of it.",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


def example(command: str) -> str:
    """The epilog of a command inside a group."""
    return f"\b\nExample:\n  {command}"  # \b keeps click from joining the lines


class TerminalProgress:
    """Bars where standard error is a terminal, plain lines where it is not."""

    def say(self, line: str) -> None:
        """A line on standard error."""
        click.echo(line, err=True)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Bar]:
        """A bar that is drawn over itself, or a line every few seconds."""
        from rich.console import Console

        console = Console(stderr=True)
        if not console.is_terminal:
            with _Lines(label, total) as lines:
                yield lines
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description:>24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(label, total=total, note="")
            yield _RichBar(progress, task)


class _RichBar:
    def __init__(self, progress: Any, task: Any) -> None:
        self._progress = progress
        self._task = task

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Draws the bar."""
        fields = {"note": note} if note else {}
        self._progress.update(self._task, advance=amount, **fields)


class _Lines:
    """A step's progress as lines, for logs: one every 5 s, and one at its end."""

    def __init__(self, label: str, total: int) -> None:
        self._label = label
        self._total = total
        self._done = 0
        self._note = ""
        self._started = self._said = time.monotonic()
        self._lock = Lock()
        self._ended = Event()
        self._thread = Thread(target=self._repeat, daemon=True)

    def __enter__(self) -> Bar:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Notes how far the step is, and prints it at the end of the step."""
        with self._lock:
            self._done += amount
            self._note = note or self._note
            if amount > 0 and self._done >= self._total:
                self._say()

    def _repeat(self) -> None:
        while not self._ended.wait(max(0, self._said + _SECONDS_BETWEEN_LINES - time.monotonic())):
            with self._lock:
                now = time.monotonic()
                if now - self._said >= _SECONDS_BETWEEN_LINES:
                    self._say(f"({now - self._started:.0f} s)")

    def _say(self, passed: str = "") -> None:
        self._said = time.monotonic()
        parts = [f"{self._label}: {self._done}/{self._total}", self._note, passed]
        with suppress(OSError, ValueError):  # the reader of standard error is gone
            click.echo(" ".join(part for part in parts if part), err=True)


def print_json(value: Any) -> None:
    """One JSON object on standard output; null for numbers that are not finite."""
    click.echo(json.dumps(with_null(value), ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output; as wide as its content where that is not a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    table = Table(*columns, title=title, title_justify="left", title_style="bold")
    for row in rows:
        # `Text`: brackets in data are not markup. Long cells are folded, so that nothing is cut.
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    with console.capture() as text:
        console.print(table)
    click.echo(text.get(), nl=False)  # rich would end with an exit code of its own at a closed pipe


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def need_extra(extra: str, *packages: str) -> None:
    """Raises `MissingExtraError` for the first of `packages` that is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(f"running {_command()}", package=package, extra=extra)


def _command() -> str:
    """The command that is running, as the user wrote it."""
    context: click.Context | None = click.get_current_context()
    names: list[str] = []
    while context is not None and context.parent is not None:
        names.insert(0, str(context.info_name))
        context = context.parent
    return " ".join(["plc", *names])
