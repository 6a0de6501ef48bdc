"""Guards and interpreter of TensorRT networks on layers made by hand: needs no TensorRT.

tests/export/test_tensorrt_networks.py checks the same on what TensorRT really parses.
"""

import sys
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pl_compile.errors import ExportError
from pl_compile.exporters.tensorrt.api import ParsedNetwork, check_network, parse, parser_for
from pl_compile.exporters.tensorrt.interpreter import (
    Interpreter,
    _attention,
    _dequantize,
    _normalization,
    _reduce,
    _shuffle,
    _slice,
    _squeeze,
)


class Kind(Enum):
    ATTENTION_INPUT = 0
    KV_CACHE_UPDATE = 1
    DIST_COLLECTIVE = 2
    TOPK = 3


class Causal(Enum):
    NONE = 0
    UPPER_LEFT = 1
    LOWER_RIGHT = 2


TRT = SimpleNamespace(LayerType=Kind, CausalMaskKind=Causal)


def network_of(layer: Any) -> ParsedNetwork:
    network = SimpleNamespace(num_layers=1, get_layer=lambda _: layer)
    return ParsedNetwork(TRT, network, None, None, [])


def attention_layer(causal: Causal, mask: Any) -> Any:
    attention = SimpleNamespace(
        causal_kind=causal,
        mask=mask,
        decomposable=False,
        norm_op=SimpleNamespace(name="SOFTMAX"),
        normalization_quantize_scale=None,
        query_form=SimpleNamespace(name="PADDED_BHND"),
    )
    return SimpleNamespace(type=Kind.ATTENTION_INPUT, name="a", attention=attention)


def test_a_masked_attention_passes_and_is_made_decomposable() -> None:
    layer = attention_layer(Causal.NONE, SimpleNamespace(name="mask"))

    check_network(network_of(layer))

    assert layer.attention.decomposable


@pytest.mark.parametrize("causal", Causal)
def test_an_attention_without_a_mask_is_refused(causal: Causal) -> None:
    with pytest.raises(ExportError, match=f"causal kind {causal.name} and no mask"):
        check_network(network_of(attention_layer(causal, None)))


def test_the_form_without_masks_is_not_that_of_a_network_with_masks() -> None:
    """Else a rewrite that changes nothing is compared with itself, and recorded as the form."""
    masked = attention_layer(Causal.NONE, SimpleNamespace(name="mask"))

    check_network(network_of(masked), attention="lower_right", masks=1)
    with pytest.raises(ExportError, match="1 attentions with a mask; expected 0, those with a"):
        check_network(network_of(masked), attention="lower_right")
    causal = attention_layer(Causal.LOWER_RIGHT, None)
    causal.attention.key_value_lengths = SimpleNamespace(name="lengths")
    check_network(network_of(causal), attention="lower_right")
    with pytest.raises(ExportError, match="0 attentions with a mask; expected 1"):
        check_network(network_of(causal), attention="lower_right", masks=1)


def test_collectives_of_another_number_of_ranks_are_refused() -> None:
    layer = SimpleNamespace(type=Kind.DIST_COLLECTIVE, name="sum", num_ranks=1)

    check_network(network_of(layer))
    with pytest.raises(ExportError, match="a collective of 1 ranks; expected 2"):
        check_network(network_of(layer), ranks=2)


def test_a_mask_sees_what_upper_left_does_not() -> None:
    """One query after three entries: the miscompiled form sees the first entry alone."""
    generator = np.random.default_rng(0)
    query, key, value = (generator.normal(size=(1, 1, n, 4)) for n in (1, 4, 4))
    mask = np.asarray([True, True, True, False]).reshape(1, 1, 1, 4)
    scores = np.exp((query @ key.swapaxes(-1, -2))[..., :3])
    expected = scores / scores.sum(-1, keepdims=True) @ value[..., :3, :]

    right = attention_layer(Causal.NONE, SimpleNamespace(name="mask"))
    wrong = attention_layer(Causal.UPPER_LEFT, None)

    np.testing.assert_allclose(_attention(right, [query, key, value], {"mask": mask}), expected)
    np.testing.assert_allclose(_attention(wrong, [query, key, value], {}), value[..., :1, :])


def test_what_the_interpreter_does_not_know_is_an_error() -> None:
    layer = SimpleNamespace(name="s", mode=SimpleNamespace(name="REFLECT"))
    with pytest.raises(ExportError, match="a slice of mode REFLECT"):
        _slice(layer, [np.zeros(2)])
    with pytest.raises(ExportError, match="a squeeze that names no axes"):
        _squeeze(layer, [np.zeros(2)])
    layer.axis, codes, scale = 0, np.ones(2, np.int8), np.ones((), np.float32)
    np.testing.assert_array_equal(_dequantize(layer, [codes, scale])[0], codes)
    with pytest.raises(ExportError, match="a zero point"):
        _dequantize(layer, [codes, scale, codes])
    layer.op, layer.axes, layer.keep_dims = SimpleNamespace(name="NONE"), 1, False
    with pytest.raises(ExportError, match="a reduction NONE"):
        _reduce(layer, [np.zeros(2)])
    layer.num_groups = 2
    with pytest.raises(ExportError, match="a normalisation of 2 groups"):
        _normalization(layer, [np.zeros(2)] * 3)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("norm_op", SimpleNamespace(name="NONE"), "something else than a softmax"),
        ("normalization_quantize_scale", "a tensor", "something else than a softmax"),
        ("query_form", SimpleNamespace(name="PACKED_NHD"), "the query_form PACKED_NHD"),
    ],
)
def test_settings_of_attention_that_it_does_not_know_are_an_error(
    setting: str, value: Any, said: str
) -> None:
    layer = attention_layer(Causal.NONE, None)
    one = np.ones((1, 1, 1, 4))
    np.testing.assert_array_equal(_attention(layer, [one] * 3, {}), one)
    setattr(layer.attention, setting, value)

    with pytest.raises(ExportError, match=said):
        _attention(layer, [one] * 3, {})


@pytest.mark.parametrize("place", ["first_transpose", "second_transpose"])
def test_an_order_of_axes_that_is_none_is_an_error(place: str) -> None:
    """TensorRT gives eight places; those of the axes that there are must be an order of them."""
    layer = SimpleNamespace(name="s", reshape_dims=None, zero_is_placeholder=True)
    layer.first_transpose = layer.second_transpose = range(8)
    a = np.zeros((2, 3))
    np.testing.assert_array_equal(_shuffle(layer, [a])[0], a)
    setattr(layer, place, [1, 2, 0, 0, 0, 0, 0, 0])

    with pytest.raises(ExportError, match=r"the order \[1, 2\] of 2 axes"):
        _shuffle(layer, [a])


def test_the_plugin_for_sums_is_a_collective_to_guards_and_interpreter() -> None:
    """TensorRT before 10.16 has no layer for them."""

    class Plugin(Enum):
        PLUGIN_V3 = 4

    tensor = SimpleNamespace(name="y", dtype="float32")
    layer = SimpleNamespace(
        type=Plugin.PLUGIN_V3,
        name="sum",
        num_inputs=1,
        num_outputs=1,
        get_input=lambda _: SimpleNamespace(name="x", dtype="float32"),
        get_output=lambda _: tensor,
    )
    kinds = SimpleNamespace(
        **{n: n for n in ["FLOAT", "HALF", "BF16", "INT64", "INT32", "INT8", "INT4", "UINT8"]}
    )
    kinds.BOOL, kinds.FLOAT = "bool", "float32"
    trt = SimpleNamespace(LayerType=Plugin, CausalMaskKind=Causal, DataType=kinds)
    trt.LayerType = SimpleNamespace(PLUGIN_V3=Plugin.PLUGIN_V3, **Kind.__members__)
    network = SimpleNamespace(
        num_layers=1,
        get_layer=lambda _: layer,
        num_inputs=1,
        get_input=lambda _: SimpleNamespace(name="x"),
        num_outputs=1,
        get_output=lambda _: tensor,
    )
    parsed = ParsedNetwork(trt, network, None, None, [])

    check_network(parsed, ranks=2)

    interpreter = Interpreter(parsed, {}, lambda x: 2 * x)
    x = np.asarray([1.0, 2.0], np.float32)
    np.testing.assert_array_equal(interpreter.run({"x": x})["y"], 2 * x)
    with pytest.raises(ExportError, match="a collective, and nothing that does it"):
        Interpreter(parsed, {}).run({"x": x})


class _NotStarting:
    """TensorRT's own package on a machine without a GPU: it imports, and builds nothing."""

    __version__ = "11.4"

    class ILogger:
        WARNING = 2

        def __init__(self) -> None:
            pass

    def Builder(self, logger: Any) -> None:  # noqa: N802 - TensorRT's own name
        logger.log(0, "CUDA initialization failure with error: 35")
        return


def test_a_tensorrt_that_does_not_start_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", _NotStarting())
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)

    assert parser_for("tensorrt") is None
    with pytest.raises(ExportError, match=r"CUDA initialization failure.*--defer-build"):
        parse(Path("model.onnx"), "tensorrt")


def test_a_missing_package_names_its_extra() -> None:
    with pytest.raises(ExportError) as error:
        parse(Path("model.onnx"), "tensorrt")

    assert "pip install 'pl-compile[tensorrt]'" in str(error.value)
