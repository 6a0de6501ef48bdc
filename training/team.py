"""The processes that train together: one alone, or those that `torchrun` started.

Data parallel processes hold the same prompts and the same base, share the micro-batches of a step,
and add up their gradients; only gradients of trained tensors are sent. Tensor parallel processes
each hold a part of every layer (`parallel.py`) and do everything else in the same way.

One process leads: it prints messages, logs and writes. If all processes meet the same error, only
the leader reports it.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.rendezvous import rendezvous

from pl_compile.config.train import ParallelConfig
from pl_compile.errors import PlcError, TrainingError, first_line_of

T = TypeVar("T")

# The size of a message of gradients: one is enough for prompts, a trained base needs several.
_BYTES_AT_ONCE = 256 << 20

# How long a process that fails waits to learn whether the leader fails too ...
_SECONDS_TO_LEARN = 10

# ... and then for the leader's report: torchrun stops all processes as soon as one has ended.
_SECONDS_TO_REPORT = 20

# While the leader generates answers, the others wait for as long as it runs.
_PATIENCE = timedelta(days=30)

_FAILED = "plc/the leader failed"


@dataclass(frozen=True)
class Team:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: of this process, from 0.
        size: how many processes there are.
        data_rank: its place among the data parallel processes.
        data_size: how many of these there are.
        tensor_rank: its place among the processes that divide one copy of the base.
        tensor_size: how many of these there are.
        mesh: torch's mesh with the dimensions "data" and "tensor"; None for one process.
        patient: torch's group of all processes with a very long timeout; None for one process.
    """

    rank: int = 0
    size: int = 1
    data_rank: int = 0
    data_size: int = 1
    tensor_rank: int = 0
    tensor_size: int = 1
    mesh: Any = None
    patient: Any = None

    @property
    def leads(self) -> bool:
        """Whether this process prints messages, logs and writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items that this process works on."""
        return items[self.data_rank :: self.data_size]

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its sum over the data parallel processes, equal to the last bit.

        Tensor parallel processes compute the same; all take the numbers of the first of them.
        """
        if self.size == 1:
            return
        for bundle in _bundles(tensor for tensor in tensors if tensor.numel()):
            line = torch.cat([tensor.reshape(-1) for tensor in bundle])
            if self.tensor_rank:
                line.zero_()
            distributed.all_reduce(line)
            parts = torch.split(line, [tensor.numel() for tensor in bundle])
            for tensor, part in zip(bundle, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def any(self, here: bool) -> bool:
        """Whether `here` is true in any of the processes."""
        flag = torch.tensor([float(here)])
        if self.size > 1:
            distributed.all_reduce(flag)
        return bool(flag.item() > 0)

    def lead(self, step: Callable[[], T]) -> T | None:
        """Does a step in the leader only; the others wait for its end, without a limit.

        Returns:
            The result of the step; None where this process does not lead.

        Raises:
            PlcError: in the leader: the error of the step.
            SystemExit: in the others: the step failed, and the leader reports why.
        """
        if self.size == 1:
            return step()
        result, failure = None, None
        if self.leads:
            try:
                result = step()
            except PlcError as error:
                failure = error
        code = torch.tensor([failure.exit_code if failure else 0])
        distributed.broadcast(code, src=0, group=self.patient)
        if failure is not None:
            raise failure
        if code.item():
            raise _LeaderReports(int(code.item()))
        return result

    def after_leader(self, step: Callable[[], T]) -> T:
        """Does a step in all processes, in the leader first: the others find what it has made.

        Raises:
            PlcError: the error of the step.
            SystemExit: it failed in the leader, which reports why.
        """
        result = self.lead(step)
        return step() if not self.leads else result  # type: ignore[return-value]

    def check_equal(self, what: str, digest: bytes) -> None:
        """Raises `TrainingError` unless all processes have the same digest.

        Args:
            what: the name of what is compared, for the message.
            digest: of it, of the same length in all processes.
        """
        if self.size == 1:
            return
        mine = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        all_of_them = [torch.empty_like(mine) for _ in range(self.size)]
        distributed.all_gather(all_of_them, mine, group=self.patient)
        others = [n for n, other in enumerate(all_of_them) if not other.equal(all_of_them[0])]
        if others:
            raise TrainingError(
                f"comparing {what} of {self.size} processes",
                found=f"rank {', '.join(map(str, others))} differs from rank 0",
                fix="Use the same files, versions and kind of device for every process.",
            )


ALONE = Team()


class _LeaderReports(SystemExit):
    """The leader has failed and says why."""


def leads() -> bool:
    """Whether this process leads, by its environment. For the time before there is a team."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


@contextmanager
def only_the_leader_raises() -> Iterator[None]:
    """For a block where every process meets the same errors: only the leader raises them.

    Raises:
        SystemExit: in the others, with the error's exit code, some time after the leader.
    """
    try:
        yield
    except PlcError as error:
        if leads():
            raise
        time.sleep(_SECONDS_TO_REPORT)
        raise SystemExit(error.exit_code) from None


def processes() -> int:
    """How many processes were started together.

    Raises:
        TrainingError: the environment has only some of the variables that `torchrun` sets.
    """
    size = _number("WORLD_SIZE", 1)
    if size > 1:
        wanted = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in wanted if name not in os.environ]
        if missing:
            raise TrainingError(
                "joining the processes of the run",
                found=f"WORLD_SIZE={size} without {', '.join(missing)}",
                fix="Start them with torchrun, or unset WORLD_SIZE.",
            )
    return size


def device_of_this_process() -> str:
    """Torch's name of this process's device: its own GPU, or the CPU where there is no GPU.

    Raises:
        TrainingError: the machine has fewer GPUs than processes.
    """
    if not torch.cuda.is_available():
        return "cpu"
    if processes() == 1:
        return "cuda"
    number, count = _number("LOCAL_RANK", 0), torch.cuda.device_count()
    if number >= count:
        raise TrainingError(
            "choosing a device for each process",
            found=f"LOCAL_RANK={number}, and {count} CUDA devices",
            fix=f"Start at most {count} processes on a machine (--nproc-per-node {count}).",
        )
    return f"cuda:{number}"


@contextmanager
def team_of(config: ParallelConfig, device: str) -> Iterator[Team]:
    """The team of this process, for the time of a `with` block.

    If the leader meets an error of the block too, it becomes `SystemExit` in the others.

    Args:
        config: how they share the work; fits `processes()` (see `parallel.check_parallel`).
        device: of this process.

    Raises:
        TrainingError: the other processes do not join, or one of them ended early.
    """
    size = processes()
    if size == 1:
        yield ALONE
        return
    rank = _number("RANK", 0)
    timeout = timedelta(seconds=config.timeout_seconds)
    try:
        store = _join(rank, size, device, timeout)
    except (RuntimeError, OSError) as error:
        raise TrainingError(
            f"waiting for the {size} processes of the run",
            found=first_line_of(error),
            expected=f"all of them within {config.timeout_seconds} s",
            fix="Look at the messages of the others; they must reach MASTER_ADDR:MASTER_PORT.",
        ) from error
    try:
        tensor_size = config.tensor_parallel_size
        shape = (size // tensor_size, tensor_size)
        kind = torch.device(device).type
        team = Team(
            rank,
            size,
            rank // tensor_size,
            shape[0],
            rank % tensor_size,
            tensor_size,
            init_device_mesh(kind, shape, mesh_dim_names=("data", "tensor")),
            distributed.new_group(backend="gloo", timeout=_PATIENCE),
        )
        with _reported_by_the_leader(team, store, config):
            yield team
    except BaseException:
        # Closed at once, so that the others need not wait for their timeout. Closing a broken NCCL
        # group may wait for ever; the end of the process closes that one.
        if device == "cpu":
            distributed.destroy_process_group()
        raise
    distributed.destroy_process_group()


def _join(rank: int, size: int, device: str, timeout: timedelta) -> Any:
    """Sets up torch's default group and returns its store."""
    backend = "gloo"
    if device != "cpu":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"  # each tensor is added up on the device that holds it
    store, _, _ = next(rendezvous("env://", rank, size, timeout=timeout))
    distributed.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=timeout
    )
    return store


@contextmanager
def _reported_by_the_leader(team: Team, store: Any, config: ParallelConfig) -> Iterator[None]:
    try:
        yield
    except _LeaderReports as left:
        _wait_for_report(store)
        raise SystemExit(left.code) from None
    except PlcError as error:
        if team.leads:
            with suppress(RuntimeError):
                store.set(_FAILED, "")
        elif _leader_fails_too(store):
            _wait_for_report(store)
            raise SystemExit(error.exit_code) from None
        raise
    except RuntimeError as error:
        # gloo's errors have no class of their own.
        text = str(error)
        if not isinstance(error, distributed.DistError) and "gloo" not in text:
            raise
        if not team.leads and _leader_reports(store):
            _wait_for_report(store)
            raise SystemExit(1) from None
        timed_out = "Timed out" in text
        found = f"no answer from another process within {config.timeout_seconds} s"
        raise TrainingError(
            f"training with {team.size} processes",
            found=found if timed_out else "another process of the run ended",
            fix="Look at its messages, and whether the system killed it for its memory; "
            "then go on with --resume.",
        ) from error


def _leader_reports(store: Any) -> bool:
    """Whether the leader has failed and reports why."""
    try:
        return bool(store.check([_FAILED]))
    except RuntimeError:
        return False  # the leader was killed, and its store with it


def _wait_for_report(store: Any) -> None:
    """Waits until torchrun ends this process, or the leader and its store have ended."""
    deadline = time.monotonic() + _SECONDS_TO_REPORT
    with suppress(RuntimeError):
        while time.monotonic() < deadline:
            store.check([_FAILED])
            time.sleep(0.1)


def _leader_fails_too(store: Any) -> bool:
    try:
        store.wait([_FAILED], timedelta(seconds=_SECONDS_TO_LEARN))
    except distributed.DistStoreError:
        return False  # the leader runs and has not failed
    except RuntimeError:
        return True  # the leader has ended already, and its store with it
    return True


def _bundles(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in lists that can be one message: of one device and dtype, and not too long."""
    open_ones: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        kind = (tensor.device, tensor.dtype)
        bundle = open_ones.setdefault(kind, [])
        if bundle and sum(each.nbytes for each in (*bundle, tensor)) > _BYTES_AT_ONCE:
            yield bundle
            bundle = open_ones[kind] = []
        bundle.append(tensor)
    yield from open_ones.values()


def _number(name: str, default: int, environment: Mapping[str, str] = os.environ) -> int:
    text = environment.get(name, str(default))
    if not text.isdigit():
        raise TrainingError(
            "joining the processes of the run", found=f"{name}={text!r}", expected="a number"
        )
    return int(text)
