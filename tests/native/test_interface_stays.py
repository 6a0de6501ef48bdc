"""The interface in C is, bit by bit, the one that programs were compiled with.

`plc_runtime-N.abi` describes functions and structs of the header with PLC_ABI_VERSION N, as
libabigail writes them. After a change that a program could notice: raise that number, and run this
file to write the description of the new one. Those of numbers that were released stay as they are.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from native_programs import HERE, SOURCES

INCLUDE = SOURCES.parent / "include"
# It does not say where on this machine anything lies.
DESCRIBE = ("abidw", "--no-corpus-path", "--no-comp-dir-path", "--no-show-locs")


def number(header: str) -> str:
    found = re.search(r"^#define PLC_ABI_VERSION (\d+)$", header, re.MULTILINE)
    assert found
    return found[1]


def compiled(header: str, folder: Path) -> Path:
    """A library of nothing but a pointer to each function of a header, with their types."""
    names = re.findall(r"^PLC_API [^;]*?(plc_\w+)\(", header, re.MULTILINE)
    assert len(names) > 20
    (folder / "plc_runtime.h").write_text(header, encoding="utf-8")
    source, library = folder / "types.c", folder / "types.so"
    pointers = "".join(f"__typeof__(&{name}) of_{name};\n" for name in names)
    source.write_text(f"#include <plc_runtime.h>\n{pointers}", encoding="utf-8")
    flags = ["-std=gnu99", "-g", "-fPIC", "-shared", "-I."]
    subprocess.run(["gcc", *flags, source.name, "-o", library.name], check=True, cwd=folder)
    return library


def changes(header: str, folder: Path) -> str:
    """How a header differs from the description of its number; empty where it does not."""
    description = HERE / f"plc_runtime-{number(header)}.abi"
    assert description.is_file(), f"no {description.name}: run {__file__}"
    command = ["abidiff", str(description), str(compiled(header, folder))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode & 3, done.stderr  # it did not compare
    return done.stdout if done.returncode else ""


@pytest.fixture
def header() -> str:
    for tool in ("gcc", "abidiff"):
        if shutil.which(tool) is None:
            pytest.skip(
                f"needs {tool} (Debian: abigail-tools); without it: "
                "tests/native/test_c_interface.py calls each function"
            )
    return (INCLUDE / "plc_runtime.h").read_text(encoding="utf-8")


def test_the_interface_is_that_of_its_number(header: str, tmp_path: Path) -> None:
    assert changes(header, tmp_path) == ""


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("int32_t priority; ", "int64_t priority; ", "type of 'int32_t priority' changed"),
        ("size_t prefix_tokens; ", "", "1 data member deletion"),
        ("PLC_CANCELLED = 9 ", "PLC_CANCELLED = 10", "PLC_CANCELLED"),
        (
            "plc_cancel(plc_engine* engine, uint64_t",
            "plc_cancel(plc_engine* engine, int",
            "plc_cancel",
        ),
    ],
)
def test_a_change_is_noticed(
    before: str, after: str, found: str, header: str, tmp_path: Path
) -> None:
    assert before in header

    assert found in changes(header.replace(before, after), tmp_path)


def write() -> None:
    """Writes the description of the header's number."""
    header = (INCLUDE / "plc_runtime.h").read_text(encoding="utf-8")
    path = HERE / f"plc_runtime-{number(header)}.abi"
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(header, Path(folder))
        command = [*DESCRIBE, "--out-file", str(path), str(library)]
        subprocess.run(command, check=True)
    print(f"wrote {path.name}", file=sys.stderr)


if __name__ == "__main__":
    write()
