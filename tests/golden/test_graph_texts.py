"""The graphs as text that a reviewer can read: one layer of each family, and the CPU library."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.exporters.exporter import PassInputs
from pl_compile.exporters.onnx.cpu import OnnxCpuExporter
from pl_compile.families.weights import Biases
from pl_compile.graph.decoder import build_decoder
from pl_compile.passes.pipeline import run_passes
from pl_compile.weights.listed import weight_shapes

LLAMA = DecoderConfig(
    family="llama",
    layers=1,
    hidden=24,
    heads=6,
    kv_heads=2,
    head_dim=8,
    ffn=40,
    vocab=397,
    positions=96,
    norm_eps=1e-5,
    tied=True,
    rope_theta=10000.0,
    own=Biases(attention_bias=False, mlp_bias=False),
)
GPT2 = DecoderConfig(
    family="gpt2",
    layers=1,
    hidden=24,
    heads=3,
    kv_heads=3,
    head_dim=8,
    ffn=56,
    vocab=400,
    positions=96,
    norm_eps=1e-5,
    tied=True,
    own=Biases(attention_bias=True, mlp_bias=True),
)


def zero_weights(config: DecoderConfig) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(config).items()}


def contract_of(config: DecoderConfig) -> GraphContract:
    sizes = {n: getattr(config, n) for n in ("layers", "kv_heads", "head_dim", "hidden", "vocab")}
    return GraphContract(**sizes, capacity=80, prompts="input")


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=lambda config: config.family)
def test_main_graph(config: DecoderConfig, golden: Callable[[str, str], None]) -> None:
    contract = contract_of(config)

    model = build_decoder(config, contract, zero_weights(config))

    golden(f"{config.family}.onnx.txt", ir.to_onnx_text(model, exclude_initializers=True))


def test_cpu_library(golden: Callable[[str, str], None]) -> None:
    """The bodies of one layer's calls: a Llama whose heads ONNX Runtime's kernel does not take."""
    contract = contract_of(LLAMA)
    model = build_decoder(LLAMA, contract, zero_weights(LLAMA))
    inputs = PassInputs(LLAMA, contract, BuildOptions("none"))
    run_passes(model, OnnxCpuExporter().passes(inputs).all)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24, "plc": 1}, name="library")

    library = ir.Model(graph, ir_version=11, functions=list(model.functions.values()))

    golden("onnx_cpu_library.onnx.txt", ir.to_onnx_text(library))
