"""A TensorRT-RTX plan inside of an ONNX file, for ONNX Runtime's provider for it. Untested.

`model_ctx.onnx` has the inputs and outputs of `model.onnx` and one node, `EPContext` of the domain
`com.microsoft`, which names the plan beside it (the format: ONNX Runtime's "EP context design").
The provider `nv-tensorrt-rtx` loads it without parsing or building anything. It was never loaded by
this project, which had no GPU: that the checker takes it is all that is known.
"""

from pathlib import Path

import onnx_ir as ir

from pl_compile.artifact.bundle import MODEL_NAME
from pl_compile.artifact.plan_record import EP_CONTEXT_NAME, PLAN_NAME, PlanRecord
from pl_compile.config.targets import PLAN_TARGETS
from pl_compile.errors import ExportError
from pl_compile.graph.builder import IR_VERSION, OPSET
from pl_compile.graph.operators import ORT_DOMAIN


def check_wrappable(flavour: str) -> None:
    """Raises `ExportError` unless a provider of ONNX Runtime loads a flavour's plans."""
    if not PLAN_TARGETS[flavour].wrapped_for:
        wrappable = [name for name, target in PLAN_TARGETS.items() if target.wrapped_for]
        raise ExportError(
            "wrapping a plan for ONNX Runtime",
            found=f"a plan of {flavour}",
            expected=" or ".join(wrappable),
            fix=f"Leave --ep-context out, or use --target {' or '.join(wrappable)}.",
        )


def write_ep_context(folder: Path, record: PlanRecord) -> Path:
    """Writes the file beside a plan, and returns its path.

    Args:
        folder: of the plan and its `model.onnx`.
        record: of the plan.

    Raises:
        ExportError: a plan of a flavour that no provider loads.
    """
    check_wrappable(record.flavour)
    graph = ir.load(folder / MODEL_NAME).graph
    inputs, outputs = (
        [ir.val(str(v.name), v.dtype, v.shape) for v in values]
        for values in (graph.inputs, graph.outputs)
    )
    numbers = [int(part) for part in (*record.version.split("."), "0", "0")[:3]]
    one = record.compute_capabilities
    attributes: dict[str, int | str] = {
        "main_context": 0,  # each node has its own plan
        "embed_mode": 0,
        "ep_cache_context": PLAN_NAME,
        "source": PLAN_TARGETS[record.flavour].wrapped_for,
        "hardware_architecture": one[0].replace(".", "") if len(one) == 1 else "80+",
        "partition_name": "plc",
        "onnx_model_filename": MODEL_NAME,
        "ep_sdk_version": str(numbers[0] * 10000 + numbers[1] * 100 + numbers[2]),
    }
    node = ir.node("EPContext", inputs, attributes, domain=ORT_DOMAIN, name="plan", outputs=outputs)
    wrapped = ir.Graph(
        inputs,
        outputs,
        nodes=[node],
        opset_imports={"": OPSET, ORT_DOMAIN: 1},
        name=f"{graph.name}-plan",
    )
    path = folder / EP_CONTEXT_NAME
    ir.save(ir.Model(wrapped, ir_version=IR_VERSION, producer_name="plc"), path)
    return path
