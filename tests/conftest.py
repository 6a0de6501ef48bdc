"""What several rooms' tests share: tiny bases made once, and where optional data lies."""

import os
from pathlib import Path

import pytest

from pl_compile.testing import FAMILIES, write_tiny_base


@pytest.fixture(scope="session")
def tiny_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random base of each family, as Hugging Face folders."""
    root = tmp_path_factory.mktemp("bases")
    return {family: write_tiny_base(root / family, family) for family in FAMILIES}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets (`PLC_SHARED_DATA`); the test is skipped where there is none."""
    folder = Path(os.environ.get("PLC_SHARED_DATA") or Path(__file__).parents[2] / "shared/data")
    if not folder.is_dir():
        pytest.skip("real data sets are not here: set PLC_SHARED_DATA")
    return folder
