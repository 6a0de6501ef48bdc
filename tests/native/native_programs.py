"""Compiles the programs of this folder with the sources of `runtime/native`, each once.

Whatever is compiled lies in one folder of the test run, where its processes share it. There are few
kinds of builds, since most of the time of these tests goes into them: `PLAIN` as the library is
shipped, `SANITIZED`, `THREADS`, and `ARM` in an emulator.
"""

import contextlib
import fcntl
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "runtime" / "native" / "src"
INCLUDE = f"-I{SOURCES.parent / 'include'}"
FLAGS = [
    "-std=c++17",
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wconversion",
    "-Wshadow",
    "-Werror",
    f"-I{SOURCES}",
    INCLUDE,
    "-pthread",
]
# A compiler and its flags.
PLAIN = ("g++", "-O2")
# Clang, which makes such objects in half of the time of g++, and makes them for fuzzers as well. It
# is also the other compiler: what these programs answer is compared with what PLAIN's answer.
_MISTAKES = ("-O1", "-g1", "-fno-sanitize-recover=all")
SANITIZED = ("clang++", *_MISTAKES, "-fsanitize=fuzzer-no-link,address,undefined")
FUZZER = ("clang++", *_MISTAKES, "-fsanitize=fuzzer,address,undefined")
SANITIZED_BY_GCC = ("g++", *_MISTAKES, "-fsanitize=address,undefined")
THREADS = ("g++", "-O1", "-g1", "-fsanitize=thread")
ARM_EMULATOR = "qemu-aarch64-static"
ARM = (
    *("aarch64-linux-gnu-g++", "-O1", "-static"),
    *("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"),
)
WITHOUT_COMPILER = (
    "needs {}; without it: tests/conformance, and the tests of the same parts in Python in "
    "tests/text, tests/artifact and tests/runtime"
)


def built(
    folder: Path, source: str, compiler: str, *flags: str, kernels: Path | None = None
) -> Path:
    """A program of this folder; skips by name where the compiler or a sanitizer is missing.

    Args:
        folder: made by `tmp_path_factory`; says where the programs of this test run are.
        source: the name of its main file.
        compiler: a command.
        flags: further ones. Those of SANITIZED are those of g++ where there is no such Clang.
        kernels: the library of the kernels; without it the program has none.
    """
    compiler, *others = _that_are_there(compiler, *flags)
    return _compiled(_of_all_processes(folder), source, compiler, *others, kernels=kernels)


def emulated(folder: Path, source: str) -> list[str]:
    """The command that runs a program for 64-bit ARM; skips by name where a part is missing."""
    if shutil.which(ARM_EMULATOR) is None:
        pytest.skip(WITHOUT_COMPILER.format(ARM_EMULATOR))
    return [ARM_EMULATOR, str(built(folder, source, *ARM))]


def _that_are_there(*build: str) -> tuple[str, ...]:
    """A compiler and its flags, or g++ in place of a Clang without sanitizers; else it skips."""
    if build == SANITIZED and not (shutil.which("clang++") and _links(*build)):
        build = SANITIZED_BY_GCC
    compiler, *flags = build
    if shutil.which(compiler) is None:
        pytest.skip(WITHOUT_COMPILER.format(compiler))
    sanitizers = [flag for flag in flags if flag.startswith("-fsanitize")]
    if sanitizers and not _links(*build):
        pytest.skip(WITHOUT_COMPILER.format(f"{compiler} with {sanitizers[0]}"))
    return build


def _of_all_processes(folder: Path) -> Path:
    """Where the processes of this test run put what they compile.

    Args:
        folder: in the base folder of one of them, which with pytest-xdist lies in that of all.
    """
    of_this_one = folder.parent
    shared = of_this_one.parent if "PYTEST_XDIST_WORKER" in os.environ else of_this_one
    made = shared / "native_programs"
    made.mkdir(exist_ok=True)
    return made


@contextlib.contextmanager
def _made_once(path: Path) -> Iterator[Path | None]:
    """A place to make a file at, which then gets its name; nothing where it is there already.

    One process makes it while the others wait.
    """
    with Path(f"{path}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            yield None
            return
        unfinished = path.with_name("unfinished_" + path.name)
        yield unfinished
        unfinished.rename(path)


@functools.cache
def _compiled(
    folder: Path, source: str, compiler: str, *flags: str, kernels: Path | None = None
) -> Path:
    name = _as_name(Path(source).stem, compiler, *flags)
    program = folder / (name if kernels is None else f"{name}_with_kernels")
    needed = _needed(HERE / source)
    # Objects are not the fuzzer's: it has a `main`, and only the program is linked with it.
    of_objects = SANITIZED[1:] if (compiler, *flags) == FUZZER else flags
    objects = _objects(folder, needed, kernels is not None, compiler, *of_objects)
    files = [str(HERE / source), *objects]
    libraries = ["-ldl"] if kernels is None else [str(kernels), "-ldl"]
    with _made_once(program) as made:
        if made:
            _run([compiler, *FLAGS, *flags, *files, *libraries, "-o", str(made)])
    return program


def _needed(source: Path, replaced: Collection[Path] = ()) -> list[Path]:
    """The library's sources that a file needs: those of all headers that it leads to.

    Args:
        source: the file.
        replaced: sources that others stand for.
    """
    found: set[Path] = set()
    waiting = [source]
    while waiting:
        text = waiting.pop().read_text(encoding="utf-8")
        for name in re.findall(r'^#include "(\w+)\.h"$', text, re.MULTILINE):
            both = {SOURCES / f"{name}.h", SOURCES / f"{name}.cc"}
            new = {file for file in both if file.exists()} - found - set(replaced)
            found |= new
            waiting += new
    return sorted(file for file in found if file.suffix == ".cc")


def _objects(
    folder: Path, sources: Sequence[Path], with_kernels: bool, compiler: str, *flags: str
) -> list[str]:
    """Sources of the library, each compiled once for all programs of these flags.

    Processes that need the same ones begin at different ends, and share the work.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ordered = sources[:: -1 if int(worker) % 2 else 1]
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // workers)) as jobs:
        return list(
            jobs.map(
                lambda source: _object(folder, source, with_kernels, compiler, *flags), ordered
            )
        )


@functools.cache
def _object(folder: Path, source: Path, with_kernels: bool, compiler: str, *flags: str) -> str:
    if with_kernels and "linked_kernels.h" not in source.read_text(encoding="utf-8"):
        return _object(folder, source, False, compiler, *flags)  # it is the same without
    macro = [] if with_kernels else ["-DPLC_WITHOUT_KERNELS"]
    target = folder / _as_name("objects", compiler, *flags, *macro)
    target.mkdir(exist_ok=True)
    with _made_once(target / f"{source.stem}.o") as made:
        if made:
            _run([compiler, *FLAGS, *flags, *macro, "-c", str(source), "-o", str(made)])
    return str(target / f"{source.stem}.o")


def _as_name(*parts: str) -> str:
    return re.sub(r"[^\w]", "_", "_".join(parts))


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


def without_base(folder: Path, main: Path, compiler: str, *flags: str) -> Path:
    """A program on the interface in C, whose sessions have no base: `fake_session.cc`.

    Args:
        folder: where the program is put, made by `tmp_path_factory`.
        main: its main file, in C or C++.
        compiler: a command, for C++.
        flags: further ones.
    """
    compiler, *others = _that_are_there(compiler, *flags)
    border, real = SOURCES / "c_api.cc", SOURCES / "session.cc"
    needed = [border, *_needed(border, [real])]
    shared = _objects(_of_all_processes(folder), needed, False, compiler, *others)
    own = []
    for source in (main, HERE / "fake_session.cc"):
        own.append(folder / (_as_name(source.stem, compiler, *others) + ".o"))
        of_c = ["gcc", *["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror"], INCLUDE]
        command = of_c if source.suffix == ".c" else [compiler, *FLAGS]
        with _made_once(own[-1]) as made:
            if made:
                _run([*command, *others, "-c", str(source), "-o", str(made)])
    program = folder / _as_name("without_base", main.stem, compiler, *others)
    _run([compiler, *FLAGS, *others, *map(str, own), *shared, "-ldl", "-o", str(program)])
    return program


def fuzz(program: Path, seeds: Path, **variables: str) -> None:
    """Runs a target of libFuzzer for some seconds; fails where it finds an input to report.

    Args:
        program: built as FUZZER.
        seeds: a folder of first inputs. Others are added to it.
        variables: for its environment.
    """
    # libFuzzer's own limit of memory looks at the most that a process ever had, which for a child
    # begins with what its parent had (getrusage). That of ASan looks at what it has.
    limits = {"ASAN_OPTIONS": "hard_rss_limit_mb=2048"}
    done = subprocess.run(
        [program, "-seed=1", "-max_total_time=4", "-timeout=20", "-rss_limit_mb=0", seeds],
        env={**os.environ, **limits, **variables},
        cwd=seeds.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr[-4000:]
    assert "Done " in done.stderr


@functools.cache
def _links(compiler: str, *flags: str) -> bool:
    """Whether a program can be linked with these flags; libFuzzer has a `main` of its own."""
    empty = 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }'
    main = "" if "=fuzzer," in " ".join(flags) else "int main() {}"
    command = [compiler, *flags, "-x", "c++", "-", "-o", "/dev/null"]
    done = subprocess.run(command, input=empty + main, capture_output=True, text=True, check=False)
    return not done.returncode


def answers(command: Sequence[str | Path], lines: Iterable[str]) -> list[str]:
    """What a program says to each line; fails where it ends with an error."""
    sent = list(lines)
    text = "".join(line + "\n" for line in sent)
    done = subprocess.run(
        list(map(str, command)), input=text, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr[-4000:]
    found = done.stdout.splitlines()
    assert len(found) == len(sent)
    return found
