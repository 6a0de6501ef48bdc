"""What several rooms' tests share: tiny bases made once, and no network."""

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
