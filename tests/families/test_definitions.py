"""Every family's definition, computed in numpy, against transformers on the same tiny weights."""

from pathlib import Path
from typing import Any

import pytest
from numpy_blocks import compare_steps

from pl_compile.families.registry import FAMILIES
from pl_compile.testing import write_tiny_base


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"tied": False, "seed": 4}, {"blocks": True}], ids=str)
def test_a_definition_computes_what_transformers_does_from_all_weights_that_there_are(
    tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    ours = compare_steps(write_tiny_base(tmp_path / "base", family, **options))

    assert ours.used == ours.weights.keys()
