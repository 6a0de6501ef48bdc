"""What several rooms' tests share: tiny bases made once, real data where it is, golden files."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    """The path of a real data set by its name; skips the test where it is not there."""

    def find(name: str) -> Path:
        folder = Path(
            os.environ.get("PLC_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data")
        )
        if not (folder / name).exists():
            pytest.skip(f"no {name} in the shared data; set PLC_SHARED_DATA to the folder with it")
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
