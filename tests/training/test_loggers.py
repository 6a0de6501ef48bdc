"""Records at TensorBoard and Weights & Biases, read back from the files that are left."""

import html
import importlib
import json
import os
import re
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pl_compile.config.train import LoggingConfig, WandbConfig
from pl_compile.errors import MissingExtraError, TrainingError
from pl_compile.training.loggers import Logger, need_loggers, open_loggers
from pl_compile.training.loggers.guard import GuardedLogger
from pl_compile.training.loggers.logger import scalars

RUN_CONFIG: dict[str, Any] = {
    "base": "tiny",
    "tasks": [{"taskname": "tone"}, {"taskname": "ask"}],
    "optim": {"lr": 0.05, "betas": [0.9, 0.98]},
}
BASELINE = {"step": 0, "baseline_by_task": {"0": 5.0, "1": 3.0}, "baseline": 4.0}
VALIDATION = {
    "step": 3,
    "val_loss": 1.5,
    "by_task": {0: 1.25, 1: 1.75},
    "val_metrics": {"tone": {"accuracy": 75.0, "total": 8}, "ask": {"f1": 40.5, "total": 8}},
}
ANSWERS = [
    {"task": "tone", "prompt": "so good sentiment:", "answer": "positive", "expected": "positive"},
    {"task": "ask", "prompt": "Q: a | b\n\n* c", "answer": "<|x|> _1_ [a](b)", "expected": "1. `"},
]


def training(step: int, loss: float) -> dict[str, Any]:
    numbers = {"lr": 0.05, "gradient_norm": 0.7, "tokens": 90, "seconds": 0.5}
    return {"step": step, "train_loss": loss, **numbers}


def make_artifacts(folder: Path) -> list[Path]:
    table = folder / "prompts.safetensors"
    table.write_bytes(b"table")
    (folder / "bundle" / "base").mkdir(parents=True)
    (folder / "bundle" / "manifest.json").write_text("{}", encoding="utf-8")
    (folder / "bundle" / "base" / "model.onnx").write_bytes(b"model")
    return [table, folder / "bundle"]


# The names of the numbers


def test_every_number_of_a_record_has_a_name() -> None:
    names = ["tone", "ask"]

    assert scalars(BASELINE, names) == {
        "loss/no-prompt/tone": 5.0,
        "loss/no-prompt/ask": 3.0,
        "loss/no-prompt": 4.0,
    }
    assert scalars(training(2, 0.25) | {"loss_scale": 1024.0}, names) == {
        "loss/train": 0.25,
        "optimizer/lr": 0.05,
        "optimizer/gradient_norm": 0.7,
        "optimizer/loss_scale": 1024.0,
        "speed/tokens": 90,
        "speed/seconds": 0.5,
        "speed/tokens_per_second": 180.0,
    }
    assert scalars(VALIDATION, names) == {
        "loss/validation": 1.5,
        "loss/validation/tone": 1.25,
        "loss/validation/ask": 1.75,
        "accuracy/validation/tone": 75.0,
        "f1/validation/ask": 40.5,
    }
    assert scalars(
        {"step": 4, "skipped_rows": [7, 9], "memory": 12.5, "baseline": None}, names
    ) == {
        "skipped/rows": 2,
        "other/memory": 12.5,
    }


# What is not installed, what cannot start, what fails on the way


def test_nobody_is_asked_by_default(tmp_path: Path) -> None:
    assert open_loggers(LoggingConfig(), tmp_path, RUN_CONFIG, resumed_at=0) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "package", "text"),
    [
        (
            LoggingConfig(tensorboard=True),
            "tensorboard",
            "logging to TensorBoard: the package 'tensorboard' is not installed. "
            "Install it with: pip install 'pl-compile[tensorboard]'",
        ),
        (
            LoggingConfig(tensorboard=True, wandb=WandbConfig("p", mode="offline")),
            "wandb",
            "logging to Weights & Biases: the package 'wandb' is not installed. "
            "Install it with: pip install 'pl-compile[wandb]'",
        ),
    ],
)
def test_a_missing_package_is_named_with_its_extra_before_anything_is_written(
    config: LoggingConfig, package: str, text: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(MissingExtraError) as caught:
        open_loggers(config, tmp_path, RUN_CONFIG, resumed_at=0)

    assert str(caught.value) == text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_the_name_of_a_package_is_not_the_package(
    tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)

    with pytest.raises(MissingExtraError, match="'wandb' is not installed"):
        need_loggers(LoggingConfig(wandb=WandbConfig("p")))


def test_a_logger_that_cannot_start_ends_the_run_on_one_line(
    tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "tensorboard").write_text("in the way", encoding="utf-8")

    with pytest.raises(TrainingError) as caught:
        open_loggers(LoggingConfig(tensorboard=True), tmp_path, RUN_CONFIG, resumed_at=0)

    assert str(caught.value).startswith("starting to log to TensorBoard: ")
    assert str(caught.value).endswith(". Mend that, or set logging.tensorboard: false.")

    def not_logged_in(**settings: Any) -> None:
        raise RuntimeError("No API key\nconfigured.")

    monkeypatch.setattr("wandb.init", not_logged_in)
    config = LoggingConfig(wandb=WandbConfig("p"))
    with pytest.raises(TrainingError) as caught:
        open_loggers(config, tmp_path, RUN_CONFIG, resumed_at=0)

    assert str(caught.value) == (
        "starting to log to Weights & Biases: No API key configured. "
        "Run 'wandb login', or set logging.wandb.mode: offline."
    )


def test_loggers_that_are_open_are_closed_when_the_next_one_cannot_start(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("wandb.init", lambda **settings: 1 / 0)
    config = LoggingConfig(tensorboard=True, wandb=WandbConfig("p"))
    closed: list[Any] = []
    monkeypatch.setattr(
        "pl_compile.training.loggers.TensorBoardLogger.abort", lambda self: closed.append(self)
    )

    with pytest.raises(TrainingError, match="Weights & Biases: division by zero"):
        open_loggers(config, tmp_path, RUN_CONFIG, resumed_at=0)

    assert len(closed) == 1
    closed[0].finish([])


def test_a_logger_that_fails_is_told_of_once_and_asked_again() -> None:
    class FullDisk:
        calls = 0

        def fail(self, *arguments: Any) -> None:
            self.calls += 1
            raise OSError(28, "No space left on device")

        log = predictions = finish = abort = fail

    disk: Any = FullDisk()
    said: list[str] = []
    logger = GuardedLogger(disk, "TensorBoard", said.append)

    logger.log(training(1, 2.0))
    logger.predictions(1, ANSWERS)
    logger.finish([])
    logger.abort()

    assert disk.calls == 4
    assert said == [
        "warning: TensorBoard failed ([Errno 28] No space left on device); the run goes on, and "
        "metrics.jsonl has every record"
    ]


def test_a_logger_does_not_swallow_a_stop() -> None:
    class Stopped:
        def log(self, record: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    stopped: Any = Stopped()
    with pytest.raises(KeyboardInterrupt):
        GuardedLogger(stopped, "TensorBoard", print).log({})


# TensorBoard


def open_tensorboard(folder: Path, *, resumed_at: int = 0) -> Logger:
    (logger,) = open_loggers(
        LoggingConfig(tensorboard=True), folder, RUN_CONFIG, resumed_at=resumed_at
    )
    return logger


def read_tensorboard(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, str]]:
    """The curves as (step, value), and the texts, by name: as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    curves = {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    texts = {
        name.removesuffix("/text_summary"): events.Tensors(name)[-1].tensor_proto.string_val[0]
        for name in events.Tags()["tensors"]
    }
    return curves, {name: text.decode() for name, text in texts.items()}


def test_tensorboard_gets_curves_config_and_answers(tmp_path: Path) -> None:
    logger = open_tensorboard(tmp_path)

    for record in (BASELINE, training(1, 2.0), training(2, 0.5), VALIDATION):
        logger.log(record)
    logger.predictions(3, ANSWERS)
    logger.finish(make_artifacts(tmp_path))

    curves, texts = read_tensorboard(tmp_path)
    assert curves["loss/train"] == [(1, 2.0), (2, 0.5)]
    assert curves["loss/validation"] == [(3, 1.5)]
    assert curves["loss/validation/ask"] == [(3, 1.75)]
    assert curves["loss/no-prompt"] == [(0, 4.0)]
    assert curves["accuracy/validation/tone"] == [(3, 75.0)]
    assert set(texts) == {"config", "predictions/tone", "predictions/ask"}
    assert "    - taskname: ask\n" in texts["config"]


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")
def test_tensorboard_shows_answers_character_for_character(tmp_path: Path) -> None:
    from tensorboard.plugin_util import markdown_to_safe_html

    logger = open_tensorboard(tmp_path)
    logger.predictions(3, ANSWERS)
    logger.finish([])

    shown = markdown_to_safe_html(read_tensorboard(tmp_path)[1]["predictions/ask"])
    cells = [
        html.unescape(cell.replace("<br>", "\n"))
        for cell in re.findall("<td>(.*?)</td>", shown, flags=re.DOTALL)
    ]
    assert cells == [ANSWERS[1][column] for column in ("prompt", "answer", "expected")]


def test_tensorboard_hides_the_steps_that_a_resumed_run_makes_again(tmp_path: Path) -> None:
    first = open_tensorboard(tmp_path)
    for record in (BASELINE, training(1, 2.0), training(2, 1.0), training(3, 9.0)):
        first.log(record)
    first.abort()

    second = open_tensorboard(tmp_path, resumed_at=2)
    second.log(training(3, 0.5))
    second.finish([])

    curves, _ = read_tensorboard(tmp_path)
    assert curves["loss/train"] == [(1, 2.0), (2, 1.0), (3, 0.5)]
    assert curves["loss/no-prompt"] == [(0, 4.0)]


def test_tensorboard_hides_a_failed_start_before_a_new_run(tmp_path: Path) -> None:
    failed = open_tensorboard(tmp_path)
    failed.log(training(1, 9.0))
    failed.abort()

    new = open_tensorboard(tmp_path)
    new.log(training(1, 2.0))
    new.finish([])

    assert read_tensorboard(tmp_path)[0]["loss/train"] == [(1, 2.0)]


# Weights & Biases, offline


@pytest.fixture
def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Where every request of wandb's to the network would arrive.

    Its service is a process of its own, written in Go: only a proxy sees what it does.
    """
    import wandb

    for name in ("MODE", "DATA_DIR", "DIR", "ERROR_REPORTING"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name in ("CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
        wandb.teardown()  # a service that runs already has another environment
        yield server
        wandb.teardown()


@pytest.fixture
def run_folder(tmp_path: Path, proxy: socket.socket) -> Iterator[Path]:
    """A run folder; wandb must not have tried to reach the network when the test is over."""
    import wandb

    folder = tmp_path / "my run"
    folder.mkdir()
    yield folder
    wandb.teardown()  # the service has sent by now what it had to send
    with pytest.raises(BlockingIOError):
        proxy.accept()


def open_wandb(folder: Path, *, resumed_at: int = 0, said: Any = None, **options: Any) -> Logger:
    (logger,) = open_loggers(
        LoggingConfig(wandb=WandbConfig("prompts", **{"mode": "offline", **options})),
        folder,
        RUN_CONFIG,
        resumed_at=resumed_at,
        say=(lambda line: None) if said is None else said.append,
    )
    return logger


def read_wandb(offline_run: Path) -> list[Any]:
    """The records of an offline run's file.

    The file is a LevelDB log of protocol buffers: after 7 bytes of its own, blocks of 32 KiB, with
    chunks of a sum, a length and a kind (1 whole, 2 first, 3 middle, 4 last).
    """
    import wandb

    wandb.teardown()  # the service has written what it held back
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    (path,) = offline_run.glob("run-*.wandb")
    data, place, whole, records = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            records.append(messages.Record.FromString(whole))
            whole = b""
    return records


def of_kind(records: list[Any], kind: str) -> list[Any]:
    return [getattr(r, kind) for r in records if r.WhichOneof("record_type") == kind]


def history(records: list[Any]) -> list[dict[str, Any]]:
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item}
        for row in of_kind(records, "history")
    ]


def test_an_offline_run_holds_config_metrics_answers_and_artifacts(
    run_folder: Path,
) -> None:
    said: list[str] = []
    logger = open_wandb(run_folder, said=said)

    for record in (BASELINE, training(1, 2.0), training(2, 0.5), VALIDATION):
        logger.log(record)
    logger.predictions(3, ANSWERS)
    logger.finish(make_artifacts(run_folder))

    (offline_run,) = run_folder.glob("wandb/offline-run-*")
    records = read_wandb(offline_run)
    (run,) = of_kind(records, "run")
    assert (run.project, run.display_name) == ("prompts", "my run")
    assert run.run_id == (run_folder / "wandb-run-id").read_text(encoding="utf-8").strip()
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert {key: config[key] for key in RUN_CONFIG} == RUN_CONFIG

    rows = history(records)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 3]
    assert [row["loss/train"] for row in rows if "loss/train" in row] == [2.0, 0.5]
    assert rows[3]["loss/validation/tone"] == 1.25
    assert rows[3]["f1/validation/ask"] == 40.5
    (axis,) = of_kind(records, "metric")
    assert (axis.glob_name, axis.step_metric) == ("*", "step")

    (table,) = offline_run.glob("files/media/table/predictions*.table.json")
    assert json.loads(table.read_text(encoding="utf-8")) == {
        "columns": ["step", "task", "prompt", "answer", "expected"],
        "data": [[3, *row.values()] for row in ANSWERS],
    }

    artifacts = {artifact.type: artifact for artifact in of_kind(records, "artifact")}
    assert set(artifacts) == {"run_table", "prompt-table", "bundle"}
    assert artifacts["prompt-table"].name == "my-run-prompt-table"
    files = {
        entry.path: entry.local_path
        for kind in ("prompt-table", "bundle")
        for entry in artifacts[kind].manifest.contents
    }
    assert files == {
        "prompts.safetensors": str(run_folder / "prompts.safetensors"),
        "manifest.json": str(run_folder / "bundle/manifest.json"),
        "base/model.onnx": str(run_folder / "bundle/base/model.onnx"),
    }
    # What `wandb sync` will look for lies in the run run_folder, not in the user's home.
    (answers,) = artifacts["run_table"].manifest.contents
    assert Path(answers.local_path).is_relative_to(run_folder / "wandb")
    assert Path(answers.local_path).is_file()

    assert [ended.exit_code for ended in of_kind(records, "exit")] == [0]
    assert said == [f"Weights & Biases: send it with: wandb sync {offline_run}"]


def test_a_resumed_run_keeps_its_id_and_a_new_one_does_not(
    run_folder: Path,
) -> None:
    ids = []
    for resumed_at in (0, 2, 0):
        logger = open_wandb(run_folder, resumed_at=resumed_at, name="mine")
        logger.log(training(resumed_at + 1, 0.5))
        logger.finish([])
        ids.append((run_folder / "wandb-run-id").read_text(encoding="utf-8").strip())

    assert ids[0] == ids[1] != ids[2]
    found = [
        (run.run_id, run.display_name, row["step"])
        for offline_run in run_folder.glob("wandb/offline-run-*")
        for records in [read_wandb(offline_run)]
        for run in of_kind(records, "run")
        for row in history(records)
    ]
    assert sorted(found) == sorted(
        (run_id, "mine", step) for run_id, step in zip(ids, (1, 3, 1), strict=True)
    )


def test_a_failed_run_is_marked_and_artifacts_may_stay_at_home(
    run_folder: Path,
) -> None:
    artifacts = make_artifacts(run_folder)

    open_wandb(run_folder).abort()
    (failed,) = run_folder.glob("wandb/offline-run-*")
    open_wandb(run_folder, log_artifacts=False).finish(artifacts)
    (finished,) = set(run_folder.glob("wandb/offline-run-*")) - {failed}

    assert [ended.exit_code for ended in of_kind(read_wandb(failed), "exit")] == [1]
    assert [ended.exit_code for ended in of_kind(read_wandb(finished), "exit")] == [0]
    assert of_kind(read_wandb(finished), "artifact") == []


@pytest.mark.parametrize(("mode", "left"), [("offline", 1), ("disabled", 0)])
def test_the_machines_own_switch_is_heeded(
    mode: str, left: int, run_folder: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    said: list[str] = []

    logger = open_wandb(run_folder, mode="online", said=said)
    logger.log(training(1, 0.5))
    logger.predictions(1, ANSWERS)
    logger.finish(make_artifacts(run_folder))

    assert len(list(run_folder.glob("wandb/offline-run-*"))) == left
    assert [line for line in said if "warning" in line] == []


def test_offline_switches_off_what_wandb_would_report_of_its_own_errors(
    run_folder: Path, monkeypatch: Any
) -> None:
    seen: list[str | None] = []

    def noted(**settings: Any) -> None:
        seen.append(os.environ.get("WANDB_ERROR_REPORTING"))
        raise RuntimeError("enough")

    monkeypatch.setattr("wandb.init", noted)
    for mode in ("offline", "online"):
        with pytest.raises(TrainingError, match="enough"):
            open_wandb(run_folder, mode=mode)

    assert seen == ["false", None]
    assert not {"WANDB_ERROR_REPORTING", "WANDB_DATA_DIR"} & set(os.environ)


def test_a_server_that_does_not_answer_ends_the_run_at_its_start(
    tmp_path: Path, proxy: socket.socket, monkeypatch: Any
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")

    with pytest.raises(TrainingError, match=r"^starting to log to Weights & Biases: .*offline\.$"):
        open_wandb(tmp_path, mode="online")

    proxy.accept()[0].close()  # so a call would have been seen in the tests above
