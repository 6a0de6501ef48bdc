"""`pip install` brings `libplc_runtime`, which CMake and pkg-config find.

Compiled without optimisation, which takes minutes: it changes nothing of what is checked here.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_installed_library import EXAMPLES, need, refused, run

ROOT = EXAMPLES.parents[1]

pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        sys.platform != "linux",
        reason="needs Linux, where alone the library is built; its interface: "
        "tests/native/test_c_interface.py",
    ),
]


def install(folder: Path, compiler: str) -> Path:
    """The package as a wheel holds it, in a folder.

    Args:
        folder: for the compiler, the objects and the package.
        compiler: a line of sh that compiles, with "$@" for its arguments.
    """
    command = folder / "compiler"
    command.write_text(f"#!/bin/sh\n{compiler}\n", encoding="utf-8")
    command.chmod(0o755)
    parts = ["build", "--build-lib", folder / "package", "--build-temp", folder / "objects"]
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", *map(str, parts)],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "CC": str(command), "CXX": str(command)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, (done.stdout + done.stderr)[-6000:]
    return folder / "package"


def cmake_dir(package: Path) -> subprocess.CompletedProcess[str]:
    """`plc doctor --cmake-dir` of a package."""
    return subprocess.run(
        [sys.executable, "-m", "pl_compile.cli", "doctor", "--cmake-dir"],
        cwd=package.parent,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not where it was built, since packages are moved."""
    need("cmake", "g++")
    folder = tmp_path_factory.mktemp("package")
    return install(folder, 'exec g++ "$@" -O0 -g0').rename(folder / "site-packages")


def test_a_program_is_built_with_what_doctor_prints(package: Path, tmp_path: Path) -> None:
    done = cmake_dir(package)
    assert not done.returncode, done.stderr
    folder = Path(done.stdout.strip())

    run(["cmake", "-S", EXAMPLES, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={folder}"])
    run(["cmake", "--build", tmp_path, "--target", "answer", "lines"])

    assert folder.is_relative_to(package)
    assert "missing" in refused(tmp_path / "answer", folder.parents[2])


def test_pkg_config_finds_it_too(package: Path, tmp_path: Path) -> None:
    need("pkg-config", "gcc")
    prefix = package / "pl_compile/runtime/native"
    variables = {"PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")}
    flags = run(["pkg-config", "--cflags", "--libs", "plc_runtime"], **variables).split()

    program = tmp_path / "answer"
    run(["gcc", "-std=c99", EXAMPLES / "answer.c", *flags, "-o", program])

    assert "missing" in refused(program, prefix)


def test_it_exports_the_interface_alone(package: Path) -> None:
    need("nm")
    native = package / "pl_compile/runtime/native"
    header = (native / "include/plc_runtime.h").read_text(encoding="utf-8")
    [library] = native.glob("lib/libplc_runtime.so.*")

    lines = run(["nm", "-D", "--defined-only", library]).splitlines()

    names = {line.split()[-1].partition("@")[0] for line in lines} - {"PLC_RUNTIME_1"}
    assert names == set(re.findall(r"^PLC_API [^;]*?(plc_\w+)\(", header, re.MULTILINE))


@pytest.mark.parametrize(("asked", "found"), [("0.1", True), ("9.0", False)])
def test_cmake_sees_its_version(asked: str, found: bool, package: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.21)\n"
        "project(versions LANGUAGES CXX)\n"
        f"find_package(plc_runtime {asked} REQUIRED)\n",
        encoding="utf-8",
    )
    folder = package / "pl_compile/runtime/native/lib/cmake/plc_runtime"
    command = ["cmake", "-S", tmp_path, "-B", tmp_path / "b", f"-Dplc_runtime_DIR={folder}"]

    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)

    assert (done.returncode == 0) is found, done.stderr
    assert found or "plc_runtime" in done.stderr


def test_without_a_compiler_the_package_installs_and_says_how_to_get_it(tmp_path: Path) -> None:
    package = install(tmp_path, "exit 1")

    done = cmake_dir(package)

    assert not list(package.glob("**/*.so*"))
    assert done.returncode == 1
    assert "Install g++ 11" in done.stderr
    assert "docs/embedding.md" in done.stderr
