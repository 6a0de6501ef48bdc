import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """The path of a real data set by its name; skips the test where it is not there."""

    def find(name: str) -> Path:
        folder = Path(os.environ.get("PLC_SHARED_DATA", _REPOSITORY.parent / "shared" / "data"))
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
