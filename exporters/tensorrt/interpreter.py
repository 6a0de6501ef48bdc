"""What TensorRT understood, computed in numpy: an interpreter of a parsed network.

It reads the layers, settings and constants that TensorRT's own Python interface gives back, not the
ONNX file, so it tells a right network from one that was parsed to something else, on a machine
without a GPU. It does not run the built plan: what TensorRT's kernels do to the last bits it cannot
say. A layer or a setting that it does not know is an error, never passed over.

Numbers of 16 bits are computed as float32 and rounded where a tensor has that type.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from pl_compile.errors import ExportError
from pl_compile.exporters.tensorrt.api import ParsedNetwork, layers_of, typed

Array = NDArray[Any]
AllReduce = Callable[[Array], Array]


class Interpreter:
    """A parsed network that runs.

    Args:
        parsed: the network.
        constants: arrays by name for constants that TensorRT's interface does not give back (of 4
            bits, of bfloat16): those of the ONNX file.
        all_reduce: what its collectives do.

    Raises:
        ExportError: a constant that neither gives.
    """

    def __init__(
        self,
        parsed: ParsedNetwork,
        constants: Mapping[str, Array] | None = None,
        all_reduce: AllReduce | None = None,
    ) -> None:
        self._parsed = parsed
        self._types = numpy_types(parsed.trt)
        self._all_reduce = all_reduce
        self._constants: dict[str, Array] = {}
        waiting = []
        for layer in layers_of(parsed):
            # Read before it gets its own class, in which an activation's `type` is another thing.
            kind = layer.type.name
            layer = typed(parsed.trt, layer)
            if kind == "CONSTANT":
                output = layer.get_output(0)
                self._constants[output.name] = self._constant(layer, constants or {})
            else:
                waiting.append((kind, layer))
        self._order = []
        for kind, layer in _in_order_of_data(parsed, waiting, set(self._constants)):
            # What hangs on constants alone is computed once: weights of a few bits, above all.
            names = [tensor.name for tensor in _inputs_of(layer) if tensor is not None]
            if names and kind in _LAYERS and all(name in self._constants for name in names):
                self._run_layer(kind, layer, self._constants)
            else:
                self._order.append((kind, layer))

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs, by name.

        Raises:
            ExportError: a layer that is not known here.
        """
        values: dict[str, Array] = {**self._constants, **inputs}
        for kind, layer in self._order:
            self._run_layer(kind, layer, values)
        network = self._parsed.network
        outputs = [network.get_output(index) for index in range(network.num_outputs)]
        return {output.name: values[output.name] for output in outputs}

    def _run_layer(self, kind: str, layer: Any, values: dict[str, Array]) -> None:
        given = [None if tensor is None else values[tensor.name] for tensor in _inputs_of(layer)]
        for index, result in enumerate(self._compute(kind, layer, given, values)):
            output = layer.get_output(index)
            rounded = np.asarray(result).astype(self._types[output.dtype], copy=False)
            values[output.name] = rounded

    def _constant(self, layer: Any, given: Mapping[str, Array]) -> Array:
        weights, shape = layer.weights, tuple(layer.shape)
        if not isinstance(weights, self._parsed.trt.Weights):
            return np.array(weights).reshape(shape)
        for name in (layer.get_output(0).name, layer.name):
            if name in given:
                return np.asarray(given[name]).reshape(shape)
        raise ExportError(
            f"reading the constant {layer.name} of a network",
            found=f"type {weights.dtype}, which TensorRT does not give back",
            expected="a tensor of that name in the ONNX file",
        )

    def _compute(
        self, kind: str, layer: Any, x: list[Any], values: Mapping[str, Array]
    ) -> list[Array]:
        if kind == "ATTENTION_INPUT":
            return [_attention(layer, x, values)]
        # The one plugin there is sums over ranks: passes/use_all_reduce_plugin.py.
        if kind in ("DIST_COLLECTIVE", "PLUGIN_V3"):
            if self._all_reduce is None:
                raise _unknown(layer, "a collective, and nothing that does it")
            return [self._all_reduce(_wide(x[0]))]
        function = _LAYERS.get(kind)
        if function is None:
            raise _unknown(layer, f"a layer {kind}")
        return function(layer, x)


def numpy_types(trt: Any) -> dict[Any, Any]:
    """TensorRT's types, each with numpy's."""
    kinds = trt.DataType
    return {
        kinds.FLOAT: np.float32,
        kinds.HALF: np.float16,
        kinds.BF16: ml_dtypes.bfloat16,
        kinds.INT64: np.int64,
        kinds.INT32: np.int32,
        kinds.INT8: np.int8,
        kinds.INT4: ml_dtypes.int4,
        kinds.UINT8: np.uint8,
        kinds.BOOL: np.bool_,
    }


def _inputs_of(layer: Any) -> list[Any]:
    return [layer.get_input(index) for index in range(layer.num_inputs)]


def _in_order_of_data(
    parsed: ParsedNetwork, layers: list[tuple[str, Any]], known: set[str]
) -> list[tuple[str, Any]]:
    """The layers, each after those whose outputs it takes."""
    network = parsed.network
    known = known | {network.get_input(index).name for index in range(network.num_inputs)}
    ordered: list[tuple[str, Any]] = []
    while layers:
        later = []
        for kind, layer in layers:
            needed = [tensor.name for tensor in _inputs_of(layer) if tensor is not None]
            if kind == "ATTENTION_INPUT":
                told = (layer.attention.mask, getattr(layer.attention, "key_value_lengths", None))
                needed += [tensor.name for tensor in told if tensor is not None]
            if all(name in known for name in needed):
                ordered.append((kind, layer))
                outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
                known |= {output.name for output in outputs}
            else:
                later.append((kind, layer))
        if len(later) == len(layers):
            raise _unknown(later[0][1], "a layer whose inputs nothing gives")
        layers = later
    return ordered


def _unknown(layer: Any, found: str) -> ExportError:
    return ExportError(
        f"computing the layer {layer.name} of a TensorRT network",
        found=found,
        expected="a layer that the interpreter knows",
        fix="Add it to exporters/tensorrt/interpreter.py, which vouches for what it knows only.",
    )


def _wide(x: Array) -> Array:
    """Floats of 16 bits as float32; anything else as it is."""
    return x.astype(np.float32) if x.dtype in (np.float16, ml_dtypes.bfloat16) else x


def _same(layer: Any, x: list[Any]) -> list[Array]:
    return [x[0]]


def _shape(layer: Any, x: list[Any]) -> list[Array]:
    return [np.asarray(x[0].shape, np.int64)]


def _elementwise(layer: Any, x: list[Any]) -> list[Array]:
    a, b = _wide(x[0]), _wide(x[1])
    name = layer.op.name
    if name in ("DIV", "FLOOR_DIV") and a.dtype.kind == "i":
        return [a // b if name == "FLOOR_DIV" else np.trunc(a / b).astype(a.dtype)]
    functions: dict[str, Callable[[Array, Array], Array]] = {
        "SUM": np.add,
        "PROD": np.multiply,
        "MAX": np.maximum,
        "MIN": np.minimum,
        "SUB": np.subtract,
        "DIV": np.divide,
        "POW": np.power,
        "FLOOR_DIV": np.floor_divide,
        "AND": np.logical_and,
        "OR": np.logical_or,
        "XOR": np.logical_xor,
        "EQUAL": np.equal,
        "GREATER": np.greater,
        "LESS": np.less,
    }
    if name not in functions:
        raise _unknown(layer, f"an elementwise {name}")
    return [functions[name](a, b)]


def _unary(layer: Any, x: list[Any]) -> list[Array]:
    functions: dict[str, Callable[[Array], Array]] = {
        "EXP": np.exp,
        "LOG": np.log,
        "SQRT": np.sqrt,
        "RECIP": np.reciprocal,
        "NEG": np.negative,
        "NOT": np.logical_not,
        "ABS": np.abs,
        "FLOOR": np.floor,
        "CEIL": np.ceil,
    }
    if layer.op.name not in functions:
        raise _unknown(layer, f"a unary {layer.op.name}")
    return [functions[layer.op.name](_wide(x[0]))]


def _activation(layer: Any, x: list[Any]) -> list[Array]:
    a = _wide(x[0])
    kind = layer.type.name
    if kind == "SIGMOID":
        return [1 / (1 + np.exp(-a))]
    if kind == "TANH":
        return [np.tanh(a)]
    if kind == "RELU":
        return [np.maximum(a, 0)]
    if kind == "GELU_TANH":
        return [0.5 * a * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))]
    raise _unknown(layer, f"an activation {kind}")


def _shuffle(layer: Any, x: list[Any]) -> list[Array]:
    a = _permuted(layer, x[0], layer.first_transpose)
    sizes: list[int] | None
    if len(x) > 1 and x[1] is not None:
        sizes = [int(size) for size in x[1]]
    else:
        sizes = None if layer.reshape_dims is None else list(layer.reshape_dims)
    if sizes is not None:
        if layer.zero_is_placeholder:
            sizes = [size if size else a.shape[axis] for axis, size in enumerate(sizes)]
        a = a.reshape(sizes)
    return [_permuted(layer, a, layer.second_transpose)]


def _permuted(layer: Any, a: Array, order: Any) -> Array:
    axes = list(order)[: a.ndim]  # TensorRT gives places for more axes than there are
    if sorted(axes) != list(range(a.ndim)):
        raise _unknown(layer, f"the order {axes} of {a.ndim} axes")
    return a.transpose(axes)


def _slice(layer: Any, x: list[Any]) -> list[Array]:
    if layer.mode.name not in ("STRICT_BOUNDS", "WRAP"):
        raise _unknown(layer, f"a slice of mode {layer.mode.name}")
    if len(x) > 5 and x[5] is not None:
        raise _unknown(layer, "a slice whose axes are computed")

    def setting(index: int, fixed: Any) -> list[int]:
        given = x[index] if len(x) > index and x[index] is not None else fixed
        return [int(size) for size in given]

    axes = range(x[0].ndim) if layer.axes is None else [int(axis) for axis in layer.axes]
    places = [np.arange(whole) for whole in x[0].shape]
    parts = zip(
        axes,
        setting(1, layer.start),
        setting(2, layer.shape),
        setting(3, layer.stride),
        strict=True,
    )
    for axis, start, size, stride in parts:
        place = start + stride * np.arange(size)
        places[axis] = place % x[0].shape[axis] if layer.mode.name == "WRAP" else place
    return [x[0][np.ix_(*places)]]


def _squeeze(layer: Any, x: list[Any]) -> list[Array]:
    if len(x) < 2 or x[1] is None:
        raise _unknown(layer, "a squeeze that names no axes")
    return [np.squeeze(x[0], tuple(int(axis) for axis in np.atleast_1d(x[1])))]


def _unsqueeze(layer: Any, x: list[Any]) -> list[Array]:
    return [np.expand_dims(x[0], tuple(int(axis) for axis in np.atleast_1d(x[1])))]


def _concatenation(layer: Any, x: list[Any]) -> list[Array]:
    return [np.concatenate(x, layer.axis)]


def _select(layer: Any, x: list[Any]) -> list[Array]:
    return [np.where(x[0], x[1], x[2])]


def _gather(layer: Any, x: list[Any]) -> list[Array]:
    data, index = x[0], x[1].astype(np.int64)
    same = layer.num_elementwise_dims
    if layer.mode.name == "DEFAULT" and same == 0:
        return [np.take(data, index, layer.axis)]
    if layer.mode.name == "DEFAULT" and same == 1:
        rows = zip(data, index, strict=True)
        return [np.stack([np.take(a, i, layer.axis - 1) for a, i in rows])]
    if layer.mode.name == "ELEMENT":
        return [np.take_along_axis(data, index, layer.axis)]
    if layer.mode.name == "ND":
        grid = (
            np.meshgrid(*[np.arange(n) for n in index.shape[:same]], indexing="ij") if same else []
        )
        ahead = [g.reshape(g.shape + (1,) * (index.ndim - 1 - same)) for g in grid]
        return [data[tuple(ahead) + tuple(np.moveaxis(index, -1, 0))]]
    raise _unknown(layer, f"a gather of mode {layer.mode.name} with {same} elementwise axes")


def _fill(layer: Any, x: list[Any]) -> list[Array]:
    if layer.operation.name != "LINSPACE":
        raise _unknown(layer, f"a fill {layer.operation.name}")
    sizes = [int(n) for n in (x[0] if x[0] is not None else layer.shape)]
    if len(sizes) != 1:
        raise _unknown(layer, f"a fill of {len(sizes)} axes")
    first = x[1] if len(x) > 1 and x[1] is not None else layer.alpha
    step = x[2] if len(x) > 2 and x[2] is not None else layer.beta
    return [first + np.atleast_1d(step)[0] * np.arange(sizes[0])]


def _matrix_multiply(layer: Any, x: list[Any]) -> list[Array]:
    turned = [
        _wide(a).swapaxes(-1, -2) if op.name == "TRANSPOSE" else _wide(a)
        for a, op in zip(x, (layer.op0, layer.op1), strict=True)
    ]
    if "VECTOR" in (layer.op0.name, layer.op1.name):
        raise _unknown(layer, "a product with a vector")
    return [np.matmul(*turned)]


def _axes(layer: Any, a: Array) -> tuple[int, ...]:
    return tuple(axis for axis in range(a.ndim) if layer.axes >> axis & 1)


def _reduce(layer: Any, x: list[Any]) -> list[Array]:
    functions: dict[str, Any] = {
        "SUM": np.sum,
        "AVG": np.mean,
        "MAX": np.max,
        "MIN": np.min,
        "PROD": np.prod,
    }
    if layer.op.name not in functions:
        raise _unknown(layer, f"a reduction {layer.op.name}")
    a = _wide(x[0])
    return [functions[layer.op.name](a, axis=_axes(layer, a), keepdims=layer.keep_dims)]


def _softmax(layer: Any, x: list[Any]) -> list[Array]:
    a = _wide(x[0])
    axes = _axes(layer, a)
    powers = np.exp(a - a.max(axes, keepdims=True))
    return [powers / powers.sum(axes, keepdims=True)]


def _normalization(layer: Any, x: list[Any]) -> list[Array]:
    if layer.num_groups != 1:
        raise _unknown(layer, f"a normalisation of {layer.num_groups} groups")
    a = _wide(x[0])
    axes = _axes(layer, a)
    centred = a - a.mean(axes, keepdims=True)
    scaled = centred / np.sqrt(a.var(axes, keepdims=True) + layer.epsilon)
    return [scaled * _wide(x[1]) + _wide(x[2])]


def _cumulative(layer: Any, x: list[Any]) -> list[Array]:
    if layer.reverse:
        raise _unknown(layer, "a sum that runs backwards")
    a, axis = _wide(x[0]), int(x[1])
    sums = np.cumsum(a, axis)
    return [sums - a if layer.exclusive else sums]


def _top_k(layer: Any, x: list[Any]) -> list[Array]:
    axis = layer.axes.bit_length() - 1
    count = int(x[1]) if len(x) > 1 and x[1] is not None else layer.k
    key = -_wide(x[0]) if layer.op.name == "MAX" else _wide(x[0])
    order = np.take(np.argsort(key, axis, kind="stable"), np.arange(count), axis)
    return [np.take_along_axis(x[0], order, axis), order]


def _dequantize(layer: Any, x: list[Any]) -> list[Array]:
    if len(x) > 2 and x[2] is not None:
        raise _unknown(layer, "a zero point")
    codes, scales = x[0].astype(np.float32), _wide(x[1])
    if codes.ndim == scales.ndim:
        for axis in range(codes.ndim):
            scales = np.repeat(scales, codes.shape[axis] // scales.shape[axis], axis)
    elif scales.ndim == 1:
        scales = scales.reshape([-1 if axis == layer.axis else 1 for axis in range(codes.ndim)])
    return [codes * scales]


def _rotary_embedding(layer: Any, x: list[Any]) -> list[Array]:
    a = _wide(x[0])
    width = layer.rotary_embedding_dim or a.shape[-1]
    cos, sin = _wide(x[1]), _wide(x[2])
    if len(x) > 3 and x[3] is not None:
        cos, sin = cos[x[3]], sin[x[3]]
    cos, sin = cos[:, None], sin[:, None]
    turned, rest = a[..., :width], a[..., width:]
    if layer.interleaved:
        p, q = turned[..., 0::2], turned[..., 1::2]
        pair = np.stack([p * cos - q * sin, q * cos + p * sin], -1).reshape(turned.shape)
    else:
        p, q = turned[..., : width // 2], turned[..., width // 2 :]
        pair = np.concatenate([p * cos - q * sin, q * cos + p * sin], -1)
    return [np.concatenate([pair, rest], -1)]


def _kv_cache_update(layer: Any, x: list[Any]) -> list[Array]:
    _check_padded(layer, layer, "update_form")
    cache, update, starts = x
    result = cache.copy()
    for row, start in enumerate(starts):
        # What would be written after the capacity is dropped, as TensorRT's documentation says.
        count = max(0, min(update.shape[2], cache.shape[2] - int(start)))
        result[row, :, int(start) : int(start) + count] = update[row, :, :count]
    return [result]


def _check_padded(layer: Any, settings: Any, *names: str) -> None:
    """Refuses rows that are packed end to end, which later versions of TensorRT can take."""
    for name in names:
        form = getattr(settings, name, None)
        if form is not None and form.name != "PADDED_BHND":
            raise _unknown(layer, f"the {name} {form.name}")


def _attention(layer: Any, x: list[Any], values: Mapping[str, Array]) -> Array:
    """Softmax of masked scores, over what the network really says: masks, kinds and lengths."""
    attention = layer.attention
    if attention.norm_op.name != "SOFTMAX" or attention.normalization_quantize_scale is not None:
        raise _unknown(layer, "an attention with something else than a softmax of floats")
    _check_padded(layer, attention, "query_form", "key_value_form")
    query, key, value = x[:3]
    batch, heads, queries, dim = query.shape
    kv_heads, keys = key.shape[1:3]
    group = heads // kv_heads
    row, column = np.arange(queries)[:, None], np.arange(keys)[None]
    lengths = np.full(len(query), keys)
    given = getattr(attention, "key_value_lengths", None)
    if given is not None:
        lengths = values[given.name]
    ends = lengths.reshape(-1, 1, 1, 1)
    shape = (batch, heads, queries, keys)
    seen = np.broadcast_to(column < ends, (batch, 1, queries, keys))
    kind = attention.causal_kind.name
    if kind == "UPPER_LEFT":
        seen = seen & (column <= row)
    elif kind == "LOWER_RIGHT":
        seen = seen & (column <= row + (ends - queries))
    elif kind != "NONE":
        raise _unknown(layer, f"an attention of causal kind {kind}")
    bias = np.zeros((1, 1, 1, keys), np.float32)
    if attention.mask is not None:
        mask = values[attention.mask.name]
        if mask.dtype == np.bool_:
            seen = seen & mask
        else:
            bias = np.broadcast_to(_wide(mask), shape)
    # Entries that no query sees add nothing: most of a cache is empty.
    live = int(np.flatnonzero(seen.any((0, 1, 2))).max(initial=0)) + 1
    key, value = (_wide(a[:, :, :live])[:, :, None] for a in (key, value))
    query = _wide(query).reshape(batch, kv_heads, group, queries, dim)
    scores = (query @ key.swapaxes(-1, -2)).reshape(*shape[:3], live)
    scores = np.where(seen[..., :live], scores + bias[..., :live], -np.inf)
    top = scores.max(-1, keepdims=True)
    powers = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = powers.sum(-1, keepdims=True)
    shares = (powers / np.where(total == 0, 1, total)).reshape(*query.shape[:4], live)
    result: Array = (shares @ value).reshape(batch, heads, queries, dim)
    return result


_LAYERS: dict[str, Callable[[Any, list[Any]], list[Array]]] = {
    "CAST": _same,
    "IDENTITY": _same,
    "ATTENTION_OUTPUT": _same,
    "SHAPE": _shape,
    "ELEMENTWISE": _elementwise,
    "UNARY": _unary,
    "ACTIVATION": _activation,
    "SHUFFLE": _shuffle,
    "SLICE": _slice,
    "SQUEEZE": _squeeze,
    "UNSQUEEZE": _unsqueeze,
    "CONCATENATION": _concatenation,
    "SELECT": _select,
    "GATHER": _gather,
    "FILL": _fill,
    "MATRIX_MULTIPLY": _matrix_multiply,
    "REDUCE": _reduce,
    "SOFTMAX": _softmax,
    "NORMALIZATION": _normalization,
    "CUMULATIVE": _cumulative,
    "TOPK": _top_k,
    "DEQUANTIZE": _dequantize,
    "ROTARY_EMBEDDING": _rotary_embedding,
    "KV_CACHE_UPDATE": _kv_cache_update,
}
