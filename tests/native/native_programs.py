"""Compiles the programs of this folder with the sources of `runtime/native`, each once."""

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "runtime" / "native" / "src"
FLAGS = [
    "-std=c++17",
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wconversion",
    "-Wshadow",
    "-Werror",
    f"-I{SOURCES}",
    "-pthread",
]
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
WITHOUT_COMPILER = (
    "needs {}; without it: tests/conformance, and the tests of the same parts in Python in "
    "tests/text, tests/artifact and tests/runtime"
)


def built(
    folder: Path, source: str, compiler: str = "g++", *flags: str, kernels: Path | None = None
) -> Path:
    """A program of this folder; skips by name where the compiler or a sanitizer is missing.

    Args:
        folder: where the program is put.
        source: the name of its main file.
        compiler: a command.
        flags: further ones.
        kernels: the library of the kernels; without it the program has none.
    """
    if shutil.which(compiler) is None:
        pytest.skip(WITHOUT_COMPILER.format(compiler))
    sanitizers = [flag for flag in flags if flag.startswith("-fsanitize")]
    if sanitizers and not _links(compiler, *sanitizers):
        pytest.skip(WITHOUT_COMPILER.format(f"{compiler} with {sanitizers[0]}"))
    return _compiled(folder, source, compiler, *flags, kernels=kernels)


def emulated(folder: Path, source: str, *flags: str) -> list[str]:
    """The command that runs a program for 64-bit ARM; skips by name where a part is missing."""
    if shutil.which(ARM_EMULATOR) is None:
        pytest.skip(WITHOUT_COMPILER.format(ARM_EMULATOR))
    return [ARM_EMULATOR, str(built(folder, source, ARM_COMPILER, "-O2", "-static", *flags))]


@functools.cache
def _compiled(
    folder: Path, source: str, compiler: str, *flags: str, kernels: Path | None = None
) -> Path:
    program = folder / _as_name(Path(source).stem, compiler, *flags)
    needed = _needed(HERE / source)
    objects = _objects(folder.parent, needed, kernels is not None, compiler, *flags)
    files = [str(HERE / source), *objects]
    libraries = ["-ldl"] if kernels is None else [str(kernels), "-ldl"]
    _run([compiler, *FLAGS, *flags, *files, *libraries, "-o", str(program)])
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
    """Sources of the library, each compiled once for all programs of these flags."""
    with ThreadPoolExecutor(os.cpu_count()) as jobs:
        return list(
            jobs.map(
                lambda source: _object(folder, source, with_kernels, compiler, *flags), sources
            )
        )


@functools.cache
def _object(folder: Path, source: Path, with_kernels: bool, compiler: str, *flags: str) -> str:
    if with_kernels and "linked_kernels.h" not in source.read_text(encoding="utf-8"):
        return _object(folder, source, False, compiler, *flags)  # it is the same without
    macro = [] if with_kernels else ["-DPLC_WITHOUT_KERNELS"]
    target = folder / _as_name("objects", compiler, *flags, *macro)
    target.mkdir(exist_ok=True)
    made = str(target / f"{source.stem}.o")
    _run([compiler, *FLAGS, *flags, *macro, "-c", str(source), "-o", made])
    return made


def _as_name(*parts: str) -> str:
    return re.sub(r"[^\w]", "_", "_".join(parts))


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


def without_base(folder: Path, main: Path, compiler: str = "g++", *flags: str) -> Path:
    """A program on the interface in C, whose sessions have no base: `fake_session.cc`.

    Args:
        folder: where the program is put.
        main: its main file, in C or C++.
        compiler: a command, for C++.
        flags: further ones.
    """
    if shutil.which(compiler) is None:
        pytest.skip(WITHOUT_COMPILER.format(compiler))
    sanitizers = [flag for flag in flags if flag.startswith("-fsanitize")]
    if sanitizers and not _links(compiler, *sanitizers):
        pytest.skip(WITHOUT_COMPILER.format(f"{compiler} with {sanitizers[0]}"))
    objects = folder / _as_name("without_base", compiler, *flags)
    objects.mkdir(exist_ok=True)
    program = objects / main.stem
    include = f"-I{SOURCES.parent / 'include'}"
    border, real = SOURCES / "c_api.cc", SOURCES / "session.cc"
    sources = [border, HERE / "fake_session.cc", *_needed(border, [real])]
    made = []
    for source in [main, *sources]:
        made.append(str(objects / f"{source.stem}.o"))
        if source is not main and Path(made[-1]).exists():
            continue
        of_c = ["gcc", "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror"]
        command = of_c if source.suffix == ".c" else [compiler, *FLAGS]
        _run([*command, *flags, include, "-c", str(source), "-o", made[-1]])
    _run([compiler, *FLAGS, *flags, *made, "-ldl", "-o", str(program)])
    return program


def fuzz(program: Path, seeds: Path, **variables: str) -> None:
    """Runs a target of libFuzzer for some seconds; fails where it finds an input to report.

    Args:
        program: built with `-fsanitize=fuzzer,address`.
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
    main = "" if "fuzzer" in " ".join(flags) else "int main() {}"
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
