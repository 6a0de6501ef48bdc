"""What a pass is: a frozen dataclass whose fields are its options.

`requires` says what it needs of the model, `rewrite` changes the model in place, `ensures` says
what it promises. The pipeline verifies the model before and after each pass, times it and prints
it; no pass does that for itself (`docs/writing-a-pass.md`).
"""

import re
from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import Any

import onnx_ir as ir


@dataclass
class NotedResult(ir.passes.PassResult):
    """A pass's result, with what it says of its work.

    Attributes:
        notes: records of the pass's own kind, for the report; most passes have none.
    """

    notes: tuple[Any, ...] = ()


@dataclass(frozen=True)
class GraphPass(ir.passes.InPlacePass):
    """A step from one form of the main graph to the next."""

    @property
    def name(self) -> str:
        """The class's name in the words of the command line: `MergeProducts` is merge-products."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type(self).__name__).lower()

    @property
    def options(self) -> dict[str, Any]:
        """The fields that say something in a report: plain values, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value for name, value in values.items() if isinstance(value, int | float | str)
        }

    def call(self, model: ir.Model) -> NotedResult:
        """Rewrites the model; see `onnx_ir.passes.PassBase`."""
        done = self.rewrite(model)
        return NotedResult(model, bool(done), done if isinstance(done, tuple) else ())

    @abstractmethod
    def rewrite(self, model: ir.Model) -> bool | tuple[Any, ...]:
        """Changes the model in place.

        Returns:
            Whether it did; or a note on each change, none where nothing changed.
        """
