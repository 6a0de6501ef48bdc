"""What several processes are refused before any of them loads a weight, and who says so."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.read import build, node_from_plain
from pl_compile.config.train import TrainConfig
from pl_compile.errors import ConfigError, OptionError, TrainingError
from pl_compile.families.read import read_decoder_config
from pl_compile.testing import tiny_train_config
from pl_compile.training.parallel import check_parallel
from pl_compile.training.run import run_training
from pl_compile.training.team import ALONE, Team, leads, only_the_leader_raises, processes, team_of


@pytest.fixture
def base(tiny_bases: dict[str, Path]) -> DecoderConfig:
    return read_decoder_config(tiny_bases["llama"])  # 6 heads on 2 key heads


def make_config(folder: Path, base: Path, **changes: Any) -> TrainConfig:
    plain = tiny_train_config(folder, base, **changes)
    return build(TrainConfig, node_from_plain(plain, "test"), doing="reading the test config")


@pytest.mark.parametrize(
    ("changes", "processes", "problem"),
    [
        (
            {"parallel": {"tensor_parallel_size": 2}},
            1,
            "tensor_parallel_size 2 in one process; start the run with torchrun",
        ),
        ({"parallel": {"shard_base": True}}, 1, "shard_base in one process; start the run with"),
        (
            {"parallel": {"tensor_parallel_size": 2}},
            3,
            "3 processes, expected a multiple of parallel.tensor_parallel_size 2",
        ),
        (
            {},
            3,
            "global_batch_size 8, expected a multiple of 12: micro_batch_size 4 for each of 3 data",
        ),
        (
            {"parallel": {"tensor_parallel_size": 4}},
            4,
            "6 heads and 2 key heads of the base, expected multiples of parallel.tensor_par",
        ),
        (
            {"parallel": {"tensor_parallel_size": 2}, "lm_finetune": True},
            2,
            "lm_finetune with parallel.tensor_parallel_size, expected one of the two",
        ),
        (
            {"parallel": {"shard_base": True}, "lm_finetune": True},
            2,
            "lm_finetune with parallel.shard_base, expected one of the two",
        ),
    ],
)
def test_work_that_cannot_be_shared_is_refused(
    tiny_bases: dict[str, Path],
    base: DecoderConfig,
    tmp_path: Path,
    changes: dict[str, Any],
    processes: int,
    problem: str,
) -> None:
    config = make_config(tmp_path, tiny_bases["llama"], **changes)

    with pytest.raises(ConfigError) as caught:
        check_parallel(config, base, processes)

    assert problem in str(caught.value)


def test_all_problems_are_told_together(
    tiny_bases: dict[str, Path], base: DecoderConfig, tmp_path: Path
) -> None:
    config = make_config(tmp_path, tiny_bases["llama"], parallel={"tensor_parallel_size": 5})

    with pytest.raises(ConfigError, match="sharing the work among 4 processes: 3 problems"):
        check_parallel(config, base, 4)


def test_compiled_layers_are_not_divided(
    tiny_bases: dict[str, Path], base: DecoderConfig, tmp_path: Path
) -> None:
    trainer = {"max_steps": 1, "compile": True}
    config = make_config(
        tmp_path, tiny_bases["llama"], trainer=trainer, parallel={"shard_base": True}
    )

    with pytest.raises(ConfigError, match=r"trainer.compile with parallel.shard_base, expected"):
        check_parallel(config, base, 2)


def test_a_family_without_a_plan_is_not_divided(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    config = make_config(tmp_path, tiny_bases["gpt2"], parallel={"tensor_parallel_size": 3})
    base = read_decoder_config(tiny_bases["gpt2"])  # 3 heads

    with pytest.raises(ConfigError, match="family 'gpt2', for which transformers has no tensor"):
        check_parallel(config, base, 3)


@pytest.mark.parametrize("processes", [1, 2])
def test_work_that_can_be_shared_is_not_refused(
    tiny_bases: dict[str, Path], base: DecoderConfig, tmp_path: Path, processes: int
) -> None:
    check_parallel(make_config(tmp_path, tiny_bases["llama"]), base, processes)


def test_a_run_that_cannot_be_shared_writes_nothing(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    config = make_config(tmp_path, tiny_bases["llama"], parallel={"tensor_parallel_size": 2})

    with pytest.raises(ConfigError, match="in one process"):
        run_training(config, tmp_path / "run")

    assert not (tmp_path / "run").exists()


def test_of_an_error_that_all_meet_only_rank_0_tells(
    tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, tiny_bases["llama"])
    monkeypatch.setattr("pl_compile.training.team._SECONDS_TO_REPORT", 0)
    started = {"WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)

    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="global_batch_size 8, expected a multiple of 12"):
        run_training(config, tmp_path / "run")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(SystemExit) as caught:
        run_training(config, tmp_path / "run")

    assert caught.value.code == ConfigError.exit_code


def test_the_others_leave_with_the_exit_code_of_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pl_compile.training.team._SECONDS_TO_REPORT", 0)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(SystemExit) as caught, only_the_leader_raises():
        raise OptionError("testing", found="a fault")

    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("environment", "talks"),
    [
        ({}, True),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2"}, False),
        ({"RANK": "1", "WORLD_SIZE": "1"}, True),
    ],
)
def test_one_process_talks(
    environment: dict[str, str], talks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert leads() is talks


def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_PORT", "1")

    with pytest.raises(TrainingError, match="WORLD_SIZE=2 without RANK, LOCAL_RANK, MASTER_ADDR"):
        processes()


def test_an_environment_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")

    with pytest.raises(TrainingError, match="WORLD_SIZE='two'; expected a number"):
        processes()


def test_others_that_do_not_come_are_waited_for_and_no_longer(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    free_port: int,
) -> None:
    config = make_config(tmp_path, tiny_bases["llama"], parallel={"timeout_seconds": 1})
    started = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port),
    }
    for name, value in started.items():
        monkeypatch.setenv(name, value)

    with (
        pytest.raises(TrainingError, match=r"waiting for the 2 processes .* all of them within 1"),
        team_of(config.parallel, "cpu"),
    ):
        pass


def test_micro_batches_are_taken_in_turns() -> None:
    alone = ALONE.share("abcdefgh")
    shares = [replace(ALONE, data_rank=rank, data_size=3).share("abcdefgh") for rank in range(3)]

    assert alone == "abcdefgh"
    assert shares == ["adg", "beh", "cf"]


def test_alone_nothing_is_sent() -> None:
    tensors = [torch.tensor([1.5]), torch.tensor([2.5])]

    ALONE.add_up(tensors)
    ALONE.check_equal("the prompts", b"any")

    assert [tensor.item() for tensor in tensors] == [1.5, 2.5]
    assert ALONE.any(True)
    assert not ALONE.any(False)
    assert ALONE.lead(lambda: 3) == ALONE.after_leader(lambda: 3) == 3
    assert Team().leads
