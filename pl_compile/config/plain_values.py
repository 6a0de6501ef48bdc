"""Numbers that callers give, as Python's own: a type that only looks right fails much later."""

import math
import operator
import sys
from numbers import Integral, Rational, Real


def whole(value: object) -> int | None:
    """A whole number, numpy's included; None for all else, for fractions and truth values too."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def finite(value: object) -> float | None:
    """A number that a double can hold, numpy's included; None for all else."""
    # numpy's numbers are of these kinds too, and nothing has to be imported to see it.
    fraction = isinstance(value, Rational) and not isinstance(value, Integral)
    if isinstance(value, bool) or fraction or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def shown(value: object) -> str:
    """A value as a message shows it: in short, and whatever it is."""
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python writes no number that is longer
        return f"a number of more than {sys.get_int_max_str_digits()} digits"
