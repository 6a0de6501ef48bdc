"""Bundles of strangers, whose sums are right whatever else is wrong.

The oracle is the bundle itself: what is accepted must answer as before, unless what was changed is
said to change answers (a prompt's numbers, a template).
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzzing import (
    VALUES,
    Arrays,
    attempt,
    copy_of,
    damaged,
    folded_bundle,
    fuzzed,
    json_texts,
    scratch,
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


_BUNDLES = st.sampled_from((tiny_bundle, folded_bundle)).map(lambda bundle: bundle())


def _answers(folder: Path) -> list[Result]:
    session = Session.open(folder, max_batch=4, threads=1)
    return session.generate(r for r in _REQUESTS if (folder / "tasks" / r.task).is_dir())


@functools.cache
def _right(bundle: Path) -> list[Result]:
    return _answers(bundle)


def _files(bundle: Path) -> list[str]:
    names = (path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    return sorted(names)


@dataclass(frozen=True)
class Other:
    """A bundle with one other file."""

    bundle: Path
    name: str
    content: bytes | Arrays

    def data(self) -> bytes:
        """The bytes of the file."""
        if isinstance(self.content, bytes):
            return self.content
        path = scratch() / "written.safetensors"
        save_file(self.content, path)
        return path.read_bytes()


def _signed(other: Other) -> Path:
    """The bundle with its other file, whose sum is made right."""
    name, data = other.name, other.data()
    manifest = json.loads((other.bundle / "manifest.json").read_text())
    folder = copy_of(other.bundle, but=(name, "manifest.json"))
    path = folder / name
    path.write_bytes(data)
    if name in manifest["files"]:
        manifest["files"][name] = {"sha256": sha256_of(path), "size_bytes": len(data)}
    if name != "manifest.json":
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _check(other: Other, *, same: bool) -> None:
    folder = _signed(other)
    answers = attempt(lambda: _answers(folder))
    attempt(lambda: describe(folder))
    attempt(lambda: verify_bundle(folder))
    assert not same or isinstance(answers, PlcError) or answers == _right(other.bundle)


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


@fuzzed(80, text=manifests())
def test_a_manifest_that_is_accepted_answers_as_before(text: str) -> None:
    _check(Other(tiny_bundle(), "manifest.json", utf8(text)), same=True)


@st.composite
def small_files(draw: st.DrawFn) -> Other:
    """A file of JSON in a bundle, with wrong values or bytes."""
    bundle = draw(_BUNDLES)
    names = [name for name in _files(bundle) if name.endswith(".json") and "/" in name]
    name = draw(st.sampled_from(names))
    data = (bundle / name).read_bytes()
    if draw(st.integers(0, 4)) == 0:
        return Other(bundle, name, draw(damaged(data)))
    return Other(bundle, name, utf8(draw(json_texts(json.loads(data)))))


@fuzzed(60, other=small_files())
def test_a_task_of_other_values_is_refused_or_served(other: Other) -> None:
    _check(other, same=not other.name.endswith("task.json"))


@st.composite
def tensor_files(draw: st.DrawFn) -> Other:
    """A file of tensors in a bundle, with wrong tensors or bytes."""
    bundle = draw(_BUNDLES)
    name = draw(st.sampled_from([n for n in _files(bundle) if n.endswith(".safetensors")]))
    if draw(st.integers(0, 3)) == 0:
        data = (bundle / name).read_bytes()
        header = 8 + int.from_bytes(data[:8], "little")
        return Other(bundle, name, draw(damaged(data, first=header)))
    names = st.text("abc_", min_size=1, max_size=3)
    return Other(bundle, name, draw(spoiled_arrays(load_file(bundle / name), names)))


@fuzzed(60, other=tensor_files())
def test_other_tensors_are_refused_or_served(other: Other) -> None:
    _check(other, same=other.name.endswith("selftest.safetensors"))


@st.composite
def graphs(draw: st.DrawFn) -> Other:
    """A file of the compiled base with wrong bytes."""
    bundle = draw(_BUNDLES)
    name = draw(st.sampled_from([name for name in _files(bundle) if name.startswith("base/")]))
    return Other(bundle, name, draw(damaged((bundle / name).read_bytes(), first=40_000)))


@fuzzed(25, other=graphs())
def test_another_graph_is_refused_or_served(other: Other) -> None:
    _check(other, same=False)


@st.composite
def any_files(draw: st.DrawFn) -> Other:
    """Any file of a bundle with wrong bytes; the sums say what they were."""
    bundle = draw(_BUNDLES)
    name = draw(st.sampled_from(_files(bundle)))
    return Other(bundle, name, draw(damaged((bundle / name).read_bytes())))


@fuzzed(40, other=any_files())
def test_wrong_bytes_are_seen(other: Other) -> None:
    folder = copy_of(other.bundle, but=(other.name,))
    (folder / other.name).write_bytes(other.data())

    answers = attempt(lambda: _answers(folder))

    attempt(lambda: describe(folder))
    assert isinstance(answers, PlcError) or answers == _right(other.bundle)
