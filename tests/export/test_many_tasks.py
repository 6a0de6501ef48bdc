"""Folding of many tasks: by a budget of memory, several in a step, each as if it were alone."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from pl_compile.config.build import BuildOptions, Choice
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.forecast import Forecast, forecast_export
from pl_compile.errors import ConfigError
from pl_compile.runtime import Session
from pl_compile.runtime.engines.onnxruntime.graph import OnnxGraph
from pl_compile.runtime.served_task import fold
from pl_compile.testing import random_table, write_tiny_base

# Openings of 1 to 41 tokens, so that groups of them are of several sizes.
TASKS: list[Mapping[str, Any]] = [
    {
        "taskname": f"task{count}",
        "prompt_template": "<|VIRTUAL_PROMPT_0|>{text} so {answer}",
        "total_virtual_tokens": count,
        "answer_field": "answer",
    }
    for count in range(1, 42, 2)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that the kernels of `native-cpu` take."""
    return write_tiny_base(tmp_path_factory.mktemp("many") / "base", "llama", blocks=True)


@pytest.fixture(scope="module")
def table(base: Path) -> Path:
    return random_table(base, base.parent / "table.safetensors", tasks=TASKS)


@pytest.fixture
def request_of(table: Path, base: Path, tmp_path: Path) -> ExportRequest:
    return ExportRequest(
        table,
        base,
        tmp_path / "bundle",
        target="native-cpu",
        options=BuildOptions("int8"),
        measure_parity=False,
    )


def folded(forecast: Forecast) -> list[bool]:
    return [task.folded for task in forecast.tasks]


def test_where_a_prefix_is_held_all_that_fit_are_folded(request_of: ExportRequest) -> None:
    forecast = forecast_export(request_of)

    assert all(folded(forecast))
    size = sum(task.folded_bytes for task in forecast.tasks)
    assert forecast.choices["fold"] == Choice(
        "auto",
        "21 of 21",
        f"{size / 1e6:.1f} MB of prefixes, in memory once for all rows; most 1024 MiB (--fold-mib)",
    )


def test_the_first_ones_that_fit_into_a_budget_are_folded(
    request_of: ExportRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [task.folded_bytes for task in forecast_export(request_of).tasks]
    monkeypatch.setattr("pl_compile.driver.costs._MIB", sum(sizes[:5]) + sizes[0])

    forecast = forecast_export(replace(request_of, fold_mib=1))

    assert folded(forecast) == [True] * 5 + [False] * 16
    assert forecast.choices["fold"].chosen == "5 of 21"
    assert "would be more than 1 MiB for all prefixes together" in forecast.tasks[5].reason
    nothing = forecast_export(replace(request_of, fold_mib=0))
    assert not any(folded(nothing))


def test_where_a_prefix_is_copied_the_budget_is_a_part_of_the_weights(
    request_of: ExportRequest,
) -> None:
    copied = forecast_export(replace(request_of, target="onnx-cpu"))

    assert "copied into each row; most 50% of the weights" in copied.choices["fold"].reason


@pytest.mark.parametrize("wrong", [{"fold_mib": -1}, {"fold_mib": 1, "fold": "always"}])
def test_a_budget_that_means_nothing_is_refused(
    request_of: ExportRequest, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="reading how openings are folded"):
        replace(request_of, **wrong)


@pytest.mark.parametrize("quantize", ["int8", "none"])
def test_openings_of_one_step_have_the_bits_of_each_alone(
    request_of: ExportRequest, quantize: Literal["none", "int8"]
) -> None:
    request = replace(request_of, options=BuildOptions(quantize))
    with Session.open(export_bundle(request).bundle) as session:
        learned = {name: replace(task, prefix_kv=None) for name, task in session.tasks.items()}
        again = dict(zip(learned, fold(learned.values(), session.engine, 16), strict=True))
        for name, task in session.tasks.items():
            alone = learned[name].folded(session.engine).prefix_kv
            assert alone is not None
            assert again[name].prefix_kv is not None
            np.testing.assert_array_equal(again[name].prefix_kv, alone)
            assert task.prefix_kv is not None  # what the export wrote
            np.testing.assert_array_equal(task.prefix_kv, alone)
            assert not task.prefix_kv.flags.writeable
            assert task.prefix_kv.ctypes.data % 64 == 0


def test_steps_are_shared(request_of: ExportRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    with Session.open(export_bundle(replace(request_of, fold="never")).bundle) as session:
        if not session.engine.branches:
            pytest.skip(
                "needs the C++ kernels (g++ or Clang); without them: "
                "test_openings_of_one_step_have_the_bits_of_each_alone"
            )
        runs: list[int] = []
        run = OnnxGraph.run

        def counted(graph: OnnxGraph) -> None:
            runs.append(1)
            run(graph)

        monkeypatch.setattr(OnnxGraph, "run", counted)

        tasks = list(fold(session.tasks.values(), session.engine, 16))

    assert len(tasks) == len(TASKS)
    assert 1 < len(runs) < len(TASKS) / 2
