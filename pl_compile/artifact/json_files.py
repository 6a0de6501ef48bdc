"""Reads JSON files from elsewhere into dataclasses, or raises one clear error."""

from pathlib import Path
from typing import TypeVar

from pl_compile.config.read import build, node_from_plain
from pl_compile.config.strict_json import parse_json
from pl_compile.config.utf8 import read_text
from pl_compile.errors import ArtifactError, ConfigError, reason_of

T = TypeVar("T")


def read_record(kind: type[T], path: Path, *, fix: str = "") -> T:
    """The dataclass that a JSON file describes.

    Args:
        kind: a frozen dataclass.
        path: the file.
        fix: what the reader of an error is told to do.

    Raises:
        ArtifactError: it cannot be read, or is not JSON of that kind.
    """
    doing = f"reading {path}"
    try:
        return record_of(kind, read_text(path), name=path.name, doing=doing)
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise ArtifactError(doing, found=f"damaged ({reason_of(error)})", fix=fix) from error


def record_of(kind: type[T], text: str, *, name: str, doing: str) -> T:
    """The dataclass that a JSON text describes.

    Args:
        kind: a frozen dataclass.
        text: the JSON.
        name: what messages call it.
        doing: what an error says was being done.

    Raises:
        ValueError: it is not JSON, or JSON that programs read differently.
        RecursionError: values are nested too deep.
        ConfigError: it is something else than `kind`.
    """
    return build(kind, node_from_plain(parse_json(text), name), doing=doing)
