"""The interface in C and C++ does what its headers say, on sessions that have no base."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from native_programs import (
    HERE,
    PLAIN,
    SANITIZED,
    SOURCES,
    THREADS,
    WITHOUT_COMPILER,
    without_base,
)

pytestmark = pytest.mark.timeout(1200)  # most of it goes into compiling

INCLUDE = SOURCES.parent / "include"
EXPORTED = SOURCES.parent / "cmake" / "plc_runtime.map"
EXAMPLES = HERE.parents[1] / "examples" / "embedding"
STRICT = ("-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{INCLUDE}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native_border")


def functions() -> set[str]:
    """Those that the header declares."""
    header = (INCLUDE / "plc_runtime.h").read_text(encoding="utf-8")
    return set(re.findall(r"^PLC_API [^;]*?(plc_\w+)\(", header, re.MULTILINE))


@pytest.mark.parametrize(
    ("compiler", "standard", "language", "name"),
    [
        ("gcc", "c99", "c", "plc_runtime.h"),
        ("clang", "c99", "c", "plc_runtime.h"),
        ("g++", "c++17", "c++", "plc_runtime.h"),
        ("g++", "c++17", "c++", "plc_runtime.hpp"),
        ("clang++", "c++17", "c++", "plc_runtime.hpp"),
    ],
)
def test_the_headers_need_no_other(
    compiler: str, standard: str, language: str, name: str, tmp_path: Path
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(WITHOUT_COMPILER.format(compiler))
    source = tmp_path / "alone.txt"
    # The macros, too: they are compiled where they are used.
    source.write_text(
        f"#include <{name}>\n"
        "int main(void) {\n"
        "  plc_options options = PLC_OPTIONS_INIT;\n"
        "  plc_request request = PLC_REQUEST_INIT;\n"
        "  return options.struct_size == request.struct_size;\n"
        "}\n",
        encoding="utf-8",
    )
    command = [compiler, f"-std={standard}", *STRICT, "-x", language, str(source)]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert not done.returncode, done.stderr


def test_the_example_in_the_header_compiles(tmp_path: Path) -> None:
    for name, compiler, standard in (
        ("plc_runtime.h", "gcc", "c99"),
        ("plc_runtime.hpp", "g++", "c++17"),
    ):
        if shutil.which(compiler) is None:
            pytest.skip(WITHOUT_COMPILER.format(compiler))
        text = (INCLUDE / name).read_text(encoding="utf-8")
        lines = re.findall(r"^(?: \*|//)     (.*)$", text, re.MULTILINE)
        source = tmp_path / ("example.c" if standard == "c99" else "example.cc")
        source.write_text("\n".join(lines) + "\n", encoding="utf-8")
        assert "int main(" in source.read_text(encoding="utf-8")

        command = [compiler, f"-std={standard}", *STRICT, str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)

        assert not done.returncode, done.stderr


@pytest.mark.parametrize(
    ("language", "compiler", "standard"), [("c", "gcc", "c99"), ("cpp", "g++", "c++17")]
)
def test_the_examples_in_the_docs_compile(
    language: str, compiler: str, standard: str, tmp_path: Path
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(WITHOUT_COMPILER.format(compiler))
    page = (HERE.parents[1] / "docs" / "embedding.md").read_text(encoding="utf-8")
    blocks = re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        source = tmp_path / f"block.{language}"
        source.write_text(block, encoding="utf-8")
        command = [compiler, f"-std={standard}", *STRICT, str(source)]

        done = subprocess.run(command, capture_output=True, text=True, check=False)

        assert not done.returncode, done.stderr


def test_the_page_on_embedding_names_every_status() -> None:
    page = (HERE.parents[1] / "docs" / "embedding.md").read_text(encoding="utf-8")
    header = (INCLUDE / "plc_runtime.h").read_text(encoding="utf-8")

    statuses = re.findall(r"^  (PLC_(?:ERROR_\w+|CANCELLED)) = ", header, re.MULTILINE)

    assert len(statuses) == 9
    assert [name for name in statuses if f"`{name}`" not in page] == []


def test_what_is_exported_is_what_the_header_declares() -> None:
    patterns = re.findall(r"^    (plc_\w+\*?);", EXPORTED.read_text(encoding="utf-8"), re.MULTILINE)
    declared = functions()

    assert len(declared) >= 25
    for name in declared:
        assert any(re.fullmatch(pattern.replace("*", ".*"), name) for pattern in patterns), name
    for pattern in patterns:
        assert any(re.fullmatch(pattern.replace("*", ".*"), name) for name in declared), pattern


@pytest.mark.parametrize("build", [PLAIN, SANITIZED, THREADS], ids=["plain", "asan", "tsan"])
def test_every_sentence_of_the_header(build: tuple[str, ...], folder: Path) -> None:
    program = without_base(folder, HERE / "c_interface_test.cc", *build)

    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=300)

    assert not done.returncode, done.stderr[-6000:]
    assert "0 failures" in done.stderr


def test_every_function_of_the_header_is_tested() -> None:
    tested = (HERE / "c_interface_test.cc").read_text(encoding="utf-8")

    assert [name for name in functions() if f"{name}(" not in tested] == []


def test_the_example_in_c_writes_its_answer(folder: Path) -> None:
    program = without_base(folder, EXAMPLES / "answer.c", *PLAIN)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, check=False, timeout=60
        )

    done = run("bundle", "echo", "text=It works.")
    assert (done.returncode, done.stdout) == (0, "It works.")
    assert "9 tokens of prompt, 4 of them in the task's prefix; 9 written" in done.stderr
    assert run("missing", "echo", "text=a").stderr == "opening missing: there is no such folder\n"
    assert "there is no task 'none'" in run("bundle", "none", "text=a").stderr
    assert run("bundle", "echo", "text").returncode == 2


def test_the_example_in_cpp_answers_all_lines(folder: Path) -> None:
    program = without_base(folder, EXAMPLES / "lines.cc", *PLAIN)
    lines = ["one", "zwölf", "", "a long line, for which others do not wait"]

    done = subprocess.run(
        [program, "bundle", "echo", "text"],
        input="".join(line + "\n" for line in lines),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (done.returncode, done.stdout.splitlines()) == (0, lines)
