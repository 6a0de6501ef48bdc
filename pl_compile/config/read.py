"""Strict reading of YAML and plain data into frozen dataclasses.

`read_yaml` turns a file into a tree of `Node`s that remember their file and line, `override` puts
`--set key=value` into it, and `build` makes a dataclass of it. Unknown keys are refused with the
nearest known name, and every problem of a file is reported in one error. Knows no particular
config.
"""

import dataclasses
import itertools
import json
import math
import re
import shlex
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin

from pl_compile.config.utf8 import is_utf8, read_text
from pl_compile.errors import ConfigError, OptionError, did_you_mean, list_problems, reason_of

if TYPE_CHECKING:
    import yaml

T = TypeVar("T")

# Aliases of aliases grow exponentially: ten levels can be more values than memory holds.
_MOST_VALUES = 100_000

# The longest text that a message shows in quotes, as it should be written.
_LONGEST_SHOWN = 1000

# YAML 1.1's tag of the key "<<", which copies the keys of another mapping.
_MERGE = "tag:yaml.org,2002:merge"

# Numbers that YAML 1.1 reads in an unexpected way: 010 is 8, and 1:30 is 90.
_ODD_NUMBER = re.compile(r"[-+]?0[0-7_]+|.*:.*")


@dataclass(frozen=True, slots=True)
class Node:
    """A value with the place where it was written.

    `data` is a scalar, a list of nodes, or a dict from key to node. Relative paths in it start at
    `folder`: the folder of its file, or the current one for `--set`. `key_where` is the place of
    its key, which may be a line above. `name` is for messages: the key as the user wrote it, where
    it was translated from another form. `written` is the YAML text of a value that YAML does not
    read as a text, such as `yes` or `Desk: {label}`.
    """

    data: Any
    where: str
    folder: Path = Path()
    key_where: str = ""
    name: str = ""
    written: str = ""


class KnownKeys:
    """The keys that mappings of one kind may have, and hints for unknown ones.

    Args:
        names: the keys.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self._listed = False

    def hint(self, key: str) -> str:
        """The key that was probably meant; if none is near, all keys, but only the first time."""
        near = did_you_mean(key, self._names)
        if near or self._listed:
            return near
        self._listed = True
        return f"Known keys: {', '.join(self._names)}."


def unknown_key(node: Node, path: str, hint: str) -> tuple[str, str]:
    """The place of an unknown key, and the message about it.

    Args:
        node: its value.
        path: the key, with the keys around it.
        hint: a sentence that helps; may be empty.
    """
    return node.key_where or node.where, f"unknown key '{path}'. {hint}".rstrip(" .")


def read_yaml(path: Path) -> Node:
    """The tree of a YAML file (safe tags only; a key given twice is refused).

    Raises:
        ConfigError: the file is missing, is not YAML, or its top level is not a mapping.
    """
    doing = f"reading {path}"
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise ConfigError(doing, found="no such file", fix="Check the path.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(doing, found=reason_of(error), expected="a UTF-8 text file") from error
    node = _parse(text, doing, name=path.name, folder=path.parent)
    if not isinstance(node.data, dict):
        raise ConfigError(doing, found=_kind(node.data), expected="a mapping at the top level")
    return node


def node_from_plain(value: Any, where: str) -> Node:
    """The tree of plain data (what `json.loads` gives), all at one place."""
    if isinstance(value, Mapping):
        return Node({key: node_from_plain(item, where) for key, item in value.items()}, where)
    if isinstance(value, list | tuple):
        return Node([node_from_plain(item, where) for item in value], where)
    return Node(value, where)


def plain_from_config(config: Any) -> Any:
    """A dataclass as plain data that JSON and YAML can write and `build` reads back."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {
            field.name: plain_from_config(getattr(config, field.name))
            for field in dataclasses.fields(config)
        }
    if isinstance(config, Mapping):
        return {key: plain_from_config(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [plain_from_config(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def override(root: Node, settings: Sequence[str]) -> Node:
    """The tree with each "dotted.key=value" set; values are read as YAML.

    A number addresses an item of a list: `tasks.0.total_virtual_tokens=10`.

    Raises:
        ConfigError: a setting without "=", or one that reaches into a scalar or past a list's end.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        doing = f"reading --set {setting}"
        if not equals or not key:
            found = "no key" if equals else "no '='"
            raise OptionError(doing, found=found, expected="key=value")
        root = _graft(root, key.split("."), _parse(text, doing, name=f"--set {key}"), doing)
    return root


def build(kind: type[T], node: Node, *, doing: str) -> T:
    """A `kind` (a frozen dataclass) from a tree.

    Raises:
        ConfigError: unknown or missing keys, values of a wrong type, and each `ConfigError` that a
            dataclass raises in its `__post_init__`: all of them in one message.
    """
    problems: list[str] = []
    value = _convert(kind, node, "", problems)
    if problems:
        raise ConfigError(doing, found=list_problems(problems))
    return typing.cast(T, value)


def _cause(error: "yaml.MarkedYAMLError", text: str) -> str:
    """The cause of a PyYAML error in words for the author of the text; often empty."""
    mark = error.problem_mark
    line = text.splitlines()[mark.line : mark.line + 1] if mark else []
    if error.problem == "but found another document":
        return "a second document begins here (---), but only one is read"
    if "'\\t'" in (error.problem or ""):
        return "a tab, where YAML needs blanks"
    if any(quote in each for each in line for quote in "\u201c\u201d\u201e\u2018\u2019"):
        return "typographic quotes; write straight ones, \" or '"
    if error.problem == "mapping values are not allowed here":
        return "an unexpected colon: put a text with a colon in quotes, or check the indentation"
    return ""


def _parse(text: str, doing: str, *, name: str, folder: Path = Path()) -> Node:
    import yaml  # imported here, since a runtime reads only JSON

    fix = ""
    if name.startswith("--set"):
        fix = f"If it is a text, {_in_quotes(text, for_shell=True)}."
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return Node(None, name)
        return _NodeReader(loader, name, folder, doing).read(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        found = f"{place}: {_cause(error, text) or error.problem or error}"
        raise ConfigError(doing, found=found, expected="valid YAML", fix=fix) from error
    except (yaml.YAMLError, ValueError) as error:
        found = f"{name}: {error}"
        raise ConfigError(doing, found=found, expected="valid YAML", fix=fix) from error
    except RecursionError:
        raise ConfigError(
            doing, found=f"{name}: values nested too deep", expected="a config a person wrote"
        ) from None


@dataclass(frozen=True)
class _NodeReader:
    loader: "yaml.SafeLoader"
    name: str
    folder: Path
    doing: str
    count: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    def read(self, node: "yaml.Node") -> Node:
        from yaml import nodes as yaml_nodes

        where = f"{self.name}:{node.start_mark.line + 1}"
        if node.tag not in self.loader.yaml_constructors:
            raise ConfigError(self.doing, found=f"{where}: the tag {node.tag}", expected="no tag")
        if next(self.count) > _MOST_VALUES:
            found = f"{where}: more than {_MOST_VALUES:,} values, repeated ones included"
            raise ConfigError(self.doing, found=found, expected="a config a person wrote")
        if isinstance(node, yaml_nodes.MappingNode):
            return Node(self._entries(node), where, self.folder, written=_on_one_line(node))
        if isinstance(node, yaml_nodes.SequenceNode):
            items = [self.read(item) for item in node.value]
            return Node(items, where, self.folder, written=_on_one_line(node))
        value = self._value(node, where)
        written = "" if isinstance(value, str) else node.value
        return Node(value, where, self.folder, written=written)

    def _value(self, node: "yaml.Node", where: str) -> Any:
        try:
            value = self.loader.construct_object(node)
        except (ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
            # 2024-99-99, or `!!bool maybe`: PyYAML does not catch what Python raises there.
            kind = node.tag.rpartition(":")[2]
            found = f"{where}: {node.value!r}, which is not of type {kind}"
            raise ConfigError(self.doing, found=found, expected="valid YAML") from error
        if not isinstance(value, str) or is_utf8(value):
            return value
        try:
            # PyYAML does not join the halves of a pair. JSON writes "\ud83d\ude00" for an emoji.
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            found = f"{where}: {value!r:.80}, half of a surrogate pair"
            raise ConfigError(self.doing, found=found, expected="text") from None

    def _entries(self, node: "yaml.MappingNode") -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for key_node, value_node in node.value:
            line = f"{self.name}:{key_node.start_mark.line + 1}"
            if key_node.tag == _MERGE:
                found = f"{line}: a merge key (<<), which is not read"
                raise ConfigError(self.doing, found=found, fix="Write its keys out.")
            key = self._value(key_node, line)
            if not isinstance(key, str):
                raise ConfigError(self.doing, found=f"{line}: the key {key!r}", expected="text")
            if key in entries:
                raise ConfigError(self.doing, found=f"{line}: '{key}' is given twice")
            entries[key] = replace(self.read(value_node), key_where=line)
        return entries


def _on_one_line(node: "yaml.CollectionNode") -> str:
    """A mapping or a list as it is written, since a text may be meant; empty if it is long."""
    start, end = node.start_mark, node.end_mark
    if start.buffer is None or end.pointer - start.pointer > _LONGEST_SHOWN:
        return ""
    text: str = start.buffer[start.pointer : end.pointer].strip(" \r\n\0")
    return "" if "\n" in text else text


def _graft(node: Node, keys: list[str], value: Node, doing: str) -> Node:
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if node.data is None:
        node = Node({}, value.where)
    if isinstance(node.data, dict):
        child = node.data.get(key, Node(None, value.where))
        entries = {**node.data, key: _graft(child, rest, value, doing)}
        return Node(entries, node.where, node.folder)
    if isinstance(node.data, list):
        if not key.isdecimal() or int(key) >= len(node.data):
            raise ConfigError(
                doing, found=f"index '{key}'", expected=f"a number below {len(node.data)}"
            )
        items = list(node.data)
        items[int(key)] = _graft(items[int(key)], rest, value, doing)
        return Node(items, node.where, node.folder)
    raise ConfigError(doing, found=f"'{key}' lies inside {_kind(node.data)}", expected="a mapping")


def _convert(kind: Any, node: Node, path: str, problems: list[str]) -> Any:
    path = node.name or path
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(typing.cast(type[Any], kind), node, path, problems)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _convert_union(kind, node, path, problems)
    if origin is Literal:
        return _convert_literal(kind, node, path, problems)
    if origin is tuple:
        return _convert_tuple(kind, node, path, problems)
    if origin is Mapping:
        return _convert_mapping(kind, node, path, problems)
    return _convert_scalar(kind, node, path, problems)


@cache
def _hints_of(kind: type[Any]) -> dict[str, Any]:
    """The types of a dataclass's fields. To work them out takes longer than to read a task."""
    return typing.get_type_hints(kind)


def _convert_dataclass(kind: type[Any], node: Node, path: str, problems: list[str]) -> Any:
    if not isinstance(node.data, dict):
        problems.append(_mismatch(node, path, "a mapping"))
        return None
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = _hints_of(kind)  # type: ignore[arg-type]  # classes can be hashed
    before = len(problems)
    known = KnownKeys(fields)
    for key, value in node.data.items():
        if key not in fields:
            problems.append(": ".join(unknown_key(value, _join(path, key), known.hint(key))))
    values = {}
    for name, field in fields.items():
        if name in node.data:
            values[name] = _convert(hints[name], node.data[name], _join(path, name), problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{node.where}: '{_join(path, name)}' is missing")
    if len(problems) > before:
        return None
    try:
        return kind(**values)
    except ConfigError as error:
        problems.append(f"{node.where}: {error}")
        return None


def _convert_union(kind: Any, node: Node, path: str, problems: list[str]) -> Any:
    options = get_args(kind)
    if node.data is None and type(None) in options:
        return None
    tried: list[str] = []
    for option in options:
        if option is type(None):
            continue
        tried = []
        value = _convert(option, node, path, tried)
        if not tried:
            return value
    problems.extend(tried)  # of the last type tried: a union is "X or null" or "number or ..."
    return None


def _convert_literal(kind: Any, node: Node, path: str, problems: list[str]) -> Any:
    options = get_args(kind)
    if node.data not in options or isinstance(node.data, bool):
        listed = ", ".join(str(option) for option in options)
        hint = did_you_mean(str(node.data), map(str, options))
        problems.append(f"{_mismatch(node, path, f'one of {listed}')}. {hint}".rstrip(" ."))
        return None
    return node.data


def _convert_tuple(kind: Any, node: Node, path: str, problems: list[str]) -> Any:
    if not isinstance(node.data, list):
        none = " ([] for none)" if node.data is None and get_args(kind)[-1] is Ellipsis else ""
        problems.append(_mismatch(node, path, f"a list{none}"))
        return None
    arguments = get_args(kind)
    if arguments[-1] is Ellipsis:
        kinds = [arguments[0]] * len(node.data)
    elif len(arguments) != len(node.data):
        problems.append(_mismatch(node, path, f"a list of {len(arguments)}"))
        return None
    else:
        kinds = list(arguments)
    return tuple(
        _convert(item_kind, item, f"{path}.{index}", problems)
        for index, (item_kind, item) in enumerate(zip(kinds, node.data, strict=True))
    )


def _convert_mapping(kind: Any, node: Node, path: str, problems: list[str]) -> Any:
    if not isinstance(node.data, dict):
        problems.append(_mismatch(node, path, "a mapping"))
        return None
    value_kind = get_args(kind)[1]
    return {
        key: _convert(value_kind, value, _join(path, key), problems)
        for key, value in node.data.items()
    }


def _convert_scalar(kind: Any, node: Node, path: str, problems: list[str]) -> Any:
    value = node.data
    is_scalar = not isinstance(value, dict | list)
    if kind in (int, float) and is_scalar and _ODD_NUMBER.fullmatch(node.written):
        problems.append(_mismatch(node, path, "a number without leading zeros or colons"))
        return None
    if kind is int and isinstance(value, int) and abs(value) >= 2**63:
        problems.append(_mismatch(node, path, "a number of 64 bits at most"))
        return None
    if kind is float:
        value = _as_float(value)
        if isinstance(value, float) and not math.isfinite(value):
            problems.append(_mismatch(node, path, "a finite number"))
            return None
    if kind is Path and isinstance(value, str) and value:
        return node.folder / value
    if kind is Any or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
        return value
    names = {int: "a whole number", float: "a number", bool: "true or false"}
    problems.append(_mismatch(node, path, names.get(kind) or text_expected(node, kind)))
    return None


def _as_float(value: Any) -> Any:
    """A number as a float. A text too: YAML 1.1 reads 1e-3, which has no dot, as text."""
    if isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    return value


def text_expected(node: Node, kind: type = str) -> str:
    """What is expected in place of a value that is not a text, and how to write it as one."""
    expected = "a path" if kind is Path else "text"
    if not node.written:
        return expected
    return f"{expected}: {_in_quotes(node.written, for_shell=node.where.startswith('--set'))}"


def _in_quotes(text: str, *, for_shell: bool) -> str:
    """How a text is written so that YAML reads it as one."""
    quoted = json.dumps(text, ensure_ascii=False)
    if for_shell:
        return f"write {shlex.quote(quoted)}, with both pairs of quotes"
    return f"write {quoted}, with the quotes"


def _mismatch(node: Node, path: str, expected: str) -> str:
    return f"{node.where}: '{path}' is {found_in(node)}, expected {expected}"


def found_in(node: Node) -> str:
    """A value as it was written, and as YAML reads it where that differs."""
    if node.written and node.data is not None and not isinstance(node.data, dict | list):
        plain = str(node.data)
        same = plain.casefold() == node.written.casefold()
        return node.written if same else f"{node.written}, which YAML reads as {plain}"
    return _kind(node.data)


def _kind(data: Any) -> str:
    if data is None:
        return "empty"
    if isinstance(data, dict):
        return "a mapping"
    if isinstance(data, list):
        return f"a list of {len(data)}"
    return repr(data)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
