"""`plc build`: builds the plans of a bundle on the device that will run it."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from pl_compile.artifact.bundle import (
    MANIFEST,
    REPORT,
    REPORT_PAGE,
    Bundle,
    Manifest,
    files_of_bundle,
    rank_folder,
    read_bundle,
    write_manifest,
)
from pl_compile.artifact.files import folder_written_whole
from pl_compile.artifact.plan_record import (
    EP_CONTEXT_NAME,
    PLAN_NAME,
    PLAN_PROFILE,
    PLAN_RECORD,
    PlanRecord,
    read_plan_profile,
    write_plan_profile,
    write_plan_record,
)
from pl_compile.config.build import BuildOptions
from pl_compile.config.targets import PLAN_TARGETS
from pl_compile.driver.probe_attention import choose_attention
from pl_compile.errors import ExportError
from pl_compile.exporters.tensorrt.api import check_capabilities, tensorrt_module
from pl_compile.exporters.tensorrt.ep_context import check_wrappable
from pl_compile.exporters.tensorrt.exporter import build_plan_in, profile_of
from pl_compile.progress import SILENT, Progress
from pl_compile.report.files import read_report, write_report
from pl_compile.runtime.engines.tensorrt.cuda import Cuda

_MADE_ANEW = (
    PLAN_NAME,
    PLAN_RECORD,
    PLAN_PROFILE,
    EP_CONTEXT_NAME,
    MANIFEST,
    REPORT,
    REPORT_PAGE,
)


@dataclass(frozen=True)
class BuildResult:
    """What was built.

    Attributes:
        bundle: its folder.
        attention: its form in the plans, and why that was chosen.
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
    """Builds the plans of a bundle in place of its old ones. It is changed whole or not at all.

    Args:
        folder: a bundle of a target that has plans.
        max_batch: most rows of a step; if None, as it was exported or last built.
        compute_capabilities: of the GPUs to build for; if empty, as it was exported or last built.
        attention: how the plan says which tokens attention sees; "auto" asks the GPU, if there is
            one.
        ep_context: whether to write an ONNX file around each plan, for ONNX Runtime.
        progress: receives messages.

    Raises:
        ArtifactError: the bundle is damaged.
        ExportError: the bundle is of another target, or TensorRT is missing or cannot build it.
    """
    bundle = read_bundle(folder)
    manifest = bundle.manifest
    if manifest.target not in PLAN_TARGETS:
        raise ExportError(
            f"building plans for {folder}",
            found=f"target '{manifest.target}'",
            expected=" or ".join(PLAN_TARGETS),
            fix="It needs no plan: serve it as it is.",
        )
    trt = tensorrt_module(manifest.target, f"building the plans of {folder} on this machine")
    ranks = [rank_folder(rank) for rank in range(manifest.graph.ranks)]
    folders = ranks if len(ranks) > 1 else [""]
    profile = read_plan_profile(bundle.base_folder / folders[0])
    options = BuildOptions(
        max_batch=profile.max_batch if max_batch is None else max_batch,
        compute_capabilities=compute_capabilities or profile.compute_capabilities,
        ep_context=ep_context or profile.ep_context,
    )
    check_capabilities(trt, options.compute_capabilities)
    if options.ep_context:
        check_wrappable(manifest.target)
    if attention == "auto":
        form, why = choose_attention(
            manifest.target,
            manifest.graph.head_dim,
            manifest.precision.dtype,
            options.compute_capabilities,
        )
    else:
        form, why = attention, "asked for"
    with folder_written_whole(folder, ours=files_of_bundle) as staging:
        _link_files(bundle, staging)
        records = []
        for rank, name in enumerate(folders):
            base = staging / "base" / name
            progress.say(f"building the plan of {base.relative_to(staging)}")
            graph = manifest.graph.of_rank(rank)
            write_plan_profile(base, profile_of(options))
            record = build_plan_in(
                base, manifest.target, graph, options, attention=form, progress=progress
            )
            records.append(note_gpu(base, record))
        _report(bundle, staging, records)
        progress.say("summing up")
        toolchain = {**manifest.toolchain, manifest.target: trt.__version__}
        write_manifest(staging, replace(_described(bundle), toolchain=toolchain))
    return BuildResult(folder, f"{form}: {why}", tuple(records))


def note_gpu(folder: Path, record: PlanRecord) -> PlanRecord:
    """Notes the GPU that a plan was built on if the plan runs on no other, as TensorRT's do."""
    if PLAN_TARGETS[record.flavour].usual_gpus or record.compute_capabilities:
        return record
    noted = replace(record, compute_capabilities=(Cuda().compute_capability,))
    write_plan_record(folder, noted)
    return noted


def _report(bundle: Bundle, staging: Path, plans: Sequence[PlanRecord]) -> None:
    """Writes the new plans into the export's report, if the report is still there."""
    found = read_report(bundle.folder)
    if found is not None:
        record, report = found
        record["plans"] = [asdict(plan) for plan in plans]
        write_report(staging, replace(report, plans=tuple(plans)), record=record)


def _described(bundle: Bundle) -> Manifest:
    """The manifest without the sums of files, which are made anew."""
    return Manifest(**{each.name: getattr(bundle.manifest, each.name) for each in fields(Manifest)})


def _link_files(bundle: Bundle, staging: Path) -> None:
    """Puts the bundle's files at their new place: as links, since they do not change."""
    for path in sorted(bundle.folder.rglob("*")):
        place = staging / path.relative_to(bundle.folder)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif path.name not in _MADE_ANEW:
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, place)
            except OSError:  # the file system has no links
                shutil.copyfile(path, place)
