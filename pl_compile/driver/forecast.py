"""What an export would make and cost, worked out before anything is built."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import gettempdir

from pl_compile.artifact.bundle import EXACT
from pl_compile.config.build import BuildOptions, Choice
from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.targets import TARGETS
from pl_compile.driver.costs import FoldPolicy, base_cost, task_costs
from pl_compile.driver.disk_and_memory import check_memory, check_room
from pl_compile.driver.export_inputs import ExportInputs, read_inputs
from pl_compile.driver.export_request import ExportRequest
from pl_compile.exporters.exporter import PassInputs
from pl_compile.progress import SILENT, Progress
from pl_compile.report.model import BaseCost, TaskCost
from pl_compile.weights.listed import weight_shapes
from pl_compile.weights.open_base import open_base

# Memory for making a bundle besides its files: the runtime's libraries, and what a step needs.
_MEMORY_BESIDE = 400 << 20


@dataclass(frozen=True)
class Forecast:
    """What will be compiled.

    Attributes:
        target: the export's.
        choices: of "target", "quantize" and "fold": what was asked for, what is built, and why.
        passes: names of the target's passes, in order.
        base: cost of the base.
        tasks: cost of each task, and whether it is folded.
    """

    target: str
    choices: Mapping[str, Choice]
    passes: tuple[str, ...]
    base: BaseCost
    tasks: tuple[TaskCost, ...]

    @property
    def disk_bytes(self) -> int:
        """About how many bytes the bundle will take."""
        return self.base.file_bytes + sum(t.folded_bytes + t.prompt_bytes for t in self.tasks)


def forecast_export(request: ExportRequest, *, progress: Progress = SILENT) -> Forecast:
    """What an export would make and cost; nothing is written.

    No weight is read, except by `--quantize auto`, which looks at them and tells `progress`.

    Raises:
        PlcError: as for `export_bundle`, except for errors that only the weights can show.
    """
    return forecast_of(read_inputs(request, *open_base(request.base), progress))


def forecast_of(inputs: ExportInputs) -> Forecast:
    """The forecast of an export whose inputs have been read.

    Raises:
        ExportError: an opening that does not fit into the cache.
    """
    recipe = inputs.recipe
    exporter, config, contract, options = (
        recipe.exporter,
        recipe.config,
        recipe.contract,
        recipe.options,
    )
    has_plans = TARGETS[inputs.target].has_plan and not options.defer_build
    base = base_cost(config, contract, options, has_plans=has_plans)
    policy = FoldPolicy.of(inputs.fold, inputs.fold_mib, base, contract)
    costs = task_costs(base, recipe.entries, inputs.tasks, contract, policy)
    return Forecast(
        inputs.target,
        {**inputs.choices, "fold": policy.summary(costs)},
        tuple(each.name for each in exporter.passes(PassInputs(config, contract, options)).all),
        base,
        tuple(replace(cost, reason=inputs.fold_reason or cost.reason) for cost in costs),
    )


def check_memory_for(request: ExportRequest, config: DecoderConfig) -> None:
    """Raises `ExportError` where the memory cannot hold the base's floats, however it is stored.

    Args:
        request: what is exported.
        config: of the base.
    """
    parameters = sum(map(math.prod, weight_shapes(config).values()))
    check_memory(request.output, _memory(parameters))


def check_room_for(request: ExportRequest, options: BuildOptions, forecast: Forecast) -> None:
    """Raises `ExportError` if the disk or the memory cannot hold an export.

    Args:
        request: what is exported, and where to.
        options: how the base is compiled, all of it decided.
        forecast: of the export.
    """
    floats = 4 * forecast.base.parameters
    memory = _memory(forecast.base.parameters) + forecast.base.weight_bytes
    check_room(request.output, disk_bytes=int(1.05 * forecast.disk_bytes), memory_bytes=memory)
    is_exact = options.quantization == "none" and options.dtype == EXACT
    # Calibration and scores need the base in floats, too, for a time. A bundle of floats is scored
    # without it.
    if request.calibrate or (request.evaluate and not is_exact):
        beside = Path(gettempdir()) / "plc"
        check_room(beside, disk_bytes=int(1.05 * floats), memory_bytes=memory + floats)


def _memory(parameters: int) -> int:
    """Bytes that an export takes beside what it stores: the floats twice."""
    return 2 * 4 * parameters + _MEMORY_BESIDE
