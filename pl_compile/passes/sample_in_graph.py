"""The next token is chosen in the graph, from noise that the host draws.

before:  logits
after:   logits, and next_token from logits, noise and the numbers of `config.sampling.IN_GRAPH`

    values, ids = TopK(logits, candidates)                      likeliest first; ties by id
    scaled      = (values - values[0]) / temperature            of rank >= top_k: minus infinity
    stays       = CumSum(Softmax(scaled), exclusive) < top_p    the first always does
    falls       = Exp(scaled) < min_p                           the first never does
    next_token  = ids[ArgMax(scaled + noise)]                   of those that stay and do not fall

The largest of logits plus Gumbel noise is a draw from their softmax (arXiv:1611.00712); with
temperature 0 there is no noise, and it is the likeliest token. `runtime/sampling.py` does the
same steps.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pl_compile.config.contract import LOGITS, NEXT_TOKEN, NOISE
from pl_compile.config.sampling import IN_GRAPH
from pl_compile.passes.edit import Edit
from pl_compile.passes.graph_pass import GraphPass


@dataclass(frozen=True)
class SampleInGraph(GraphPass):
    """Adds the choice of the next token.

    Attributes:
        candidates: the likeliest tokens that it looks at.
    """

    candidates: int

    def requires(self, model: ir.Model) -> None:
        """There are logits, and no token is chosen from them yet."""
        outputs = [value.name for value in model.graph.outputs]
        assert outputs.count(LOGITS) == 1, f"no {LOGITS} among {outputs}"
        assert NEXT_TOKEN not in outputs, f"{NEXT_TOKEN} is chosen already"

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        graph = model.graph
        edit = Edit(model)
        logits = next(value for value in graph.outputs if value.name == LOGITS)
        assert logits.shape is not None
        (rows, _) = logits.shape
        numbers = {
            name: ir.val(name, ir.DataType.from_numpy(np.dtype(dtype)), ir.Shape([rows]))
            for name, dtype in IN_GRAPH.items()
        }
        temperature = numbers["temperature"]
        noise = ir.val(NOISE, ir.DataType.FLOAT, ir.Shape([rows, self.candidates]))
        graph.inputs.extend([*numbers.values(), noise])

        def op(op_type: str, *inputs: ir.Value, name: str, **attributes: int) -> ir.Value:
            output = ir.val(f"sample.{name}/out")
            node = ir.node(op_type, inputs, attributes, name=f"sample.{name}", outputs=[output])
            graph.append(node)
            return node.outputs[0]

        def constant(name: str, array: object, kind: type[np.generic]) -> ir.Value:
            return edit.initializer(f"sample.{name}", np.asarray(array, kind))

        zero, one = constant("0", 0.0, np.float32), constant("1", 1.0, np.float32)
        lowest = constant("lowest", -np.inf, np.float32)
        last = constant("last_axis", [-1], np.int64)
        node = ir.node(
            "TopK",
            [logits, constant("candidates", [self.candidates], np.int64)],
            {"axis": -1, "largest": 1, "sorted": 1},
            name="sample.candidates",
            outputs=[ir.val("sample.values/out"), ir.val("sample.ids/out")],
        )
        graph.append(node)
        values, ids = node.outputs

        def column(value: ir.Value, name: str) -> ir.Value:
            return op("Unsqueeze", value, last, name=name)

        is_greedy = op("Equal", temperature, zero, name="is_greedy")
        divisor = op("Where", is_greedy, one, temperature, name="divisor")
        first = op("ReduceMax", values, last, name="first", keepdims=1)
        scaled = op("Sub", values, first, name="from_first")
        scaled = op("Div", scaled, column(divisor, "divisor.column"), name="scaled")
        ranks = constant("ranks", np.arange(self.candidates), np.int64)
        within = op("Less", ranks, column(numbers["top_k"], "top_k.column"), name="within_top_k")
        scaled = op("Where", within, scaled, lowest, name="top_k")
        shares = op("Softmax", scaled, name="shares", axis=-1)
        axis = constant("axis", 1, np.int64)
        before = op("CumSum", shares, axis, name="before", exclusive=1)
        stays = op("Less", before, column(numbers["top_p"], "top_p.column"), name="within_top_p")
        of_first = op("Exp", scaled, name="of_first")
        falls = op("Less", of_first, column(numbers["min_p"], "min_p.column"), name="below_min_p")
        quiet = op("Where", column(is_greedy, "is_greedy.column"), zero, noise, name="noise")
        noisy = op("Add", scaled, quiet, name="noisy")
        noisy = op("Where", stays, noisy, lowest, name="top_p")
        noisy = op("Where", falls, lowest, noisy, name="min_p")
        chosen = op("ArgMax", noisy, name="chosen", axis=-1, keepdims=1)
        token = op("GatherElements", ids, chosen, name="token", axis=-1)
        token = op("Squeeze", token, last, name="next_token")
        token.name, token.dtype, token.shape = NEXT_TOKEN, ir.DataType.INT64, ir.Shape([rows])
        graph.outputs.insert(1, token)
        return True

    def ensures(self, model: ir.Model) -> None:
        """`next_token` is the output after the logits; what it is chosen from are inputs."""
        inputs = {value.name for value in model.graph.inputs}
        assert inputs >= {*IN_GRAPH, NOISE}
        assert [value.name for value in model.graph.outputs[:2]] == [LOGITS, NEXT_TOKEN]
