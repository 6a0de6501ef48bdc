"""Draws the rooms of the code and who imports whom, into docs/architecture.md.

    python docs/rooms.py

The layers are those of the import contract (`setup.cfg`); the arrows are the imports that the code
has. An arrow that follows from others is left out: where `cli` imports `driver`, and `driver`
imports `checks`, no arrow says that `cli` may use `checks` too. A test holds the page against it.
"""

import configparser
import re
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
PACKAGE = "pl_compile"

_BEGIN, _END = "<!-- drawn by docs/rooms.py -->\n", "<!-- end of the drawing -->\n"


def layers() -> list[list[str]]:
    """The rooms of each layer of the contract, uppermost layer first."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = setup["importlinter:contract:flow"]["layers"].split("\n")
    return [re.findall(rf"{PACKAGE}\.(\w+)", line) for line in lines if line.strip()]


def arrows(rooms: list[str]) -> set[tuple[str, str]]:
    """(importer, imported) of every pair of rooms of which a module imports one of the other's."""
    graph = grimp.build_graph(PACKAGE)
    pairs = set()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            pairs.add((_room_of(module), _room_of(imported)))
    return {(a, b) for a, b in pairs if a != b and a in rooms and b in rooms}


def _room_of(module: str) -> str:
    return [*module.split("."), ""][1]


def without_detours(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows that do not follow from others; the rooms know no circle."""
    below: dict[str, set[str]] = {}
    for importer, imported in pairs:
        below.setdefault(importer, set()).add(imported)

    def reached(room: str) -> set[str]:
        return set().union(*({next_, *reached(next_)} for next_ in below.get(room, ())))

    return {
        (importer, imported)
        for importer, imported in pairs
        if not any(imported in reached(other) for other in below[importer] - {imported})
    }


def drawing() -> str:
    """The picture in Mermaid's language, which GitHub and most readers of Markdown draw."""
    found = layers()
    lines = ["```mermaid", "flowchart TD"]
    for number, rooms in enumerate(found):
        nodes = [_node(room) for room in rooms]
        if len(rooms) > 1:
            nodes = [f'subgraph layer{number}[" "]', *(f"  {node}" for node in nodes), "end"]
        lines += [f"  {node}" for node in nodes]
    pairs = without_detours(arrows([room for rooms in found for room in rooms]))
    lines += [f"  {a}_ --> {b}_" for a, b in sorted(pairs)]
    return "\n".join([*lines, "```", ""])


def _node(room: str) -> str:
    return f'{room}_["{room}"]'  # a bare "graph" is a word of the language


def page_with(picture: str) -> str:
    """The page with this picture in its place."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(_BEGIN)
    _, after = rest.split(_END)
    return f"{before}{_BEGIN}{picture}{_END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with(drawing()), encoding="utf-8")
