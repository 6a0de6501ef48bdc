"""JSON as other programs would read it: what they would read differently is refused.

Python's reader takes more than JSON (`NaN`, `Infinity`), reads `1e999` as infinity and of a key
that is given twice the last. A file with these means something else to the next program, or was
damaged. Refused here is what I-JSON forbids (RFC 7493): such numbers, doubled keys, and halves of
surrogate pairs, which UTF-8 cannot write.

`parse_json` reads a text with one value, `parse_json_array` the items of an array, so that a
mistake in a long one has a line.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

# How JSON writes one half of a pair; whole pairs match too and are looked at again.
_HALF_OF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_BLANKS = re.compile(r"[ \t\r\n]*")


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, or JSON that programs read differently; says what, and where the
            standard library knows it.
    """
    value, end = _value(text, _after_blanks(text, 0))
    end = _after_blanks(text, end)
    if end < len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def parse_json_array(text: str) -> Iterator[Any]:
    """The items of a text that is one JSON array, in order.

    Raises:
        ValueError: as for `parse_json`, with the line; the items before it have been given.
    """
    at = _after_blanks(text, _after_blanks(text, 0) + 1)
    closed = text.startswith("]", at)
    while not closed:
        try:
            item, end = _value(text, at)
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            line = text.count("\n", 0, at) + 1
            raise ValueError(f"the item that opens at line {line}: {error}") from None
        yield item
        at = _after_blanks(text, end)
        closed = text.startswith("]", at)
        if not closed:
            if not text.startswith(",", at):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at = _after_blanks(text, at + 1)
    end = _after_blanks(text, at + 1)
    if end < len(text):
        raise json.JSONDecodeError("Extra data", text, end)


def _value(text: str, start: int) -> tuple[Any, int]:
    """The value that opens at `start`, and where it ends."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        raise ValueError("values nested without end") from None
    if _HALF_OF_A_PAIR.search(text, start, end):
        for part in _texts(value):
            if any("\ud800" <= character <= "\udfff" for character in part):
                raise ValueError(f"{part!r:.80} holds half of a surrogate pair, which is no text")
    return value, end


def _after_blanks(text: str, start: int) -> int:
    match = _BLANKS.match(text, start)
    return match.end() if match else start


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON: write null, or leave the value out")


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
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {doubled!r} is given twice")
    return found


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, keys included; without recursion, since depth is the file's choice."""
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
