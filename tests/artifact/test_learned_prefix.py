"""A learned prefix in a prompt table and in a bundle: what comes back, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save

from pl_compile.artifact.bundle import Manifest, read_bundle, write_manifest, write_task
from pl_compile.artifact.prompt_table import (
    BaseIdentity,
    PromptTable,
    TaskEntry,
    check_prefix,
    read_prompt_table,
    write_prompt_table,
)
from pl_compile.artifact.tensors import read_tensor_file
from pl_compile.config.contract import GraphContract
from pl_compile.config.task import TaskConfig
from pl_compile.errors import ArtifactError
from pl_compile.text.render import SequenceRules

LAYERS, KV_HEADS, VIRTUAL, HEAD_DIM, HIDDEN, VOCAB = 3, 5, 4, 7, 6, 11
SHAPE = (LAYERS, 2, KV_HEADS, VIRTUAL, HEAD_DIM)
BASE = BaseIdentity("tiny", "5eed" * 16, HIDDEN, VOCAB)
GRAPH = GraphContract(
    layers=LAYERS,
    kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    hidden=HIDDEN,
    vocab=VOCAB,
    capacity=17,
    prompts="input",
)
MANIFEST = Manifest(BASE, "onnx-cpu", GRAPH, ("mood", "order"), {"numpy": "2.0"}, "passed")
PREFIX_FILE = "tasks/order/prefix_kv.safetensors"
ROWS_FILE = "tasks/order/prompt.safetensors"


def mood() -> TaskEntry:
    task = TaskConfig("mood", "<|VIRTUAL_PROMPT_0|>{text} is {label}", 3)
    return TaskEntry(task, np.ones((3, HIDDEN), np.float32), SequenceRules(0, 1), "p-tuning")


def order(*, bos_id: int | None = None, **changes: Any) -> TaskEntry:
    task = TaskConfig("order", "<|VIRTUAL_PROMPT_0|>{text} is {label}", VIRTUAL)
    prefix = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    rows = np.zeros((0, HIDDEN), np.float32)
    rules = SequenceRules(bos_id, 1)
    return replace(TaskEntry(task, rows, rules, "prefix-tuning", prefix), **changes)


def table(*entries: TaskEntry) -> PromptTable:
    return PromptTable(BASE, {entry.task.taskname: entry for entry in entries})


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    (folder / "base").mkdir(parents=True)
    (folder / "base/model.onnx").write_bytes(b"not really a graph")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    for entry in (mood(), order()):
        write_task(folder, entry)
    write_manifest(folder, MANIFEST)
    return folder


@pytest.fixture
def refusal(bundle: Path) -> Callable[[], str]:
    """What the reader says of task "order", once the manifest fits the files."""

    def said() -> str:
        write_manifest(bundle, MANIFEST)
        with pytest.raises(ArtifactError) as error:
            read_bundle(bundle)
        assert error.value.doing == f"reading task 'order' of the bundle {bundle}"
        return str(error.value).removeprefix(f"{error.value.doing}: ")

    return said


# A good one


def test_a_prefix_goes_from_table_to_bundle_to_table_byte_for_byte(
    tmp_path: Path, bundle: Path
) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    write_prompt_table(table(mood(), order()), first)

    opened = read_bundle(bundle)
    write_prompt_table(PromptTable(opened.manifest.base, opened.entries), second)

    before, after = (read_tensor_file(path, doing="comparing") for path in (first, second))
    assert before.metadata == after.metadata
    assert {name: tensor.tobytes() for name, tensor in before.tensors.items()} == {
        name: tensor.tobytes() for name, tensor in after.tensors.items()
    }


def test_a_task_with_a_prefix_has_no_rows(tmp_path: Path, bundle: Path) -> None:
    path = tmp_path / "table.safetensors"
    write_prompt_table(table(mood(), order()), path)

    for found in (read_prompt_table(path).entry("order"), read_bundle(bundle).entry("order")):
        assert found.rows.shape == (0, HIDDEN)
        assert found.prefix_kv is found.learned
        assert found.learned.tobytes() == order().learned.tobytes()
    assert sorted(path.name for path in (bundle / "tasks" / "order").iterdir()) == [
        "prefix_kv.safetensors",
        "task.json",
    ]


# What is refused


@pytest.mark.parametrize(
    "shape",
    [
        (LAYERS + 1, 2, KV_HEADS, VIRTUAL, HEAD_DIM),
        (LAYERS, 2, KV_HEADS - 1, VIRTUAL, HEAD_DIM),
        (LAYERS, 2, KV_HEADS, VIRTUAL, HEAD_DIM + 1),
    ],
)
def test_a_prefix_for_another_base_is_refused_with_both_shapes(
    bundle: Path, refusal: Callable[[], str], shape: tuple[int, ...]
) -> None:
    (bundle / PREFIX_FILE).write_bytes(save({"prefix_kv": np.zeros(shape, np.float32)}))

    text = refusal()

    assert text == (
        f"prefix of 'order': float32 {shape}; expected float32 {SHAPE}. "
        "Train the task again on this base."
    )
    with pytest.raises(ArtifactError) as error:
        check_prefix(order(prefix_kv=np.zeros(shape, np.float32)), GRAPH, "exporting")
    assert str(error.value) == f"exporting: {text}"


@pytest.mark.parametrize(
    ("prefix", "found"),
    [
        (np.zeros((LAYERS, 3, KV_HEADS, VIRTUAL, HEAD_DIM), np.float32), "float32 (3, 3, 5, 4, 7)"),
        (np.zeros((LAYERS, 2, KV_HEADS, 9, HEAD_DIM), np.float32), "float32 (3, 2, 5, 9, 7)"),
        (np.zeros(SHAPE, np.float16), f"float16 {SHAPE}"),
        (np.zeros(SHAPE, np.float64), f"float64 {SHAPE}"),
    ],
)
def test_a_prefix_of_a_wrong_form_is_refused(
    bundle: Path, refusal: Callable[[], str], prefix: NDArray[Any], found: str
) -> None:
    (bundle / PREFIX_FILE).write_bytes(save({"prefix_kv": prefix}))

    assert refusal() == (
        f"prefix of 'order': {found}; expected float32 (layers, 2, kv_heads, 4, head_dim)."
    )


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_prefix_that_is_not_finite_is_refused(
    bundle: Path, refusal: Callable[[], str], tmp_path: Path, number: float
) -> None:
    prefix = order().learned.copy()
    prefix[2, 1, 4, 3, 6] = number
    (bundle / PREFIX_FILE).write_bytes(save({"prefix_kv": prefix}))

    assert refusal().startswith("prefix of 'order' that are not finite numbers")
    with pytest.raises(ArtifactError, match="prefix of 'order' that are not finite numbers"):
        write_prompt_table(table(order(prefix_kv=prefix)), tmp_path / "table.safetensors")


def test_rows_and_a_prefix_together_are_refused(bundle: Path, refusal: Callable[[], str]) -> None:
    rows = np.zeros((VIRTUAL, HIDDEN), np.float32)
    (bundle / ROWS_FILE).write_bytes(save({"prompt": rows}))

    assert refusal() == (
        "prompt.safetensors and prefix_kv.safetensors in the manifest; expected one of them."
    )


def test_neither_rows_nor_a_prefix_are_refused(bundle: Path, refusal: Callable[[], str]) -> None:
    (bundle / PREFIX_FILE).unlink()

    assert refusal() == (
        "no prompt.safetensors and no prefix_kv.safetensors in the manifest; expected one of them."
    )


@pytest.mark.parametrize(
    ("file", "tensor", "shape", "axes"),
    [
        (PREFIX_FILE, "prefix_kv", (VIRTUAL, HIDDEN), 5),
        (ROWS_FILE, "prompt", SHAPE, 2),
    ],
)
def test_rows_and_prefix_under_the_name_of_the_other_are_refused(
    bundle: Path,
    refusal: Callable[[], str],
    file: str,
    tensor: str,
    shape: tuple[int, ...],
    axes: int,
) -> None:
    (bundle / PREFIX_FILE).unlink()
    (bundle / file).write_bytes(save({tensor: np.zeros(shape, np.float32)}))

    assert refusal() == f"float32 {shape} in {tensor}.safetensors; expected {axes} axes."


def test_a_prefix_under_another_name_is_refused(bundle: Path, refusal: Callable[[], str]) -> None:
    (bundle / PREFIX_FILE).write_bytes(save({"prompt": np.zeros(SHAPE, np.float32)}))

    assert refusal() == ("tensors ['prompt'] in prefix_kv.safetensors; expected 'prefix_kv' alone.")


def test_a_prefix_after_a_bos_is_refused_by_both_readers(
    bundle: Path, refusal: Callable[[], str], tmp_path: Path
) -> None:
    path = bundle / "tasks" / "order" / "task.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**record, "bos_id": 2}), encoding="utf-8")

    assert refusal() == (
        "a prefix of 'order' and bos_id 2; expected no BOS: a prefix stands before everything."
    )
    with pytest.raises(ArtifactError, match="a prefix of 'order' and bos_id 2"):
        write_prompt_table(table(order(bos_id=2)), tmp_path / "table.safetensors")
