"""What an export may choose: how weights are stored, how tokens are chosen, what is folded."""

from dataclasses import dataclass
from typing import Final, Literal

from pl_compile.config.contract import SamplingMode
from pl_compile.config.sizes import MOST
from pl_compile.errors import ConfigError, list_problems

Quantization = Literal["none", "int8", "int4"]
Dtype = Literal["float32", "float16", "bfloat16"]
FoldMode = Literal["auto", "always", "never"]

# The target, or how weights are stored, where that is left to the export (`driver/choose.py`).
AUTO: Final = "auto"

# As many as almost every nucleus holds, and few enough that finding them costs nothing. TensorRT
# takes 3,840 at most.
DEFAULT_CANDIDATES = 256
DEFAULT_BLOCK = 32

# Rows that step together.
DEFAULT_BATCH = 16


@dataclass(frozen=True)
class Choice:
    """What an option came to.

    Attributes:
        asked: as it was given; `AUTO` where it was left to the export.
        chosen: what was made.
        reason: why; empty where it was asked for.
    """

    asked: str
    chosen: str
    reason: str = ""


@dataclass(frozen=True)
class BuildOptions:
    """How a base is compiled.

    Attributes:
        quantize: how the weights of the layers are stored; `AUTO` where the export decides.
        block: inputs that share a scale; 0 for one scale a channel; `DEFAULT_BLOCK` if None.
        table_bits: of embedding and head where weights are quantised: 4, 8, or 0 to leave them
            floats; 8 if None.
        sampling: who chooses the next token.
        candidates: the likeliest tokens that the graph looks at; `DEFAULT_CANDIDATES` if None.
        dtype: of activations, caches and weights that are not quantised; CPU targets compute in
            float32.
        ranks: among how many the base is divided.
        max_batch: rows of a step that a TensorRT plan takes at most; `DEFAULT_BATCH` if None.
        compute_capabilities: of the GPUs that a plan is built for, such as "8.6"; TensorRT's choice
            if empty.
        defer_build: whether plans are left to the device that runs them (`plc build`).
        ep_context: whether each plan gets an ONNX file around it, for ONNX Runtime.
    """

    quantize: Quantization | Literal["auto"] = AUTO
    block: int | None = None
    table_bits: int | None = None
    sampling: SamplingMode = "host"
    candidates: int | None = None
    dtype: Dtype = "float32"
    ranks: int = 1
    max_batch: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    defer_build: bool = False
    ep_context: bool = False

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
            # A plan's record and a session take no more: it is said before hours of building.
            problems.append(f"max_batch {self.max_batch}, expected 1 to {MOST['max_batch']}")
        if self.compute_capabilities and self.defer_build:
            problems.append("compute capabilities, and a build that is left to the device")
        if self.ep_context and self.defer_build:
            problems.append("a file around the plan, and a build that is left to the device")
        if problems:
            raise ConfigError("reading the build options", found=list_problems(problems))

    @property
    def quantization(self) -> Quantization:
        """How the weights of the layers are stored, once that is decided."""
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
    def scale_block(self) -> int:
        """Inputs that share a scale; 0 for all of a channel."""
        return DEFAULT_BLOCK if self.block is None else self.block
