"""Tasks come one after another into one table, by different methods; nothing old is touched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pl_compile.artifact.prompt_table import read_prompt_table
from pl_compile.cli.main import main
from pl_compile.driver.evaluate import EvalOptions, evaluate, session_on_table
from pl_compile.errors import ConfigError
from pl_compile.testing import (
    PREFIX_TASK,
    TASKS,
    tiny_examples,
    tiny_run,
    tone_examples,
    tone_tasks,
    write_jsonl,
)
from pl_compile.training.run import TrainResult, run_training

Sums = Callable[[Path | None], dict[str, str]]

SHORT = {"max_steps": 2, "val_check_interval": 2}

ASK_ROWS = [row for row in tiny_examples(48) if row["taskname"] == "ask"]
ORDER_ROWS = [
    {"taskname": "order", "request": row["sentence"], "order": row["label"]}
    for row in tone_examples("order")
]

# A is tuned directly, B by an encoder, C as a prefix; each has another number of virtual tokens.
STAGES: dict[str, dict[str, Any]] = {
    "a": {"tasks": [TASKS[1]], "rows": ASK_ROWS},
    "b": {
        "tasks": tone_tasks("mood", "a_much_longer_name", total_virtual_tokens=4),
        "rows": tone_examples("mood", "a_much_longer_name"),
        "virtual_prompt_style": "p-tuning",
    },
    "c": {
        "tasks": [{**PREFIX_TASK, "total_virtual_tokens": 6}],
        "rows": ORDER_ROWS,
        "virtual_prompt_style": "prefix-tuning",
    },
}


@pytest.fixture(scope="module")
def stages(
    tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, TrainResult]:
    """Three runs, each on the table of the one before."""
    folder = tmp_path_factory.mktemp("stages")
    results: dict[str, TrainResult] = {}
    existing = None
    for name, changes in STAGES.items():
        config = tiny_run(
            folder / f"data {name}",
            tiny_bases["llama"],
            **changes,
            existing_table=existing and str(existing),
            trainer=SHORT,
        )
        results[name] = run_training(config, folder / name)
        existing = results[name].table
    return results


@pytest.fixture
def table(stages: dict[str, TrainResult], tmp_path: Path) -> Path:
    """A copy of the last table."""
    last = stages["c"].table
    assert last is not None
    copy = tmp_path / "prompts.safetensors"
    copy.write_bytes(last.read_bytes())
    return copy


@pytest.fixture
def plc(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr("sys.argv", ["plc", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return run


def test_each_run_adds_its_tasks_and_leaves_the_bytes_of_the_others(
    stages: dict[str, TrainResult], prompt_sums: Sums
) -> None:
    a, b, c = (prompt_sums(stages[name].table) for name in "abc")

    assert list(a) == ["ask"]
    assert list(b) == ["ask", "mood", "a_much_longer_name"]
    assert list(c) == [*b, "order"]
    assert {name: b[name] for name in a} == a
    assert {name: c[name] for name in b} == b
    assert len(set(c.values())) == 4


def test_a_table_holds_tasks_of_all_methods_and_lengths(table: Path) -> None:
    entries = read_prompt_table(table).entries

    assert {name: (entry.method, entry.learned.shape) for name, entry in entries.items()} == {
        "ask": ("prompt-tuning", (5, 24)),
        "mood": ("p-tuning", (4, 24)),
        "a_much_longer_name": ("p-tuning", (4, 24)),
        "order": ("prefix-tuning", (2, 2, 2, 6, 8)),
    }


def test_records_of_the_old_tasks_stay(stages: dict[str, TrainResult], table: Path) -> None:
    first = stages["a"].table
    assert first is not None

    before, after = read_prompt_table(first), read_prompt_table(table)

    assert after.entry("ask").record() == before.entry("ask").record()
    assert after.base == before.base


def test_all_tasks_of_the_table_are_answered_in_one_session(
    tiny_bases: dict[str, Path], table: Path, tmp_path: Path
) -> None:
    rows = [*ASK_ROWS[:2], *tone_examples("mood", "a_much_longer_name")[:2], *ORDER_ROWS[:2]]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)

    scores = evaluate(
        session_on_table(table, tiny_bases["llama"]), [data], EvalOptions(baseline=False)
    )

    assert {score.task: score.examples for score in scores} == {
        "ask": 2,
        "mood": 1,
        "a_much_longer_name": 1,
        "order": 2,
    }


def test_a_part_of_the_existing_tasks_can_be_taken(
    tiny_bases: dict[str, Path], table: Path, tmp_path: Path, prompt_sums: Sums
) -> None:
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        tasks=tone_tasks("mood"),  # free again, where that one is not taken
        rows=tone_examples("mood"),
        existing_table=str(table),
        existing_tasks=["order", "ask"],
        trainer=SHORT,
    )
    before = prompt_sums(table)

    result = run_training(config, tmp_path / "run")

    after = prompt_sums(result.table)
    assert list(after) == ["order", "ask", "mood"]
    assert {name: after[name] for name in ("order", "ask")} == {
        name: before[name] for name in ("order", "ask")
    }
    assert after["mood"] != before["mood"]
    assert prompt_sums(table) == before


def test_an_existing_task_that_is_none_is_refused_with_the_near_name(
    tiny_bases: dict[str, Path], table: Path, tmp_path: Path
) -> None:
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        existing_table=str(table),
        existing_tasks=["odrer"],
    )

    with pytest.raises(ConfigError) as caught:
        run_training(config, tmp_path / "run")

    assert str(caught.value) == (
        f"taking tasks from {table}: task 'odrer' does not exist. Did you mean 'order'? "
        "Known tasks: ask, mood, a_much_longer_name, order."
    )


def test_a_task_is_removed_and_trained_again(
    tiny_bases: dict[str, Path], table: Path, tmp_path: Path, plc: Any, prompt_sums: Sums
) -> None:
    before = prompt_sums(table)

    assert plc("tasks", "rm", table, "mood") == (f"wrote {table}: ask, a_much_longer_name, order\n")
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        tasks=tone_tasks("mood"),
        rows=tone_examples("mood"),
        existing_table=str(table),
        trainer=SHORT,
    )
    after = prompt_sums(run_training(config, tmp_path / "run").table)

    assert {name for name in before if after[name] != before[name]} == {"mood"}


def test_a_renamed_task_keeps_its_prompt_and_frees_its_name(
    tiny_bases: dict[str, Path], table: Path, tmp_path: Path, plc: Any, prompt_sums: Sums
) -> None:
    before = prompt_sums(table)
    plc("tasks", "rename", table, "order", "old_order")
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        **STAGES["c"],
        existing_table=str(table),
        trainer=SHORT,
        seed=7,
    )

    after = prompt_sums(run_training(config, tmp_path / "run").table)

    assert list(after) == ["ask", "mood", "a_much_longer_name", "old_order", "order"]
    assert after["old_order"] == before["order"] != after["order"]


def test_equal_runs_make_equal_prompts_whatever_they_are_added_to(
    tiny_bases: dict[str, Path], table: Path, tmp_path: Path, prompt_sums: Sums
) -> None:
    alone = tiny_run(tmp_path / "data", tiny_bases["llama"], **STAGES["c"], trainer=SHORT)

    result = run_training(alone, tmp_path / "run")

    assert prompt_sums(result.table) == {"order": prompt_sums(table)["order"]}
