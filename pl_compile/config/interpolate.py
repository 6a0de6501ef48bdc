"""References between the keys of a file, as OmegaConf writes them: `${model.seed}`.

A tree of `Node`s in, the same tree with values instead of references out. Only references to keys
of the same file are known: nothing is computed, and no environment is read.
"""

import re
from dataclasses import replace
from typing import Any

from pl_compile.config.read import Node

# OmegaConf's word for "must be given". A value that cannot be resolved becomes it too.
MISSING = "???"

_REFERENCE = re.compile(r"(\\?)\$\{([^}]*)\}?")
_KEY = re.compile(r"\w+(\.\w+)*")


def resolve(root: Node, problems: list[str]) -> Node:
    r"""The tree with each `${a.b}` replaced by the value of that key; `\${` stays as `${`.

    Args:
        root: the tree.
        problems: gets a line with the place of everything that cannot be resolved, and of every
            value that is still `???`. Such values are `MISSING` in the result.
    """
    return _Resolver(root, problems).resolved(root, "", ())


class _Resolver:
    def __init__(self, root: Node, problems: list[str]) -> None:
        self._root = root
        self._problems = problems

    def resolved(self, node: Node, key: str, within: tuple[str, ...]) -> Node:
        """`node`, which stands at `key`; `within` are the references that led here."""
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
            # Said once: where it stands, not where it is referred to.
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
                return self._refused(node, match[2], "is no single value, to be put into a text")
            parts.append(str(value))
        return replace(node, data="".join([*parts, text[end:]]))

    def _target(self, node: Node, key: str, within: tuple[str, ...]) -> Node:
        if not _KEY.fullmatch(key):
            return self._refused(node, key, "is no reference to a key of this file")
        if key in within:
            return self._refused(node, key, "refers to itself")
        target = self._root
        for name in key.split("."):
            found: Any = target.data.get(name) if isinstance(target.data, dict) else None
            if found is None:
                return self._refused(node, key, "names no key of this file")
            target = found
        return self.resolved(target, key, (*within, key))

    def _refused(self, node: Node, key: str, why: str) -> Node:
        self._problems.append(f"{node.where}: '${{{key}}}' {why}. Write the value itself.")
        return replace(node, data=MISSING)
