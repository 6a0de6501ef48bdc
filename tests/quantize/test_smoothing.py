"""Smoothing leaves the floats' results as they are, and makes them easier to round."""

from pathlib import Path

import numpy as np
import pytest

from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import read_decoder_config
from pl_compile.exporters import exporter_for
from pl_compile.graph.decoder import build_decoder
from pl_compile.passes.pipeline import run_passes
from pl_compile.quantize.smooth import smooth
from pl_compile.runtime.engines.onnxruntime import OnnxRuntimeEngine
from pl_compile.testing import assert_close
from pl_compile.weights.checkpoint import Checkpoint
from pl_compile.weights.names import Weights, load_weights


class NoPrompt:
    """A prompt without virtual tokens."""

    rows = np.zeros((0, 24), np.float32)
    prefix_kv = None
    task_id = 0


def logits_of(base: Path, weights: Weights, folder: Path) -> np.ndarray:
    config = read_decoder_config(base)
    sizes = {n: getattr(config, n) for n in ("layers", "kv_heads", "head_dim", "hidden", "vocab")}
    contract = GraphContract(**sizes, capacity=40, prompts="input")
    exporter = exporter_for("onnx-cpu")
    model = build_decoder(config, contract, weights)
    run_passes(model, exporter.passes(config, contract, BuildOptions(), None, []))
    folder.mkdir()
    exporter.build(model, folder)
    engine = OnnxRuntimeEngine(folder / "model.onnx", contract)
    ids = np.random.default_rng(0).integers(0, 390, (1, 20))
    zero = np.zeros(1, np.int64)
    return engine.step(ids, zero, zero + 19, [NoPrompt()]).copy()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_smoothed_floats_compute_the_same(
    tiny_bases: dict[str, Path], tmp_path: Path, family: str
) -> None:
    base = tiny_bases[family]
    config = read_decoder_config(base)
    weights = load_weights(Checkpoint(base), config)
    generator = np.random.default_rng(1)
    reaches = {}
    for i in range(config.layers):
        widths = {"attention.q": 24, "mlp.down": config.ffn}
        widths["mlp.gate" if family == "llama" else "mlp.up"] = 24
        for name, width in widths.items():
            reaches[f"layers.{i}.{name}"] = np.exp(generator.normal(0, 2, width)).astype(np.float32)

    smoothed = smooth(weights, reaches, config)

    changed = {name for name in weights if not np.array_equal(weights[name], smoothed[name])}
    first = {name for name in changed if name.startswith("layers.0.")}
    expected = {"attention_norm", "mlp_norm", "attention.q", "attention.k", "attention.v"}
    expected |= {"mlp.up"} | ({"mlp.gate", "mlp.down"} if family == "llama" else set())
    assert {n.rpartition(".")[0].removeprefix("layers.0.") for n in first} == expected
    one, other = (
        logits_of(base, each, tmp_path / name)
        for name, each in (("before", weights), ("after", smoothed))
    )
    assert_close(other, one, relative=2e-5)


def test_a_channel_that_is_far_larger_moves_into_the_weight(tiny_bases: dict[str, Path]) -> None:
    base = tiny_bases["llama"]
    config = read_decoder_config(base)
    weights = load_weights(Checkpoint(base), config)
    reach = np.ones(config.ffn, np.float32)
    reach[7] = 400.0

    smoothed = smooth(weights, {"layers.1.mlp.down": reach}, config)

    up = smoothed["layers.1.mlp.up.weight"] / weights["layers.1.mlp.up.weight"]
    down = smoothed["layers.1.mlp.down.weight"] / weights["layers.1.mlp.down.weight"]
    np.testing.assert_allclose(up[0] * down[:, 0], 1, rtol=1e-5)
    assert down[7, 0] / np.median(down[:, 0]) > 5
