"""The command `plc`: one file per command, each imported only when it is asked for.

`plc --help` must answer at once, so nothing here imports more than click, and a command imports
what it needs inside its function. This module turns our exceptions into one line and an exit code.
"""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from pl_compile import __version__
from pl_compile.errors import PlcError, reason_of

# The line of each command in `plc --help`, in the order in which they are used.
COMMANDS = {
    "fetch": "Bring the default base.",
    "prepare": "Turn a published data set into JSONL.",
    "train": "Train the prompts of one or more tasks.",
    "import": "Bring prompts of PEFT, or of a checkpoint, into a prompt table.",
    "tasks": "List the tasks of a table or bundle; add, rename or remove a table's.",
    "export": "Compile prompts and base into a bundle.",
    "build": "Build a bundle's TensorRT plans on the device that will run them.",
    "verify": "Check a bundle: sums, self-tests, parity with torch.",
    "generate": "Answer one request, or a file of them.",
    "serve": "Answer requests over HTTP.",
    "eval": "Score tasks with and without their prompts.",
    "bench": "Measure how fast a bundle or a server is.",
    "inspect": "Say what a path holds.",
    "doctor": "Say what works on this machine, and why not.",
}

# Files that cannot have the name of their command: a keyword cannot be imported.
_FILES = {"import": "importing"}


class LazyGroup(click.Group):
    """A group whose commands are modules of `pl_compile.cli`.

    If the reader of our output is gone, click ends the process with exit code 1 in `Group.main`,
    before we see an exception. So the methods that it calls there are wrapped here.
    """

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """As click's own; help and version are printed during this call."""
        with _exit_on_closed_pipe():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command as click does."""
        with _exit_on_closed_pipe():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"pl_compile.cli.{_FILES.get(cmd_name, cmd_name)}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="plc")
@click.option("--debug", is_flag=True, help="Show a traceback with an error.")
@click.pass_context
def plc(ctx: click.Context, debug: bool) -> None:
    """Compile prompt-tuned GPTs: train virtual tokens, export them, serve them."""
    ctx.obj = {"debug": debug}


def main() -> None:
    """Runs `plc` and leaves the process with the exit code that the README lists."""
    _end_cleanly()
    warnings.formatwarning = _warning_line
    if sys.stdout is None:
        sys.exit("error: writing the output: standard output is closed.")
    with _exit_on_closed_pipe():
        _run()


def _run() -> None:
    try:
        plc.main(standalone_mode=False)
        sys.stdout.flush()  # here, where a full disk can still be reported
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    except PlcError as error:
        if "--debug" in sys.argv[1:]:
            traceback.print_exc()
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        raise
    except OSError as error:
        of_output = error.filename is None
        doing = "writing the output" if of_output else f"opening {error.filename}"
        fix = "" if of_output else " Check the path, and who may read and write there."
        click.echo(f"error: {doing}: {reason_of(error)}.{fix}", err=True)
        if of_output:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@contextmanager
def _exit_on_closed_pipe() -> Iterator[None]:
    """Ends the process with its exit code where the reader of our output is gone (`plc … | head`).

    That needs no message; the rest of the output is dropped.
    """
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _warning_line(message: Warning | str, *_: object, **__: object) -> str:
    """A warning as a line for the user, without its place in the code."""
    return f"warning: {message}\n"


def _end_cleanly() -> None:
    """Makes signals that end `plc` work like Ctrl-C, so that half-written files are removed."""

    def end(number: int, _: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)  # a second signal must not interrupt the removal
        sys.exit(128 + number)

    # A process started by `nohup` ignores SIGHUP, and shall go on ignoring it.
    known = (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
    numbers = [each for each in known if signal.getsignal(each) != signal.SIG_IGN]
    for each in numbers:
        signal.signal(each, end)
