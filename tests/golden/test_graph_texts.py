"""The graphs as text that a reviewer can read: each kind of layer of each family; the library."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.exporters.exporter import PassInputs
from pl_compile.exporters.onnx.cpu import OnnxCpuExporter
from pl_compile.families.registry import FAMILIES
from pl_compile.families.settings import Settings
from pl_compile.graph.decoder import build_decoder
from pl_compile.passes.pipeline import run_passes
from pl_compile.weights.listed import weight_shapes


def config_of(family: str) -> DecoderConfig:
    """A tiny base of a family with one layer; with two where its layers are of different kinds."""
    # One vocabulary is a multiple of 8, which the graph does not pad.
    settings = {**FAMILIES[family].tiny, "vocab_size": 400 if family == "gpt2" else 397}
    config = FAMILIES[family].read(Settings(settings, "reading a tiny base"))
    own = vars(config.own) if config.own else {}
    by_layer = {name: value for name, value in own.items() if isinstance(value, tuple)}
    layers = 2 if by_layer else 1
    if by_layer:
        cut = {name: value[:layers] for name, value in by_layer.items()}
        config = replace(config, own=replace(config.own, **cut))
    return replace(config, layers=layers, norm_eps=1e-5, tied=True)


def zero_weights(config: DecoderConfig) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(config).items()}


def contract_of(config: DecoderConfig) -> GraphContract:
    sizes = {n: getattr(config, n) for n in ("layers", "kv_heads", "head_dim", "hidden", "vocab")}
    return GraphContract(**sizes, capacity=80, prompts="input")


@pytest.mark.parametrize("family", FAMILIES)
def test_main_graph(family: str, golden: Callable[[str, str], None]) -> None:
    config = config_of(family)
    contract = contract_of(config)

    model = build_decoder(config, contract, zero_weights(config))

    golden(f"{family}.onnx.txt", ir.to_onnx_text(model, exclude_initializers=True))


def test_cpu_library(golden: Callable[[str, str], None]) -> None:
    """The bodies of one layer's calls: a Llama whose heads ONNX Runtime's kernel does not take."""
    config = config_of("llama")
    contract = contract_of(config)
    model = build_decoder(config, contract, zero_weights(config))
    inputs = PassInputs(config, contract, BuildOptions("none"))
    run_passes(model, OnnxCpuExporter().passes(inputs).all)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24, "plc": 1}, name="library")

    library = ir.Model(graph, ir_version=11, functions=list(model.functions.values()))

    golden("onnx_cpu_library.onnx.txt", ir.to_onnx_text(library))
