"""Plans for a bundle whose build was left to the device that will run it: `plc build`."""

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from pl_compile.artifact.bundle import (
    MANIFEST,
    Bundle,
    Manifest,
    is_bundle,
    rank_folder,
    read_bundle,
    write_manifest,
)
from pl_compile.artifact.files import folder_written_whole
from pl_compile.artifact.plan_record import (
    EP_CONTEXT_NAME,
    PACKAGES,
    PLAN_NAME,
    PLAN_RECORD,
    AttentionForm,
    PlanRecord,
)
from pl_compile.config.build import BuildOptions
from pl_compile.driver.probe_attention import choose_attention
from pl_compile.errors import ExportError
from pl_compile.exporters.tensorrt import build_plan_in
from pl_compile.exporters.trt import tensorrt_module
from pl_compile.progress import SILENT, Progress


@dataclass(frozen=True)
class BuildResult:
    """What was built.

    Attributes:
        bundle: its folder.
        attention: the form, and why it was taken.
        plans: one record for each rank.
    """

    bundle: Path
    attention: str
    plans: tuple[PlanRecord, ...]


def build_bundle(
    folder: Path,
    *,
    max_batch: int | None = None,
    compute_capabilities: tuple[str, ...] = (),
    attention: Literal["auto", "mask", "lower_right"] = "auto",
    ep_context: bool = False,
    progress: Progress = SILENT,
) -> BuildResult:
    """Builds the plans of a bundle, in place of those it has; the bundle is changed whole or not.

    Args:
        folder: a bundle of target "tensorrt-rtx" or "tensorrt".
        max_batch: rows of a step at most.
        compute_capabilities: of the GPUs to build for.
        attention: how attention is told what a token sees; "auto" asks the GPU, where there is one.
        ep_context: whether each plan gets an ONNX file around it, for ONNX Runtime.
        progress: who is told.

    Raises:
        ArtifactError: the bundle is damaged.
        ExportError: it is of another target, or TensorRT is missing or cannot build it.
    """
    bundle = read_bundle(folder)
    manifest = bundle.manifest
    if manifest.target not in PACKAGES:
        raise ExportError(
            f"building plans for {folder}",
            found=f"target '{manifest.target}'",
            expected=" or ".join(PACKAGES),
            fix="It needs no plan: serve it as it is.",
        )
    trt = tensorrt_module(manifest.target)
    if attention == "auto":
        form, why = choose_attention(manifest.target, manifest.graph.head_dim)
    else:
        form, why = attention, "asked for"
    options = BuildOptions(
        max_batch=max_batch, compute_capabilities=compute_capabilities, ep_context=ep_context
    )
    with folder_written_whole(folder, is_ours=is_bundle) as staging:
        _link_files(bundle, staging)
        records = _build(bundle, staging, options, form, progress)
        progress.say("summing up")
        toolchain = {**manifest.toolchain, manifest.target: trt.__version__}
        write_manifest(staging, replace(_described(bundle), toolchain=toolchain))
    return BuildResult(folder, f"{form}: {why}", records)


def _build(
    bundle: Bundle,
    staging: Path,
    options: BuildOptions,
    form: AttentionForm,
    progress: Progress,
) -> tuple[PlanRecord, ...]:
    graph, target = bundle.manifest.graph, bundle.manifest.target
    records = []
    for rank in range(graph.ranks):
        base = staging / "base" / (rank_folder(rank) if graph.ranks > 1 else "")
        progress.say(f"building the plan of {base.relative_to(staging)}")
        records.append(
            build_plan_in(
                base, target, graph.of_rank(rank), options, attention=form, progress=progress
            )
        )
    return tuple(records)


def _described(bundle: Bundle) -> Manifest:
    """The manifest without the sums, which are made anew."""
    return Manifest(**{each.name: getattr(bundle.manifest, each.name) for each in fields(Manifest)})


def _link_files(bundle: Bundle, staging: Path) -> None:
    """The bundle's files at their new place: links, since nothing of them changes."""
    for path in sorted(bundle.folder.rglob("*")):
        place = staging / path.relative_to(bundle.folder)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif path.name not in (PLAN_NAME, PLAN_RECORD, EP_CONTEXT_NAME, MANIFEST):
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, place)
