"""A run that was interrupted ends like one that was not; another run is not resumed."""

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pl_compile.artifact.files import append_line
from pl_compile.artifact.prompt_table import read_prompt_table
from pl_compile.driver.bring_in import import_checkpoint
from pl_compile.errors import ArtifactError, TrainingError
from pl_compile.testing import (
    PREFIX_TASK,
    TASKS,
    tiny_examples,
    tiny_run,
    tone_examples,
    tone_tasks,
    write_jsonl,
)
from pl_compile.training.checkpoint import save_checkpoint
from pl_compile.training.run import TrainResult, run_training
from pl_compile.training.run_folder import folder_of_one_process
from pl_compile.training.run_state import RunState

Records = Callable[[Path], list[dict[str, Any]]]
Sums = Callable[[Path | None], dict[str, str]]

NAMES = ("tone", "a_much_longer_name")

METHODS: dict[str, dict[str, Any]] = {
    "vocabulary": {"prompt_tuning": {"init": "vocabulary"}},
    "random": {"prompt_tuning": {"init": "random"}},
    "text": {
        "prompt_tuning": {"init": "text"},
        "tasks": [{**task, "init_text": "was it good?"} for task in TASKS],
        "rows": tiny_examples(24),
    },
    "mlp": {"p_tuning": {"encoder_type": "mlp", "encoder_hidden": 20, "num_layers": 3}},
    "tpmlp": {"p_tuning": {"encoder_type": "tpmlp"}},
    "lstm with dropout": {"p_tuning": {"encoder_type": "lstm", "dropout": 0.3}},
    "biglstm with dropout": {"p_tuning": {"encoder_type": "biglstm", "dropout": 0.3}},
    "prefix": {"virtual_prompt_style": "prefix-tuning"},
    "fp16": {"trainer": {"precision": "fp16"}},
    "bf16": {"trainer": {"precision": "bf16"}},
    "joint": {"lm_finetune": True},
    "every step": {"checkpoint": {"every_n_steps": 1}},
    "epochs of no order": {"data": {"shuffle": False}, "trainer": {"global_batch_size": 12}},
}


ONE_TASK: dict[str, Any] = {"tasks": tone_tasks("tone"), "rows": tone_examples("tone")}


class Killed(BaseException):
    """As if the process ended here."""


def _killed_at_the_first_save(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Ends the next run after its first save; gives the number of each save that comes after."""
    saves = count(1)

    def killed_after_a_save(path: Path, *rest: Any) -> None:
        save_checkpoint(path, *rest)
        if path.name == "last.safetensors" and next(saves) == 1:
            raise Killed

    monkeypatch.setattr("pl_compile.training.run.save_checkpoint", killed_after_a_save)
    return saves


@pytest.fixture(scope="module")
def finished(tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data of a run of one task, and the run."""
    folder = tmp_path_factory.mktemp("finished")
    config = tiny_run(folder / "data", tiny_bases["llama"], **ONE_TASK)
    run_training(config, folder / "run")
    return folder


@pytest.fixture
def work(finished: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_resuming_nothing_says_so(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    config = tiny_run(tmp_path / "data", tiny_bases["llama"])

    with pytest.raises(TrainingError) as caught:
        run_training(config, tmp_path / "run", resume=True)

    assert str(caught.value) == (
        f"resuming from {tmp_path / 'run/checkpoints/last.safetensors'}: no such file. "
        "Start the run anew, without --resume."
    )


def method_run(folder: Path, base: Path, method: str) -> Any:
    changes = {"tasks": tone_tasks(*NAMES), "rows": tone_examples(*NAMES), **METHODS[method]}
    if "p_tuning" in changes:
        changes["virtual_prompt_style"] = "p-tuning"
    return tiny_run(folder, base, **changes)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_resumed_ends_like_one_that_was_not(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    records: Records,
    prompt_sums: Sums,
    method: str,
) -> None:
    config = method_run(tmp_path / "data", tiny_bases["llama"], method)
    whole = run_training(config, tmp_path / "whole")
    saves = _killed_at_the_first_save(monkeypatch)
    with pytest.raises(Killed):
        run_training(config, tmp_path / "parts")
    parts = run_training(config, tmp_path / "parts", resume=True)

    assert next(saves) >= 3
    assert prompt_sums(parts.table) == prompt_sums(whole.table)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert _without_time(parts) == _without_time(whole)


@pytest.mark.parametrize("began", ["vocabulary", "text", "random"])
def test_a_run_goes_on_from_how_it_began_where_that_is_left_to_it(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prompt_sums: Sums,
    began: str,
) -> None:
    tasks = [{**task, "init_text": "was it good?"} for task in tone_tasks(*NAMES)]
    changes: dict[str, Any] = {"tasks": tasks, "rows": tone_examples(*NAMES)}
    named = tiny_run(
        tmp_path / "data", tiny_bases["llama"], **changes, prompt_tuning={"init": began}
    )
    whole = run_training(named, tmp_path / "whole")
    _killed_at_the_first_save(monkeypatch)
    with pytest.raises(Killed):
        run_training(named, tmp_path / "parts")
    left = tiny_run(tmp_path / "data", tiny_bases["llama"], **changes)

    parts = run_training(left, tmp_path / "parts", resume=True)

    assert left.prompt_tuning.init == "auto"
    assert prompt_sums(parts.table) == prompt_sums(whole.table)
    resolved = (tmp_path / "parts/config.yaml").read_text(encoding="utf-8")
    assert f"prompt_tuning:\n  init: {began}\n" in resolved


def _without_time(result: TrainResult) -> TrainResult:
    return dataclasses.replace(result, seconds=0.0, table=None, base=None)


def test_a_run_may_end_before_any_of_its_writes(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    records: Records,
    prompt_sums: Sums,
) -> None:
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        **ONE_TASK,
        trainer={"max_steps": 4, "val_check_interval": 2, "log_every_n_steps": 2},
        checkpoint={"every_n_steps": 1, "save_top_k": 2},
    )
    replaced = os.replace
    left: Iterator[int] = count()  # writes until the kill; without end at first

    def before_a_write() -> None:
        if next(left, None) is None:
            raise Killed

    def append(*arguments: Any) -> None:
        before_a_write()
        append_line(*arguments)

    def replace(*arguments: Any) -> None:
        before_a_write()
        replaced(*arguments)

    monkeypatch.setattr("pl_compile.training.run_folder.append_line", append)
    monkeypatch.setattr(os, "replace", replace)
    whole = run_training(config, tmp_path / "whole")
    writes = next(left)
    started_anew = 0
    for number in range(writes):
        run = tmp_path / f"killed before write {number}"
        left = iter(range(number))
        with pytest.raises(Killed):
            run_training(config, run)
        left = count()

        resume = (run / "checkpoints/last.safetensors").is_file()
        started_anew += not resume
        parts = run_training(config, run, resume=resume)

        assert prompt_sums(parts.table) == prompt_sums(whole.table), number
        assert records(run) == records(tmp_path / "whole"), number
        assert _without_time(parts) == _without_time(whole), number
        assert _names(run) == _names(tmp_path / "whole"), number
    assert (writes, started_anew) == (19, 5)


def _names(run: Path) -> set[str]:
    return {path.relative_to(run).as_posix() for path in run.rglob("*")}


def test_a_run_that_has_ended_is_resumed_to_the_same_end(
    tiny_bases: dict[str, Path], tmp_path: Path, records: Records, prompt_sums: Sums
) -> None:
    config = tiny_run(tmp_path / "data", tiny_bases["llama"])
    first = run_training(config, tmp_path / "run")
    before = (records(tmp_path / "run"), prompt_sums(first.table))

    second = run_training(config, tmp_path / "run", resume=True)

    assert (records(tmp_path / "run"), prompt_sums(second.table)) == before
    assert _without_time(second) == _without_time(first)


def test_a_torn_last_record_does_not_keep_a_run_from_resuming(
    tiny_bases: dict[str, Path], work: Path, records: Records
) -> None:
    config = tiny_run(work / "data", tiny_bases["llama"], **ONE_TASK)
    before = records(work / "run")
    with (work / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train_lo')

    run_training(config, work / "run", resume=True)

    assert records(work / "run") == before


def test_what_a_killed_process_left_half_written_is_removed(
    tiny_bases: dict[str, Path], work: Path
) -> None:
    config = tiny_run(work / "data", tiny_bases["llama"], **ONE_TASK)
    run = work / "run"
    before = _names(run)
    (run / "checkpoints/.last.safetensors.0badcafe").write_bytes(b"half")
    (run / ".prompts.safetensors.0badcafe").write_bytes(b"half")
    (run / ".metrics.jsonl.0badcafe").write_bytes(b"half")
    (run / "checkpoints/.val_loss=0.1-step=1.safetensors.0badcafe").write_bytes(b"half")
    (run / ".notes").write_text("the user's")
    in_use = run / "checkpoints/.last.safetensors.89abcdef"

    with in_use.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        run_training(config, run, resume=True)

    assert _names(run) == before | {".notes", f"checkpoints/{in_use.name}"}


def test_one_process_at_a_time_trains_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()  # or the folder would go

    with (
        folder_of_one_process(tmp_path),
        pytest.raises(TrainingError, match="another process that trains there"),
        folder_of_one_process(tmp_path),
    ):
        pass

    def without_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without_locks)
    with folder_of_one_process(tmp_path):
        pass


def test_a_resumed_run_goes_on_where_its_files_were_moved(
    tiny_bases: dict[str, Path], work: Path, tmp_path: Path, prompt_sums: Sums
) -> None:
    config = tiny_run(work / "data", tiny_bases["llama"], **ONE_TASK)
    before = prompt_sums(work / "run/prompts.safetensors")
    shutil.copytree(tiny_bases["llama"], tmp_path / "base")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    (tmp_path / "run").rename(tmp_path / "renamed")
    moved = dataclasses.replace(
        config,
        base=str(tmp_path / "base"),
        data=dataclasses.replace(
            config.data,
            train=(tmp_path / "elsewhere/train.jsonl",),
            validation=(tmp_path / "elsewhere/validation.jsonl",),
        ),
    )

    result = run_training(moved, tmp_path / "renamed", resume=True)

    assert result.steps == 6
    assert prompt_sums(result.table) == before


# Time limits


def test_a_run_out_of_time_is_saved_and_goes_on_when_it_is_given_more(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    records: Records,
    prompt_sums: Sums,
) -> None:
    # Each look at the clock is a second later, and each step looks once.
    clock = SimpleNamespace(monotonic=count().__next__, perf_counter=time.perf_counter)
    monkeypatch.setattr("pl_compile.training.loop.time", clock)

    def of(max_time: str | None) -> Any:
        return tiny_run(tmp_path / "data", tiny_bases["llama"], trainer={"max_time": max_time})

    whole = run_training(of(None), tmp_path / "whole")
    first = run_training(of("00:02"), tmp_path / "run")

    assert (first.steps, first.ended) == (2, "max_time")
    assert read_prompt_table(tmp_path / "run/prompts.safetensors").entry("tone")
    assert [r["step"] for r in records(tmp_path / "run") if "val_loss" in r] == [2]

    # The time of its parts counts: nothing is left of the same limit.
    same = run_training(of("00:02"), tmp_path / "run", resume=True)
    more = run_training(of("00:00:04"), tmp_path / "run", resume=True)
    rest = run_training(of(None), tmp_path / "run", resume=True)

    assert (same.steps, same.ended) == (2, "max_time")
    assert (more.steps, more.ended) == (4, "max_time")
    assert (rest.steps, rest.ended) == (6, "")
    assert rest.best_step == whole.best_step == 6
    assert prompt_sums(rest.table) == prompt_sums(whole.table)
    found, expected = (
        [record for record in records(tmp_path / name) if "val_loss" not in record]
        for name in ("run", "whole")
    )
    assert found == expected


# What is no resuming


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 7}, "'config.seed' was 1234, now 7"),
        ({"optim": {"lr": 0.5}}, "'config.optim.lr' was 0.05, now 0.5"),
        (
            {"tasks": [{**TASKS[0], "prompt_template": "<|VIRTUAL_PROMPT_0|>{sentence}{label}"}]},
            "'config.tasks.0.prompt_template' was '<|VIRTUAL_PROMPT_0|> {sentence} "
            "sentiment:{label}', now '<|VIRTUAL_PROMPT_0|>{sentence}{label}'",
        ),
        (
            {"virtual_prompt_style": "prefix-tuning"},
            "'config.virtual_prompt_style' was 'prompt-tuning', now 'prefix-tuning'",
        ),
        ({"trainer": {"max_steps": 9}}, "'config.trainer.max_steps' was 6, now 9"),
    ],
)
def test_a_run_with_another_config_is_not_resumed(
    tiny_bases: dict[str, Path], work: Path, changes: dict[str, Any], difference: str
) -> None:
    config = tiny_run(work / "data", tiny_bases["llama"], **{**ONE_TASK, **changes})
    before = {path: path.read_bytes() for path in work.rglob("run/**/*.*")}

    with pytest.raises(TrainingError) as caught:
        run_training(config, work / "run", resume=True)

    assert str(caught.value) == (
        f"resuming from {work / 'run/checkpoints/last.safetensors'}: {difference}; "
        "expected the run that is resumed, unchanged. Start a new run in another --output."
    )
    assert {path: path.read_bytes() for path in work.rglob("run/**/*.*")} == before


def test_a_run_on_another_base_or_other_data_is_not_resumed(
    tiny_bases: dict[str, Path], work: Path
) -> None:
    config = tiny_run(work / "data", tiny_bases["gpt2"], **{**ONE_TASK, "seed": 7})
    write_jsonl(config.data.train[0], tone_examples("tone", seed=9))

    with pytest.raises(TrainingError) as caught:
        run_training(config, work / "run", resume=True)

    doing, *lines = str(caught.value).splitlines()
    assert doing.endswith("last.safetensors: 3 problems:")
    assert [line.partition(" was ")[0] for line in lines[:3]] == [
        "  - 'base'",
        "  - 'config.seed'",
        "  - 'train.0.train.jsonl'",
    ]


def test_a_damaged_checkpoint_is_named(tiny_bases: dict[str, Path], work: Path) -> None:
    config = tiny_run(work / "data", tiny_bases["llama"], **ONE_TASK)
    last = work / "run/checkpoints/last.safetensors"
    best, whole = last.with_name("best.safetensors"), last.read_bytes()
    last.write_bytes(whole[:-1])

    with pytest.raises(TrainingError) as caught:
        run_training(config, work / "run", resume=True)

    assert str(caught.value) == (
        f"resuming from {last}: cut short: {len(whole) - 1} bytes, at least {len(whole)} by its "
        "header. Copy it again. Start a new run in another --output. "
        f"'plc import checkpoint {best} --output TABLE' takes the best prompts out of this one."
    )
    assert import_checkpoint(best, work / "table").entries

    best.unlink()
    with pytest.raises(TrainingError, match=r"Start a new run in another --output\.$"):
        run_training(config, work / "run", resume=True)


def test_a_run_without_its_last_checkpoint_is_not_begun_anew_in_its_folder(
    tiny_bases: dict[str, Path], work: Path
) -> None:
    config = tiny_run(work / "data", tiny_bases["llama"], **ONE_TASK)
    (work / "run/checkpoints/last.safetensors").unlink()

    with pytest.raises(TrainingError, match=r"no such file\. Start a new run in another --output"):
        run_training(config, work / "run", resume=True)


Tensors = dict[str, torch.Tensor]


def _without(name: str) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.pop(name)


def _with(name: str, tensor: torch.Tensor) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({name: tensor})


def _altered_checkpoint(
    path: Path,
    metadata: dict[str, str | None] | None = None,
    change: Callable[[Tensors], Any] | None = None,
) -> None:
    """The checkpoint with other metadata (None takes a key away) or other tensors."""
    with safe_open(path, framework="pt") as file:
        kept = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    kept = {key: value for key, value in {**kept, **(metadata or {})}.items() if value is not None}
    if change is not None:
        change(tensors)
    save_file(tensors, path, kept)


def _state(**changes: object) -> str:
    return json.dumps({**dataclasses.asdict(RunState(step=6)), **changes})


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"identity": None}, "a checkpoint without 'identity'"),
        ({"identity": "{"}, "metadata 'identity' that is not JSON"),
        ({"identity": "[" * 100_000}, "metadata 'identity' that is not JSON"),
        ({"identity": "7"}, "does not say which run it belongs to"),
        ({"identity": '{"config": {"trainer": {"precision": ["x"]}}}'}, "the precision ['x']"),
        ({"scaler": None}, "a checkpoint without 'scaler'"),
        ({"scaler": '{"scale": 2.0}'}, "a loss scaler of {'scale': 2.0}"),
        ({"scaler": "[]"}, "a loss scaler of []"),
        ({"state": None}, "a checkpoint without 'state'"),
        ({"state": "[1]"}, "a state of [1]"),
        ({"state": "{}"}, "expected the steps that are done"),
        ({"state": _state(step=7)}, "a state that no run of 6 steps has"),
        ({"state": _state(step="6")}, "a state with 'step' of '6'"),
        ({"state": _state(step=True)}, "a state with 'step' of True"),
        ({"state": _state(skipped=-1)}, "a state that no run"),
        ({"state": _state(best_loss=float("nan"))}, "a state that no run"),
        ({"state": _state(ended="soon")}, "a state that no run"),
        ({"state": _state(moons=3)}, "a state with 'moons' of 3"),
    ],
)
def test_metadata_of_a_checkpoint_are_looked_at_before_they_are_believed(
    tiny_bases: dict[str, Path], work: Path, metadata: dict[str, str | None], said: str
) -> None:
    config = tiny_run(work / "data", tiny_bases["llama"], **ONE_TASK)
    last = work / "run/checkpoints/last.safetensors"
    _altered_checkpoint(last, metadata)

    with pytest.raises(TrainingError) as caught:
        run_training(config, work / "run", resume=True)

    assert str(caught.value).startswith(f"resuming from {last}: ")
    assert said in str(caught.value)
    assert "Start a new run in another --output. 'plc import checkpoint " in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("method/prompts.0"), "no tensor 'method/prompts.0'"),
        (_without("optimizer/0/exp_avg"), "no tensor 'optimizer/0/exp_avg'"),
        (_with("optimizer/9/step", torch.tensor(1.0)), "'optimizer/9/step' too many"),
        (_with("optimizer/x", torch.tensor(1.0)), "'optimizer/x' too many"),
        (_with("method/prompts.0", torch.ones(3)), "'method/prompts.0' is [3] of torch.float32"),
        (_with("optimizer/0/exp_avg", torch.ones(3)), "'optimizer/0/exp_avg' is [3] of"),
        (lambda tensors: tensors["method/prompts.0"].fill_(torch.nan), "that are not finite"),
        (lambda tensors: tensors["optimizer/0/exp_avg"].fill_(torch.nan), "holds NaN"),
    ],
)
def test_tensors_of_a_checkpoint_are_those_of_the_run(
    tiny_bases: dict[str, Path], work: Path, change: Callable[[Tensors], Any], said: str
) -> None:
    config = tiny_run(work / "data", tiny_bases["llama"], **ONE_TASK)
    _altered_checkpoint(work / "run/checkpoints/last.safetensors", change=change)

    with pytest.raises(TrainingError) as caught:
        run_training(config, work / "run", resume=True)

    assert said in str(caught.value)


def test_the_loss_of_a_skipped_step_may_be_not_finite(
    tiny_bases: dict[str, Path], work: Path
) -> None:
    config = tiny_run(work / "data", tiny_bases["llama"], **ONE_TASK)
    state = _state(loss=float("nan"), skipped=1)
    _altered_checkpoint(work / "run/checkpoints/last.safetensors", {"state": state})

    assert run_training(config, work / "run", resume=True).skipped == 1


def test_records_that_are_none_are_listed_with_their_lines(
    tiny_bases: dict[str, Path], work: Path
) -> None:
    config = tiny_run(work / "data", tiny_bases["llama"], **ONE_TASK)
    metrics = work / "run/metrics.jsonl"
    bad = [
        "{",
        "7",
        "[" * 100_000,
        "{}",
        '{"step": "1"}',
        '{"step": 6, "by_task": {"x": 1.0}}',
        '{"step": 6, "by_task": [1.0]}',
        '{"step": 6, "val_metrics": {"tone": 1.0}}',
        '{"step": 6, "train_loss": "low"}',
    ]
    metrics.write_text('{"step": 0, "baseline": NaN}\n' + "\n".join(bad) + "\n")

    with pytest.raises(TrainingError) as caught:
        run_training(config, work / "run", resume=True)

    doing, *lines = str(caught.value).splitlines()
    assert doing == f"resuming from {metrics}: {len(bad)} problems:"
    assert [line.partition(":")[0] for line in lines[:-1]] == [
        f"  - line {number}" for number in range(2, len(bad) + 2)
    ]
    assert lines[-1].startswith("Put back the file as the run wrote it")
    metrics.write_bytes(b'{"step": 1}\n\xff\n')
    with pytest.raises(TrainingError, match=r"metrics\.jsonl: line 2: the byte 0xff"):
        run_training(config, work / "run", resume=True)


def test_a_table_is_no_checkpoint(tiny_bases: dict[str, Path], work: Path) -> None:
    config = tiny_run(work / "data", tiny_bases["llama"], **ONE_TASK)
    shutil.copyfile(work / "run/prompts.safetensors", work / "run/checkpoints/last.safetensors")

    with pytest.raises(TrainingError) as caught:
        run_training(config, work / "run", resume=True)

    assert "format 'plc.prompt-table'; expected plc.training-checkpoint" in str(caught.value)


def test_a_prefix_is_stored_in_a_checkpoint_as_in_a_table(
    tiny_bases: dict[str, Path], tmp_path: Path, prompt_sums: Sums
) -> None:
    from pl_compile.driver.bring_in import import_checkpoint

    rows = [
        {"taskname": "order", "request": row["sentence"], "order": row["label"]}
        for row in tone_examples("order")
    ]
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["gpt2"],
        tasks=[PREFIX_TASK],
        rows=rows,
        virtual_prompt_style="prefix-tuning",
        data={"add_bos": True},
    )
    result = run_training(config, tmp_path / "run")

    import_checkpoint(tmp_path / "run/checkpoints/best.safetensors", tmp_path / "table")

    assert prompt_sums(tmp_path / "table") == prompt_sums(result.table)
    with pytest.raises(ArtifactError, match=r"the folder of a run.*The best is .*best\.safetenso"):
        import_checkpoint(tmp_path / "run", tmp_path / "other")
