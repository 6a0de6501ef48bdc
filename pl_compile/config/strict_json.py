"""JSON as other programs would read it: what they would read differently is refused.

Python's reader takes more than JSON (`NaN`, `Infinity`), reads `1e999` as infinity and of a key
that is given twice the last. A file with these means something else to the next program, or was
damaged. Refused here is what I-JSON forbids (RFC 7493): such numbers, doubled keys, and halves of
surrogate pairs, which UTF-8 cannot write.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NoReturn

# How JSON writes one half of a pair; whole pairs match too and are looked at again.
_HALF_OF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, or JSON that programs read differently; says what, and where the
            standard library knows it.
    """
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_without_doubles,
        )
    except RecursionError:
        raise ValueError("values nested without end") from None
    if _HALF_OF_A_PAIR.search(text):
        for part in _texts(value):
            if any("\ud800" <= character <= "\udfff" for character in part):
                raise ValueError(f"{part!r:.80} holds half of a surrogate pair, which is no text")
    return value


def with_null(value: Any) -> Any:
    """Plain data for JSON: null for numbers that are not finite, for which JSON has no words."""
    if isinstance(value, dict):
        return {key: with_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON: write null, or leave the value out")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"the number {number} is beyond the range of a double")
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        doubled = next(name for name, count in counts.items() if count > 1)
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
