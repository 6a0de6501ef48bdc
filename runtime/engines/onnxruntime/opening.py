"""Which of the engines on ONNX Runtime runs a graph."""

from collections.abc import Sequence
from pathlib import Path

from pl_compile.config.contract import GraphContract, PrefixBits
from pl_compile.runtime.engines.onnxruntime.engine import OnnxRuntimeEngine
from pl_compile.runtime.engines.onnxruntime.providers import CPU, Provider
from pl_compile.runtime.engines.onnxruntime.ragged import RaggedEngine

OnnxEngine = OnnxRuntimeEngine | RaggedEngine


def onnx_engine(
    model: Path,
    contract: GraphContract,
    *,
    max_batch: int = 16,
    threads: int | None = None,
    watched: Sequence[str] = (),
    provider: Provider = CPU,
    dtype: str = "float32",
    own_products: bool = False,
    prefix_bits: PrefixBits = 32,
    context_mib: int | None = None,
) -> OnnxEngine:
    """The engine for the rows of a contract. Its arguments are explained there.

    `dtype` is of the caches: `Precision.cache_dtype`. `own_products` (false where it is not known),
    `prefix_bits` and `context_mib` are for ragged rows: padded ones have prefixes of their own, in
    floats, and share nothing.

    Raises:
        ArtifactError: ONNX Runtime cannot load the model, or has no such provider; or the graph is
            not that of the contract.
        MissingExtraError: the provider is for a GPU, and no package is there that reaches its
            memory.
    """
    if contract.rows == "ragged":
        return RaggedEngine(
            model,
            contract,
            max_batch=max_batch,
            threads=threads,
            watched=watched,
            provider=provider,
            own_products=own_products,
            prefix_bits=prefix_bits,
            dtype=dtype,
            context_mib=context_mib,
        )
    return OnnxRuntimeEngine(
        model,
        contract,
        max_batch=max_batch,
        threads=threads,
        watched=watched,
        provider=provider,
        dtype=dtype,
    )
