"""What runs in the process of a rank: an engine that does what the group's leader says.

    python -m pl_compile.runtime.engines.ranks.rank_process FILE_DESCRIPTOR

The process reads `(method, arguments, wanted)` from the socket. It sends back the result, where it
is wanted, or what failed. The first call is "open". It ends when the leader closes the socket, or
is gone.
"""

import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pl_compile.errors import PlcError
from pl_compile.runtime.engines.opening import open_rank
from pl_compile.runtime.engines.ranks.engine import RankPrompt
from pl_compile.runtime.engines.ranks.local_group import Failure, RankOptions, SentPrompt
from pl_compile.runtime.kernels import rank_sums

# How often a rank that has nothing to do looks whether its leader is there.
_LOOK_SECONDS = 1.0


def main() -> None:
    """Serves until the leader closes the socket, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader's to handle
    connection = Connection(int(sys.argv[1]))
    leader = os.getppid()
    engine: Any = None
    prompts: dict[int, RankPrompt] = {}
    while True:
        try:
            # If the leader was forked, its copy keeps the socket open after the leader is gone.
            while not connection.poll(_LOOK_SECONDS):
                if os.getppid() != leader:
                    os._exit(0)
            method, arguments, wanted = connection.recv()
        except (EOFError, OSError):
            # At once: destructors would wait for threads in a sum that never completes.
            os._exit(0)
        answer: Any
        try:
            if method == "open":
                engine, answer = _open(arguments[0]), None
            else:
                given = [_unpacked(argument, prompts) for argument in arguments]
                answer = getattr(engine, method)(*given)
                if not wanted:
                    answer = None  # the leader takes the first rank's
        except PlcError as error:
            answer = Failure(str(error))
        except Exception as error:  # the leader must hear of every error
            if os.getppid() != leader:
                os._exit(0)  # the leader is gone
            traceback.print_exc()
            answer = Failure(f"{type(error).__name__}: {error}; its traceback is on standard error")
        try:
            connection.send(answer)
        except OSError:
            os._exit(0)


def _open(options: RankOptions) -> Any:
    if options.memory is not None:
        memory = Path(f"/proc/self/fd/{options.memory}")
        rank_sums.join_group(memory, options.rank, options.contract.ranks)
        os.close(options.memory)
    return open_rank(options)


def _unpacked(argument: Any, prompts: dict[int, RankPrompt]) -> Any:
    if not isinstance(argument, SentPrompt):
        return argument
    if argument.prompt is not None:
        prompts[argument.number] = argument.prompt
    return prompts[argument.number]


if __name__ == "__main__":
    main()
