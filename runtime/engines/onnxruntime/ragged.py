"""The engine on ONNX Runtime for ragged rows: caches in blocks, all tokens of a step in one run.

A row's keys and values lie in blocks of a few entries, wherever one is free (arXiv:2309.06180): so
the memory in use is that of the entries in use, and no row ever moves. A prefix is in memory once,
whoever begins with it; a row's own blocks begin where its prefix ends. Rows whose prompts begin
alike after the same prefix use the same blocks for that, as far as these are full.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from pl_compile.config.contract import (
    BLOCK_TABLES,
    INPUT_IDS,
    LOGIT_TILES,
    LOGIT_TOKENS,
    LOGITS,
    NEXT_TOKEN,
    PARENTS,
    POSITIONS,
    PREFIXES,
    PROMPT_TABLE,
    TASK_ID,
    TOKEN_ROWS,
    GraphContract,
    PrefixBits,
)
from pl_compile.config.kernel_layout import ENTRIES_OF_BLOCK, TILE
from pl_compile.errors import RequestError
from pl_compile.runtime.engines.engine import (
    Fed,
    Feed,
    PrefixKv,
    Prompt,
    Shared,
    prefix_length,
)
from pl_compile.runtime.engines.memory import give_back, zeros_as_touched
from pl_compile.runtime.engines.onnxruntime.block_pool import BlockPool
from pl_compile.runtime.engines.onnxruntime.graph import OnnxGraph
from pl_compile.runtime.engines.onnxruntime.providers import CPU, Provider
from pl_compile.runtime.engines.padded import PIECE
from pl_compile.runtime.engines.step_inputs import draw_inputs
from pl_compile.runtime.kernels.prefixes import HeldPrefixes
from pl_compile.runtime.sampling import GREEDY
from pl_compile.shapes import Float32, Int64, Shape

# Tokens of a prompt that come together with the tokens of other rows: more keep those waiting for
# longer, and compute each little faster (1,024 at once a fifth, which is for when few rows wait).
PIECE_TOGETHER = 128

# What part of the entries of all rows is kept for prompts that begin alike; one row's at least.
_PART_KEPT = 8

_NO_PARENTS = np.zeros(0, np.int64)
_ALL_TILES = np.zeros(0, np.int64)


class RaggedEngine:
    """ONNX Runtime on CPU, with ragged rows.

    Args:
        model: the `model.onnx` of a bundle; its data file lies beside it.
        contract: what the graph takes and gives.
        max_batch: most rows at once. Memory is taken as they are used.
        threads: intra-op threads; all cores if None.
        watched: further outputs of the graph to be read after a step: float, of any shape.
        provider: what runs it.
        own_products: whether all products of the graph are calls of our kernels. Then no number of
            a token depends on how many others come with it. ONNX Runtime's products have other
            bits for other numbers of tokens: there each row of several tokens has a run of its own.
        prefix_bits: of each number of a prefix that the kernels hold: see `HeldPrefixes`.
        dtype: of its caches: float32 or float16.
        context_mib: most MiB of entries that are kept for prompts that begin alike, while no row
            uses them. If 0, rows share nothing. If None, an eighth of the entries of `max_batch`
            rows, at least those of one. Without `own_products` rows share nothing, since entries
            would have other bits.

    Raises:
        ArtifactError: ONNX Runtime cannot load the model, or the graph is not that of the contract.
        RequestError: a provider that is not the CPU's.
    """

    def __init__(
        self,
        model: Path,
        contract: GraphContract,
        *,
        max_batch: int = 16,
        threads: int | None = None,
        watched: Sequence[str] = (),
        provider: Provider = CPU,
        own_products: bool = False,
        prefix_bits: PrefixBits = 32,
        dtype: str = "float32",
        context_mib: int | None = None,
    ) -> None:
        if provider.device != "cpu":
            raise RequestError(
                f"loading {model}",
                found=f"the provider {provider.name}, and a graph whose caches lie in blocks",
                expected="the provider cpu",
                fix="Export for onnx-cuda to run on a GPU.",
            )
        self.graph = OnnxGraph(model, contract, provider, dtype, threads=threads, watched=watched)
        self.capacity = contract.capacity
        self.vocab = contract.vocab
        self.max_batch = max_batch
        self.candidates = contract.candidates
        self.sampling_inputs = contract.sampling_inputs
        self.contract = contract
        # Without the kernels ONNX Runtime runs the calls' bodies (`paged_body.py`), which know
        # neither branches nor prefixes that are held.
        self.together = self.branches = own_products and self.graph.has_kernels
        self.piece = PIECE_TOGETHER if self.together else PIECE
        self.prefixes = HeldPrefixes(prefix_bits) if self.graph.has_kernels else None
        self._logits = zeros_as_touched((max_batch, contract.vocab), np.float32)
        self._tokens = np.zeros(max_batch, np.int64)
        self._results = (0, 0)  # where those of the last run lie
        width = -(-contract.capacity // ENTRIES_OF_BLOCK)
        rows = max_batch * width
        keep = 0
        if self.together and context_mib is None:
            keep = max(width, rows // _PART_KEPT)
        elif self.together and context_mib:
            keep = -(-context_mib * 2**20 // (ENTRIES_OF_BLOCK * _entry_bytes(contract, dtype)))
        self.caches = _Blocks(contract, rows, width, keep, dtype)
        for (past, present), array in zip(contract.cache_names, self.caches.arrays, strict=True):
            self.graph.bind_input(past, array)
            self.graph.bind_output(present, array)

    def room_for_results(
        self, first: int, count: int
    ) -> tuple[Annotated[Float32, Shape("outputs vocab")], Annotated[Int64, Shape("outputs")]]:
        """Binds the graph's results to memory of the engine's: for logits, and for tokens.

        Args:
            first: results of the same step that lie before them.
            count: how many there are.
        """
        rows = slice(first, first + count)
        if rows.stop > len(self._logits):
            # What lies in the old memory is in use as long as its step is.
            self._logits = zeros_as_touched((2 * rows.stop, self.vocab), np.float32)
            self._tokens = np.zeros(2 * rows.stop, np.int64)
            self._results = (0, 0)
        logits, tokens = self._logits[rows], self._tokens[rows]
        if self._results != (first, count):
            self._results = (first, count)
            self.graph.bind_output(LOGITS, logits)
            if self.candidates:
                self.graph.bind_output(NEXT_TOKEN, tokens)
        return logits, tokens

    def rows(self) -> "RaggedRows":
        """See `Engine.rows`."""
        self.caches.pool.clear()
        return RaggedRows(self)

    def close(self) -> None:
        """Nothing: all that it holds is memory, which goes with the object."""

    def watched(self) -> list[tuple[str, Annotated[Float32, Shape("...")]]]:
        """The watched outputs of the last step, by name."""
        return self.graph.watched()


class _Blocks:
    """Keys and values in blocks: one array `[blocks, kv_heads, ENTRIES_OF_BLOCK, head_dim]` each.

    Blocks that were never used take no memory. The lowest ones are used first. Once more are idle
    than in use, their memory goes back to the system.

    Args:
        contract: of the graph.
        count: blocks that rows can use.
        width: most blocks of a row.
        keep: more blocks, for those that are kept for later rows; 0 where rows share none.

    Attributes:
        arrays: in the order of the contract's caches.
        width: most blocks of a row.
        pool: which blocks are free, used or kept.
        hits: rows that began with blocks of others.
        tokens: that were not computed for that.
    """

    def __init__(
        self, contract: GraphContract, count: int, width: int, keep: int, dtype: str
    ) -> None:
        shape = (count + keep, contract.kv_heads, ENTRIES_OF_BLOCK, contract.head_dim)
        self.arrays: list[NDArray[Any]] = [
            zeros_as_touched(shape, np.dtype(dtype)) for _ in contract.cache_names
        ]
        self.width = width
        # Each row may have as many as its longest text takes, so there is always a free one.
        self.pool = BlockPool(count + keep, keep)
        self.hits = self.tokens = 0
        self._entry_bytes = _entry_bytes(contract, dtype)

    @property
    def shared(self) -> Shared | None:
        """See `Rows.shared`."""
        pool, entries = self.pool, ENTRIES_OF_BLOCK
        if not pool.keep:
            return None
        return Shared(
            entries=pool.kept * entries,
            most=pool.keep * entries,
            entry_bytes=self._entry_bytes,
            hits=self.hits,
            tokens=self.tokens,
            evicted=pool.evicted * entries,
        )


def _entry_bytes(contract: GraphContract, dtype: str) -> int:
    return 2 * contract.layers * contract.kv_heads * contract.head_dim * np.dtype(dtype).itemsize


@dataclass
class _Row:
    """What a slot holds.

    Attributes:
        prompt: whose prefix it begins with. It keeps the prefix's array, which the kernels read.
        prefix: number of the prefix that the kernels hold; 0 for none.
        length: entries of the prefix.
        table: int64 `[width]`: the blocks of its entries; 0 where it has none.
        first: the first block that is its own: those before hold entries of the prefix only.
        blocks: its own, in their order; those that it shares come first.
        ids: int64 `[seq]`: what it is to be fed of its prompt; None where nothing of it is shared,
            or all was fed.
        keys: what the blocks that this fills are computed from, in their order.
        fixed: entries that other rows may read, its prefix counted: they are not written again.
    """

    prompt: Prompt
    prefix: int
    length: int
    table: Annotated[Int64, Shape("width")]
    first: int
    blocks: list[int] = field(default_factory=list)
    ids: Annotated[Int64, Shape("seq")] | None = None
    keys: list[bytes] = field(default_factory=list)
    fixed: int = 0

    @property
    def room(self) -> int:
        """Entries that it has blocks for, those of its prefix counted."""
        return (self.first + len(self.blocks)) * ENTRIES_OF_BLOCK

    def add(self, block: int) -> None:
        """Takes a block as the next one."""
        self.table[self.first + len(self.blocks)] = block
        self.blocks.append(block)


class RaggedRows:
    """The rows of a ragged engine: see `Rows`."""

    def __init__(self, engine: RaggedEngine) -> None:
        self._engine = engine
        self._caches = engine.caches
        self._rows: dict[int, _Row] = {}

    def admit(self, slot: int, prompt: Prompt) -> int:
        """See `Rows.admit`."""
        assert slot not in self._rows
        assert slot < self._engine.max_batch
        length = prefix_length(prompt)
        assert length < self._engine.capacity
        table = np.zeros(self._caches.width, np.int64)
        held = self._engine.prefixes
        if prompt.prefix_kv is None or held is None:
            self._rows[slot] = _Row(prompt, 0, 0, table, 0)
            if prompt.prefix_kv is not None:
                self._write(self._rows[slot], prompt.prefix_kv)
        else:
            number = held.number(prompt.prefix_kv)
            self._rows[slot] = _Row(prompt, number, length, table, length // ENTRIES_OF_BLOCK)
        return length

    @property
    def shared(self) -> Shared | None:
        """See `Rows.shared`."""
        return self._caches.shared

    def share(self, slot: int, ids: Annotated[Int64, Shape("seq")]) -> int:
        """See `Rows.share`."""
        row, pool = self._rows[slot], self._caches.pool
        if not pool.keep:
            return 0
        if row.ids is None:
            assert not row.blocks
            row.ids, row.keys = ids, _keys(self._engine.contract, row, ids)
        before = max(0, row.room - row.length)
        while row.room + ENTRIES_OF_BLOCK < row.length + len(ids):
            block = pool.find(row.keys[len(row.blocks)])
            if block is None:
                break
            row.add(block)
        row.fixed = row.room
        held = max(0, row.room - row.length)
        if held > before:
            self._caches.hits += before == 0
            self._caches.tokens += held - before
        return held

    def alike(self, slot: int, other: int) -> bool:
        """See `Rows.alike`: at least half of the blocks that both fill must be the same."""
        row, before = self._rows[slot], self._rows[other]
        half = max(len(row.keys), len(before.keys)) // 2
        if not len(row.blocks) <= half < min(len(row.keys), len(before.keys)):
            return False
        return row.keys[half] == before.keys[half]

    def _write(self, row: _Row, prefix_kv: PrefixKv) -> None:
        """Copies a prefix into a row's own blocks, where no kernels are that could hold it."""
        length = prefix_kv.shape[3]
        self._make_room(row, length)
        parts = prefix_kv.reshape(-1, *prefix_kv.shape[2:])
        for array, part in zip(self._caches.arrays, parts, strict=True):
            for number, block in enumerate(row.blocks):
                begin = number * ENTRIES_OF_BLOCK
                entries = part[:, begin : begin + ENTRIES_OF_BLOCK]
                array[block, :, : entries.shape[1]] = entries

    def _make_room(self, row: _Row, entries: int) -> None:
        """Takes blocks until a row has room for so many entries, its prefix counted."""
        while row.room < entries:
            row.add(self._caches.pool.take())

    def step(self, feeds: Sequence[Feed]) -> list[Fed]:
        """See `Rows.step`."""
        for feed in feeds:
            end = feed.past + len(feed.ids)
            if feed.past < self._rows[feed.slot].length:
                self._copy_prefix(feed.slot, feed.past)
            assert self._rows[feed.slot].fixed <= feed.past
            assert end <= self._engine.capacity
            self._make_room(self._rows[feed.slot], end)
        if self._engine.together:
            outputs = self._run(feeds) if feeds else []
            self._name_blocks(feeds)
            return outputs
        found: dict[int, Fed] = {}
        single = [feed for feed in feeds if len(feed.ids) == 1]
        first = 0
        for group in [single, *([feed] for feed in feeds if len(feed.ids) > 1)]:
            if group:
                fed = self._run(group, first)
                first += sum(len(logits) for logits, _ in fed)
                found |= zip((feed.slot for feed in group), fed, strict=True)
        return [found[feed.slot] for feed in feeds]

    def _copy_prefix(self, slot: int, entries: int) -> None:
        """Gives a row a copy of what its prefix begins with, in place of the prefix.

        For a prompt that is no longer than its prefix: a step needs a token, so the last one is
        computed again, and no token may stand within a prefix.
        """
        prompt = self._rows[slot].prompt
        assert prompt.prefix_kv is not None
        assert not self._rows[slot].blocks
        row = _Row(prompt, 0, 0, np.zeros(self._caches.width, np.int64), 0)
        self._rows[slot] = row
        if entries:
            self._write(row, prompt.prefix_kv[:, :, :, :entries])

    def _name_blocks(self, feeds: Sequence[Feed]) -> None:
        """Names the blocks of prompts that were fed to their ends, so that later rows find them.

        The blocks of an answer have no names: what follows a prompt may be rewound. `clear` takes
        the names away where numbers are not finite.
        """
        for feed in feeds:
            row = self._rows[feed.slot]
            if row.ids is None:
                continue
            begin = feed.past - row.length
            end = begin + len(feed.ids)
            assert np.array_equal(feed.ids, row.ids[begin:end])
            if end < len(row.ids):
                continue
            # The last block may not be full: it has no key.
            for block, key in zip(row.blocks, row.keys, strict=False):
                self._caches.pool.name(block, key)
            row.fixed = (row.first + len(row.keys)) * ENTRIES_OF_BLOCK
            row.ids, row.keys = None, []

    def _run(self, feeds: Sequence[Feed], first: int = 0) -> list[Fed]:
        """One run of the graph; its results lie after `first` others of the step."""
        rows = [self._rows[feed.slot] for feed in feeds]
        graph, contract = self._engine.graph, self._engine.contract
        counts = [1 if feed.wanted is None else len(feed.wanted) for feed in feeds]
        inputs = _inputs(contract, feeds)
        inputs[BLOCK_TABLES] = np.stack([row.table for row in rows])
        inputs[PREFIXES] = np.asarray([row.prefix for row in rows], np.int64)
        for name, array in inputs.items():
            graph.give(name, array)
        logits, tokens = self._engine.room_for_results(first, sum(counts))
        graph.run()
        found: list[Fed] = []
        end = 0
        for feed, count in zip(feeds, counts, strict=True):
            end += count
            chosen = None if feed.draw is None else int(tokens[end - 1])
            found.append((logits[end - count : end], chosen))
        return found

    def clear(self, slots: Sequence[int]) -> None:
        """See `Rows.clear`."""
        blocks = [block for slot in slots for block in self._rows[slot].blocks]
        unshared = self._caches.pool.forget(blocks)
        for array in self._caches.arrays:
            array[unshared] = 0

    def retire(self, slots: Sequence[int]) -> None:
        """See `Rows.retire`."""
        for slot in slots:
            self._caches.pool.give_back(self._rows.pop(slot).blocks)
        for begin, end in self._caches.pool.idle():
            for array in self._caches.arrays:
                give_back(array, begin, end)

    def cached(self, slot: int, length: int) -> PrefixKv:
        """See `Rows.cached`."""
        row, c = self._rows[slot], self._engine.contract
        found = np.empty((2 * c.layers, c.kv_heads, length, c.head_dim), np.float32)
        begin = min(row.length, length)
        if begin:
            assert row.prompt.prefix_kv is not None
            whole = row.prompt.prefix_kv
            found[:, :, :begin] = whole.reshape(-1, *whole.shape[2:])[:, :, :begin]
        start = row.first * ENTRIES_OF_BLOCK
        for part, array in zip(found, self._caches.arrays, strict=True):
            own = np.concatenate([array[block] for block in row.blocks], axis=1)
            part[:, begin:] = own[:, begin - start : length - start]
        return found.reshape(c.layers, 2, c.kv_heads, length, c.head_dim)


def _keys(contract: GraphContract, row: _Row, ids: Annotated[Int64, Shape("seq")]) -> list[bytes]:
    """What the blocks that a prompt fills are computed from: each sum is over all before it, too.

    That is the prefix (a number of a prefix is never given twice), the prompt's virtual rows, and
    its tokens. No name is in it: a task that is replaced has another prefix, or other rows.
    """
    virtual = ids[ids >= contract.vocab] - contract.vocab
    begin = hashlib.sha256(f"{row.prefix}".encode())
    if len(virtual):
        baked = row.prompt.task_id if contract.prompts == "baked" else 0
        begin.update(f" {baked} ".encode())
        begin.update(row.prompt.rows[virtual].tobytes())
    key, keys = begin.digest(), []
    for end in range(row.room + ENTRIES_OF_BLOCK - row.length, len(ids) + 1, ENTRIES_OF_BLOCK):
        key = hashlib.sha256(key + ids[max(0, end - ENTRIES_OF_BLOCK) : end].tobytes()).digest()
        keys.append(key)
    return keys


def _inputs(contract: GraphContract, feeds: Sequence[Feed]) -> dict[str, NDArray[Any]]:
    """The inputs of a step by name: all but caches, tables and prefixes."""
    lengths = np.asarray([len(feed.ids) for feed in feeds], np.int64)
    ends: Int64 = np.cumsum(lengths)
    ids = np.concatenate([feed.ids for feed in feeds])
    inputs: dict[str, NDArray[Any]] = {
        INPUT_IDS: ids[None],
        POSITIONS: np.concatenate([_positions(feed) for feed in feeds])[None],
        TOKEN_ROWS: np.repeat(np.arange(len(feeds)), lengths),
        PARENTS: _parents(feeds),
        LOGIT_TOKENS: np.concatenate(
            [
                [end - 1] if feed.wanted is None else end - len(feed.ids) + feed.wanted
                for end, feed in zip(ends.tolist(), feeds, strict=True)
            ]
        ).astype(np.int64),
    }
    if contract.prompts == "baked":
        numbers = [feed.prompt.task_id for feed in feeds]
        inputs[TASK_ID] = np.repeat(np.asarray(numbers, np.int64), lengths)[None]
    else:
        inputs[PROMPT_TABLE] = _prompt_rows(contract, feeds, ids, ends - lengths)
    if contract.logit_tiles:
        inputs[LOGIT_TILES] = _logit_tiles(feeds)
    if contract.candidates:
        # A graph that can choose does so after every token that is asked for. Where none is wanted,
        # the choice is unused.
        draws = [
            draw
            for feed in feeds
            for draw in [
                *[GREEDY] * (0 if feed.wanted is None else len(feed.wanted) - 1),
                feed.draw or GREEDY,
            ]
        ]
        inputs |= draw_inputs(contract, draws)
    return inputs


def _positions(feed: Feed) -> Annotated[Int64, Shape("seq")]:
    """How many entries stand before each token of a feed in its row."""
    if feed.parents is None:
        return np.arange(feed.past, feed.past + len(feed.ids))
    positions: list[int] = []
    for parent in feed.parents.tolist():
        positions.append(feed.past if parent < 0 else positions[parent] + 1)
    return np.asarray(positions, np.int64)


def _parents(feeds: Sequence[Feed]) -> Annotated[Int64, Shape("branching")]:
    """Where a row branches, the parents of all tokens."""
    if all(feed.parents is None for feed in feeds):
        return _NO_PARENTS
    return np.concatenate(
        [
            np.arange(-1, len(feed.ids) - 1) if feed.parents is None else feed.parents
            for feed in feeds
        ]
    )


def _logit_tiles(feeds: Sequence[Feed]) -> Annotated[Int64, Shape("tiles")]:
    """The tiles of the logits that feeds look at; no elements, for all, where one looks at all."""
    looked_at = [feed.looked_at for feed in feeds if feed.looked_at is not None]
    if len(looked_at) < len(feeds):
        return _ALL_TILES
    tiles: Int64 = np.unique(np.concatenate(looked_at) // TILE)
    # Where nothing is looked at, one tile is the least that can be asked for.
    return tiles if len(tiles) else np.zeros(1, np.int64)


def _prompt_rows(
    contract: GraphContract,
    feeds: Sequence[Feed],
    ids: Annotated[Int64, Shape("tokens")],
    starts: Annotated[Int64, Shape("feeds")],
) -> Annotated[Float32, Shape("1 prompt_rows hidden")]:
    """The prompts of the feeds that read theirs, one after the other; `ids` become their rows."""
    # At least one row: a Gather from an empty table is an error, even where no id reads it.
    tables = [np.zeros((1, contract.hidden), np.float32)]
    if (ids >= contract.vocab).any():
        count = 1
        for feed, start in zip(feeds, starts.tolist(), strict=True):
            own = ids[start : start + len(feed.ids)]
            virtual = own >= contract.vocab
            if virtual.any():
                own[virtual] += count
                tables.append(feed.prompt.rows)
                count += len(feed.prompt.rows)
    return np.concatenate(tables)[None]
