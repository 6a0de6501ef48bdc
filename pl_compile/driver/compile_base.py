"""Compiles a base into its target's files: main graph, passes and export, for each rank."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pl_compile.artifact.bundle import KERNELS_AT_FIRST, MODEL_NAME, rank_folder
from pl_compile.artifact.plan_record import PLAN_RECORD, PlanRecord, read_plan_record
from pl_compile.artifact.prompt_table import TaskEntry
from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.ranks import Shard
from pl_compile.driver.build_plans import note_gpu
from pl_compile.exporters.exporter import Exporter, PassInputs
from pl_compile.exporters.native.cpu import kernels_needed
from pl_compile.exporters.onnx.files import save
from pl_compile.graph.decoder import build_decoder
from pl_compile.passes.pipeline import PassRecord, clear_dumps, run_passes
from pl_compile.passes.quantize_weights import WeightError
from pl_compile.progress import SILENT, Progress
from pl_compile.quantize.moments import Moments
from pl_compile.runtime.engines.onnxruntime.opening import OnnxEngine, onnx_engine
from pl_compile.weights.load import Weights
from pl_compile.weights.shard import rows_of, shard_weights


@dataclass(frozen=True)
class BaseRecipe:
    """How a base is compiled: everything but its weights.

    Attributes:
        exporter: the target's.
        config: the whole base.
        contract: of the whole base's graph.
        options: of the export.
        shards: the parts of all ranks; one part where it is not divided.
        entries: the tasks; their rows may become constants of the graph.
    """

    exporter: Exporter
    config: DecoderConfig
    contract: GraphContract
    options: BuildOptions
    shards: tuple[Shard, ...]
    entries: tuple[TaskEntry, ...]

    @property
    def baked(self) -> NDArray[np.float32] | None:
        """float32 `[tasks, rows, hidden]`, zero-padded to the longest prompt; or None."""
        if self.contract.prompts != "baked":
            return None
        # At least one row, as in a graph with prompts as input: tasks with a prefix have no rows.
        rows = max([1, *(len(entry.rows) for entry in self.entries)])
        padded = [np.pad(e.rows, ((0, rows - len(e.rows)), (0, 0))) for e in self.entries]
        return np.stack(padded)


@dataclass(frozen=True)
class CompiledBase:
    """What compiling a base did.

    Attributes:
        passes: what each pass did; with several ranks, to the first one's graph.
        weight_errors: what rounding did to each weight; with several ranks, under `rank{r}/`.
        plans: one record for each TensorRT plan that was built.
        kernels: as in the manifest.
    """

    passes: tuple[PassRecord, ...]
    weight_errors: tuple[WeightError, ...]
    plans: tuple[PlanRecord, ...]
    kernels: int


def compile_base(
    recipe: BaseRecipe,
    weights: Weights,
    folder: Path,
    *,
    moments: Moments | None = None,
    dump_to: Path | None = None,
    progress: Progress = SILENT,
) -> CompiledBase:
    """Writes a target's files into a folder, or into one folder for each rank.

    Args:
        recipe: how.
        weights: float32 arrays by our names, of the whole base.
        folder: exists and is empty.
        moments: of the activations in calibration, for the whole base.
        dump_to: the folder for the graph as text after each pass; files of an earlier dump are
            removed.
        progress: receives messages.

    Raises:
        ExportError: the target's own tools refuse the graph.
    """
    exporter, options = recipe.exporter, recipe.options
    baked = recipe.baked
    passes, errors, plans, kernels = [], [], [], KERNELS_AT_FIRST
    if dump_to is not None:
        clear_dumps(dump_to)
    for shard in recipe.shards:
        name = rank_folder(shard.rank) if shard.ranks > 1 else ""
        place = folder / name
        place.mkdir(exist_ok=True)
        if name:
            heads, width = shard.kv_heads, shard.ffn
            progress.say(
                f"rank {shard.rank}: groups of heads {heads.start} to {heads.stop - 1}, "
                f"feed-forward width {width.start} to {width.stop - 1}"
            )
        config, contract = shard.of(recipe.config), recipe.contract.of_rank(shard.rank)
        part = shard_weights(weights, recipe.config, shard)
        model = build_decoder(config, contract, part, baked)
        seen = _moments_of(moments, recipe.config, shard)
        passes_of_target = exporter.passes(PassInputs(config, contract, options, seen)).all
        dump = None if dump_to is None else dump_to / name
        run = run_passes(model, passes_of_target, dump_to=dump, progress=progress)
        kernels = max(kernels, kernels_needed(model))
        passes.append(run.records)
        errors += [
            replace(error, weight=f"{name}/{error.weight}".lstrip("/"))
            for error in run.notes
            if isinstance(error, WeightError)
        ]
        exporter.build(model, place, contract, options, progress)
        if (place / PLAN_RECORD).is_file():
            plans.append(note_gpu(place, read_plan_record(place)))
    return CompiledBase(passes[0], tuple(errors), tuple(plans), kernels)


def float_engine(recipe: BaseRecipe, weights: Weights, folder: Path) -> OnnxEngine:
    """The base in float32 and undivided, on ONNX Runtime, whatever its target is.

    Args:
        recipe: how it is compiled.
        weights: float32 arrays by our names.
        folder: gets its files, and must outlive the engine.
    """
    exporter, config = recipe.exporter, recipe.config
    contract = replace(recipe.contract, candidates=0, ranks=1, logit_tiles=False)
    model = build_decoder(config, contract, weights, recipe.baked)
    stages = exporter.passes(PassInputs(config, contract, recipe.options))
    run_passes(model, [*stages.prepare, *stages.floats])
    save(model, folder)
    return onnx_engine(folder / MODEL_NAME, contract)


def _moments_of(moments: Moments | None, config: DecoderConfig, shard: Shard) -> Moments | None:
    """The moments of the activations that enter a rank's weights: its part of the inputs."""
    if moments is None or shard.ranks == 1:
        return moments
    parts = {}
    for name, moment in moments.by_weight.items():
        rows = rows_of(name, config, shard)
        parts[name] = moment[rows, rows]
    return Moments(parts, moments.tokens)
