"""What the tests of the kernels share: a model on one instruction set, in a process of its own."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pl_compile.runtime.kernels import instruction_sets, library_path

PROBE = Path(__file__).with_name("kernel_probe.py")
SETS = (
    ("i8mm", "dotprod", "neon", "portable")
    if platform.machine() in ("aarch64", "arm64")
    else ("amx", "avx512vnni", "avxvnni", "avx512", "avx2", "avx2_without_f16c", "portable")
)


@pytest.fixture(params=SETS)
def kind(request: pytest.FixtureRequest) -> str:
    """The name of an instruction set; skips where the kernels or the processor lack it."""
    if library_path() is None:
        pytest.skip("the kernels were not built: no compiler")
    name: str = request.param
    there = instruction_sets()
    assert set(there) <= set(SETS), "a set that no test runs"
    if name not in there:
        pytest.skip(f"this processor has no {name}; test_kernels_in_cpp.py emulates it if it can")
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
            [sys.executable, str(PROBE), str(model), str(given), str(result)],
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
