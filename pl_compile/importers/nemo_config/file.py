"""A NeMo file while it is translated: values by NeMo's keys in, values by our keys out.

Knows how a value is looked up, moved, refused and reported, with its place. `keys.py` and
`reading.py` say what is done with which key.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from pl_compile.config.interpolate import MISSING
from pl_compile.config.read import KnownKeys, Node, found_in, text_expected, unknown_key
from pl_compile.config.train import TrainConfig
from pl_compile.errors import did_you_mean
from pl_compile.importers.nemo_config.keys import HINTS, KEYS, Ignored, Moved, Only

_OUR_KEYS = tuple(field.name for field in fields(TrainConfig))


class NemoFile:
    """The values of a file.

    Args:
        root: the tree, its references resolved.
        problems: gets a line for everything that is wrong.
    """

    def __init__(self, root: Node, problems: list[str]) -> None:
        self._root = root
        self._problems = problems
        self._given: dict[str, Node] = {}  # by NeMo's key
        self._groups = {"": root.where}  # by NeMo's key: where its mapping stands
        self._moved: dict[str, Node] = {}  # by our key
        self._ignored: dict[str, list[str]] = {}  # by reason: NeMo's keys
        self._known: dict[str, KnownKeys] = {}  # by group
        self._read(root, "")

    def apply_rules(self) -> None:
        """Treats each key that does not depend on others as `KEYS` says."""
        for key, node in self._given.items():
            rule = KEYS[key]
            if isinstance(rule, Moved):
                if not _is_one_of(node.data, rule.unset):
                    self.move(key, rule.to)
            elif isinstance(rule, Only):
                if not _is_one_of(plain(node), rule.values):
                    self.refuse(key, rule.instead)
            elif isinstance(rule, Ignored) and node.data is not None:
                self.ignore(key, rule.why)

    def tree(self) -> Node:
        """The moved values as a tree of our form."""
        return _tree(self._moved, self._root)

    def notes(self) -> list[str]:
        """Keys without effect, and why: a line for each reason."""
        return [
            f"{', '.join(keys)} {'is' if len(keys) == 1 else 'are'} ignored: {why}"
            for why, keys in self._ignored.items()
        ]

    # Looking

    def value(self, key: str, default: Any = None) -> Any:
        """The value of a key; `default` if it is absent, null or could not be resolved."""
        node = self._given.get(key)
        return default if node is None or node.data in (None, MISSING) else node.data

    def flag(self, key: str) -> bool:
        """The value of a key that is true or false; false if it is absent."""
        value = self.value(key, False)
        if not isinstance(value, bool):
            self.problem(self.where(key), f"'{key}' is {_shown(value)}, expected true or false")
        return value is True

    def items(self, key: str) -> list[Node]:
        """The items of a list; empty if it is absent."""
        value = self.value(key, [])
        if not isinstance(value, list):
            self.problem(self.where(key), f"'{key}' is {_shown(value)}, expected a list")
            return []
        return value

    def names(self, key: str) -> dict[str, Node]:
        """The items of a list of names, by name, in order."""
        names: dict[str, Node] = {}
        for item in self.items(key):
            if not isinstance(item.data, str):
                found, expected = found_in(item), text_expected(item)
                self.problem(item.where, f"'{key}' holds {found}, expected {expected}")
            elif item.data in names:
                self.problem(item.where, f"'{key}' names '{item.data}' twice")
            elif item.data != MISSING:
                names[item.data] = item
        return names

    def has(self, group: str) -> bool:
        """Whether any key of a group is there."""
        return any(key.startswith(f"{group}.") for key in self._given)

    def where(self, key: str) -> str:
        """The place of a key; if it is absent, of the innermost mapping that it belongs to."""
        if key in self._given:
            return self._given[key].where
        while key not in self._groups:
            key = key.rpartition(".")[0]
        return self._groups[key]

    # Saying

    def problem(self, where: str, line: str) -> None:
        """Reports what is wrong at a place."""
        self._problems.append(f"{where}: {line}")

    def require(self, key: str) -> None:
        """Reports a problem if the key is absent or null."""
        node = self._given.get(key)
        if node is None or node.data is None:
            self.problem(self.where(key), f"'{key}' is missing")

    def refuse(self, key: str, instead: str) -> None:
        """Reports that the value of a key cannot be honoured; `instead` is a sentence."""
        node = self._given[key]
        if node.data != MISSING:
            self.problem(node.where, f"'{key}' is {_shown(plain(node))}. {instead}")

    def ignore(self, key: str, why: str) -> None:
        """Notes that a key has no effect; `why` is a phrase."""
        self._ignored.setdefault(why, []).append(key)

    def ignore_given(self, keys: Iterable[str], why: str) -> None:
        """Notes that keys, as far as they are given, have no effect."""
        for key in keys:
            if self.value(key) is not None:
                self.ignore(key, why)

    # Moving

    def move(self, key: str, to: str) -> None:
        """Puts the value of `key` at our key `to`."""
        self.put(self._given[key], to, name=key)

    def write(self, key: str, to: str, data: Any) -> None:
        """Puts `data` at our key `to`, with the place of NeMo's `key`, given or not."""
        node = self._given.get(key, Node(None, self.where(key)))
        self.put(replace(node, data=data), to, name=key)

    def put(self, node: Node, to: str, *, name: str) -> None:
        """Puts a node at our key `to`; the user knows it as `name`."""
        self._moved[to] = replace(node, name=name)

    # Reading

    def _read(self, group: Node, path: str) -> None:
        for name, node in group.data.items():
            key = f"{path}{name}"
            if key in KEYS:
                self._given[key] = node
            elif not any(known.startswith(f"{key}.") for known in KEYS):
                self._unknown(key, node)
            elif isinstance(node.data, dict):
                self._groups[key] = node.key_where or node.where
                self._read(node, f"{key}.")
            elif node.data not in (None, MISSING):
                self.problem(node.where, f"'{key}' is {_shown(plain(node))}, expected a mapping")

    def _unknown(self, key: str, node: Node) -> None:
        path, _, name = key.rpartition(".")
        siblings = _names_below(path)
        known = self._known.setdefault(path, KnownKeys(siblings))
        # A key in a wrong group is recognised by its last name.
        elsewhere = next((other for other in KEYS if other.endswith(f".{name}")), "")
        if key in HINTS:
            hint = HINTS[key]
        elif not path and name in _OUR_KEYS and not elsewhere:
            hint = "It belongs to plc's own form; 'model' and 'exp_manager' belong to NeMo's."
        elif elsewhere and not did_you_mean(name, siblings):
            hint = f"Did you mean '{elsewhere}'?"
        else:
            hint = known.hint(name)
        self.problem(*unknown_key(node, key, hint))


def plain(node: Node) -> Any:
    """The value of a node without places."""
    if isinstance(node.data, dict):
        return {key: plain(value) for key, value in node.data.items()}
    if isinstance(node.data, list):
        return [plain(item) for item in node.data]
    return node.data


def _tree(values: Mapping[str, Node], at: Node) -> Node:
    """Dotted keys as a tree; a group stands where its first value does."""
    groups: dict[str, dict[str, Node]] = {}
    for key, node in values.items():
        name, _, rest = key.partition(".")
        groups.setdefault(name, {})[rest] = node
    data = {
        name: inner[""] if "" in inner else _tree(inner, next(iter(inner.values())))
        for name, inner in groups.items()
    }
    return Node(data, at.where, at.folder, at.key_where)


def _names_below(path: str) -> list[str]:
    prefix = f"{path}." if path else ""
    names = (key.removeprefix(prefix).split(".")[0] for key in KEYS if key.startswith(prefix))
    return list(dict.fromkeys(names))


def _is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    # `True == 1` in Python, not in a config. What could not be resolved has been reported.
    return value == MISSING or any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in values
    )


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
