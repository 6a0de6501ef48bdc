"""What may fill a field of a template."""

import numpy as np

from pl_compile.config.plain_values import finite
from pl_compile.config.utf8 import is_utf8


def is_field_value(value: object) -> bool:
    """Whether a value may fill a field: a finite number, or text that UTF-8 can write."""
    if isinstance(value, str):
        return is_utf8(value)
    return finite(value) is not None


def expected_value(value: object) -> str:
    """What was expected instead of a value that may not fill a field, for a message."""
    if isinstance(value, str):
        return "text that UTF-8 can write: this holds half of a surrogate pair"
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        return "a finite number that a double can hold: give it as text"
    return "text or a number"
