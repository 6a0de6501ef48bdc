"""Sessions of the native runtime answer as Python's do."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from native_programs import SANITIZED, answers, built
from session_scripts import Asked, check, random_asked, read, said
from test_engine_in_cpp import onnxruntime_library

from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import PlcError
from pl_compile.runtime import Session, kernels
from pl_compile.testing import random_table, sign_bundle, write_tiny_base

# In one process of the test run, which compiles each program once.
pytestmark = [pytest.mark.xdist_group("native"), pytest.mark.timeout(1200)]

CAPACITY = 160
TASKS: tuple[dict[str, Any], ...] = (
    {
        "taskname": "tone",
        "prompt_template": "<|VIRTUAL_PROMPT_0|> {sentence} sentiment:{label}",
        "total_virtual_tokens": 3,
        "truncate_field": "sentence",
        "choices": ["positive", "negative", "neutral", "negative but funny", "posit"],
    },
    {
        "taskname": "touching",  # blanks at a field's end move into the choice
        "prompt_template": "<|VIRTUAL_PROMPT_0|>Is it {sentence}{label}",
        "total_virtual_tokens": 2,
        "choices": ["yes", "no", "no idea"],
    },
    {
        "taskname": "ask",
        "prompt_template": (
            "Q: {question} <|VIRTUAL_PROMPT_0|> in {place}<|VIRTUAL_PROMPT_1|>: {answer}"
        ),
        "total_virtual_tokens": 5,
        "virtual_token_splits": [3, 2],
        "truncate_field": "question",
    },
    {
        "taskname": "say",
        "prompt_template": "<|VIRTUAL_PROMPT_0|> {text} => {answer}",
        "total_virtual_tokens": 20,
        "truncate_field": "text",
    },
    {
        "taskname": "copy",
        "prompt_template": "<|VIRTUAL_PROMPT_0|> {text}\n{question} => {answer}",
        "total_virtual_tokens": 3,
        "truncate_field": "text",
        "answer": {"span": "text"},
    },
)
MORE = ({**TASKS[0], "taskname": "more"}, {**TASKS[3], "taskname": "more_to_say"})
FIELDS = {
    "tone": ("sentence",),
    "touching": ("sentence",),
    "ask": ("question", "place"),
    "say": ("text",),
    "copy": ("text", "question"),
    "order": ("request",),
}
CLOSED = {"tone", "touching"}

BUNDLES: dict[str, tuple[str, BuildOptions, dict[str, Any]]] = {
    "int4": ("native-cpu", BuildOptions("int4"), {}),
    "int8 chooses": ("native-cpu", BuildOptions("int8", sampling="graph", candidates=20), {}),
    "none": ("native-cpu", BuildOptions("none"), {}),
    "onnx": ("onnx-cpu", BuildOptions("none"), {"fold": "never"}),
}

needs_kernels = pytest.mark.skipif(
    kernels.library_path() is None,
    reason="needs the C++ kernels (g++ or Clang); without them: test_session_in_cpp on onnx-cpu",
)
EACH_BUNDLE = pytest.mark.parametrize(
    "name", ["onnx", *(pytest.param(each, marks=needs_kernels) for each in ("int4", "int8 chooses", "none"))]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native_session")


@pytest.fixture(scope="module")
def export(folder: Path) -> Callable[..., Path]:
    """Exports tiny tasks: all of them, or those of another table for the same base."""
    base = write_tiny_base(folder / "base", "llama", seed=8, blocks=True)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 300
    config["eos_token_id"] = 300  # one that this base does not write after each token
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tables = {
        "all": random_table(base, folder / "table.safetensors", prefix=True, tasks=TASKS),
        "more": random_table(base, folder / "more.safetensors", seed=4, tasks=MORE),
    }

    def bundle(name: str, tasks: str = "all") -> Path:
        target, options, changes = BUNDLES[name]
        place = folder / f"{name.replace(' ', '_')}_{tasks}"
        if not place.exists():
            request = ExportRequest(
                tables[tasks],
                base,
                place,
                target=target,
                options=options,
                capacity=CAPACITY,
                measure_parity=tasks == "all" and name in ("int4", "onnx"),
                **changes,
            )
            export_bundle(request)
        return place

    return bundle


def program(folder: Path, bundle: Path, *options: str, flags: tuple[str, ...] = ("-O1",)) -> list[str]:
    library = kernels.library_path()
    made = built(folder, "session_program.cc", "g++", *flags, kernels=library)
    return [str(made), str(bundle), str(onnxruntime_library()), *options]


def asked_of(seed: int, count: int) -> list[Asked]:
    random = Random(seed)
    return [random_asked(random, FIELDS, closed=CLOSED) for _ in range(count)]


def script_of(asked: list[Asked], seed: int) -> tuple[list[str], set[int]]:
    """Lines that submit, step and cancel at random times; and which requests are cancelled."""
    random, lines, cancelled = Random(seed), [], set()
    for place, one in enumerate(asked):
        lines.append(one.line())
        if random.random() < 0.4:
            lines.append(f"step {random.randint(1, 6)}")
        if random.random() < 0.1:
            cancelled.add(number := random.randint(0, place))
            lines.append(f"cancel {number}")
    order = list(range(len(asked)))
    random.shuffle(order)
    return [*lines, *(f"result {place}" for place in order)], cancelled


@EACH_BUNDLE
@pytest.mark.parametrize("drafts", [False, True])
def test_answers_are_those_of_python(
    folder: Path, export: Callable[..., Path], name: str, drafts: bool
) -> None:
    bundle, count = export(name), 140
    asked = asked_of(len(name) + drafts, count)
    with Session.open(bundle, max_batch=5, threads=1, drafts=drafts) as session:
        expected = [one.expected(session) for one in asked]
    assert sum(not isinstance(each, PlcError) for each in expected) > count // 2
    lines, cancelled = script_of(asked, count + drafts)
    command = program(folder, bundle, "max_batch=5", f"drafts={int(drafts)}")
    found = dict(zip(enumerate(lines), answers(command, lines), strict=True))
    results = {line.split()[1]: answer for (_, line), answer in found.items() if "result" in line}
    submitted = [answer for (_, line), answer in found.items() if line.startswith("submit")]
    for place, (one, hoped, accepted) in enumerate(zip(asked, expected, submitted, strict=True)):
        if isinstance(hoped, PlcError):
            assert accepted.startswith("refused"), (one, hoped)
            continue
        assert accepted == "ok", (one, read(accepted.split()[2]))
        answer = results[str(place)]
        if place in cancelled and answer.startswith("error 9"):
            continue
        check(answer, hoped)
