"""The blocks of `families.blocks` in ONNX: each appends nodes to a graph under construction.

Shapes use the words `batch seq hidden heads head_dim`. Activations are float `[batch, seq, hidden]`
unless said otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import sqrt

import numpy as np
import onnx_ir as ir

from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.errors import ExportError
from pl_compile.families.blocks import Frequencies
from pl_compile.families.names import EMBEDDING, HEAD, POSITIONS, layer_name
from pl_compile.graph.builder import DIST_DOMAIN, GraphBuilder
from pl_compile.graph.operators import ATTENTION, GEGLU, PLC_DOMAIN, SWIGLU, AttentionSettings
from pl_compile.graph.prompt import VirtualRows, text_rows

# TensorRT stores a tied table twice unless its rows are a multiple of this.
VOCAB_MULTIPLE = 8

_ADD_BIAS = ".add_bias"

# A cache pair of one layer: float [batch, kv_heads, capacity, head_dim] each.
Cache = tuple[ir.Value, ir.Value]


@dataclass(frozen=True)
class Padded:
    """Rows of a step that are padded to the same length.

    Attributes:
        past_lengths: int64 `[batch]`.
        last_index: int64 `[batch]`.
    """

    past_lengths: ir.Value
    last_index: ir.Value


@dataclass(frozen=True)
class Ragged:
    """Rows of a step that follow one another, and caches in blocks: see `config/contract.py`.

    Attributes:
        token_rows: int64 `[tokens]`.
        block_tables: int64 `[rows, width]`.
        prefixes: int64 `[rows]`.
        parents: int64 `[branching]`.
        logit_tokens: int64 `[outputs]`.
    """

    token_rows: ir.Value
    block_tables: ir.Value
    prefixes: ir.Value
    parents: ir.Value
    logit_tokens: ir.Value


@dataclass(frozen=True)
class StepValues:
    """What a step is given, and the caches that it leaves.

    Attributes:
        input_ids: int64 `[batch, seq]`; with ragged rows `batch` is 1, and `seq` all tokens.
        rows: how its rows lie beside each other.
        positions: int64 `[batch, seq]`: entries before each token.
        virtual: the prompts' rows.
        pasts: the cache of each layer before the step.
        presents: the cache of each layer after it, as the layers are built.
    """

    input_ids: ir.Value
    rows: Padded | Ragged
    positions: ir.Value
    virtual: VirtualRows
    pasts: Sequence[Cache]
    presents: dict[int, Cache] = field(default_factory=dict)


@dataclass(frozen=True)
class OnnxBlocks:
    """`Blocks[ir.Value]`; see there what each does.

    Attributes:
        g: the graph.
        config: the base, or a rank's part.
        contract: its capacity and number of ranks.
        step: what the step is given.
        index: the layer; None outside.
    """

    g: GraphBuilder
    config: DecoderConfig
    contract: GraphContract
    step: StepValues
    index: int | None = None

    def _named(self, name: str) -> str:
        return name if self.index is None else f"{layer_name(self.index)}.{name}"

    def _after(self, x: ir.Value, what: str) -> str:
        """The name of a node that follows the one of `x`."""
        node = x.producer()
        assert node is not None
        assert node.name is not None
        return f"{node.name.removesuffix(_ADD_BIAS)}.{what}"

    def layer(self, index: int) -> "OnnxBlocks":
        """The blocks of a layer."""
        return replace(self, index=index)

    def embedding(self) -> ir.Value:
        """Rows of text."""
        return text_rows(self.g, self.step.input_ids, self.config.vocab)

    def with_virtual_rows(self, x: ir.Value) -> ir.Value:
        """`x`, and rows of the prompts where they stand."""
        return self.step.virtual.joined(self.g, x)

    def learned_positions(self) -> ir.Value:
        """Rows of positions."""
        table = self.g.weight(POSITIONS)
        return self.g.op("Gather", [table, self.step.positions], "position_embedding")

    def linear(self, x: ir.Value, name: str) -> ir.Value:
        """`x @ weight + bias`."""
        name = self._named(name)
        y = self.g.op("MatMul", [x, self.g.weight(f"{name}.weight")], name)
        return self._with_bias(y, name)

    def row_parallel(self, x: ir.Value, name: str) -> ir.Value:
        """The sum of all ranks' `x @ weight`, plus the bias."""
        name = self._named(name)
        y = self.g.op("MatMul", [x, self.g.weight(f"{name}.weight")], name)
        if self.contract.ranks > 1:
            # TensorRT takes a collective of one rank for one that is misspelt, and refuses it.
            y = self.g.op(
                "DistCollective",
                [y],
                f"{name}.all_reduce",
                domain=DIST_DOMAIN,
                collective_operation="all_reduce",
                reduce_op="sum",
                root=-1,
                nb_rank=self.contract.ranks,
            )
        return self._with_bias(y, name)

    def _with_bias(self, y: ir.Value, name: str) -> ir.Value:
        if not self.g.has_weight(f"{name}.bias"):
            return y
        return self.g.op("Add", [y, self.g.weight(f"{name}.bias")], f"{name}{_ADD_BIAS}")

    def rms_norm(self, x: ir.Value, name: str) -> ir.Value:
        """Root mean square normalisation."""
        name, eps = self._named(name), self.config.norm_eps
        inputs = [x, self.g.weight(f"{name}.weight")]
        return self.g.op("RMSNormalization", inputs, name, axis=-1, epsilon=eps)

    def layer_norm(self, x: ir.Value, name: str) -> ir.Value:
        """Layer normalisation."""
        name, eps = self._named(name), self.config.norm_eps
        inputs = [x, *(self.g.weight(f"{name}.{part}") for part in ("weight", "bias"))]
        return self.g.op("LayerNormalization", inputs, name, axis=-1, epsilon=eps)

    def attention(
        self,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        *,
        rotary: Frequencies | None = None,
        scale: float | None = None,
        window: int = 0,
        softcap: float = 0.0,
        head_norms: tuple[str, str] | None = None,
    ) -> ir.Value:
        """Causal attention over the layer's cache."""
        assert self.index is not None
        config = self.config
        settings = AttentionSettings(
            config.heads,
            config.kv_heads,
            1 / sqrt(config.head_dim) if scale is None else scale,
            window,
            softcap,
            epsilon=config.norm_eps if head_norms else 0.0,
        )
        y, self.step.presents[self.index] = attention(
            self.g,
            settings,
            [query, key, value],
            self.step.pasts[self.index],
            self.step.rows,
            self.step.positions,
            self._named("attention"),
            rotary=None if rotary is None else self._rotary(rotary),
            norms=[self.g.weight(f"{self._named(name)}.weight") for name in head_norms or ()],
        )
        return y

    def _rotary(self, frequencies: Frequencies) -> "Rotary":
        rotated, width = 2 * len(frequencies), self.config.head_dim
        if rotated != width:
            # ONNX Runtime's GroupQueryAttention and ONNX's RotaryEmbedding could rotate a part, our
            # kernel could not. So plc::Attention has no way to say it.
            raise ExportError(
                f"building the attention of {self._named('attention')}",
                found=f"rotary positions that turn {rotated} of the {width} numbers of a head",
                expected="all of them: no target computes a part",
                fix="Choose another base.",
            )
        angles = np.outer(np.arange(self.contract.capacity), frequencies)
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        return Rotary(self.g.constant("rotary.cos", cos), self.g.constant("rotary.sin", sin))

    def swiglu(self, gate: ir.Value, up: ir.Value) -> ir.Value:
        """`silu(gate) * up`."""
        return self.g.op(SWIGLU, [gate, up], self._after(gate, "swiglu"), domain=PLC_DOMAIN)

    def geglu(self, gate: ir.Value, up: ir.Value) -> ir.Value:
        """`gelu(gate) * up`."""
        return self.g.op(GEGLU, [gate, up], self._after(gate, "geglu"), domain=PLC_DOMAIN)

    def gelu(self, x: ir.Value) -> ir.Value:
        """The tanh form of GELU."""
        return self.g.op("Gelu", [x], self._after(x, "gelu"), approximate="tanh")

    def add(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """`x + y`."""
        return self.g.op("Add", [x, y], self._after(y, "add"))

    def scale(self, x: ir.Value, factor: float) -> ir.Value:
        """`x * factor`."""
        number = self.g.constant("float", np.asarray(factor, np.float32))
        return self.g.op("Mul", [x, number], self._after(x, "scale"))

    def last_token(self, x: ir.Value) -> ir.Value:
        """`[batch, seq, hidden]` to `[batch, hidden]`: the row's last real token.

        With ragged rows `[1, tokens, hidden]` to `[outputs, hidden]`.
        """
        rows = self.step.rows
        if isinstance(rows, Ragged):
            chosen = self.g.op("Gather", [x, rows.logit_tokens], "logit_tokens.gather", axis=1)
            return self.g.op("Squeeze", [chosen, self.g.integers(0)], "last_token")
        column = [rows.last_index, self.g.integers(1)]
        index = self.g.op("Unsqueeze", column, "last_index.column")
        return self.g.op("GatherND", [x, index], "last_token", batch_dims=1)

    def head(self, x: ir.Value) -> ir.Value:
        """`[batch, hidden]` to `[batch, vocab]`."""
        # The table is stored as `[vocab, hidden]`, since the embedding reads it too. With `transB`
        # the product takes it so: there is no transposed copy of it.
        table = self.g.weight(EMBEDDING if self.config.tied else HEAD)
        logits = self.g.op("Gemm", [x, table], "head", transB=1)
        if self.config.vocab % VOCAB_MULTIPLE:
            bounds = [self.g.integers(each) for each in (0, self.config.vocab, 1)]
            logits = self.g.op("Slice", [logits, *bounds], "head.unpadded")
        if self.config.logits_scale != 1:
            logits = self.scale(logits, self.config.logits_scale)
        return self._capped(logits) if self.config.logits_cap else logits

    def _capped(self, logits: ir.Value) -> ir.Value:
        """`cap * tanh(logits / cap)`."""
        cap = self.config.logits_cap
        bent = self.g.op("Tanh", [self.scale(logits, 1 / cap)], "head.bent")
        return self.scale(bent, cap)


@dataclass(frozen=True)
class Rotary:
    """Rotary positions (arXiv:2104.09864).

    Attributes:
        cos: float `[capacity, head_dim / 2]`.
        sin: as `cos`.
    """

    cos: ir.Value
    sin: ir.Value


def attention(
    g: GraphBuilder,
    settings: AttentionSettings,
    parts: Sequence[ir.Value],
    cache: Cache,
    rows: Padded | Ragged,
    positions: ir.Value,
    name: str,
    *,
    rotary: Rotary | None = None,
    norms: Sequence[ir.Value | None] = (),
) -> tuple[ir.Value, Cache]:
    """Writes keys and values into the cache and attends causally over what it holds.

    Args:
        g: the graph.
        settings: heads, scale and what else the layer computes.
        parts: query `[batch, seq, heads * head_dim]`, key and value
            `[batch, seq, kv_heads * head_dim]`.
        cache: the layer's cache before this step.
        rows: how the step's rows lie beside each other.
        positions: int64 `[batch, seq]`, as `StepValues` has them.
        name: of the attention.
        rotary: how queries and keys are rotated; None where positions are learned.
        norms: weights `[head_dim]` of the norms of queries and of keys, if they have some.

    Returns:
        `[batch, seq, heads * head_dim]`, and the cache after this step.
    """
    past_lengths = rows.past_lengths if isinstance(rows, Padded) else None
    paged: list[ir.Value | None] = []
    if isinstance(rows, Ragged):
        paged = [rows.token_rows, rows.block_tables, rows.prefixes, rows.parents]
    rotation = (None, None) if rotary is None else (rotary.cos, rotary.sin)
    norms = norms if norms else (None, None)
    where = positions if rotary is not None or paged else None
    optional = _up_to_last_given([where, *rotation, *norms, *paged])
    y, present_key, present_value = g.ops(
        ATTENTION,
        [*parts, *cache, past_lengths, *optional],
        f"{name}.attend",
        domain=PLC_DOMAIN,
        outputs=3,
        **settings.attributes,
    )
    return y, (present_key, present_value)


def _up_to_last_given(inputs: list[ir.Value | None]) -> list[ir.Value | None]:
    """The inputs without those at the end that are None: a node leaves such inputs out."""
    given = [index for index, value in enumerate(inputs) if value is not None]
    return inputs[: given[-1] + 1] if given else []


def token_positions(g: GraphBuilder, input_ids: ir.Value, past_lengths: ir.Value) -> ir.Value:
    """int64 `[batch, seq]`: how many tokens stand before each one, virtual ones counted."""
    seq = g.op("Shape", [input_ids], "seq", start=1, end=2)
    scalar = g.op("Squeeze", [seq, g.integers(0)], "seq.scalar")
    zero = g.op("Squeeze", [g.integers(0), g.integers(0)], "zero")
    one = g.op("Squeeze", [g.integers(1), g.integers(0)], "one")
    steps = g.op("Range", [zero, scalar, one], "steps")
    past = g.op("Unsqueeze", [past_lengths, g.integers(1)], "past.column")
    return g.op("Add", [past, steps], "positions")
