"""Turns numbers that callers give into Python's own types; others could fail much later."""

import math
import operator
import sys
from numbers import Integral, Rational, Real


def whole(value: object) -> int | None:
    """A whole number, of numpy too; None for anything else, such as fractions or truth values."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def finite(value: object) -> float | None:
    """A finite number that a double can hold, of numpy too; None for anything else."""
    # numpy registers its numbers as these kinds, so numpy need not be imported.
    fraction = isinstance(value, Rational) and not isinstance(value, Integral)
    if isinstance(value, bool) or fraction or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def shown(value: object) -> str:
    """Any value, in short, for a message."""
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python writes no number that is longer
        return f"a number of more than {sys.get_int_max_str_digits()} digits"
