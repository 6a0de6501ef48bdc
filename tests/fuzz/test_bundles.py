"""Bundles of strangers, whose sums are right whatever else is wrong.

The oracle is the bundle itself: what is accepted must answer as before, unless what was changed is
said to change answers (a prompt's numbers, a template).
"""

import functools
import json
from pathlib import Path
from typing import Any

from fuzzing import (
    VALUES,
    Arrays,
    attempt,
    copy_of,
    damaged,
    fuzzed,
    json_texts,
    spoiled,
    spoiled_arrays,
    tiny_bundle,
    utf8,
)
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from pl_compile.artifact.files import sha256_of
from pl_compile.driver.describe import describe
from pl_compile.driver.verify import verify_bundle
from pl_compile.errors import PlcError
from pl_compile.runtime import Request, Result, Session

_REQUESTS = (
    Request("tone", {"sentence": "the year 1987 was cold"}, max_tokens=6),
    Request("ask", {"question": "who was there?", "place": "a café"}, max_tokens=6, min_tokens=6),
    Request("order", {"request": "lights off"}, max_tokens=6, min_tokens=6),
)


def _answers(folder: Path) -> list[Result]:
    return Session.open(folder, max_batch=4, threads=1).generate(_REQUESTS)


@functools.cache
def _right() -> list[Result]:
    return _answers(tiny_bundle())


def _files() -> list[str]:
    bundle = tiny_bundle()
    names = (path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    return sorted(names)


def _signed(name: str, data: bytes) -> Path:
    """The bundle with one other file, its sum made right."""
    manifest = json.loads((tiny_bundle() / "manifest.json").read_text())
    folder = copy_of(tiny_bundle(), but=(name, "manifest.json"))
    path = folder / name
    path.write_bytes(data)
    if name in manifest["files"]:
        manifest["files"][name] = {"sha256": sha256_of(path), "size_bytes": len(data)}
    if name != "manifest.json":
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _check(folder: Path, *, same: bool) -> None:
    answers = attempt(lambda: _answers(folder))
    attempt(lambda: describe(folder))
    attempt(lambda: verify_bundle(folder))
    assert not same or isinstance(answers, PlcError) or answers == _right()


_NAMES = st.sampled_from(
    ("onnx-cuda", "native-cpu", "tensorrt-rtx", "input", "baked", "failed", "great", "int8", "tone")
)


@st.composite
def manifests(draw: st.DrawFn) -> str:
    """A manifest with wrong values."""
    manifest = json.loads((tiny_bundle() / "manifest.json").read_text())
    files = manifest.pop("files") if draw(st.booleans()) else {}
    if not files:
        return draw(json_texts(manifest))
    changed: Any = draw(spoiled(manifest, VALUES | _NAMES))
    return json.dumps({**changed, "files": files} if isinstance(changed, dict) else changed)


@fuzzed(120, text=manifests())
def test_a_manifest_that_is_accepted_answers_as_before(text: str) -> None:
    _check(_signed("manifest.json", utf8(text)), same=True)


@st.composite
def small_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file of JSON in a bundle, with wrong values or bytes."""
    names = [name for name in _files() if name.endswith(".json") and "/" in name]
    name = draw(st.sampled_from(names))
    data = (tiny_bundle() / name).read_bytes()
    if draw(st.integers(0, 4)) == 0:
        return name, draw(damaged(data))
    return name, utf8(draw(json_texts(json.loads(data))))


@fuzzed(120, file=small_files())
def test_a_task_of_other_values_is_refused_or_served(file: tuple[str, bytes]) -> None:
    name, data = file

    _check(_signed(name, data), same=name.endswith("labels.json"))


@st.composite
def tensor_files(draw: st.DrawFn) -> tuple[str, Arrays | bytes]:
    """A file of tensors in a bundle, with wrong tensors or bytes."""
    name = draw(st.sampled_from([name for name in _files() if name.endswith(".safetensors")]))
    if draw(st.integers(0, 3)) == 0:
        data = (tiny_bundle() / name).read_bytes()
        return name, draw(damaged(data, first=8 + int.from_bytes(data[:8], "little")))
    names = st.text("abc_", min_size=1, max_size=3)
    return name, draw(spoiled_arrays(load_file(tiny_bundle() / name), names))


@fuzzed(100, file=tensor_files())
def test_other_tensors_are_refused_or_served(file: tuple[str, Arrays | bytes]) -> None:
    name, content = file
    if not isinstance(content, bytes):
        path = tiny_bundle().parent / "written.safetensors"
        save_file(content, path)
        content = path.read_bytes()

    _check(_signed(name, content), same=name.endswith("selftest.safetensors"))


@st.composite
def any_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """Any file of a bundle with wrong bytes; the sums say what they were."""
    name = draw(st.sampled_from(_files()))
    return name, draw(damaged((tiny_bundle() / name).read_bytes()))


@fuzzed(60, file=any_files())
def test_wrong_bytes_are_seen(file: tuple[str, bytes]) -> None:
    name, data = file
    folder = copy_of(tiny_bundle(), but=(name,))
    (folder / name).write_bytes(data)

    answers = attempt(lambda: _answers(folder))

    attempt(lambda: describe(folder))
    assert isinstance(answers, PlcError) or answers == _right()
