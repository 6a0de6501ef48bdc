"""Engines on a device whose memory the process cannot touch: a plug-in provider of our own.

No GPU is needed: `fake_device.cc`. What its provider computes is next to nothing, so this shows
where numbers lie and when they get there, not that a GPU computes them right.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from engine_scripts import Script
from native_programs import SANITIZED, SOURCES, WITHOUT_COMPILER, answers, built
from test_engine_in_cpp import SLOTS, bundle_of, folder, options_of

from pl_compile.artifact.bundle import Bundle
from pl_compile.runtime.engines.engine import Engine
from pl_compile.runtime.engines.onnxruntime.engine import OnnxRuntimeEngine
from pl_compile.runtime.engines.onnxruntime.providers import Provider
from pl_compile.runtime.engines.opening import open_engine

__all__ = ["bundle_of", "folder"]  # fixtures

pytestmark = pytest.mark.timeout(1200)

NAME, STEPS = "FakeDevice", 60


@pytest.fixture(scope="module")
def library(folder: Path) -> Path:
    if shutil.which("g++") is None:
        pytest.skip(WITHOUT_COMPILER.format("g++"))
    path = folder / "libfake_device.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    source = Path(__file__).with_name("fake_device.cc")
    subprocess.run(["g++", *flags, f"-I{SOURCES}", str(source), "-o", str(path)], check=True)
    return path


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[int]]:
    """What the device noted, by its word."""
    path = tmp_path / "log"
    monkeypatch.setenv("PLC_FAKE_LOG", str(path))

    def noted(word: str) -> list[int]:
        lines = [line.split() for line in path.read_text().splitlines()]
        return [int(number) for found, number in lines if found == word]

    return noted


def through_the_device(bundle: Bundle, place: Path) -> Path:
    """The bundle's graph, with a node of the device after each input of whole numbers above 0."""
    model = onnx.load(bundle.base_folder / "model.onnx", load_external_data=False)
    graph = model.graph
    whole = {
        each.name
        for each in graph.input
        if each.type.tensor_type.elem_type == onnx.TensorProto.INT64
    }
    assert {"input_ids", "past_lengths"} <= whole
    for node in graph.node:
        assert not any(attribute.HasField("g") for attribute in node.attribute)
        for index, name in enumerate(node.input):
            if name in whole:
                node.input[index] = f"{name}_there"
    first = [onnx.helper.make_node("Abs", [name], [f"{name}_there"]) for name in sorted(whole)]
    for node in reversed(first):
        graph.node.insert(0, node)
    place.mkdir()
    for file in bundle.base_folder.iterdir():
        if file.name != "model.onnx":
            os.link(file, place / file.name)
    (place / "model.onnx").write_bytes(model.SerializeToString())
    return place / "model.onnx"


def script_of(bundle: Bundle, engine: Engine | None = None) -> Script:
    """What happens to rows, and what an engine answers; the one that the bundle is for if None."""
    if engine is None:
        engine = open_engine(bundle, max_batch=SLOTS, threads=2)
    tasks = max(1, len(bundle.manifest.graph.baked_tasks))
    script = Script(engine, bundle.manifest.graph, seed=9, tasks=tasks)
    script.run(STEPS)
    return script


def cache_bytes(bundle: Bundle) -> tuple[int, int]:
    """How many caches there are, and the size of each."""
    graph = bundle.manifest.graph
    return 2 * graph.layers, 4 * SLOTS * graph.kv_heads * graph.capacity * graph.head_dim


@pytest.mark.parametrize("kind", ["padded", "padded baked"])
def test_caches_in_a_devices_memory_give_the_same_bits(
    kind: str,
    folder: Path,
    bundle_of: Callable[[str], Bundle],
    library: Path,
    log: Callable[[str], list[int]],
    tmp_path: Path,
) -> None:
    bundle = bundle_of(kind)
    script = script_of(bundle)
    model = through_the_device(bundle, tmp_path / "base")
    program = built(folder, "engine_program.cc", *SANITIZED)
    chosen = {"model": model, "provider": NAME, "library": library, "provider_option": "number:7"}

    found = answers([program, *options_of(bundle, **chosen)], script.lines)

    assert found == script.expected
    assert log("number") == [7]
    assert log("nodes") >= [3]
    caches, size = cache_bytes(bundle)
    assert log("take").count(size) == caches
    pages = -(-size // 4096) * 4096
    assert log("free").count(pages) >= caches
    # To the device in one call: zeros, a prefix, a row that moves.
    assert caches in log("copy")
    assert caches * bundle.manifest.graph.kv_heads in log("copy")


def test_caches_stay_where_addresses_of_a_device_are_not_known(
    folder: Path,
    bundle_of: Callable[[str], Bundle],
    library: Path,
    log: Callable[[str], list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PLC_FAKE_VENDOR", "77")
    bundle = bundle_of("padded")
    script = script_of(bundle)
    model = through_the_device(bundle, tmp_path / "base")
    program = built(folder, "engine_program.cc", *SANITIZED)

    found = answers(
        [program, *options_of(bundle, model=model, provider=NAME, library=library)], script.lines
    )

    assert found == script.expected
    assert log("nodes") >= [3]
    assert cache_bytes(bundle)[1] not in log("take")


@pytest.fixture
def provider(library: Path) -> Iterator[Provider]:
    import onnxruntime

    yield Provider(NAME, library=library)
    onnxruntime.unregister_execution_provider_library(NAME)


def test_the_engine_in_python_gives_a_device_the_numbers_of_each_step(
    bundle_of: Callable[[str], Bundle],
    provider: Provider,
    log: Callable[[str], list[int]],
    tmp_path: Path,
) -> None:
    bundle = bundle_of("padded")
    graph = bundle.manifest.graph
    model = through_the_device(bundle, tmp_path / "base")
    engine = OnnxRuntimeEngine(model, graph, max_batch=SLOTS, threads=2, provider=provider)

    there = script_of(bundle, engine)

    assert log("nodes") >= [3]
    here = script_of(bundle)
    assert there.lines == here.lines
    assert there.expected == here.expected
    del engine, there  # its session ends before the plug-in
