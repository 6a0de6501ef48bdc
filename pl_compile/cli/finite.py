"""Numbers of the command line that must be finite."""

import math
from typing import Any

import click


class FiniteRange(click.FloatRange):
    """A range of numbers without infinity and NaN, which `click.FloatRange` lets through."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number of a text.

        Raises:
            click.BadParameter: it is none, beyond the range, or not finite.
        """
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number
