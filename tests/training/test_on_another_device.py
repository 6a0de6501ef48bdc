"""Training touches a GPU the way a GPU wants it: shown without one."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

from pl_compile.testing import FAMILIES


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="needs a torch that lets Python name a device (2.9 or newer); the same steps on the "
    "CPU: test_packed_forward.py",
)
def test_a_step_stays_on_its_device_and_never_waits_for_it(tmp_path: Path) -> None:
    script = Path(__file__).with_name("other_device.py")

    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=240
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        f"{family} {method} {precision} pretended"
        for family in FAMILIES
        for method in ("prompt-tuning", "mlp", "tpmlp", "prefix-tuning")
        for precision in ("fp32", "bf16")
    ]
