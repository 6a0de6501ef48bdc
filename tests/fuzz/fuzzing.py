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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

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
        test = chosen(given(**strategies)(trial))
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
    """A prompt table of three tasks for `tiny_base("llama")`: two of rows, one with a learned prefix."""
    return random_table(tiny_base("llama"), scratch() / "table.safetensors", prefix=True)


@functools.cache
def tiny_bundle() -> Path:
    """A bundle of `tiny_table()`."""
    from pl_compile.driver.export import ExportRequest, export_bundle

    folder = scratch() / "bundle"
    export_bundle(
        ExportRequest(tiny_table(), tiny_base("llama"), folder, capacity=80, measure_parity=False)
    )
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


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value of JSON has values."""
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    return functools.reduce(lambda inner, key: inner[key], path, value)


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
        places = list(_places(changed))
        if not places:
            return draw(values)
        *inside, key = draw(st.sampled_from(places))
        parent = _at(changed, tuple(inside))
        kind = draw(st.sampled_from(("replace", "replace", "replace", "drop", "add", "move")))
        if kind == "replace":
            parent[key] = draw(values)
        elif kind == "drop":
            del parent[key]
        elif kind == "move":
            parent[key] = copy.deepcopy(_at(changed, draw(st.sampled_from(places))))
        elif isinstance(parent, list):
            parent.insert(key, draw(values | st.just(copy.deepcopy(parent[key]))))
        else:
            parent[draw(st.text(max_size=5))] = draw(values)
    return changed


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


@st.composite
def damaged(draw: st.DrawFn, data: bytes, *, first: int = 0) -> bytes:
    """Bytes with one to four places changed, cut out, doubled or filled.

    Args:
        draw: of hypothesis.
        data: what is changed.
        first: changes are drawn from the first so many bytes half of the time; 0 for anywhere.
    """
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        end = len(changed)
        if first and draw(st.booleans()):
            end = min(end, first)
        place = draw(st.integers(0, end))
        length = draw(st.sampled_from((1, 1, 2, 8, 100)))
        kind = draw(st.sampled_from(("flip", "set", "cut", "double", "insert", "end")))
        part = bytes(changed[place : place + length])
        if kind == "flip" and part:
            changed[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            changed[place : place + length] = draw(
                st.binary(min_size=len(part), max_size=len(part))
            )
        elif kind == "cut":
            del changed[place : place + length]
        elif kind == "double":
            changed[place:place] = part
        elif kind == "insert":
            changed[place:place] = draw(st.binary(max_size=4))
        elif kind == "end":
            del changed[place:]
    return bytes(changed)
