"""The default base, where it was fetched: the full SmolLM2 through torch and through the bundle.

`test_bundle_against_torch.py` checks the same on tiny bases everywhere.
"""

from pathlib import Path
from typing import Any

import pytest

from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.testing import random_table
from pl_compile.weights.bases import DEFAULT_BASE, cached_base_folder


@pytest.mark.real
@pytest.mark.parametrize(
    ("quantize", "most"),
    # Where the export decides, kernels that round activations to 8 bits may be what it takes.
    [("none", 1e-4), ("auto", 0.2)],
)
def test_the_default_base_agrees_with_torch(tmp_path: Path, quantize: Any, most: float) -> None:
    """With a prefix of random numbers where nothing is rounded: no training makes one like it, and
    activations after it are too far apart for 8 bits."""
    base = cached_base_folder(DEFAULT_BASE)
    if not (base / "config.json").is_file():
        pytest.skip(
            f"needs the base {DEFAULT_BASE} (plc fetch {DEFAULT_BASE}); on made bases: "
            "test_bundle_against_torch.py"
        )
    table = random_table(base, tmp_path / "table.safetensors", prefix=quantize == "none")

    options = BuildOptions(quantize)
    result = export_bundle(
        ExportRequest(table, base, tmp_path / "bundle", capacity=256, options=options)
    )

    for parity in result.parity:
        print(f"{parity.task}: {parity.relative_difference:.2e} of {parity.largest_logit:.1f}")
    assert result.verdict == "passed"
    assert max(parity.relative_difference for parity in result.parity) < most
    assert {parity.rows * parity.steps for parity in result.parity} == {34}
    assert len(result.parity) == (3 if quantize == "none" else 2)
