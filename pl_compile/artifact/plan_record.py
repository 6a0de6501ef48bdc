"""What a TensorRT plan was built with: `plan.json`, beside each `model.plan`.

A plan can only be read with a driver, and equal builds give different bytes. So this file holds
what a runtime must know before it asks the driver.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pl_compile.artifact.folded_prefix import sum_of_files
from pl_compile.artifact.json_files import read_record
from pl_compile.artifact.model_files import DATA_NAME, MODEL_NAME
from pl_compile.config.read import plain_from_config
from pl_compile.config.sizes import size_checks
from pl_compile.errors import ArtifactError, ConfigError, check_all

PLAN_NAME = "model.plan"
PLAN_RECORD = "plan.json"
PLAN_PROFILE = "profile.json"
EP_CONTEXT_NAME = "model_ctx.onnx"  # an ONNX file around the plan, where it was asked for

AttentionForm = Literal["mask", "lower_right"]


@dataclass(frozen=True)
class PlanRecord:
    """The content of `plan.json`.

    Attributes:
        flavour: the target, one of `config.targets.PLAN_TARGETS`; their plans are not
            interchangeable.
        version: of the package that built it; a plan loads in exactly this version.
        compute_capabilities: of the GPUs that it was built for, such as "8.6"; empty where TensorRT
            chose. TensorRT-RTX chooses its usual set, TensorRT the GPU it was built on.
        ranks: how many plans make up the base.
        max_batch: rows of a step at most.
        capacity: tokens of a step, and cache entries of a row, at most.
        profiles: what each of its profiles is for: "prompt" takes up to `capacity` tokens a row,
            "token" one.
        attention: the form in which attention is told what each token may see.
        onnx: `sum_of_onnx` of what it was parsed from.
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

    def __post_init__(self) -> None:
        """Refuses sizes that no plan could have."""
        sizes = {"ranks": self.ranks, "max_batch": self.max_batch, "capacity": self.capacity}
        check_all(ConfigError, "reading a plan's sizes", size_checks(sizes))


@dataclass(frozen=True)
class PlanProfile:
    """The content of `profile.json`: how a plan is to be built, on this machine or another.

    Attributes:
        max_batch: rows of a step at most.
        compute_capabilities: of the GPUs to build for; TensorRT's choice if empty.
        ep_context: whether an ONNX file is written around the plan.
    """

    max_batch: int
    compute_capabilities: tuple[str, ...] = ()
    ep_context: bool = False

    def __post_init__(self) -> None:
        """Refuses a size that no plan could have."""
        check = size_checks({"max_batch": self.max_batch})
        check_all(ConfigError, "reading how a plan is to be built", check)


def sum_of_onnx(sums: Mapping[str, str]) -> str:
    """sha256 over the names and sums of an ONNX file and its data.

    Args:
        sums: of all files beside each other, by name; others are left out.
    """
    kept = {name: found for name, found in sums.items() if name in (MODEL_NAME, DATA_NAME)}
    return sum_of_files(kept)


def write_plan_profile(folder: Path, profile: PlanProfile) -> None:
    """Writes `profile.json`."""
    _write(folder / PLAN_PROFILE, profile)


def read_plan_profile(folder: Path) -> PlanProfile:
    """Reads `profile.json`.

    Raises:
        ArtifactError: it is missing, or damaged.
    """
    return read_record(PlanProfile, folder / PLAN_PROFILE, fix="Export the bundle again.")


def write_plan_record(folder: Path, record: PlanRecord) -> None:
    """Writes `plan.json`."""
    _write(folder / PLAN_RECORD, record)


def read_plan_record(folder: Path) -> PlanRecord:
    """Reads `plan.json`.

    Raises:
        ArtifactError: it is missing (the build was deferred), or damaged.
    """
    path = folder / PLAN_RECORD
    if not path.is_file():
        raise ArtifactError(
            f"reading {path}",
            found="no plan was built yet",
            fix="Build it on the device that will run it: plc build BUNDLE.",
        )
    return read_record(PlanRecord, path, fix="Build it again: plc build BUNDLE.")


def _write(path: Path, record: PlanRecord | PlanProfile) -> None:
    text = json.dumps(plain_from_config(record), indent=2)
    path.write_text(text + "\n", encoding="utf-8")
