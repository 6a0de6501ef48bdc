"""A library for one device can leave out the kernels' instruction sets that it does not have."""

import platform
import subprocess
from pathlib import Path

import pytest
from test_installed_library import NATIVE, need, run

KERNELS = NATIVE.parent / "kernels"
MAIN = """
#include <cstdio>
#include "kernels.h"
int main() {
  for (auto set = plc::kernels::available_sets(); *set; ++set) std::puts((*set)->name);
}
"""

pytestmark = [pytest.mark.xdist_group("native"), pytest.mark.timeout(600)]


@pytest.mark.skipif(
    platform.machine() != "x86_64",
    reason="needs x86-64, whose sets are named; all sets: tests/runtime/test_kernels_in_cpp.py",
)
def test_only_the_named_sets_and_the_portable_one_are_built(tmp_path: Path) -> None:
    need("g++")
    (tmp_path / "main.cc").write_text(MAIN, encoding="utf-8")
    sources = [tmp_path / "main.cc", KERNELS / "dispatch.cc", KERNELS / "instruction_sets.cc"]
    flags = ["-std=c++17", "-O0", "-w", f"-I{KERNELS}", "-DPLC_CHOSEN_SETS", "-DPLC_HAS_AVX2"]

    run(["g++", *flags, *sources, "-o", tmp_path / "main"])

    assert run([tmp_path / "main"]).split() in (["avx2", "portable"], ["portable"])
    names = run(["nm", "-C", tmp_path / "main"])
    assert "plc::kernels::avx2::" in names
    assert "plc::kernels::avx512::" not in names


def test_a_set_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    need("cmake")
    command = ["cmake", "-S", NATIVE, "-B", tmp_path, "-DPLC_KERNEL_SETS=avx2;sse"]

    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)

    assert done.returncode
    assert "no set is called 'sse'" in " ".join(done.stderr.split())
