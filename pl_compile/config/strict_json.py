"""Reads JSON and refuses what other programs would read differently.

Python's reader takes more than JSON (`NaN`, `Infinity`), reads `1e999` as infinity, and takes the
last value of a key that is given twice. A file with these means something else to the next program,
or was damaged. So what I-JSON forbids (RFC 7493) is refused: such numbers, doubled keys, and halves
of surrogate pairs, which UTF-8 cannot write.

Errors give the line and column, as those of the standard library do.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from pl_compile.config import lfs
from pl_compile.config.utf8 import is_utf8, read_text
from pl_compile.errors import PlcError, reason_of

# One half of a surrogate pair in JSON. Whole pairs match too, and are checked once more.
_HALF_OF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|[{}\[\]:,]|[^\s"{}\[\]:,]+')
_BLANKS = re.compile(r"[ \t\r\n]*")


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        json.JSONDecodeError: it is not JSON, or JSON that programs read differently. It is a
            `ValueError` that says what, and where.
    """
    value, end = _value(text, _after_blanks(text, 0))
    _check_end(text, end)
    return value


def read_json_object(
    path: Path, error: type[PlcError], doing: str, *, fix: str = ""
) -> dict[str, Any]:
    """The object in a file of JSON, as a dict.

    Args:
        path: the file, of at most `MOST_TEXT_BYTES`.
        error: the exception to raise where the file holds no such object.
        doing: what an error says was being done.
        fix: what an error says to do next.

    Raises:
        FileNotFoundError: there is no such file; the caller decides what that means.
        PlcError: as `error`: it cannot be read, is not JSON, or holds something else.
    """
    expected = "a JSON object"
    try:
        text = read_text(path)
        if lfs.is_pointer(text):
            raise error(doing, found=lfs.FOUND, expected=expected, fix=lfs.FIX)
        content = parse_json(text)
    except (FileNotFoundError, NotADirectoryError) as reason:
        raise FileNotFoundError(*reason.args) from reason
    except (OSError, ValueError) as reason:
        raise error(doing, found=reason_of(reason), expected=expected, fix=fix) from reason
    if not isinstance(content, dict):
        raise error(doing, found="other JSON", expected=expected, fix=fix)
    return content


def with_null(value: Any) -> Any:
    """Plain data for JSON: null for numbers that are not finite, which JSON cannot write."""
    if isinstance(value, dict):
        return {key: with_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_json_array(text: str) -> Iterator[Any]:
    """The items of a text that is one JSON array, in order.

    Raises:
        json.JSONDecodeError: as for `parse_json`, after the items before the mistake were given.
    """
    at = _after_blanks(text, _after_blanks(text, 0) + 1)
    closed = text.startswith("]", at)
    while not closed:
        item, end = _value(text, at)
        yield item
        at = _after_blanks(text, end)
        closed = text.startswith("]", at)
        if not closed:
            if not text.startswith(",", at):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at = _after_blanks(text, at + 1)
    _check_end(text, at + 1)


def _check_end(text: str, end: int) -> None:
    end = _after_blanks(text, end)
    if end < len(text):
        raise json.JSONDecodeError("Extra data", text, end)


def _value(text: str, start: int) -> tuple[Any, int]:
    """The value that begins at `start`, and where it ends."""
    try:
        value, end = _DECODER.raw_decode(text, start)
        if _HALF_OF_A_PAIR.search(text, start, end):
            _refuse_halves(value)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("values nested too deep", text, start) from None
    except ValueError as error:
        raise json.JSONDecodeError(str(error), text, _place(text, start)) from None
    return value, end


def _place(text: str, start: int) -> int:
    """The place of the first value or key that is valid JSON but refused."""
    keys: list[set[str]] = [set()]  # of each open object; an array has no keys
    key, at = "", start
    for token in _TOKEN.finditer(text, start):
        word = token[0]
        if word in "{[":
            keys.append(set())
        elif word in "}]":
            keys.pop()
        elif word == ":":
            if key in keys[-1]:
                return at
            keys[-1].add(key)
        elif word != ",":
            at = token.start()
            try:
                value = _DECODER.decode(word)
                _refuse_halves(value)
            except ValueError:
                return at
            key = str(value)
    return start


def _after_blanks(text: str, start: int) -> int:
    match = _BLANKS.match(text, start)
    return match.end() if match else start


def _refuse_halves(value: Any) -> None:
    for part in _texts(value):
        if not is_utf8(part):
            raise ValueError(f"{part!r:.80} holds half of a surrogate pair, which is not text")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON: write a number, a text or null")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        shown = number if len(number) <= 20 else f"{number[:20]}… of {len(number)} digits"
        raise ValueError(f"the number {shown} is beyond the range of a double")
    return value


def _whole(number: str) -> int:
    _finite(number)
    return int(number)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        doubled = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the key {doubled!r} is given twice")
    return found


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, keys included; without recursion, since a file may nest deep."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting += [*item, *item.values()]
        elif isinstance(item, list):
            waiting += item


_DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant,
    parse_float=_finite,
    parse_int=_whole,
    object_pairs_hook=_without_doubles,
)
