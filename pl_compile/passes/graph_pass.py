"""What a pass is: a frozen dataclass whose fields are its options.

`requires` says what it needs of the model, `rewrite` changes the model in place, `ensures` says
what it promises. The pipeline verifies the model before and after each pass, times it and prints
it; no pass does that for itself (`docs/writing-a-pass.md`).
"""

import re
from abc import abstractmethod
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class GraphPass(ir.passes.InPlacePass):
    """A step from one form of the main graph to the next."""

    @property
    def name(self) -> str:
        """The class's name in the words of the command line: `MergeProducts` is merge-products."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type(self).__name__).lower()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites the model; see `onnx_ir.passes.PassBase`."""
        return ir.passes.PassResult(model, self.rewrite(model))

    @abstractmethod
    def rewrite(self, model: ir.Model) -> bool:
        """Changes the model in place and says whether it did."""
