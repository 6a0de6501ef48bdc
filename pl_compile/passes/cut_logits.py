"""A step may say which logits it needs: the others are not computed.

before:  logits = plc::BlockProduct(x, codes, steps, bits=8, ...)
after:   logits = plc::BlockProduct(x, codes, steps, , logit_tiles, bits=8, ...)

`logit_tiles` is a new input of the graph: see `config/contract.py`. Between product and logits may
stand what works on each number by itself, and the cut of a padded vocabulary.
"""

from dataclasses import dataclass

import onnx_ir as ir

from pl_compile.config.contract import LOGIT_TILES, LOGITS
from pl_compile.graph.kernel_operators import BLOCK_PRODUCT, BLOCK_PRODUCT_INPUTS
from pl_compile.graph.operators import PLC_DOMAIN
from pl_compile.passes.edit import is_op
from pl_compile.passes.graph_pass import GraphPass

# What `OnnxBlocks.head` puts after the product: the first input of each is what came before.
_AFTER_THE_PRODUCT = ("Slice", "Mul", "Tanh")


@dataclass(frozen=True)
class CutLogits(GraphPass):
    """Adds the input."""

    def requires(self, model: ir.Model) -> None:
        """A product of our kernels gives the logits, and takes no tiles yet."""
        assert len(_product_of_logits(model).inputs) < len(BLOCK_PRODUCT_INPUTS)

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        product = _product_of_logits(model)
        tiles = ir.val(LOGIT_TILES, ir.DataType.INT64, ir.Shape(["tiles"]))
        model.graph.inputs.append(tiles)
        product.resize_inputs(len(BLOCK_PRODUCT_INPUTS))
        product.replace_input_with(BLOCK_PRODUCT_INPUTS.index("tiles"), tiles)
        return True

    def ensures(self, model: ir.Model) -> None:
        """The product of the logits takes the input."""
        last = _product_of_logits(model).inputs[-1]
        assert last is not None
        assert last.name == LOGIT_TILES
        assert last.is_graph_input()


def _product_of_logits(model: ir.Model) -> ir.Node:
    node = next(value for value in model.graph.outputs if value.name == LOGITS).producer()
    while node is not None and not is_op(node, BLOCK_PRODUCT, PLC_DOMAIN):
        assert node.op_type in _AFTER_THE_PRODUCT, f"{node.op_type} before the logits"
        assert node.inputs[0] is not None
        node = node.inputs[0].producer()
    assert node is not None, "no product of our kernels gives the logits"
    return node
