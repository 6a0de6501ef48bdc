"""Ranks as processes of this machine: how they start, what they are told, and how they end.

What runs in each of them is `rank_process.py`.
"""

import os
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from socket import socketpair
from typing import Any

from pl_compile.artifact.bundle import rank_folder
from pl_compile.config.contract import GraphContract
from pl_compile.errors import RankError
from pl_compile.runtime.engines.ranks.engine import REMEMBERED, RankedEngine, RankPrompt
from pl_compile.runtime.engines.ranks.nccl import unique_id
from pl_compile.runtime.kernels import rank_sums

# Seconds that a rank has to load its part of the base.
_START_SECONDS = 600.0
# Seconds that a rank has to end by itself, before it is killed.
_END_SECONDS = 5.0


@dataclass(frozen=True)
class RankOptions:
    """What a rank's process opens.

    Attributes:
        folder: holds the rank's files.
        target: that they were built for.
        contract: of the rank.
        rank: which it is.
        memory: file descriptor of the memory that ranks on CPU share; None for others.
        shared: the id by which ranks on GPUs find each other; None for others.
        max_batch: slots of its cache.
        threads: with how many it computes.
        spin: whether waiting threads keep their cores busy.
        dtype: of the caches.
    """

    folder: Path
    target: str
    contract: GraphContract
    rank: int
    memory: int | None
    shared: bytes | None
    max_batch: int
    threads: int
    spin: bool
    dtype: str


class LocalGroup(RankedEngine):
    """Ranks as processes on this machine, started and ended with this object.

    When one of them ends or fails, all end, and every later call raises. When this process ends for
    any reason, they end too.

    Args:
        folder: holds `rank0/`, `rank1/`, … as the compiler wrote them.
        target: that they were built for.
        contract: of the whole base, with its number of ranks.
        max_batch: slots of the cache.
        threads: of each rank; the machine's cores divided among them if None.
        dtype: of the caches.
        on_gpus: whether each rank has a GPU, and NCCL makes their sums.

    Raises:
        RankError: a rank cannot start; it says why.
    """

    def __init__(
        self,
        folder: Path,
        target: str,
        contract: GraphContract,
        *,
        max_batch: int = 16,
        threads: int | None = None,
        dtype: str = "float32",
        on_gpus: bool = False,
    ) -> None:
        doing = f"starting {contract.ranks} ranks of {folder}"
        if threads is None:
            threads = max(1, len(os.sched_getaffinity(0)) // contract.ranks)
        self._processes: list[_RankProcess] = []
        self._ended = weakref.finalize(self, _end, self._processes)
        self._failed = ""
        shared = unique_id() if on_gpus else None
        with nullcontext() if on_gpus else _meeting_place(contract.ranks, doing) as memory:
            for rank in range(contract.ranks):
                self._processes.append(_RankProcess(rank, memory))
            super().__init__(self._processes, contract, max_batch)
            spare = contract.ranks * threads <= len(os.sched_getaffinity(0))
            self._each(
                [
                    (
                        "open",
                        RankOptions(
                            folder=folder / rank_folder(rank),
                            target=target,
                            contract=contract.of_rank(rank),
                            rank=rank,
                            memory=memory,
                            shared=shared,
                            max_batch=max_batch,
                            threads=threads,
                            spin=spare,
                            dtype=dtype,
                        ),
                    )
                    for rank in range(contract.ranks)
                ],
                doing=doing,
                seconds=_START_SECONDS,
            )

    @property
    def process_ids(self) -> list[int]:
        """The ids of the ranks' processes."""
        return [process.pid for process in self._processes]

    def close(self) -> None:
        """Ends all ranks."""
        self._ended()

    def _each(
        self,
        calls: Sequence[tuple[Any, ...]],
        *,
        first_only: bool = False,
        doing: str = "running a step on all ranks",
        seconds: float | None = None,
    ) -> list[Any]:
        if self._failed:
            raise RankError(doing, found=f"they have ended: {self._failed}", fix="Open it again.")
        if not self._ended.alive:
            raise RankError(doing, found="they were closed")
        try:
            for process, (method, *arguments) in zip(self._processes, calls, strict=True):
                process.doing, process.wanted = doing, process.rank == 0 or not first_only
                process.begin(method, *arguments)
            waiting = {process.connection: process for process in self._processes}
            while waiting:
                # Read in the order in which they answer: so a rank that ends is noticed at once,
                # whatever the others wait for.
                ready = wait(list(waiting), seconds)
                if not ready:
                    raise RankError(doing, found=f"no answer in {seconds:.0f} seconds")
                for connection in ready:
                    assert isinstance(connection, Connection)
                    waiting.pop(connection).receive()
        except BaseException as error:
            # After any error (also Ctrl-C) answers may still arrive that no later call expects, and
            # ranks may wait in a sum that never completes.
            found = error.found if isinstance(error, RankError) else "a call was interrupted"
            self._failed = found
            for process in self._processes:
                process.kill()
            self._ended()
            raise
        return [process.result() for process in self._processes]


class _RankProcess:
    """A rank in a process of its own; see `rank_process.py` for what runs there."""

    def __init__(self, rank: int, memory: int | None) -> None:
        self.rank, self.doing, self.wanted = rank, "", True
        ours, theirs = socketpair()
        with theirs:
            # -P: packages in the working directory must not be imported in place of ours.
            command = [sys.executable, "-P", "-m", "pl_compile.runtime.engines.ranks.rank_process"]
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=[theirs.fileno(), *([] if memory is None else [memory])],
                stdin=subprocess.DEVNULL,
            )
        self.connection = Connection(ours.detach())
        self._sent: dict[int, tuple[RankPrompt, int]] = {}
        self._answer: Any = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, method: str, *arguments: Any) -> None:
        try:
            self.connection.send((method, tuple(map(self._short, arguments)), self.wanted))
        except OSError as error:
            raise self._gone() from error

    def receive(self) -> None:
        """Takes the answer that has come."""
        try:
            self._answer = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._gone() from error
        if isinstance(self._answer, Failure):
            raise RankError(self.doing, found=f"rank {self.rank}: {self._answer.text}")

    def result(self) -> Any:
        return self._answer

    def end(self) -> None:
        self.connection.close()  # the rank then ends

    def kill(self) -> None:
        self._process.kill()

    def wait(self, seconds: float) -> None:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _short(self, argument: Any) -> Any:
        """A prompt with a prefix is sent once; after that only its number is sent."""
        if not isinstance(argument, RankPrompt):
            return argument
        if id(argument) in self._sent:
            return SentPrompt(self._sent[id(argument)][1], None)
        if len(self._sent) == REMEMBERED:
            self._sent.clear()  # the rank puts others in their places from now on
        number = len(self._sent)
        self._sent[id(argument)] = (argument, number)
        return SentPrompt(number, argument)

    def _gone(self) -> RankError:
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        how = f"was ended by signal {-code}" if code and code < 0 else f"ended with code {code}"
        return RankError(
            self.doing,
            found=f"rank {self.rank} (process {self.pid}) {how}",
            expected="all ranks alive; the others were ended too",
            fix="Look for its message on standard error, or for a lack of memory; then open it "
            "again.",
        )


@dataclass(frozen=True)
class Failure:
    """What a rank answers if a call raised.

    Attributes:
        text: of the error.
    """

    text: str


@dataclass(frozen=True)
class SentPrompt:
    """A prompt on its way to a rank.

    Attributes:
        number: its place among those that the rank remembers.
        prompt: None if the rank has it already.
    """

    number: int
    prompt: RankPrompt | None


@contextmanager
def _meeting_place(ranks: int, doing: str) -> Iterator[int]:
    """Shared memory as a file descriptor. It has no name, so no file can remain of it."""
    size = rank_sums.group_bytes(ranks)
    handle = os.memfd_create("plc-ranks")
    try:
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            raise RankError(
                doing,
                found=str(error.strerror),
                expected=f"{size >> 20} MiB of memory that the ranks share",
            ) from error
        yield handle
    finally:
        os.close(handle)


def _end(processes: list[_RankProcess]) -> None:
    for process in processes:
        process.end()
    deadline = time.monotonic() + _END_SECONDS
    for process in processes:
        process.wait(max(0.0, deadline - time.monotonic()))
