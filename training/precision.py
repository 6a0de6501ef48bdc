"""The precision that the frozen base computes in: as the config asks, or as the hardware allows.

A device without a unit for bf16 or fp16 can still compute in them, by converting each number to
float32 and back. The results are right, but it is many times slower than float32. So `auto` asks
the device, and a user who names such a precision gets a warning with its cost.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from pl_compile.config.train import TrainConfig
from pl_compile.training.team import ALONE, Team

Dtype = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

# The units of processors that compute in a precision, by their names in torch's capabilities.
_UNITS = {
    "bf16": {"amx_bf16": "AMX", "avx512_bf16": "AVX512_BF16", "bf16": "NEON bf16"},
    "fp16": {"amx_fp16": "AMX-FP16", "avx512_fp16": "AVX512_FP16", "fp16_arith": "NEON fp16"},
}

# The first compute capability of NVIDIA GPUs that have such units.
_GPUS = {"bf16": (8, 0), "fp16": (5, 3)}

# These variables limit oneDNN, which computes torch's products, to the instruction sets of a weaker
# processor. The list of the processor's capabilities does not change with them. The sets of oneDNN
# below lack the units.
_LIMITS_OF_ONEDNN = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_ONEDNN_WITHOUT_BF16 = (
    "SSE41",
    "AVX",
    "AVX2",
    "AVX2_VNNI",
    "AVX2_VNNI_2",
    "AVX512_CORE",
    "AVX512_CORE_VNNI",
)
_ONEDNN_WITHOUT = {
    "bf16": _ONEDNN_WITHOUT_BF16,
    "fp16": (*_ONEDNN_WITHOUT_BF16, "AVX512_CORE_BF16"),
}

_SECONDS_TO_TIME = 0.05
_ROWS, _WIDTH, _INNER = 256, 576, 1536  # a micro-batch through an MLP of the default base


@dataclass(frozen=True)
class PrecisionChoice:
    """The precision that a run's base computes in.

    Attributes:
        chosen: a key of `DTYPES`.
        asked: what the config says: such a key, or "auto".
        reason: why it was chosen, for a person.
    """

    chosen: Dtype
    asked: str
    reason: str


def choose_precision(
    config: TrainConfig,
    device: str,
    *,
    recorded: Dtype | None = None,
    team: Team = ALONE,
    say: Callable[[str], None] = lambda line: None,
) -> PrecisionChoice:
    """The precision that the base of a run computes in; all processes get the same answer.

    Args:
        config: asks for a precision, or for "auto": bf16 where each process's device has it, else
            fp32.
        device: of this process, by torch's name.
        recorded: the precision that a resumed run was started with: "auto" keeps it on any machine.
        team: the processes of the run.
        say: gets the choice with its reason, and a warning where it is slow here.
    """
    asked = config.trainer.precision
    # All processes must ask each other here and below, in this order, whatever they will choose.
    automatic, reason = _automatic(config, device, team)
    if asked != "auto":
        chosen, reason = asked, "asked for"
    elif recorded is not None and recorded != automatic:
        chosen = recorded
        reason = f"as the run was started; on this machine auto is {automatic}: {reason}"
    else:
        chosen = automatic
    say(f"precision: {chosen} ({reason})")
    has_it, why = has_unit(chosen, device)
    ratio = 1.0 if has_it else slowdown(chosen, device)
    all_wait = team.any(ratio > 1)
    if ratio > 1:
        say(
            f"warning: {chosen} is emulated here ({why}): a product takes {ratio:.1f} times as "
            "long as in fp32, and a training step may take several times more. In a new run "
            f"trainer.precision: auto takes {automatic} here."
        )
    elif all_wait:
        say(f"warning: another process of the run emulates {chosen}, and all wait for it.")
    return PrecisionChoice(chosen, asked, reason)


def _automatic(config: TrainConfig, device: str, team: Team) -> tuple[Dtype, str]:
    if config.lm_finetune:
        return "fp32", "lm_finetune trains the base's weights, which lose small steps otherwise"
    here, why = has_unit("bf16", device)
    if not team.any(not here):
        return "bf16", why
    return "fp32", why if not here else "another process of the run has no bf16"


def has_unit(precision: str, device: str) -> tuple[bool, str]:
    """Whether a device computes in a precision without emulating it, and the evidence as a phrase.

    Args:
        precision: a key of `DTYPES`.
        device: by torch's name.
    """
    if precision == "fp32":
        return True, "every device has fp32"
    if torch.device(device).type == "cuda":
        found, needed = torch.cuda.get_device_capability(device), _GPUS[precision]
        text = "the GPU has compute capability {}.{}, {} needs {}.{}"
        return found >= needed, text.format(*found, precision, *needed)
    return _processor_has_unit(precision)


def _processor_has_unit(precision: str) -> tuple[bool, str]:
    units = _UNITS[precision]
    if not hasattr(torch.cpu, "get_capabilities"):
        return False, f"torch {torch.__version__} does not tell what the processor has"
    capabilities = torch.cpu.get_capabilities()
    has = [unit for name, unit in units.items() if capabilities.get(name)]
    if not has:
        return False, f"the processor has none of {', '.join(units.values())}"
    unused = f"the processor has {' and '.join(has)}, but "
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False, unused + "this torch was built without oneDNN"
    limit = next((name for name in _LIMITS_OF_ONEDNN if name in os.environ), "")
    if os.environ.get(limit, "").upper() in _ONEDNN_WITHOUT[precision]:
        return False, unused + f"{limit}={os.environ[limit]} keeps it from being used"
    return True, f"the processor has {' and '.join(has)}"


def slowdown(precision: str, device: str) -> float:
    """How many times as long a product takes as in fp32, timed for 50 ms each."""
    return _seconds_of_product(precision, device) / _seconds_of_product("fp32", device)


def _seconds_of_product(precision: str, device: str) -> float:
    dtype = DTYPES[precision]
    # Ones: drawing random numbers would advance the generator that the run itself uses.
    rows = torch.ones(_ROWS, _WIDTH, dtype=dtype, device=device)
    weight = torch.ones(_INNER, _WIDTH, dtype=dtype, device=device)

    def product() -> None:
        torch.nn.functional.linear(rows, weight)
        if rows.is_cuda:
            torch.cuda.synchronize(device)

    product()  # the first one chooses a kernel
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < _SECONDS_TO_TIME:
        product()
        count += 1
    return (time.perf_counter() - started) / count
