"""What an export may choose: how weights are stored, how tokens are chosen, what is folded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pl_compile.config.contract import CacheBits, Dtype, PrefixBits, SamplingMode
from pl_compile.config.sizes import MOST
from pl_compile.config.targets import TARGETS
from pl_compile.errors import ConfigError, list_problems

Quantization = Literal["none", "int8", "int4"]

# Bits of a weight; one that is not quantised is a float.
WEIGHT_BITS: Mapping[Quantization, Literal[4, 8]] = {"int8": 8, "int4": 4}

FoldMode = Literal["auto", "always", "never"]

# The value of an option that the export chooses by itself (`driver/choose.py`).
AUTO: Final = "auto"

# Enough tokens for almost every nucleus (top-p), and few enough that finding them costs nothing.
# TensorRT takes 3,840 at most.
DEFAULT_CANDIDATES = 256
DEFAULT_BLOCK = 32
DEFAULT_TABLE_BITS: Final = 8

# Targets that take few sizes of a block, and these, for a help text.
_FEW_BLOCKS = ", ".join(
    f"{target.name} takes {' and '.join(map(str, target.blocks))}"
    for target in TARGETS.values()
    if target.blocks
)

# Rows that step together.
DEFAULT_BATCH = 16


@dataclass(frozen=True)
class Choice:
    """The value that an option got.

    Attributes:
        asked: as it was given; `AUTO` where it was left to the export.
        chosen: the value that the export uses.
        reason: why it was chosen; empty where it was asked for.
    """

    asked: str
    chosen: str
    reason: str = ""


@dataclass(frozen=True)
class BuildOptions:
    """How a base is compiled. CPU targets compute in float32.

    The fields are options of the command line, as they were given: the text beside each is its
    help. What an export uses is `quantization`, `block_or_default`, `table_bits_or_default` and
    `plan_batch`, where a field may be "auto" or None.
    """

    quantize: Annotated[
        Literal["auto"] | Quantization,
        "How weights are stored; auto takes 4 or 8 bits where no weight loses by it. With 4 or 8 "
        "bits, activations are rounded to 8 bits inside products: --evaluate measures the effect.",
    ] = AUTO
    block: Annotated[
        int | None,
        f"Inputs that share a scale. {_FEW_BLOCKS}, other targets more of them, and 0 "
        f"for one scale a channel. [default: {DEFAULT_BLOCK}]",
    ] = None
    table_bits: Annotated[
        Literal[0, 4, 8] | None,
        "Bits of embedding and LM head, where weights are quantised; 0 leaves them floats. "
        f"[default: {DEFAULT_TABLE_BITS}]",
    ] = None
    prefix_bits: Annotated[
        PrefixBits,
        "Bits of each number of a prefix KV while it is served, for native-cpu: 8 makes steps "
        "with prefixes of 256 tokens and more faster and smaller, and rounds them.",
    ] = 32
    cache_bits: Annotated[
        CacheBits,
        "Bits of each number of the cache of a row, for native-cpu: 16 halves its memory, and "
        "rounds keys and values to float16.",
    ] = 32
    sampling: Annotated[SamplingMode, "Who chooses the next token."] = "host"
    candidates: Annotated[
        int | None,
        f"Likeliest tokens that the graph samples from. [default: {DEFAULT_CANDIDATES}]",
    ] = None
    dtype: Annotated[Dtype, "Type of activations, caches and weights that are not quantised."] = (
        "float32"
    )
    ranks: Annotated[
        int, "Ranks among which the base is divided: processes on CPU, or one GPU each."
    ] = 1
    max_batch: Annotated[
        int | None,
        f"Rows of a step that a plan takes at most. [default: {DEFAULT_BATCH}; for plc build, as "
        "exported]",
    ] = None
    compute_capabilities: Annotated[
        tuple[str, ...], "A GPU that plans are built for; TensorRT's choice if left out."
    ] = ()
    defer_build: Annotated[bool, "Leave plans to the device that runs them: plc build."] = False
    ep_context: Annotated[
        bool,
        "Put an ONNX file around each plan, for ONNX Runtime's nv-tensorrt-rtx. Untested.",
    ] = False

    def __post_init__(self) -> None:
        """Refuses options that contradict each other."""
        problems = []
        if self.quantize in ("none", AUTO):
            why = "nothing is quantised"
            if self.quantize == AUTO:
                why = "quantize auto, which sets it itself: name int4 or int8"
            for name, value in (("block", self.block), ("table_bits", self.table_bits)):
                if value is not None:
                    problems.append(f"{name} {value}, and {why}")
        if self.block is not None and self.block < 0:
            problems.append(f"block {self.block}, expected 0 or more")
        if self.table_bits not in (None, 0, 4, 8):
            problems.append(f"table_bits {self.table_bits}, expected 0, 4 or 8")
        if self.prefix_bits not in (32, 8):
            problems.append(f"prefix_bits {self.prefix_bits}, expected 32 or 8")
        if self.cache_bits not in (32, 16):
            problems.append(f"cache_bits {self.cache_bits}, expected 32 or 16")
        if self.candidates is not None and self.sampling == "host":
            problems.append(
                f"candidates {self.candidates}, and the host samples: ask for sampling graph, or "
                "leave candidates out"
            )
        if self.candidates is not None and self.candidates < 1:
            problems.append(f"candidates {self.candidates}, expected 1 or more")
        if self.ranks < 1:
            problems.append(f"tp_size {self.ranks}, expected 1 or more")
        if not 1 <= self.plan_batch <= MOST["max_batch"]:
            # A plan's record and a session take no more. Refuse it before hours of building.
            problems.append(f"max_batch {self.max_batch}, expected 1 to {MOST['max_batch']}")
        if self.compute_capabilities and self.defer_build:
            problems.append("compute capabilities, and a build that is left to the device")
        if self.ep_context and self.defer_build:
            problems.append("a file around the plan, and a build that is left to the device")
        if problems:
            raise ConfigError("reading the build options", found=list_problems(problems))

    @property
    def quantization(self) -> Quantization:
        """`quantize`, once that is decided: how the weights of the layers are stored."""
        assert self.quantize != AUTO, "driver/choose.py decides before anything is built"
        return self.quantize

    @property
    def plan_batch(self) -> int:
        """Rows of a step that a plan takes at most."""
        return DEFAULT_BATCH if self.max_batch is None else self.max_batch

    @property
    def of_plans(self) -> list[str]:
        """The options given that only mean something to TensorRT."""
        given = {
            "max_batch": self.max_batch is not None,
            "compute_capabilities": bool(self.compute_capabilities),
            "defer_build": self.defer_build,
            "ep_context": self.ep_context,
        }
        return [name for name, there in given.items() if there]

    @property
    def block_or_default(self) -> int:
        """Inputs that share a scale; 0 for all of a channel."""
        return DEFAULT_BLOCK if self.block is None else self.block

    @property
    def table_bits_or_default(self) -> Literal[0, 4, 8]:
        """Bits of embedding and LM head, where weights are quantised; 0 for floats."""
        return DEFAULT_TABLE_BITS if self.table_bits is None else self.table_bits
