"""The picture of the rooms in docs/architecture.md is what contract and imports say."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def rooms() -> ModuleType:
    pytest.importorskip(
        "grimp",
        reason="needs grimp (pip install import-linter), which reads imports; what they may be, in "
        "part: test_light_runtime.py",
    )
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_of_the_rooms_is_current(rooms: ModuleType) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

    assert rooms.page_with(rooms.drawing()) == page, "run: python docs/rooms.py"


def test_every_room_stands_in_the_contract(rooms: ModuleType) -> None:
    folders = {path.parent.name for path in (ROOT / "pl_compile").glob("*/__init__.py")}

    assert folders == {room for layer in rooms.layers() for room in layer} - ALONE


# Modules that are a room by themselves.
ALONE = {"progress", "all_reduce_plugin", "errors", "shapes"}


def test_an_arrow_that_follows_from_others_is_not_drawn(rooms: ModuleType) -> None:
    pairs = {("a", "b"), ("b", "c"), ("a", "c"), ("b", "d"), ("c", "e"), ("a", "e")}

    assert rooms.without_detours(pairs) == {("a", "b"), ("b", "c"), ("b", "d"), ("c", "e")}
