"""What several rooms' tests share: tiny bases made once, real data where it is, golden files."""

import hashlib
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shape_checker import check_imports

check_imports()  # before any other import of the package
# Threads that wait for each other keep their cores busy otherwise: where tests run beside each
# other, the one that is waited for has no core then, and tiny runs take ten times as long. Nothing
# is computed otherwise. Those of torch are told before it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import onnxruntime

from pl_compile.artifact.prompt_table import read_prompt_table
from pl_compile.cli.main import main
from pl_compile.families.registry import FAMILIES
from pl_compile.runtime.kernels import instruction_sets, library_path
from pl_compile.testing import Told, random_table, write_tiny_base


class _WaitingQuietly(onnxruntime.SessionOptions):  # type: ignore[misc]
    """Options of ONNX Runtime, whose threads wait as those of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.add_session_config_entry("session.intra_op.allow_spinning", "0")


onnxruntime.SessionOptions = _WaitingQuietly

KERNEL_PROBE = Path(__file__).parent / "runtime" / "kernel_probe.py"
KERNEL_SETS = (
    ("i8mm", "dotprod", "neon", "portable")
    if platform.machine() in ("aarch64", "arm64")
    else ("amx", "avx512vnni", "avxvnni", "avx512", "avx2", "avx2_without_f16c", "portable")
)

# What takes longest begins, so that the processes of a test run end together.
SLOWEST = (
    "native/test_session_in_cpp.py",
    "native/test_engine_in_cpp.py",
    "native/test_tokenizer_in_cpp.py",
    "native/test_bundle_files_in_cpp.py",
    "native/test_rendering_in_cpp.py",
    "native/test_fake_device.py",
    "native/test_choice_in_cpp.py",
    "native/test_hostile_tokenizer_tables.py",
    "native/test_installed_library.py",
    "native/test_cpp_conforms.py",
    "native/test_c_interface.py",
    "runtime/test_kernels_in_cpp.py",
    "training/test_parallel_runs.py",
    "training/test_kill_and_resume.py",
    "families/test_families_to_come.py",
    "parity/test_random_bases.py",
    "examples/test_tutorial.py",
    "promises/test_python_in_the_pages.py",
    "promises/test_base_install.py",
    "runtime/test_kernels.py",
    "driver/test_choices.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(SLOWEST)}
    assert all(path.is_file() for path in places), "a slow file that is not there"
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def tiny_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random base of each family, as Hugging Face folders."""
    root = tmp_path_factory.mktemp("bases")
    return {family: write_tiny_base(root / family, family) for family in FAMILIES}


@pytest.fixture
def plc(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Runs `plc` in a fresh folder; gives exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["plc", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def work(tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, a table and a bundle."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "base").symlink_to(tiny_bases["llama"])
    random_table(folder / "base", folder / "table.safetensors")
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pl_compile.cli",
        "export",
        "--output",
        folder / "bundle",
    ]
    subprocess.run(
        [*command, "--prompts", folder / "table.safetensors", "--base", folder / "base"],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="Write the golden files anew.")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a text with `tests/golden/<name>`; `pytest --update-golden` renews the file."""

    def check(name: str, text: str) -> None:
        path = Path(__file__).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), f"{name} differs: see --update-golden"

    return check


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """The path of a real data set by its name; skips the test where it is not there.

    The siblings of such a test stand in the same file: they read made rows in the publisher's form.
    """

    def find(name: str) -> Path:
        folder = Path(
            os.environ.get("PLC_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data")
        )
        if not (folder / name).exists():
            pytest.skip(
                f"needs {name} in the folder that PLC_SHARED_DATA names; on made rows: the other "
                "tests of this file"
            )
        return folder / name

    return find


@pytest.fixture
def read_jsonl() -> Callable[[Path], list[dict[str, Any]]]:
    """Rows of a JSON lines file, in the strict sense: one object a line, each line ended."""

    def read(path: Path) -> list[dict[str, Any]]:
        *lines, after_the_last = path.read_text(encoding="utf-8").split("\n")
        assert after_the_last == ""
        return [json.loads(line) for line in lines]

    return read


# Training runs


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def records() -> Callable[[Path], list[dict[str, Any]]]:
    """The records of a run folder, without what differs between equal runs: time."""

    def read(run: Path) -> list[dict[str, Any]]:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line, parse_constant=_refuse) for line in lines]
        return [{key: row[key] for key in row if key != "seconds"} for row in rows]

    return read


@pytest.fixture
def prompt_sums() -> Callable[[Path | None], dict[str, str]]:
    """The sum of each task's rows or prefix in a table."""

    def sums(table: Path | None) -> dict[str, str]:
        assert table is not None
        entries = read_prompt_table(table).entries
        return {
            name: hashlib.sha256(entry.learned.tobytes()).hexdigest()
            for name, entry in entries.items()
        }

    return sums


def _refuse(constant: str) -> float:
    raise AssertionError(f"{constant} in a record: no JSON")


@pytest.fixture(autouse=True)
def _no_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture of a run takes longer than a tiny run: `real_curves` asks for it."""
    run = sys.modules.get("pl_compile.training.run")
    if run is not None and "real_curves" not in request.fixturenames:
        monkeypatch.setattr(run, "draw_curves", lambda *_: b"no picture")


@pytest.fixture
def real_curves() -> None:
    """For tests that look at `curves.png`."""


@pytest.fixture
def told() -> Told:
    """Who is told of a run."""
    return Told()


@pytest.fixture(params=KERNEL_SETS)
def kind(request: pytest.FixtureRequest) -> str:
    """The name of an instruction set; skips where the kernels or the processor lack it."""
    if library_path() is None:
        pytest.skip(
            "needs the C++ kernels (g++ or Clang); without them: tests/export/test_bodies.py"
        )
    name: str = request.param
    there = instruction_sets()
    assert set(there) <= set(KERNEL_SETS), "a set that no test runs"
    if name not in there:
        pytest.skip(
            f"needs a processor with {name}; emulated: tests/runtime/test_kernels_in_cpp.py"
        )
    return name


@pytest.fixture
def run_on(tmp_path: Path) -> Callable[..., list[list[np.ndarray]]]:
    """`run_on(kind, model, inputs, ...)`: the outputs of each run, all in one process."""

    def run(kind: str, model: Path, *runs: dict[str, np.ndarray]) -> list[list[np.ndarray]]:
        given, result = tmp_path / "inputs.npz", tmp_path / f"{kind}.npz"
        named = {
            f"{number}/{name}": array
            for number, inputs in enumerate(runs)
            for name, array in inputs.items()
        }
        np.savez(given, **named)  # type: ignore[arg-type]
        done = subprocess.run(
            [sys.executable, str(KERNEL_PROBE), str(model), str(given), str(result)],
            env={**os.environ, "PLC_KERNELS": kind},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.returncode, done.stderr
        assert done.stdout.strip() == kind
        arrays = np.load(result)
        outputs = len(arrays) // len(runs)
        return [
            [arrays[f"{number}/{out}"] for out in range(outputs)] for number in range(len(runs))
        ]

    return run
