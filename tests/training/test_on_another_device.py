"""Training touches a GPU the way a GPU wants it: shown without one."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration

from pl_compile.families.registry import FAMILIES
from pl_compile.training import base_model
from pl_compile.training.base_model import FrozenBase


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_that_is_loaded_straight_to_its_device_is_the_same(
    tiny_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """As on a GPU; here the device is the CPU, to which bases go by another way."""
    usual = FrozenBase(tiny_bases[family], "bf16")
    monkeypatch.setattr(base_model, "_straight_to", lambda device: {"device_map": {"": device}})

    straight = FrozenBase(tiny_bases[family], "bf16")

    assert straight.digest() == usual.digest()
    ids = torch.arange(5, 20)
    assert torch.equal(straight.keys_and_values(ids), usual.keys_and_values(ids))


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="needs a torch that lets Python name a device (2.9 or newer); the same steps on the "
    "CPU: test_packed_forward.py",
)
def test_a_step_stays_on_its_device_and_never_waits_for_it(tmp_path: Path) -> None:
    script = Path(__file__).with_name("other_device.py")

    for attempt in range(3):
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path / str(attempt))],
            capture_output=True,
            text=True,
            timeout=240,
        )
        # torch starts a thread for the device, and now and then (once in some twenty runs) ends the
        # process by it. That says nothing of the steps.
        if done.returncode != -signal.SIGABRT or "terminate called" not in done.stderr:
            break

    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        f"{family} {method} {precision} pretended"
        for family in FAMILIES
        for method in ("prompt-tuning", "mlp", "tpmlp", "prefix-tuning")
        for precision in ("fp32", "bf16")
    ]
