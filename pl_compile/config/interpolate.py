"""References between the keys of a file, in OmegaConf's form: `${model.seed}`.

In: a tree of `Node`s. Out: the same tree with values instead of references. Only references to keys
of the same file are known: nothing is computed, and no environment variable is read.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pl_compile.config.read import Node

# OmegaConf's word for "must be given"; here also the result where a value cannot be resolved.
MISSING = "???"

# References to references grow exponentially: ten lines can be more text than memory holds.
_DEEPEST = 10
_MOST_REFERENCES = 10_000
_LONGEST = 1_000_000

_REFERENCE = re.compile(r"(\\?)\$\{([^}]*)\}?")
_KEY = re.compile(r"\w+(\.\w+)*")


def resolve(
    root: Node, problems: list[str], *, without: Callable[[str], bool] = lambda key: False
) -> Node:
    r"""The tree with each `${a.b}` replaced by the value of that key; `\${` stays as `${`.

    Args:
        root: the tree.
        problems: gets a line with the place of everything that cannot be resolved, and of every
            value that is still `???`. Such values are `MISSING` in the result.
        without: whether the value at a dotted key is left as it is, since nothing reads it.
    """
    return _Resolver(root, problems, without).resolved(root, "", ())


class _Resolver:
    def __init__(self, root: Node, problems: list[str], without: Callable[[str], bool]) -> None:
        self._root = root
        self._problems = problems
        self._without = without
        self._n_followed = 0

    def resolved(self, node: Node, key: str, within: tuple[str, ...]) -> Node:
        """`node`, which stands at `key`; `within` are the references that led here."""
        if not within and self._without(key):
            return node
        if isinstance(node.data, dict):
            items = {
                name: self.resolved(child, f"{key}.{name}".lstrip("."), within)
                for name, child in node.data.items()
            }
            return replace(node, data=items)
        if isinstance(node.data, list):
            return replace(
                node,
                data=[
                    self.resolved(child, f"{key}.{index}", within)
                    for index, child in enumerate(node.data)
                ],
            )
        if node.data == MISSING:
            # Reported once, at its own place, not where it is referred to.
            if not within:
                self._problems.append(
                    f"{node.where}: '{key}' has no value yet (???). Give it: --set {key}=..."
                )
            return node
        if not isinstance(node.data, str) or "${" not in node.data:
            return node
        return self._text(node, node.data, within)

    def _text(self, node: Node, text: str, within: tuple[str, ...]) -> Node:
        whole = _REFERENCE.fullmatch(text)
        if whole and not whole[1]:
            target = self._target(node, whole[2], within)
            return replace(target, where=node.where, key_where=node.key_where)
        parts: list[str] = []
        end = 0
        for match in _REFERENCE.finditer(text):
            parts.append(text[end : match.start()])
            end = match.end()
            if match[1]:
                parts.append(match[0][1:])
                continue
            value = self._target(node, match[2], within).data
            if value == MISSING:
                return replace(node, data=MISSING)
            if isinstance(value, dict | list):
                return self._refused(
                    node, match[2], "is not a single value that can be put into a text"
                )
            parts.append(str(value))
            if sum(map(len, parts)) > _LONGEST:
                return self._refused(node, match[2], "makes a text that is too long")
        return replace(node, data="".join([*parts, text[end:]]))

    def _target(self, node: Node, key: str, within: tuple[str, ...]) -> Node:
        if not _KEY.fullmatch(key):
            return self._refused(node, key, "is not a reference to a key of this file")
        if key in within:
            return self._refused(node, key, "refers to itself")
        self._n_followed += 1
        if len(within) == _DEEPEST or self._n_followed > _MOST_REFERENCES:
            return self._refused(node, key, "is one reference too many")
        target = self._root
        for name in key.split("."):
            found: Any = target.data.get(name) if isinstance(target.data, dict) else None
            if found is None:
                return self._refused(node, key, "is not a key of this file")
            target = found
        return self.resolved(target, key, (*within, key))

    def _refused(self, node: Node, key: str, why: str) -> Node:
        self._problems.append(f"{node.where}: '${{{key}}}' {why}. Write the value itself.")
        return replace(node, data=MISSING)
