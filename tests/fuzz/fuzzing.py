r"""What the properties of this folder share: bounded trials, valid things, and how to spoil them.

Whatever a stranger hands in, there are two right outcomes: an error of ours that says what is
wrong, or the right answer. Each file here has one kind of thing that strangers hand in; its
strategies start from a valid one and change it.

    pytest tests/fuzz                           few inputs, the same each time: part of every run
    PLC_FUZZ_EXAMPLES=2000 pytest tests/fuzz    as many inputs, others each time
    make fuzz MINUTES=5                         each property for 5 minutes (see `deep.py`)

Each trial is bounded: in time by hypothesis and pytest-timeout, in memory by the operating system.
"""

import copy
import functools
import json
import math
import os
import resource
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pl_compile.errors import PlcError
from pl_compile.testing import random_table, write_tiny_base

T = TypeVar("T")

_EXAMPLES = int(os.environ.get("PLC_FUZZ_EXAMPLES", "0"))
_SECONDS = 30
# Beside what the process has mapped already: libraries map far more than they use.
_MORE_MEMORY_BYTES = 6 << 30

# How many trials were made in this process, for reports.
made = {"trials": 0, "refused": 0}


def fuzzed(count: int, **strategies: Any) -> Callable[[Callable[..., None]], Any]:
    """A test of a property, with its trials bounded.

    Args:
        count: of trials in the usual run.
        strategies: what each argument of the test is drawn from.
    """

    def decorate(check: Callable[..., None]) -> Any:
        @functools.wraps(check)
        def trial(*arguments: Any, **named: Any) -> None:
            made["trials"] += 1
            with _bounded_memory():
                check(*arguments, **named)

        chosen = settings(
            derandomize=not _EXAMPLES,
            max_examples=_EXAMPLES or count,
            deadline=timedelta(seconds=_SECONDS),
            database=None,
            phases=(Phase.explicit, Phase.generate, Phase.shrink),
            suppress_health_check=(
                HealthCheck.too_slow,
                HealthCheck.data_too_large,
                HealthCheck.filter_too_much,
            ),
        )
        test: Any = chosen(given(**strategies)(trial))
        test.strategies = strategies  # what `deep.py` draws its first inputs from
        return test

    return decorate


@contextmanager
def _bounded_memory() -> Iterator[None]:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + _MORE_MEMORY_BYTES
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# What Python and the libraries say of their own mistakes, and no user can act on.
_INTERNAL = (
    "Traceback",
    "object has no attribute",
    "NoneType",
    "unhashable",
    "not subscriptable",
    "unsupported operand",
    "not supported between",
    "positional argument",
    "keyword argument",
    "object is not",
    "argument must be",
    "panicked",
)


def attempt(what: Callable[[], T]) -> T | PlcError:
    """What a call gives, or the error of ours that it raises; any other is a failure."""
    try:
        return what()
    except PlcError as error:
        made["refused"] += 1
        text = str(error)
        text.encode()  # or it cannot be printed
        assert len(text) < 20_000, f"a message of {len(text)} characters"
        found = [phrase for phrase in _INTERNAL if phrase in text]
        assert not found, f"words of a library in a message: {text}"
        return error


# Valid things, made once in a process.


@functools.cache
def scratch() -> Path:
    """A folder for what trials write; it goes with the process."""
    folder = tempfile.TemporaryDirectory(prefix="plc-fuzz-")
    _kept.append(folder)
    return Path(folder.name)


_kept: list[Any] = []


@functools.cache
def tiny_base(family: str) -> Path:
    """A tiny base's folder."""
    return write_tiny_base(scratch() / "bases" / family, family)


@functools.cache
def tiny_table() -> Path:
    """A prompt table for the tiny Llama: two tasks of rows, and one with a learned prefix."""
    return random_table(tiny_base("llama"), scratch() / "table.safetensors", prefix=True)


@functools.cache
def tiny_bundle() -> Path:
    """A bundle of `tiny_table()`."""
    return _exported(tiny_table(), "auto")


@functools.cache
def folded_bundle() -> Path:
    """A bundle of the two tasks of rows, whose openings are folded."""
    return _exported(random_table(tiny_base("llama"), scratch() / "rows.safetensors"), "always")


def _exported(table: Path, fold: Literal["auto", "always"]) -> Path:
    from pl_compile.driver.export import export_bundle
    from pl_compile.driver.export_request import ExportRequest

    folder = scratch() / f"bundle-{fold}"
    export_bundle(ExportRequest(table, tiny_base("llama"), folder, capacity=80, fold=fold))
    return folder


def fresh(name: str) -> Path:
    """An empty folder for one trial."""
    # Trials that run in threads of pytest-xdist's workers never share one.
    folder = scratch() / f"{name}-{threading.get_ident()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def copy_of(folder: Path, *, but: tuple[str, ...] = ()) -> Path:
    """A folder with links to the same files, except those named, which are the caller's to write.

    Args:
        folder: what is copied.
        but: names of files, relative to it.
    """
    target = fresh(folder.name)
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_dir():
            (target / name).mkdir(exist_ok=True)
        elif name.as_posix() not in but:
            (target / name).parent.mkdir(exist_ok=True, parents=True)
            os.link(path, target / name)
    return target


# Spoiled things.

NUMBERS = st.one_of(
    st.integers(-2, 5),
    st.sampled_from((7, 300, 2**31 - 1, 2**31, 2**63, 10**7, 10**30, -(10**9))),
    st.sampled_from((0.0, 1.0, 1.5, -1.0, 1e-300, 1e300, math.inf, -math.inf, math.nan)),
    st.floats(width=32),
)
TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        (
            "",
            " ",
            "\n",
            "\ud83d",
            "😀",
            "../x",
            "/",
            "a" * 300,
            "NaN",
            "null",
            "0",
            "1",
            "\0",
            "{",
            "%",
        )
    ),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(st.text(max_size=3), SCALARS, max_size=2),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value of JSON has values."""
    keys: list[Any] = list(value) if isinstance(value, dict | list) else []
    for key in keys if isinstance(value, dict) else range(len(keys)):
        yield (*path, key)
        yield from places(value[key], (*path, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    return functools.reduce(lambda inner, key: inner[key], path, value)


def _near(value: Any, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What might stand there as well: another value of the same type, or the same as another."""
    if isinstance(value, bool):
        return st.sampled_from((not value, int(value), str(value), None))
    if isinstance(value, int):
        return st.sampled_from((value + 1, value - 1, -value, 2 * value, value * 1.0, str(value)))
    if isinstance(value, float):
        return st.sampled_from((value * 1.5, -value, 0.0, str(value)))
    if isinstance(value, str):
        return st.sampled_from((value + " ", value[1:], value.upper(), [value], value + "é"))
    return values


@st.composite
def spoiled(draw: st.DrawFn, value: Any, values: st.SearchStrategy[Any] = VALUES) -> Any:
    """A value of JSON with one to three things changed, left out, added, doubled or swapped.

    Args:
        draw: of hypothesis.
        value: what is changed; itself never.
        values: what is put in.
    """
    changed = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        inside_of = list(places(changed))
        if not inside_of:
            return draw(values)
        *inside, key = draw(st.sampled_from(inside_of))
        parent = _at(changed, tuple(inside))
        kind = draw(st.sampled_from(("near", "near", "near", "replace", "drop", "add", "move")))
        if kind == "near":
            parent[key] = draw(_near(parent[key], values))
        elif kind == "replace":
            parent[key] = draw(values)
        elif kind == "drop":
            del parent[key]
        elif kind == "move":
            parent[key] = copy.deepcopy(_at(changed, draw(st.sampled_from(inside_of))))
        elif isinstance(parent, list):
            parent.insert(key, draw(values | st.just(copy.deepcopy(parent[key]))))
        else:
            parent[draw(st.text(max_size=5))] = draw(values)
    return changed


class Arrays(dict[str, NDArray[Any]]):
    """Arrays by name, and in words what was done to them."""

    done: list[str]

    def __repr__(self) -> str:
        return f"Arrays({'; '.join(self.done) or 'as they were'})"


@st.composite
def spoiled_arrays(
    draw: st.DrawFn, arrays: Mapping[str, NDArray[Any]], names: st.SearchStrategy[str]
) -> Arrays:
    """The tensors of a file with a few renamed, left out, added, cast, cut, doubled or turned.

    Args:
        draw: of hypothesis.
        arrays: what is changed; themselves never.
        names: what tensors are called that are new.
    """
    found = Arrays(arrays)
    found.done = []
    for _ in range(draw(st.integers(0, 3))):
        if not found:
            break
        name = draw(st.sampled_from(sorted(found)))
        array = found[name]
        kind = draw(st.sampled_from(_CHANGES))
        say = ""
        if kind == "rename":
            say = draw(names)
            found[say] = found.pop(name)
        elif kind == "leave out":
            del found[name]
        elif kind == "add":
            say = draw(names)
            found.setdefault(say, draw(st.sampled_from((array, array + array))))
        elif kind == "cast":
            say = draw(st.sampled_from(_DTYPES))
            with np.errstate(all="ignore"):
                found[name] = array.astype(say)
        elif kind == "cut":
            start = draw(st.integers(0, array.shape[0] if array.ndim else 0))
            say = f"from {start}"
            found[name] = np.ascontiguousarray(array[start:] if array.ndim else array)
        elif kind == "double" and array.ndim:
            axis = draw(st.integers(0, array.ndim - 1))
            say = f"along {axis}"
            found[name] = np.concatenate([array, array], axis=axis)
        elif kind == "turn":
            found[name] = np.ascontiguousarray(array.T)
        elif kind == "reshape":
            shape = draw(st.sampled_from(((-1,), (1, -1), (-1, 1), (1, 1, 1, 1, -1))))
            say = f"to {shape}"
            found[name] = array.reshape(shape)
        elif kind == "number" and array.size and array.dtype != bool:
            place = draw(st.integers(0, array.size - 1))
            number = draw(st.sampled_from(_FLOATS if array.dtype.kind == "f" else _WHOLES))
            say = f"{number} at {place}"
            found[name] = array.copy()
            with np.errstate(all="ignore"):
                found[name].flat[place] = np.asarray(number).astype(array.dtype)
        found.done.append(f"{kind} {name} {say}".rstrip())
    return found


_CHANGES = ("rename", "leave out", "add", "cast", "cut", "double", "turn", "reshape", "number")
_DTYPES = ("float16", "float32", "float64", "int8", "int32", "int64", "bool", "uint8")
_FLOATS = (np.nan, np.inf, 0.0, -1e30)
_WHOLES = (-1, 0, 1, 396, 397, 500, 10**6)


@st.composite
def json_texts(draw: st.DrawFn, value: Any) -> str:
    """The text of a spoiled value; now and then with what only a text can have wrong."""
    text = json.dumps(draw(spoiled(value)))
    damage = draw(st.sampled_from(("none",) * 8 + ("cut", "behind", "doubled", "deep", "mark")))
    if damage == "cut":
        return text[: draw(st.integers(0, len(text)))]
    if damage == "behind":
        return text + draw(st.sampled_from(("}", "]", " {}", "\n1", ",", "\0")))
    if damage == "doubled" and text.startswith("{") and len(text) > 2:
        key, _, rest = text[1:].partition(":")
        return f"{{{key}: {json.dumps(draw(VALUES))}, {key}:{rest}"
    if damage == "deep":
        return "[" * 3_000 + text
    return "\ufeff" + text if damage == "mark" else text


def utf8(text: str) -> bytes:
    """The bytes of a text, halves of surrogate pairs as some programs write them."""
    return text.encode("utf-8", "surrogatepass")


_BYTES = st.one_of(
    st.sampled_from(b",;:\t\n\r\"'\\{}[]0-.e @=#& \0").map(lambda byte: bytes([byte])),
    st.sampled_from(
        ("é".encode(), "\ufeff".encode(), "\u2028".encode(), b"NaN", b"1e999", b"null")
    ),
    st.binary(max_size=3),
)


@st.composite
def damaged(draw: st.DrawFn, data: bytes, *, first: int = 0) -> bytes:
    """Bytes with one to three places changed, cut out, doubled or filled.

    Args:
        draw: of hypothesis.
        data: what is changed.
        first: changes are drawn from the first so many bytes half of the time; 0 for anywhere.
    """
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        end = len(changed)
        if first and draw(st.booleans()):
            end = min(end, first)
        place = draw(st.integers(0, end))
        length = draw(st.sampled_from((1, 1, 2, 8, 100)))
        kind = draw(st.sampled_from(("flip", "set", "cut", "double", "insert", "end")))
        if kind == "flip" and place < len(changed):
            changed[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            new = draw(_BYTES)
            changed[place : place + len(new)] = new
        elif kind == "cut":
            del changed[place : place + length]
        elif kind == "double":
            changed[place:place] = changed[place : place + length]
        elif kind == "insert":
            changed[place:place] = draw(_BYTES)
        elif kind == "end":
            del changed[place:]
    return bytes(changed)
