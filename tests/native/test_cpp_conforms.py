"""The native runtime answers the conformance vectors as the Python runtime does."""

import json
import subprocess
from pathlib import Path

import pytest
from native_programs import HERE, PLAIN, SANITIZED, built, emulated

from pl_compile.text.tables import tables_of

pytestmark = pytest.mark.timeout(1200)  # most of it goes into compiling

VECTORS = HERE.parent / "conformance" / "vectors"
FILES = sorted(path for path in VECTORS.glob("*.json") if not path.stem.startswith("tokenizer_"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tables of the vectors' tokenizers."""
    folder = tmp_path_factory.mktemp("native_conformance")
    for path in VECTORS.glob("tokenizer_*.json"):
        tables = tables_of(path.read_text(encoding="utf-8"))
        (folder / f"{path.stem.removeprefix('tokenizer_')}.tables").write_bytes(tables)
    return folder


@pytest.mark.parametrize("build", [PLAIN, SANITIZED], ids=["plain", "sanitized"])
def test_the_native_runtime_conforms(build: tuple[str, ...], folder: Path) -> None:
    program = built(folder, "conformance_program.cc", *build)

    check([str(program)], folder)


def test_the_native_runtime_conforms_on_arm_in_an_emulator(folder: Path) -> None:
    check(emulated(folder, "conformance_program.cc"), folder)


def check(program: list[str], folder: Path) -> None:
    """Fails where the program answers a vector otherwise, or leaves one out."""
    command = [*program, str(folder), *map(str, FILES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert not done.returncode, (done.stdout + done.stderr)[:6000]
    cases = [len(json.loads(path.read_text(encoding="utf-8"))["cases"]) for path in FILES]
    assert done.stdout.splitlines() == [
        f"{path}: {count} cases" for path, count in zip(FILES, cases, strict=True)
    ]


def test_a_wrong_answer_is_seen(folder: Path) -> None:
    program = built(folder, "conformance_program.cc", *PLAIN)
    wrong = json.loads((VECTORS / "draws.json").read_text(encoding="utf-8"))
    wrong["cases"][3]["expected"]["tokens"][5] = 24
    path = folder / "wrong.json"
    path.write_text(json.dumps(wrong), encoding="utf-8")

    done = subprocess.run([program, folder, path], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "case 3: found" in done.stdout
