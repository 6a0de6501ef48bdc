"""The kernels' own test (kernels_test.cc): all sets of this processor, and others by emulation.

Each set is compared with double precision on random shapes. All sets but the portable one must
print the same sum over the bits of their results, whichever compiler and processor made them.
"""

import functools
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(1200)  # most of it goes into compiling

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "runtime" / "kernels"
SOURCES = [HERE / "kernels_test.cc", KERNELS / "instruction_sets.cc", KERNELS / "dispatch.cc"]
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-w", f"-I{KERNELS}"]
HERE_ALONE = "what this machine can run: test_every_set_of_this_processor_is_right"
QEMU = "needs {}, version 7.2 or later, and a compiler that links statically; " + HERE_ALONE
AMX = ["-DPLC_AMX_EMULATION=" + f'"{HERE / "amx_emulation.h"}"']
ARM_COMPILER = "aarch64-linux-gnu-g++"

# What all sets make of the test's cases; it changes with them.
BITS = "b0863adf718147aa"


@functools.cache
def compiled(compiler: str, folder: Path, source: Path, *flags: str) -> str:
    made = folder / ("_".join([source.stem, compiler, *(flag.strip("-")[:6] for flag in flags)]))
    run([compiler, *FLAGS, *flags, "-c", str(source), "-o", f"{made}.o"])
    return f"{made}.o"


@functools.cache
def built(compiler: str, folder: Path, *flags: str) -> Path:
    program = folder / "_".join([compiler, *(flag.strip("-")[:6] for flag in flags)])
    # A static program is linked from the same objects.
    others = [flag for flag in flags if flag != "-static"]
    objects = [compiled(compiler, folder, source, *others) for source in SOURCES]
    run([compiler, *FLAGS, *flags, *objects, "-o", str(program)])
    return program


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


Build = Callable[..., Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The test, compiled once for each compiler; skips by name where that is missing."""
    folder = tmp_path_factory.mktemp("kernels")

    def get(compiler: str, *flags: str) -> Path:
        if shutil.which(compiler) is None:
            pytest.skip(f"needs {compiler}; without it: tests/runtime/test_kernels.py")
        return built(compiler, folder, *flags)

    return get


def bits_of_sets(*command: str) -> dict[str, str]:
    """Set by set what it made; fails where the program says that a result is wrong."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr
    found = re.findall(r"^(\w+): \d+ cases, bits (\w+)$", done.stdout, re.MULTILINE)
    assert found, done.stdout
    return dict(found)


def emulator(name: str) -> str:
    """A program of qemu's; skips by name where it is missing or too old for these processors."""
    if shutil.which(name) is None:
        pytest.skip(QEMU.format(name))
    said = subprocess.run([name, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"version (\d+)\.(\d+)", said)
    if version is None or tuple(map(int, version.groups())) < (7, 2):
        pytest.skip(QEMU.format(name))
    return name


def expect_same(bits: dict[str, str]) -> None:
    assert {kind for kind, made in bits.items() if made != BITS} <= {"portable"}


of_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason=f"needs a compiler for x86; {HERE_ALONE}"
)


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_every_set_of_this_processor_is_right(compiler: str, build: Build) -> None:
    bits = bits_of_sets(str(build(compiler)))

    expect_same(bits)
    assert "portable" in bits


@of_x86
def test_what_drives_the_matrix_unit_is_right_without_one(build: Build) -> None:
    bits = bits_of_sets(str(build("g++", *AMX)))

    expect_same(bits)
    if "avx512vnni" not in bits:
        pytest.skip(f"needs a processor with AVX-512 VNNI; {HERE_ALONE}")
    assert "amx" in bits


@pytest.mark.parametrize(
    ("processor", "sets"),
    [
        ("max", {"i8mm", "dotprod", "neon", "portable"}),
        ("cortex-a76", {"dotprod", "neon", "portable"}),
        ("cortex-a53", {"neon", "portable"}),
    ],
)
def test_sets_for_arm_are_right_in_an_emulator(
    processor: str, sets: set[str], build: Build
) -> None:
    qemu, program = emulator("qemu-aarch64-static"), build(ARM_COMPILER, "-static")

    bits = bits_of_sets(qemu, "-cpu", processor, str(program))

    assert set(bits) == sets
    expect_same(bits)


@of_x86
def test_a_processor_with_avx2_alone_takes_its_set_in_an_emulator(build: Build) -> None:
    qemu, program = emulator("qemu-x86_64-static"), build("g++", "-static")

    bits = bits_of_sets(qemu, "-cpu", "Haswell", str(program))

    assert set(bits) == {"avx2", "avx2_without_f16c", "portable"}
    expect_same(bits)
