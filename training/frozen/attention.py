"""Causal attention over a packed line, registered with transformers as an attention function.

Each row attends to itself, to the common tokens of its task and to the task's learned prefix.
Rows of similar length are computed together as small dense products. The backward pass computes the
scores again, so only queries, keys and values are saved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pl_compile.errors import BaseModelError
from pl_compile.families.registry import FAMILIES
from pl_compile.training.data.packing import Group, PackedBatch, Span
from pl_compile.training.frozen.workspace import Workspace

NAME = "plc_packed"

# Options of transformers' attention functions that are computed here.
_COMPUTED = {"scaling", "sliding_window"}

# Rows are computed together as long as padding adds at most this part ...
_PADDING = 0.25
# ... and their scores take at most this many numbers.
_SCORES = 1 << 24


@dataclass(frozen=True)
class Chunk:
    """Rows of a group that are computed together.

    Attributes:
        group: number of the group.
        common: earlier tokens that all of them attend to.
        index: int64 `[rows, longest]`; places in the line; in padding, the row's first place.
        real: bool `[rows, longest]`; false in padding.
        kept: int64 `[tokens]`: where `real` is true in the rows laid end to end. (To index by
            `real` itself would wait for a GPU, which must count first.)
        places: int64 `[tokens]`: `index[real]`.
    """

    group: int
    common: Span
    index: Tensor
    real: Tensor
    kept: Tensor
    places: Tensor


@dataclass
class AttentionLayout:
    """How the attention of a micro-batch is computed; the same for every layer.

    Attributes:
        chunks: all tokens of the line, each in one.
        prefixes: float32 `[layers, 2, kv_heads, prefix, head_dim]` for each group, or None.
        workspace: keeps what the backward pass needs; None leaves that to torch.
    """

    chunks: tuple[Chunk, ...]
    prefixes: tuple[Tensor | None, ...]
    workspace: Workspace | None
    _masks: dict[tuple[int, int, int, int, torch.dtype], Tensor] = field(default_factory=dict)

    def mask(self, length: int, before: int, repeats: int, window: int, like: Tensor) -> Tensor:
        """`[repeats * length, before + length]`: 0 where a query may look, else minus infinity.

        Args:
            length: queries of a row.
            before: how many keys stand before all of them.
            repeats: query heads that share a key head.
            window: how many keys a query sees, its own included; 0: all before it. All keys of a
                row are neighbours in it, so their distances are those of its positions.
            like: dtype and device.
        """
        key = (length, before, repeats, window, like.dtype)
        if key not in self._masks:
            ones = torch.ones(length, before + length, dtype=torch.bool, device=like.device)
            unseen = ones.triu(before + 1)
            if window:
                unseen |= ones.tril(before - window)
            mask = torch.zeros(unseen.shape, dtype=like.dtype, device=like.device)
            self._masks[key] = mask.masked_fill_(unseen, float("-inf")).repeat(repeats, 1)
        return self._masks[key]


def lay_out_attention(
    batch: PackedBatch,
    prefixes: Mapping[int, Tensor | None],
    workspace: Workspace | None,
) -> AttentionLayout:
    """The layout of a micro-batch.

    Args:
        batch: the line.
        prefixes: by task: float32 `[layers, 2, kv_heads, prefix, head_dim]`, or None.
        workspace: see `AttentionLayout`.
    """
    device = batch.token_ids.device
    chunks = []
    for number, group in enumerate(batch.groups):
        if group.common.length:
            chunks.append(_chunk(number, Span(0, 0), [group.common], device))
        chunks += [_chunk(number, group.common, rows, device) for rows in _alike(group)]
    return AttentionLayout(
        tuple(chunks), tuple(prefixes.get(group.task) for group in batch.groups), workspace
    )


def _alike(group: Group) -> list[list[Span]]:
    """The rows in groups of similar length."""
    portions: list[list[Span]] = []
    real = 0
    for row in sorted(group.rows, key=lambda row: -row.length):
        if portions:
            longest = portions[-1][0].length
            padded = longest * (len(portions[-1]) + 1)
            fits = padded * (group.common.length + longest) <= _SCORES
            if fits and padded <= (1 + _PADDING) * (real + row.length):
                portions[-1].append(row)
                real += row.length
                continue
        portions.append([row])
        real = row.length
    return portions


def _chunk(group: int, common: Span, rows: Sequence[Span], device: torch.device) -> Chunk:
    starts = torch.tensor([row.start for row in rows])[:, None]
    lengths = torch.tensor([row.length for row in rows])[:, None]
    offsets = torch.arange(int(lengths.max()))[None]
    real = offsets < lengths
    index = starts + offsets * real
    kept = torch.nonzero(real.flatten())[:, 0]
    tensors = (index, real, kept, index[real])
    return Chunk(group, common, *(tensor.to(device) for tensor in tensors))


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: AttentionLayout,
    scaling: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    position_ids: Tensor | None = None,
    use_cache: bool = False,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function of transformers' modules; see its `AttentionInterface`.

    Args:
        module: the layer's attention; its `layer_idx` chooses the layer of the prefixes.
        query: `[1, heads, tokens, head_dim]`.
        key: `[1, kv_heads, tokens, head_dim]`.
        value: the same.
        attention_mask: not used: the layout says which tokens see which.
        layout: of the micro-batch.
        scaling: of the scores; if None, one over the square root of `head_dim`.
        sliding_window: how many tokens one sees, itself included; all before it if None.
        dropout: never active in a frozen base.
        position_ids: not used: queries and keys are rotated already.
        use_cache: not used.
        options: of other attention functions, such as a softcap. An option that is not None is
            refused, unless the family's attention has it and it is computed here.

    Returns:
        `[1, tokens, heads, head_dim]`, and no weights.

    Raises:
        BaseModelError: an option that would change the numbers, or may do so.
    """
    given = {
        "scaling": scaling,
        "sliding_window": sliding_window,
        "dropout": dropout or None,
        **options,
    }
    known = FAMILIES[module.config.model_type].attention_options & _COMPUTED
    unknown = sorted(name for name in given.keys() - known if given[name] is not None)
    if unknown:
        raise BaseModelError(
            f"computing the attention of {type(module).__name__}",
            found=f"its options {', '.join(unknown)}",
            expected="only options that training computes",
            fix="Use another base: docs/importing.md says which are read.",
        )
    kind = _Kind(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window or 0)
    prefixes = [
        part
        for prefix in layout.prefixes
        for part in ((None, None) if prefix is None else prefix[module.layer_idx].to(key.dtype))
    ]
    output = _PackedAttention.apply(  # type: ignore[no-untyped-call]
        query[0], key[0], value[0], kind, layout, *prefixes
    )
    return output[None], None


@dataclass(frozen=True)
class _Kind:
    """What an attention computes.

    Attributes:
        scale: of the scores.
        window: see `AttentionLayout.mask`.
    """

    scale: float
    window: int


class _PackedAttention(torch.autograd.Function):
    """Queries `[heads, tokens, head_dim]` to outputs `[tokens, heads, head_dim]`.

    Keys and values are `[kv_heads, tokens, head_dim]`. After them come the keys and values of each
    group's prefix, `[kv_heads, prefix, head_dim]`, or None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kind: _Kind,
        layout: AttentionLayout,
        *prefixes: Tensor | None,
    ) -> Tensor:
        if any(ctx.needs_input_grad):
            keep = layout.workspace.keep if layout.workspace else (lambda tensor: tensor)
            ctx.save_for_backward(keep(query), keep(key), keep(value), *prefixes)
            ctx.kind, ctx.layout = kind, layout
        heads, tokens, width = query.shape
        output = query.new_empty(tokens, heads, width)
        for chunk in layout.chunks:
            mine = _ChunkProducts(chunk, layout, kind, query, key, value, prefixes)
            output[chunk.places] = mine.merged(mine.weights() @ mine.value)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *prefixes = ctx.saved_tensors
        d_query = torch.empty_like(query)
        d_key, d_value = torch.zeros_like(key), torch.zeros_like(value)
        d_prefixes = [None if part is None else torch.zeros_like(part) for part in prefixes]
        for chunk in ctx.layout.chunks:
            mine = _ChunkProducts(chunk, ctx.layout, ctx.kind, query, key, value, prefixes)
            weights = mine.weights()
            d_output = mine.queries_of(grad.transpose(0, 1), padding=0.0)
            d_scores = d_output @ mine.value.transpose(1, 2)
            d_scores = torch._softmax_backward_data(d_scores, weights, -1, weights.dtype)
            d_scores *= ctx.kind.scale
            d_query[:, chunk.places] = mine.merged(d_scores @ mine.key).transpose(0, 1)
            g = 2 * chunk.group
            mine.spread(d_scores.transpose(1, 2) @ mine.query, d_key, d_prefixes[g])
            mine.spread(weights.transpose(1, 2) @ d_output, d_value, d_prefixes[g + 1])
        return d_query, d_key, d_value, None, None, *d_prefixes


class _ChunkProducts:
    """The operands of a chunk's products: `[kv_heads * rows, ...]`.

    Query heads that share a key head are laid end to end, so that keys need not be repeated.
    """

    def __init__(
        self,
        chunk: Chunk,
        layout: AttentionLayout,
        kind: _Kind,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        prefixes: Sequence[Tensor | None],
    ) -> None:
        self._chunk, self._layout, self._kind = chunk, layout, kind
        self._kv_heads, self._repeats = key.shape[0], query.shape[0] // key.shape[0]
        self.rows, self.length = chunk.index.shape
        prefix_key, prefix_value = prefixes[2 * chunk.group : 2 * chunk.group + 2]
        self.prefix = 0 if prefix_key is None else prefix_key.shape[1]
        self.query = self.queries_of(query)
        self.key = self._keys_of(key, prefix_key)
        self.value = self._keys_of(value, prefix_value)

    def weights(self) -> Tensor:
        """Attention weights `[kv_heads * rows, repeats * length, before + length]`."""
        before = self.key.shape[1] - self.length
        window, scale = self._kind.window, self._kind.scale
        mask = self._layout.mask(self.length, before, self._repeats, window, self.query)
        scores = torch.baddbmm(mask, self.query, self.key.transpose(1, 2), alpha=scale)
        return scores.softmax(-1)

    def queries_of(self, line: Tensor, *, padding: float | None = None) -> Tensor:
        """`[heads, tokens, width]` to `[kv_heads * rows, repeats * length, width]`.

        Args:
            line: queries, or their gradient.
            padding: the value in padding; if None, it is left as it is.
        """
        width = line.shape[-1]
        rows = line[:, self._chunk.index]
        if padding is not None and len(self._chunk.places) < self._chunk.real.numel():
            rows = rows.masked_fill_(~self._chunk.real[..., None], padding)
        rows = rows.view(self._kv_heads, self._repeats, self.rows, self.length, width)
        return rows.transpose(1, 2).reshape(
            self._kv_heads * self.rows, self._repeats * self.length, width
        )

    def merged(self, products: Tensor) -> Tensor:
        """The inverse of `queries_of`: `[real tokens, heads, width]`."""
        shape = (self._kv_heads, self.rows, self._repeats, self.length, products.shape[-1])
        rows = products.view(shape).permute(1, 3, 0, 2, 4).flatten(2, 3)
        return rows.flatten(0, 1).index_select(0, self._chunk.kept)

    def _keys_of(self, line: Tensor, prefix: Tensor | None) -> Tensor:
        """`[kv_heads, tokens, width]` to `[kv_heads * rows, before + length, width]`."""
        common = _slice(self._chunk.common)
        parts = [line[:, None, common].expand(-1, self.rows, -1, -1)]
        if prefix is not None:
            parts.insert(0, prefix[:, None].expand(-1, self.rows, -1, -1))
        parts.append(line[:, self._chunk.index])
        return torch.cat(parts, 2).flatten(0, 1)

    def spread(self, grad: Tensor, line: Tensor, prefix: Tensor | None) -> None:
        """Adds a gradient of keys or values to those of the line and of the prefix."""
        common = self._chunk.common
        grad = grad.view(self._kv_heads, self.rows, -1, grad.shape[-1])
        own = self.prefix + common.length
        if prefix is not None:
            prefix += grad[:, :, : self.prefix].sum(1)
        line[:, _slice(common)] += grad[:, :, self.prefix : own].sum(1)
        # A padding token repeats a real one, and no real token attends to it: drop its gradient.
        real = grad[:, :, own:].flatten(1, 2).index_select(1, self._chunk.kept)
        line[:, self._chunk.places] += real


def _slice(span: Span) -> slice:
    return slice(span.start, span.start + span.length)
