"""The JSON of `plc bench` is what docs/performance.md says: people send it to us."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from pl_compile.driver.bench.bundle import BundleReport
from pl_compile.driver.bench.machine import Memory
from pl_compile.driver.bench.numbers import Percentiles, Spread
from pl_compile.driver.bench.server import ServerReport

PAGE = Path(__file__).parents[3] / "docs" / "performance.md"
# Explained once, for all the keys that hold one.
ONCE = (Spread, Percentiles)


def documented(titles: tuple[str, ...]) -> set[str]:
    """The keys in the tables of these titles, each written out."""
    text = PAGE.read_text(encoding="utf-8")
    keys = set()
    for title in titles:
        table = text.partition(f"| {title} | meaning |\n|---|---|\n")[2].partition("\n\n")[0]
        assert table, title
        for line in table.splitlines():
            stem = ""
            for name in re.findall(r"`([^`]+)`", line.split("|")[1]):
                whole = f"{stem}{name}" if name.startswith(".") else name
                stem = whole.rpartition(".")[0]
                keys.add(whole)
    return keys


def keys_of(kind: Any, path: str = "") -> set[str]:
    """The keys of a report as JSON."""
    keys = set()
    hints = get_type_hints(kind)
    for each in fields(kind):
        hint, name = hints[each.name], f"{path}{each.name}"
        options = [option for option in (hint, *get_args(hint)) if is_dataclass(option)]
        if not options or options[0] in ONCE:
            keys.add(name)
        elif options[0] is Memory and each.name == "memory":
            keys.add(name)  # "the same"
        else:
            keys |= keys_of(options[0], f"{name}[]." if get_origin(hint) is tuple else f"{name}.")
    return keys


@pytest.mark.parametrize(
    ("kind", "title"), [(BundleReport, "key of a bundle"), (ServerReport, "key of a server")]
)
def test_every_key_is_documented_and_no_other(kind: Any, title: str) -> None:
    assert documented(("key, both forms", title)) == keys_of(kind)


@pytest.mark.parametrize("kind", ONCE)
def test_what_is_explained_once_names_its_keys(kind: Any) -> None:
    text = PAGE.read_text(encoding="utf-8")
    explained = text.partition("A *spread* is")[2].partition("\n\n")[0]

    assert [each.name for each in fields(kind) if f"`{each.name}`" not in explained] == []
