"""The processes that train together: one alone, or those that `torchrun` started.

Data parallel processes hold the same prompts and the same base, take turns at the micro-batches of
a step, and add up their gradients: only what is trained is ever sent. Tensor parallel processes
hold a part of each layer between them (`parallel.py`) and do everything else alike.

One process leads: it talks, logs and writes. Of an error that all meet alike only it tells.
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

# What is added up at once: one message for prompts, several where a whole base is trained.
_BYTES_AT_ONCE = 256 << 20

# How long a process that fails waits to hear whether the leader fails too ...
_SECONDS_TO_HEAR = 10

# ... and then for the leader to tell: torchrun stops all as soon as one has ended.
_SECONDS_TO_TELL = 20

# While the leader writes answers, the others wait for as long as it lives.
_PATIENCE = timedelta(days=30)

_FAILED = "plc/the leader failed"


@dataclass(frozen=True)
class Team:
    """A process among its fellows.

    Attributes:
        rank: of the process, from 0.
        size: how many there are.
        data_rank: its place among the data parallel ones.
        data_size: how many of these there are.
        tensor_rank: its place among those that hold one copy of the base between them.
        tensor_size: how many of these there are.
        mesh: torch's mesh with the dimensions "data" and "tensor"; None alone.
        patient: torch's group of all, whose members wait for each other for as long as they live.
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
        """Whether this process talks, logs and writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items that this process works on."""
        return items[self.data_rank :: self.data_size]

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its sum over the data parallel processes, equal to the last bit.

        Of tensor parallel processes, which compute the same, the first one's numbers are taken.
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
        """Whether something is so in any of the processes."""
        flag = torch.tensor([float(here)])
        if self.size > 1:
            distributed.all_reduce(flag)
        return bool(flag.item() > 0)

    def lead(self, step: Callable[[], T]) -> T | None:
        """What the leader does alone while the others wait, for however long.

        Returns:
            What the step returns; None where this process does not lead.

        Raises:
            PlcError: in the leader: the step's.
            SystemExit: in the others: the step failed, and the leader tells why.
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
            raise _LeaderTells(int(code.item()))
        return result

    def after_leader(self, step: Callable[[], T]) -> T:
        """What all do, the leader first: the others find what it has made.

        Raises:
            PlcError: the step's.
            SystemExit: it failed in the leader, which tells why.
        """
        result = self.lead(step)
        return step() if not self.leads else result  # type: ignore[return-value]

    def check_equal(self, what: str, digest: bytes) -> None:
        """Raises `TrainingError` unless all processes have the same digest.

        Args:
            what: is compared, for the message.
            digest: of it, equally long everywhere.
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


class _LeaderTells(SystemExit):
    """The leader has failed and says why."""


def leads() -> bool:
    """Whether this process talks, as far as its environment says: before there is a team."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


@contextmanager
def told_by_the_leader() -> Iterator[None]:
    """Of an error that every process meets alike, lets only the leader's through.

    Raises:
        SystemExit: in the others, with the error's exit code, some time after the leader.
    """
    try:
        yield
    except PlcError as error:
        if leads():
            raise
        time.sleep(_SECONDS_TO_TELL)
        raise SystemExit(error.exit_code) from None


def processes() -> int:
    """How many processes were started together.

    Raises:
        TrainingError: the environment has some of what `torchrun` sets, and not the rest.
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
    """A name for torch: the CPU where there is no GPU, of several this process's own.

    Raises:
        TrainingError: the machine has fewer devices than processes.
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

    An error of the block that the leader meets too becomes `SystemExit` in the others.

    Args:
        config: how they share the work; fits `processes()` (see `parallel.check_parallel`).
        device: of this process.

    Raises:
        TrainingError: the others do not come, or one of them ended in the middle.
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
        with _one_voice(team, store, config):
            yield team
    except BaseException:
        # Closed at once, so that the others need not wait for their timeout. A broken NCCL group
        # may itself wait for what never comes; the end of the process closes that one.
        if device == "cpu":
            distributed.destroy_process_group()
        raise
    distributed.destroy_process_group()


def _join(rank: int, size: int, device: str, timeout: timedelta) -> Any:
    """Sets up torch's default group and returns its store."""
    backend = "gloo"
    if device != "cpu":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"  # flags and losses are added up where they are
    store, _, _ = next(rendezvous("env://", rank, size, timeout=timeout))
    distributed.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=timeout
    )
    return store


@contextmanager
def _one_voice(team: Team, store: Any, config: ParallelConfig) -> Iterator[None]:
    try:
        yield
    except _LeaderTells as left:
        _let_it_tell(store)
        raise SystemExit(left.code) from None
    except PlcError as error:
        if team.leads:
            with suppress(RuntimeError):
                store.set(_FAILED, "")
        elif _leader_fails_too(store):
            _let_it_tell(store)
            raise SystemExit(error.exit_code) from None
        raise
    except RuntimeError as error:
        # gloo's own errors have no class of theirs.
        text = str(error)
        if not isinstance(error, distributed.DistError) and "gloo" not in text:
            raise
        if not team.leads and _told(store):
            _let_it_tell(store)
            raise SystemExit(1) from None
        timed_out = "Timed out" in text
        found = f"no answer from another process within {config.timeout_seconds} s"
        raise TrainingError(
            f"training with {team.size} processes",
            found=found if timed_out else "another process of the run ended",
            fix="Look at its messages, and whether the system killed it for its memory; "
            "then go on with --resume.",
        ) from error


def _told(store: Any) -> bool:
    """Whether the leader has failed, and says why."""
    try:
        return bool(store.check([_FAILED]))
    except RuntimeError:
        return False  # it was killed, and the store with it


def _let_it_tell(store: Any) -> None:
    """Waits until torchrun ends this process, or the leader has ended, with its store."""
    deadline = time.monotonic() + _SECONDS_TO_TELL
    with suppress(RuntimeError):
        while time.monotonic() < deadline:
            store.check([_FAILED])
            time.sleep(0.1)


def _leader_fails_too(store: Any) -> bool:
    try:
        store.wait([_FAILED], timedelta(seconds=_SECONDS_TO_HEAR))
    except distributed.DistStoreError:
        return False  # it lives, and has not failed
    except RuntimeError:
        return True  # it has gone already, with the store
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
