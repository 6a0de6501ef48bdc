"""Which precision a run takes, what it says of it, and that a resumed run keeps it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pl_compile.config.train import TrainConfig, TrainerConfig
from pl_compile.errors import ConfigError, TrainingError
from pl_compile.progress import Bar
from pl_compile.testing import tiny_run
from pl_compile.training import precision
from pl_compile.training.precision import (
    PrecisionChoice,
    choose_precision,
    has_unit,
    slowdown,
)
from pl_compile.training.run import run_training
from pl_compile.training.team import Team

NONE = "the processor has none of AMX, AVX512_BF16, NEON bf16"

Processor = Callable[..., None]


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Processor:
    """Makes torch tell of another processor, with no limit in the environment."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)

    # A machine with a GPU would train on it.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def has(*units: str, onednn: bool = True) -> None:
        found = dict.fromkeys(units, True)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)

    return has


def config_of(tmp_path: Path, asked: str) -> TrainConfig:
    """A config that asks for a precision."""
    return tiny_run(tmp_path / "data", tmp_path / "base", trainer={"precision": asked})


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        (("avx2", "amx_bf16", "avx512_bf16"), "the processor has AMX and AVX512_BF16"),
        (("avx2", "avx512_bf16"), "the processor has AVX512_BF16"),
        (("neon", "bf16"), "the processor has NEON bf16"),
    ],
)
def test_auto_is_bf16_where_the_processor_has_it(
    processor: Processor, tmp_path: Path, units: tuple[str, ...], expected: str
) -> None:
    processor(*units)

    choice = choose_precision(config_of(tmp_path, "auto"), "cpu")

    assert choice == PrecisionChoice("bf16", "auto", expected)


@pytest.mark.parametrize("units", [("avx2",), ("avx2", "avx512_f"), ("neon",)])
def test_auto_is_fp32_where_the_processor_would_emulate_bf16(
    processor: Processor, tmp_path: Path, units: tuple[str, ...]
) -> None:
    processor(*units)
    said: list[str] = []

    choice = choose_precision(config_of(tmp_path, "auto"), "cpu", say=said.append)

    assert choice == PrecisionChoice("fp32", "auto", NONE)
    assert said == [f"precision: fp32 ({NONE})"]


@pytest.mark.parametrize(
    ("variable", "limit"),
    [
        ("ONEDNN_MAX_CPU_ISA", "AVX2"),
        ("ONEDNN_MAX_CPU_ISA", "avx512_core"),
        ("DNNL_MAX_CPU_ISA", "AVX2"),
    ],
)
def test_a_limit_of_onednn_makes_a_processor_a_weaker_one(
    processor: Processor, monkeypatch: pytest.MonkeyPatch, variable: str, limit: str
) -> None:
    processor("avx2", "avx512_bf16")
    monkeypatch.setenv(variable, limit)

    assert has_unit("bf16", "cpu") == (
        False,
        f"the processor has AVX512_BF16, but {variable}={limit} keeps it from being used",
    )

    monkeypatch.setenv(variable, "AVX512_CORE_AMX")

    assert has_unit("bf16", "cpu") == (True, "the processor has AVX512_BF16")


def test_each_precision_has_limits_of_its_own(
    processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor("avx512_bf16", "avx512_fp16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

    assert has_unit("bf16", "cpu")[0]
    assert not has_unit("fp16", "cpu")[0]


def test_a_torch_without_onednn_does_not_use_what_the_processor_has(processor: Processor) -> None:
    processor("neon", "bf16", onednn=False)

    assert has_unit("bf16", "cpu") == (
        False,
        "the processor has NEON bf16, but this torch was built without oneDNN",
    )


def test_a_torch_that_cannot_tell_gets_fp32(
    processor: Processor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    processor("avx512_bf16")
    monkeypatch.delattr(torch.cpu, "get_capabilities")

    choice = choose_precision(config_of(tmp_path, "auto"), "cpu")

    assert choice.chosen == "fp32"
    assert choice.reason == f"torch {torch.__version__} does not tell what the processor has"


@pytest.mark.parametrize(
    ("capability", "chosen"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((12, 0), "bf16")]
)
def test_auto_is_bf16_from_compute_capability_8(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capability: tuple[int, int], chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    choice = choose_precision(config_of(tmp_path, "auto"), "cuda:1")

    assert choice.chosen == chosen
    assert choice.reason == (
        f"the GPU has compute capability {capability[0]}.{capability[1]}, bf16 needs 8.0"
    )


def test_the_default_is_auto() -> None:
    assert TrainerConfig(max_steps=1).precision == "auto"


def test_lm_finetune_trains_in_fp32(
    processor: Processor, tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    processor("avx512_bf16")
    config = tiny_run(
        tmp_path / "data", tiny_bases["llama"], lm_finetune=True, trainer={"precision": "auto"}
    )

    choice = choose_precision(config, "cpu")

    assert choice.chosen == "fp32"
    assert choice.reason.startswith("lm_finetune trains the base's weights")


# What is asked for by name


@pytest.mark.parametrize("asked", ["bf16", "fp16"])
def test_a_precision_that_is_emulated_is_taken_with_a_warning_that_gives_the_ratio(
    processor: Processor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str
) -> None:
    processor("avx2")
    seconds = {asked: 0.046, "fp32": 0.002}
    monkeypatch.setattr(precision, "_seconds_of_product", lambda dtype, device: seconds[dtype])
    said: list[str] = []

    choice = choose_precision(config_of(tmp_path, asked), "cpu", say=said.append)

    assert choice == PrecisionChoice(asked, asked, "asked for")  # type: ignore[arg-type]
    none = {"bf16": NONE, "fp16": "the processor has none of AMX-FP16, AVX512_FP16, NEON fp16"}
    assert said == [
        f"precision: {asked} (asked for)",
        f"warning: {asked} is emulated here ({none[asked]}): a product takes 23.0 times as long as "
        "in fp32, and a training step may take several times more. In a new run "
        "trainer.precision: auto takes fp32 here.",
    ]


def test_the_warning_says_what_auto_really_takes(
    processor: Processor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Some processors have bf16 and no fp16."""
    processor("avx2", "avx512_bf16")
    monkeypatch.setattr(precision, "slowdown", lambda dtype, device: 4.4)
    said: list[str] = []

    choose_precision(config_of(tmp_path, "fp16"), "cpu", say=said.append)

    assert said[1].endswith("trainer.precision: auto takes bf16 here.")


def test_what_is_emulated_at_no_cost_brings_no_warning(
    processor: Processor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    processor("avx2")
    monkeypatch.setattr(precision, "slowdown", lambda dtype, device: 0.9)
    said: list[str] = []

    choose_precision(config_of(tmp_path, "bf16"), "cpu", say=said.append)

    assert said == ["precision: bf16 (asked for)"]


@pytest.mark.parametrize("asked", ["fp32", "bf16", "fp16"])
def test_a_precision_that_the_hardware_has_brings_no_warning(
    processor: Processor, tmp_path: Path, asked: str
) -> None:
    processor("avx2", "amx_bf16", "amx_fp16")
    said: list[str] = []

    choose_precision(config_of(tmp_path, asked), "cpu", say=said.append)

    assert said == [f"precision: {asked} (asked for)"]


def test_a_slowdown_is_measured_without_moving_the_random_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    ratio = slowdown("bf16", "cpu")

    assert 0.001 < ratio < 10_000
    assert torch.equal(torch.rand(3), expected)


# Several processes


class Pair(Team):
    """Two processes, of which the other one says what it is told to."""

    def any(self, here: bool) -> bool:
        """As if the other lacked it."""
        return True


def test_all_processes_take_fp32_where_one_has_no_bf16(
    processor: Processor, tmp_path: Path
) -> None:
    processor("avx512_bf16")

    choice = choose_precision(config_of(tmp_path, "auto"), "cpu", team=Pair(size=2))

    assert choice == PrecisionChoice("fp32", "auto", "another process of the run has no bf16")


def test_a_process_that_is_fast_is_told_that_it_waits_for_another(
    processor: Processor, tmp_path: Path
) -> None:
    processor("avx512_bf16")
    said: list[str] = []

    choose_precision(config_of(tmp_path, "bf16"), "cpu", team=Pair(size=2), say=said.append)

    assert said == [
        "precision: bf16 (asked for)",
        "warning: another process of the run emulates bf16, and all wait for it.",
    ]


# Runs


@pytest.fixture
def started(
    processor: Processor, tiny_bases: dict[str, Path], tmp_path: Path
) -> tuple[TrainConfig, Path]:
    """The config and folder of an `auto` run on a processor with bf16."""
    processor("avx2", "avx512_bf16")
    config = tiny_run(
        tmp_path / "data", tiny_bases["llama"], trainer={"precision": "auto", "max_steps": 2}
    )
    run_training(config, tmp_path / "run")
    return config, tmp_path / "run"


def test_a_run_records_what_was_chosen_and_why(
    started: tuple[TrainConfig, Path], read_jsonl: Callable[[Path], list[dict[str, Any]]]
) -> None:
    _, run = started

    assert "\n  precision: bf16\n" in (run / "config.yaml").read_text(encoding="utf-8")
    (record,) = read_jsonl(run / "history.jsonl")
    assert record["precision"] == {
        "chosen": "bf16",
        "asked": "auto",
        "reason": "the processor has AVX512_BF16",
    }


def test_a_resumed_run_keeps_its_precision_on_a_machine_that_would_choose_another(
    started: tuple[TrainConfig, Path], processor: Processor, told: Any
) -> None:
    config, run = started
    processor("avx2")

    result = run_training(config, run, resume=True, progress=told)

    reason = f"as the run was started; on this machine auto is fp32: {NONE}"
    assert result.precision == PrecisionChoice("bf16", "auto", reason)
    assert f"precision: bf16 ({reason})" in told.lines
    assert "\n  precision: bf16\n" in (run / "config.yaml").read_text(encoding="utf-8")


def test_a_checkpoint_that_names_no_run_is_refused(
    started: tuple[TrainConfig, Path],
) -> None:
    config, run = started
    last = run / "checkpoints/last.safetensors"
    with safe_open(last, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {k: v for k, v in file.metadata().items() if k != "identity"}
    save_file(tensors, last, metadata)

    with pytest.raises(TrainingError, match="a checkpoint without 'identity'"):
        run_training(config, run, resume=True)


def test_a_run_is_not_resumed_in_another_precision_that_is_asked_for(
    started: tuple[TrainConfig, Path], tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    _, run = started
    config = tiny_run(
        tmp_path / "data", tiny_bases["llama"], trainer={"precision": "fp32", "max_steps": 2}
    )

    with pytest.raises(TrainingError) as caught:
        run_training(config, run, resume=True)

    assert str(caught.value) == (
        f"resuming from {run / 'checkpoints/last.safetensors'}: 'config.trainer.precision' was "
        "'bf16', now 'fp32'; expected the run that is resumed, unchanged. Start a new run in "
        "another --output."
    )


def test_an_unknown_precision_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path, "bf61")

    assert str(caught.value).endswith(
        "'trainer.precision' is 'bf61', expected one of auto, fp32, bf16, fp16. "
        "Did you mean 'bf16'?"
    )


class Notes:
    """A progress that remembers what its bars were told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str]] = []

    def say(self, line: str) -> None:
        """A line."""

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Bar]:
        """A bar that is this object."""
        yield self

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Remembered."""
        self.told.append((amount, note))


def test_every_micro_batch_and_every_batch_of_a_validation_is_told(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    trainer = {"max_steps": 2, "global_batch_size": 4, "micro_batch_size": 2}
    config = tiny_run(tmp_path / "data", tiny_bases["llama"], trainer=trainer)
    notes = Notes()

    run_training(config, tmp_path / "run", progress=notes)

    within = [note for amount, note in notes.told if amount == 0]
    assert sum(note.startswith("loss ") for note in within) == 2 * 2
    assert "validating" in within
    assert within.index("validating") >= 2
