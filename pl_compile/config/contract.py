"""The inputs and outputs of a compiled graph: the one description that compiler and runtimes share.

With padded rows:

input_ids        int64 [batch, seq]     right-padded; id >= vocab is row `id - vocab` of a prompt
past_lengths     int64 [batch]          valid cache entries before this step = write index
last_index       int64 [batch]          last real token of the row; only its logits are computed
prompt_table     float [batch, rows, hidden]    prompts "input": each row's own prompt
task_id          int64 [batch]                  prompts "baked": each row's task
past_key.{i}     float [batch, kv_heads, capacity, head_dim]    and past_value.{i}
noise            float [batch, candidates]      sampling "graph": Gumbel noise, the likeliest first
temperature …    float or int64 [batch]         sampling "graph": `sampling_inputs`, the numbers of
                                                `config/sampling.py`; top_k is 1 to `candidates`
logits           float [batch, vocab]
next_token       int64 [batch]                  sampling "graph"
present_key.{i}  the updated cache, bound to the memory of past_key.{i}; and present_value.{i}

With ragged rows the tokens of all rows of a step follow one another, without padding, and a row's
cache lies in blocks of `ENTRIES_OF_BLOCK` entries, wherever there is room (arXiv:2309.06180):

input_ids        int64 [1, tokens]      id >= vocab is row `id - vocab` of `prompt_table`
positions        int64 [1, tokens]      entries before each token in its row
token_rows       int64 [tokens]         the row of each token: one of `block_tables`
block_tables     int64 [rows, width]    for each row the blocks of entries 0 to 15, 16 to 31, …
prefixes         int64 [rows]           the number of a prefix that the kernels hold; 0 for none
parents          int64 [branching]      no elements; or for each token the one of this step that it
                                        follows, counted from its row's first; -1 for none
logit_tokens     int64 [outputs]        the tokens whose logits are computed
logit_tiles      int64 [tiles]          if the contract has it: no elements; or in ascending order,
                                        which logits are computed: t for the tokens from `t * TILE`
                                        to `t * TILE + TILE - 1`. The others are minus infinity (or
                                        minus the cap of a base that caps them). Without our kernels
                                        all are computed
prompt_table     float [1, prompt_rows, hidden]    the prompts of all rows, one after the other
task_id          int64 [1, tokens]                 the task of each token
past_key.{i}     float [blocks, kv_heads, ENTRIES_OF_BLOCK, head_dim]
noise …          as above, for each of `outputs` in place of `batch`; so are logits and next_token
"""

from dataclasses import dataclass, replace
from math import gcd
from typing import Literal

from pl_compile.config.kernel_layout import ENTRIES_OF_BLOCK
from pl_compile.config.ranks import kv_heads_of_ranks
from pl_compile.config.sampling import FIRST_IN_GRAPH, IN_GRAPH
from pl_compile.config.sizes import size_checks
from pl_compile.errors import ConfigError, check_all

PromptsMode = Literal["input", "baked"]
SamplingMode = Literal["host", "graph"]
RowsMode = Literal["padded", "ragged"]
Dtype = Literal["float32", "float16", "bfloat16"]
# Of each number of a prefix that the kernels hold.
PrefixBits = Literal[32, 8]
# Of each number of a row's cache.
CacheBits = Literal[32, 16]

# Bytes of a number of each `Dtype`.
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# TensorRT takes the address of a tensor at multiples of this many bytes (`setTensorAddress` of
# NvInferRuntime.h), and a step may begin at any slot.
ALIGNED = 256

INPUT_IDS = "input_ids"
PAST_LENGTHS = "past_lengths"
LAST_INDEX = "last_index"
POSITIONS = "positions"
TOKEN_ROWS = "token_rows"
BLOCK_TABLES = "block_tables"
PREFIXES = "prefixes"
PARENTS = "parents"
LOGIT_TOKENS = "logit_tokens"
LOGIT_TILES = "logit_tiles"
PROMPT_TABLE = "prompt_table"
TASK_ID = "task_id"
NOISE = "noise"
LOGITS = "logits"
NEXT_TOKEN = "next_token"


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
        shape: sizes; a name where the size may differ from step to step.
        dtype: numpy's name of it.
        is_input: whether it is an input.
        alias: the input whose memory this output uses; None where it has its own.
    """

    shape: tuple[int | str, ...]
    dtype: str
    is_input: bool = True
    alias: str | None = None


@dataclass(frozen=True)
class GraphContract:
    """The sizes in the tables above.

    Attributes:
        layers: caches come in pairs, one pair a layer.
        kv_heads: key and value heads.
        head_dim: width of a head.
        hidden: width of a prompt row.
        vocab: rows of the base's embedding; this id and larger ones are virtual tokens.
        capacity: longest sequence that a cache holds, virtual tokens included.
        prompts: whether prompts are an input or baked into the graph.
        baked_tasks: the tasks that `task_id` 0, 1, … stand for, where prompts are baked.
        candidates: how many of the likeliest tokens the graph samples the next one from; 0 where
            the host samples from the logits.
        sampling_inputs: the numbers of `config.sampling` that such a graph samples by.
        ranks: how many graphs the base is divided among, each with some of the `kv_heads`.
        rows: how a step's rows lie beside each other: which of the tables holds.
        logit_tiles: whether there is an input of that name; only where rows are ragged.
    """

    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    capacity: int
    prompts: PromptsMode
    baked_tasks: tuple[str, ...] = ()
    candidates: int = 0
    sampling_inputs: tuple[str, ...] = ()
    ranks: int = 1
    rows: RowsMode = "padded"
    logit_tiles: bool = False

    def __post_init__(self) -> None:
        """Refuses sizes that no graph could have."""
        names = ("layers", "kv_heads", "head_dim", "hidden", "vocab", "capacity", "ranks")
        checks = size_checks({name: getattr(self, name) for name in names})
        among = f"candidates {self.candidates}, expected 0 to the vocabulary's {self.vocab}"
        checks[among] = 0 <= self.candidates <= self.vocab
        for name in self.sampling_inputs:
            known = f"sampling input '{name}', expected one of: {', '.join(IN_GRAPH)}"
            checks[known] = name in IN_GRAPH
        tiles = f"logit_tiles, and rows that are {self.rows}, expected ragged ones"
        checks[tiles] = not self.logit_tiles or self.rows == "ragged"
        check_all(ConfigError, "reading what the graph takes", checks)
        if self.candidates and not self.sampling_inputs:
            object.__setattr__(self, "sampling_inputs", FIRST_IN_GRAPH)

    def of_rank(self, rank: int) -> "GraphContract":
        """The contract of the graph of one rank."""
        heads = kv_heads_of_ranks(self.kv_heads, self.ranks)[rank]
        return replace(self, kv_heads=len(heads))

    def capacity_unit(self, dtype: str) -> int:
        """At multiples of this capacity, slots are `ALIGNED`.

        Args:
            dtype: of the caches.
        """
        return ALIGNED // gcd(ALIGNED, self.kv_heads * self.head_dim * BYTES[dtype])

    def tensors(self, dtype: str) -> dict[str, "Tensor"]:
        """Every input and output by name: the tables above.

        Args:
            dtype: of the caches.
        """
        ragged = self.rows == "ragged"
        found = self._ragged_tensors() if ragged else self._padded_tensors()
        results = "outputs" if ragged else "batch"
        found[LOGITS] = Tensor((results, self.vocab), "float32", is_input=False)
        if self.candidates:
            found[NOISE] = Tensor((results, self.candidates), "float32")
            for name in self.sampling_inputs:
                found[name] = Tensor((results,), IN_GRAPH[name])
            found[NEXT_TOKEN] = Tensor((results,), "int64", is_input=False)
        for past, present in self.cache_names:
            found[past] = Tensor(self.cache_shape, dtype)
            found[present] = Tensor(self.cache_shape, dtype, is_input=False, alias=past)
        return found

    @property
    def cache_shape(self) -> tuple[int | str, ...]:
        """The shape of each cache."""
        if self.rows == "ragged":
            return ("blocks", self.kv_heads, ENTRIES_OF_BLOCK, self.head_dim)
        return ("batch", self.kv_heads, self.capacity, self.head_dim)

    def _ragged_tensors(self) -> dict[str, "Tensor"]:
        """The inputs of ragged rows, but for sampling and caches."""
        found = {
            INPUT_IDS: Tensor((1, "tokens"), "int64"),
            POSITIONS: Tensor((1, "tokens"), "int64"),
            TOKEN_ROWS: Tensor(("tokens",), "int64"),
            BLOCK_TABLES: Tensor(("rows", "width"), "int64"),
            PREFIXES: Tensor(("rows",), "int64"),
            PARENTS: Tensor(("branching",), "int64"),
            LOGIT_TOKENS: Tensor(("outputs",), "int64"),
        }
        if self.logit_tiles:
            found[LOGIT_TILES] = Tensor(("tiles",), "int64")
        if self.prompts == "baked":
            found[TASK_ID] = Tensor((1, "tokens"), "int64")
        else:
            found[PROMPT_TABLE] = Tensor((1, "prompt_rows", self.hidden), "float32")
        return found

    def _padded_tensors(self) -> dict[str, "Tensor"]:
        """The inputs of padded rows, but for sampling and caches."""
        found = {
            INPUT_IDS: Tensor(("batch", "seq"), "int64"),
            PAST_LENGTHS: Tensor(("batch",), "int64"),
            LAST_INDEX: Tensor(("batch",), "int64"),
        }
        if self.prompts == "baked":
            found[TASK_ID] = Tensor(("batch",), "int64")
        else:
            found[PROMPT_TABLE] = Tensor(("batch", "rows", self.hidden), "float32")
        return found

    def tensors_of_added(self, dtype: str) -> dict[str, "Tensor"]:
        """As `tensors`, for a graph that outputs only the cache entries that a step adds.

        Args:
            dtype: of the caches.
        """
        whole = {name for pair in self.cache_names for name in pair}
        found = {name: each for name, each in self.tensors(dtype).items() if name not in whole}
        for past, added in self.added_names:
            found[past] = Tensor(("batch", self.kv_heads, "entries", self.head_dim), dtype)
            shape = ("batch", self.kv_heads, "seq", self.head_dim)
            found[added] = Tensor(shape, dtype, is_input=False)
        return found

    @property
    def added_names(self) -> tuple[tuple[str, str], ...]:
        """(input, output) of every cache, where outputs are only the entries that a step adds."""
        return tuple((past, past.replace("past", "new")) for past, _ in self.cache_names)

    @property
    def cache_names(self) -> tuple[tuple[str, str], ...]:
        """(input, output) of every cache, in the graph's order."""
        return tuple(
            (f"past_{kind}.{i}", f"present_{kind}.{i}")
            for i in range(self.layers)
            for kind in ("key", "value")
        )
