"""What runs in the process of a rank: an engine that does what the group's leader says.

    python -m pl_compile.runtime.engines.rank_process FILE_DESCRIPTOR

Over the socket come `(method, arguments)`; back goes the result, or the exception. The first call
is "open". It ends when the leader closes the socket, or is gone.
"""

import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from pl_compile.errors import PlcError
from pl_compile.runtime import kernels
from pl_compile.runtime.engines.opening import open_rank
from pl_compile.runtime.engines.ranks import Failure, RankOptions, RankPrompt, SentPrompts


def main() -> None:
    """Serves until the leader closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader's to handle
    connection = Connection(int(sys.argv[1]))
    engine: Any = None
    prompts: dict[int, RankPrompt] = {}
    while True:
        try:
            method, arguments = connection.recv()
        except (EOFError, OSError):
            # At once: destructors would wait for threads in a sum that is never complete.
            os._exit(0)
        answer: Any
        try:
            if method == "open":
                engine, answer = _open(arguments[0]), None
            else:
                if method == "start":
                    prompts.clear()
                given = [_unpacked(argument, prompts) for argument in arguments]
                answer = getattr(engine, method)(*given)
        except PlcError as error:
            answer = Failure(str(error))
        except Exception as error:  # whatever it is, the leader must hear of it
            answer = Failure(f"{type(error).__name__}: {error}")
        try:
            connection.send(answer)
        except OSError:
            os._exit(0)


def _open(options: RankOptions) -> Any:
    if options.memory is not None:
        kernels.join_group(options.memory, options.rank, options.contract.ranks)
    return open_rank(options)


def _unpacked(argument: Any, prompts: dict[int, RankPrompt]) -> Any:
    if not isinstance(argument, SentPrompts):
        return argument
    prompts |= argument.new
    return [prompts[number] for number in argument.numbers]


if __name__ == "__main__":
    main()
