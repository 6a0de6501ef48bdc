"""Runs of several real processes against the same runs of one: the same losses, the same tables.

gloo on the CPU. Nothing here needs a GPU; what nccl does differently is not seen here.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pl_compile.artifact.prompt_table import read_prompt_table
from pl_compile.driver.train import train_run
from pl_compile.testing import PREFIX_TASK, TASKS, tiny_examples, tiny_train_config, write_jsonl
from pl_compile.training.checkpoint import save_checkpoint
from pl_compile.training.read_config import read_train_config

pytestmark = pytest.mark.timeout(240)  # each takes all cores that there are

WORKER = Path(__file__).parent / "parallel_worker.py"

FOUR_MICRO_BATCHES = {
    "max_steps": 6,
    "global_batch_size": 8,
    "micro_batch_size": 2,
    "val_check_interval": 3,
    "validation_batch_size": 3,  # 8 rows: three batches for two processes
}
TENSOR = {"tensor_parallel_size": 2}
SHARD = {"shard_base": True}
PREFIX: dict[str, Any] = {
    "virtual_prompt_style": "prefix-tuning",
    "tasks": [TASKS[0], PREFIX_TASK],
}
DROPOUT = {
    "virtual_prompt_style": "p-tuning",
    "p_tuning": {"encoder_type": "lstm", "dropout": 0.3},
    "tasks": [TASKS[0], {**TASKS[1], "total_virtual_tokens": 3, "virtual_token_splits": [2, 1]}],
}
ANSWERS = {"validation": {"generate": True, "limit": 2}}


@dataclass(frozen=True)
class Scenario:
    """A run: how it differs from the tiny one, and how close several processes come to one.

    Attributes:
        changes: keys of the config.
        family: of the base.
        processes: how many.
        losses: relative.
        table: relative to its largest number.
        resumed: whether one process began it.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    family: str = "llama"
    processes: int = 2
    losses: float = 1e-5
    table: float = 1e-5
    resumed: bool = False


SCENARIOS = {
    # Each process has one micro-batch, and a sum of two has no order.
    "data parallel, two micro-batches": Scenario(losses=0, table=0),
    "data parallel": Scenario({"trainer": FOUR_MICRO_BATCHES}, losses=1e-6),
    "data parallel, dropout": Scenario({"trainer": FOUR_MICRO_BATCHES, **DROPOUT}, losses=1e-6),
    "data parallel, answers": Scenario({**ANSWERS, **PREFIX}, losses=1e-6),
    "data parallel, fp16": Scenario(
        {"trainer": {**FOUR_MICRO_BATCHES, "precision": "fp16"}}, losses=1e-6
    ),
    # Asked of each process, and one answer for all.
    "data parallel, auto": Scenario(
        {"trainer": {**FOUR_MICRO_BATCHES, "micro_batch_size": 4, "precision": "auto"}},
        losses=0,
        table=0,
    ),
    "data parallel, resumed": Scenario(losses=0, table=0, resumed=True),
    "tensor parallel": Scenario({"parallel": TENSOR}),
    "tensor parallel, prefix": Scenario({"parallel": TENSOR, **PREFIX, **ANSWERS}),
    "tensor parallel gemma3": Scenario({"parallel": TENSOR, **PREFIX}, family="gemma3_text"),
    "tensor parallel, recomputed": Scenario(
        {"parallel": TENSOR, "trainer": {"max_steps": 2, "activation_checkpointing": True}}
    ),
    "sharded": Scenario({"parallel": SHARD, **ANSWERS}, losses=0, table=0),
    "sharded gpt2": Scenario(
        {"parallel": SHARD, "trainer": FOUR_MICRO_BATCHES}, family="gpt2", losses=1e-6
    ),
    "sharded, recomputed": Scenario(
        {"parallel": SHARD, "trainer": {"max_steps": 2, "activation_checkpointing": True}},
        losses=0,
        table=0,
    ),
    "data and tensor parallel": Scenario({"parallel": TENSOR, **PREFIX}, processes=4),
}


@pytest.fixture(scope="module")
def runs(
    tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], tuple[Path, Path]]]:
    """Gives the folders of a scenario's two runs: of one process, and of several."""
    root = tmp_path_factory.mktemp("parallel")
    done: dict[int, int] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers have: how a sum is divided shows in its last bit

    def of(name: str) -> tuple[Path, Path]:
        processes = SCENARIOS[name].processes
        if processes not in done:
            done[processes] = 1  # until it is known
            names = [name for name, each in SCENARIOS.items() if each.processes == processes]
            done[processes] = run_all(root, tiny_bases, names, processes)
        assert done[processes] == 0
        return root / name / "one", root / name / "several"

    yield of
    torch.set_num_threads(threads)


def run_all(root: Path, bases: dict[str, Path], names: Sequence[str], processes: int) -> int:
    """Does scenarios in one process, then in several; the first exit code that is not 0."""
    jobs = []
    for name in names:
        folder, scenario = root / name, SCENARIOS[name]
        folder.mkdir()
        config = write_config(folder, bases[scenario.family], scenario.changes)
        alone = ["parallel={}"]
        train_run(read_train_config(config, alone), folder / "one")
        if scenario.resumed:
            interrupted_run(config, folder / "several")
        output = str(folder / "several")
        jobs.append({"config": str(config), "output": output, "resume": scenario.resumed})
    for job, port in zip(jobs, free_ports(len(jobs)), strict=True):
        job["port"] = port
    path = root / f"{processes}.json"
    path.write_text(json.dumps(jobs))
    with started([str(WORKER), str(path)], processes) as team:
        codes = [process.wait(timeout=200) for process in team]
    return next((code for code in codes if code), 0)


def write_config(folder: Path, base: Path, changes: dict[str, Any]) -> Path:
    plain = tiny_train_config(folder, base, **changes)
    if PREFIX_TASK in plain["tasks"]:
        rows = [
            {"taskname": "order", "request": row["question"], "order": row["answer"]}
            if row["taskname"] == "ask"
            else row
            for row in tiny_examples(24)
        ]
        write_jsonl(folder / "train.jsonl", rows)
        write_jsonl(folder / "validation.jsonl", rows[:8])
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


def interrupted_run(config: Path, output: Path) -> None:
    """A run of one process that ends after its first checkpoint."""

    def save_and_stop(path: Path, *rest: Any) -> None:
        save_checkpoint(path, *rest)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pl_compile.training.run.save_checkpoint", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_run(read_train_config(config), output)


def free_ports(count: int) -> list[int]:
    listeners = [socket.socket() for _ in range(count)]
    for listener in listeners:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@contextmanager
def started(
    arguments: Sequence[str], processes: int, **options: Any
) -> Iterator[list[subprocess.Popen[str]]]:
    """Python processes with the environment of `torchrun`; none is left behind."""
    (port,) = free_ports(1)
    common = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    common |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    team = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            text=True,
            **options,
        )
        for rank in range(processes)
    ]
    try:
        yield team
    finally:
        for process in team:
            process.kill()
            process.communicate()


def losses(run: Path) -> dict[tuple[int, str], float]:
    """All losses of a run, by step and kind."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    kinds = ("baseline", "train_loss", "val_loss")
    return {
        (record["step"], kind): record[kind]
        for record in map(json.loads, lines)
        for kind in kinds
        if kind in record
    }


def scores(run: Path) -> list[Any]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [r["val_metrics"] for r in map(json.loads, lines) if "val_metrics" in r]


@pytest.mark.parametrize("name", SCENARIOS)
def test_several_processes_train_what_one_does(
    runs: Callable[[str], tuple[Path, Path]], name: str
) -> None:
    one, several = runs(name)
    scenario = SCENARIOS[name]

    expected, actual = losses(one), losses(several)
    assert len(expected) >= 5
    assert actual == pytest.approx(expected, rel=scenario.losses, abs=0)
    assert scores(several) == scores(one)
    assert bool(scores(one)) is ("validation" in scenario.changes)
    tables = [read_prompt_table(run / "prompts.safetensors").entries for run in (one, several)]
    for taskname, entry in tables[0].items():
        rows = entry.learned
        difference = np.abs(tables[1][taskname].learned - rows).max()
        assert difference <= scenario.table * np.abs(rows).max(), taskname


def test_several_processes_leave_the_files_of_one(
    runs: Callable[[str], tuple[Path, Path]],
) -> None:
    one, several = (
        {path.relative_to(run).as_posix() for path in run.rglob("*")}
        for run in runs("tensor parallel")
    )

    assert several == one


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("data parallel", 1, 1),
        ("tensor parallel", 0.5, 0.52),  # norms are whole everywhere
        ("sharded", 0.49, 0.51),
        ("sharded gpt2", 0.49, 0.51),
    ],
)
def test_a_process_keeps_its_part_of_the_base(
    runs: Callable[[str], tuple[Path, Path]], name: str, least: float, most: float
) -> None:
    folder = runs(name)[1].parent

    parts = [float((folder / f"part-{rank}").read_text()) for rank in range(2)]

    assert all(least <= part <= most for part in parts), parts
    assert sum(parts) >= 1


TEAMWORK = """
import json, os, sys
import torch
from pl_compile.config.train import ParallelConfig
from pl_compile.errors import ArtifactError
from pl_compile.training import team as module
from pl_compile.training.team import team_of

module._SECONDS_TO_REPORT = 0  # the leader does not end here
ports, seen = iter(sys.argv[1:]), {}

def team(tensor_size=1):
    os.environ["MASTER_PORT"] = next(ports)
    return team_of(ParallelConfig(tensor_size), "cpu")

def numbers(rank):
    return [torch.full([2], rank + 1.0), torch.tensor(rank + 0.5).double(), torch.zeros(0)]

def fail():
    raise ArtifactError("writing", found="a full disk")

with team() as each:
    tensors = numbers(each.rank)
    each.add_up(tensors)
    seen["sums"] = [tensor.tolist() for tensor in tensors]
    seen["any"] = [each.any(each.rank == 1), each.any(False)]
    seen["led"] = each.lead(lambda: "by rank " + str(each.rank))
    seen["each"] = each.after_leader(lambda: each.rank)
    each.check_equal("the prompts", b"equal")
with team(tensor_size=2) as each:
    tensors = numbers(each.rank)
    each.add_up(tensors)
    seen["one copy"] = [tensor.tolist() for tensor in tensors]
for what in ("unequal", "failed"):
    try:
        with team() as each:
            each.check_equal("the prompts", bytes([each.rank])) if what == "unequal" else None
            each.lead(fail)
    except BaseException as error:
        seen[what] = type(error).__name__ + ": " + str(error)
print(json.dumps(seen))
"""


def test_a_team_adds_up_and_only_the_leader_reports() -> None:
    ports = map(str, free_ports(4))

    with started(["-c", TEAMWORK, *ports], 2, stdout=subprocess.PIPE) as team:
        leader, other = (json.loads(process.communicate(timeout=100)[0]) for process in team)

    together = {"sums": [[3.0, 3.0], 2.0, []], "any": [True, False]}
    # Tensor parallel processes compute the same: it counts once.
    together["one copy"] = [[1.0, 1.0], 0.5, []]
    assert leader == together | {
        "led": "by rank 0",
        "each": 0,
        "unequal": "TrainingError: comparing the prompts of 2 processes: rank 1 differs from rank "
        "0. Use the same files, versions and kind of device for every process.",
        "failed": "ArtifactError: writing: a full disk.",
    }
    assert other == together | {
        "led": None,
        "each": 1,
        "unequal": "SystemExit: 1",
        "failed": "SystemExit: 1",
    }


def test_torchrun_starts_them_and_one_talks(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_bases["llama"], {"trainer": {"max_steps": 1}})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "pl_compile.cli", "train", str(config), "--output", "run", "--json"]
    command += ["--set", "data.cache=true"]

    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PLC_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 1  # one object: one process printed it
    assert done.stderr.count("2 processes: 2 data parallel, 1 tensor parallel") == 1
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2  # training and validation


@pytest.mark.parametrize("killed", [0, 1])
def test_where_one_is_killed_the_other_says_so_and_the_run_can_go_on(
    tiny_bases: dict[str, Path], tmp_path: Path, killed: int
) -> None:
    changes = {
        "trainer": {**FOUR_MICRO_BATCHES, "max_steps": 60, "val_check_interval": 60},
        "checkpoint": {"every_n_steps": 2},
    }
    config = write_config(tmp_path, tiny_bases["llama"], changes)
    command = ["-m", "pl_compile.cli", "train", str(config), "--output", str(tmp_path / "run")]
    last = tmp_path / "run/checkpoints/last.safetensors"

    with started(command, 2, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as team:
        wait_until(lambda: last.is_file() or any(each.poll() is not None for each in team))
        team[killed].send_signal(signal.SIGKILL)
        output, talk = team[1 - killed].communicate(timeout=60)

    assert team[1 - killed].returncode == 1
    assert "error: training with 2 processes: another process of the run ended." in talk
    assert "Traceback" not in talk
    assert output == ""
    assert not [path for path in (tmp_path / "run").rglob(".*") if path.is_file()]
    assert not (tmp_path / "run/prompts.safetensors").exists()
    assert train_run(read_train_config(config), tmp_path / "run", resume=True).steps == 60


def wait_until(so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not so():
        assert time.monotonic() < deadline
        time.sleep(0.05)
