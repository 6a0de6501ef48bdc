"""What a TensorRT plan was built with: `plan.json`, beside each `model.plan`.

A plan says nothing of itself without a driver, and equal builds give different bytes. So what a
runtime must know before it asks the driver stands here.
"""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pl_compile.config.read import build, node_from_plain, plain_from_config
from pl_compile.errors import ArtifactError, ConfigError

PLAN_NAME = "model.plan"
PLAN_RECORD = "plan.json"
EP_CONTEXT_NAME = "model_ctx.onnx"  # an ONNX file around the plan, where it was asked for

# The flavours of TensorRT, which are targets, and the import names of their packages.
PACKAGES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}

AttentionForm = Literal["mask", "lower_right"]


def parser_for(target: str) -> str | None:
    """The flavour whose parser can stand for a target's here: its own, else the other; or None."""
    for flavour in (target, *PACKAGES):
        try:
            importlib.import_module(PACKAGES[flavour])
        except ImportError:
            continue
        return flavour
    return None


@dataclass(frozen=True)
class PlanRecord:
    """The content of `plan.json`.

    Attributes:
        flavour: "tensorrt-rtx" or "tensorrt": their plans are not interchangeable.
        version: of the package that built it; a plan loads in the very same.
        compute_capabilities: of the GPUs that it was built for, such as "8.6"; empty where TensorRT
            chose: for RTX its usual set, else the GPU it was built on.
        ranks: how many plans make up the base.
        max_batch: rows of a step at most.
        capacity: tokens of a step, and cache entries of a row, at most.
        profiles: what each of its profiles is for: "prompt" takes up to `capacity` tokens a row,
            "token" one.
        attention: how attention is told what a token sees.
        onnx: sha256 of the `model.onnx` it was parsed from; that names the data's own sum nowhere.
        seconds: that building took.
        plan_bytes: size of the plan.
        peak_memory_bytes: of the process that built it.
        layers: how many of each kind the parsed network has.
    """

    flavour: str
    version: str
    compute_capabilities: tuple[str, ...]
    ranks: int
    max_batch: int
    capacity: int
    profiles: tuple[str, ...]
    attention: AttentionForm
    onnx: str
    seconds: float
    plan_bytes: int
    peak_memory_bytes: int
    layers: Mapping[str, int] = field(default_factory=dict)


def write_plan_record(folder: Path, record: PlanRecord) -> None:
    """Writes `plan.json`."""
    text = json.dumps(plain_from_config(record), indent=2)
    (folder / PLAN_RECORD).write_text(text + "\n", encoding="utf-8")


def read_plan_record(folder: Path) -> PlanRecord:
    """Reads `plan.json`.

    Raises:
        ArtifactError: it is missing (the build was deferred), or damaged.
    """
    path = folder / PLAN_RECORD
    doing = f"reading {path}"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return build(PlanRecord, node_from_plain(plain, PLAN_RECORD), doing=doing)
    except FileNotFoundError:
        raise ArtifactError(
            doing,
            found="no plan was built yet",
            fix="Build it on the device that will run it: plc build BUNDLE.",
        ) from None
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        reason = getattr(error, "found", error)
        raise ArtifactError(doing, found=f"damaged ({reason})") from error
