"""The native runtime is built, installed and found by CMake and by pkg-config.

Without the kernels and without optimisation, which take minutes: they change nothing of what is
checked here.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from native_programs import HERE, SOURCES

pytestmark = pytest.mark.timeout(1200)  # most of it goes into compiling

NATIVE = SOURCES.parent
EXAMPLES = HERE.parents[1] / "examples" / "embedding"
WITHOUT_TOOL = "needs {}; without it: tests/native/test_c_interface.py checks the interface"


def need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(WITHOUT_TOOL.format(tool))


def run(command: Sequence[str | Path], **more: str) -> str:
    """What a command writes; fails where it fails. `more`: environment variables."""
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | more,
    )
    assert not done.returncode, (done.stdout + done.stderr)[-6000:]
    return done.stdout


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the library was built."""
    need("cmake", "g++")
    folder = tmp_path_factory.mktemp("native_library") / "build"
    settings = [
        "-DPLC_KERNELS=OFF",
        "-DPLC_WARNINGS_ARE_ERRORS=ON",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O0",
        "-DCMAKE_CXX_COMPILER=g++",
    ]
    run(["cmake", "-S", NATIVE, "-B", folder, "--preset", "release", *settings])
    run(["cmake", "--build", folder, "-j", "2"])
    return folder


@pytest.fixture(scope="session")
def prefix(build: Path) -> Path:
    """Where it is installed: not where it was installed to, since packages are moved."""
    first = build.parent / "first"
    run(["cmake", "--install", build, "--prefix", first])
    return first.rename(build.parent / "moved")


def library_in(prefix: Path) -> Path:
    [library] = prefix.glob("lib*/**/libplc_runtime.so")
    return library


def refused(program: Path, prefix: Path) -> str:
    """What an example says of a bundle that is not there."""
    done = subprocess.run(
        [program, "missing", "task", "text=a"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"LD_LIBRARY_PATH": str(library_in(prefix).parent)},
    )
    assert done.returncode == 1, done
    return done.stderr


def test_exported_names_are_those_of_the_header(prefix: Path) -> None:
    need("nm")
    header = (prefix / "include/plc_runtime.h").read_text(encoding="utf-8")
    declared = re.findall(r"^PLC_API [^;]*?(plc_\w+)\(", header, re.MULTILINE)

    lines = run(["nm", "-D", "--defined-only", library_in(prefix)]).splitlines()

    names = {line.split()[-1].partition("@")[0] for line in lines}
    assert names - {"PLC_RUNTIME_1"} == set(declared)


def test_the_library_needs_the_system_only(prefix: Path) -> None:
    need("readelf")

    dynamic = run(["readelf", "-dW", library_in(prefix)])

    assert re.findall(r"\(SONAME\).*\[(.*)\]", dynamic) == ["libplc_runtime.so.1"]
    needed = re.findall(r"\(NEEDED\).*\[(.*?)\.so", dynamic)
    system = {"libstdc++", "libm", "libgcc_s", "libc", "libdl", "libpthread"}
    assert {name for name in needed if not name.startswith("ld-linux")} <= system
    assert re.findall(r"R(?:UN)?PATH", dynamic) == []
    program_headers = run(["readelf", "-lW", library_in(prefix)])
    loads = re.findall(r"LOAD .* 0x([0-9a-f]+)$", program_headers, re.MULTILINE)
    assert loads
    assert all(int(align, 16) % 16384 == 0 for align in loads)  # pages of 16 KB


def test_what_is_installed(prefix: Path) -> None:
    found = {path.name for path in prefix.rglob("*") if not path.is_dir()}

    assert {"plc_runtime.h", "plc_runtime.hpp", "plc_runtime.pc", "libplc_runtime.so"} <= found
    assert {"plc_runtime-config.cmake", "plc_runtime-config-version.cmake"} <= found
    text = "".join(
        path.read_text(encoding="utf-8")
        for path in prefix.rglob("*")
        if path.suffix in (".cmake", ".pc")
    )
    assert str(NATIVE) not in text
    assert str(prefix.with_name("first")) not in text


def test_the_examples_find_it_with_cmake(prefix: Path, tmp_path: Path) -> None:
    run(["cmake", "-S", EXAMPLES, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}"])
    run(["cmake", "--build", tmp_path])

    assert "missing" in refused(tmp_path / "answer", prefix)
    assert (tmp_path / "lines").is_file()


def test_the_example_finds_it_with_pkg_config(prefix: Path, tmp_path: Path) -> None:
    need("pkg-config", "gcc")
    folder = library_in(prefix).parent / "pkgconfig"
    flags = run(
        ["pkg-config", "--cflags", "--libs", "plc_runtime"], PKG_CONFIG_PATH=str(folder)
    ).split()

    program = tmp_path / "answer"
    run(["gcc", "-std=c99", EXAMPLES / "answer.c", *flags, "-o", program])

    assert "missing" in refused(program, prefix)


def test_a_later_version_is_not_found(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.21)\n"
        "project(later LANGUAGES CXX)\n"
        "find_package(plc_runtime 9.0 REQUIRED)\n",
        encoding="utf-8",
    )
    command = ["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "b")]

    done = subprocess.run(
        [*command, f"-DCMAKE_PREFIX_PATH={prefix}"], capture_output=True, text=True, check=False
    )

    assert done.returncode
    assert "plc_runtime" in done.stderr


def test_the_package_for_debian_has_the_same_files(build: Path, tmp_path: Path) -> None:
    need("cpack", "dpkg-deb", "dpkg-shlibdeps")
    config = build / "CPackConfig.cmake"
    run(["cpack", "-G", "DEB", "--config", config, "-B", tmp_path])

    [package] = tmp_path.glob("*.deb")
    files = run(["dpkg-deb", "--contents", package])

    for part in ("libplc_runtime.so.1", "include/plc_runtime.h", "plc_runtime-config.cmake"):
        assert part in files
    assert "libc6" in run(["dpkg-deb", "--field", package, "Depends"])
