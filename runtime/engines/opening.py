"""Which engine runs what a bundle holds."""

from pathlib import Path
from typing import Any

from pl_compile.artifact.bundle import MODEL_NAME, Bundle, rank_folder
from pl_compile.artifact.plan_record import PLAN_RECORD, read_plan_record, sum_of_onnx
from pl_compile.config.build import DEFAULT_BATCH, Quantization
from pl_compile.config.contract import GraphContract, PrefixBits
from pl_compile.config.targets import TARGETS, Target
from pl_compile.errors import ArtifactError, RequestError
from pl_compile.runtime.engines.engine import Engine
from pl_compile.runtime.engines.onnxruntime.engine import OnnxRuntimeEngine
from pl_compile.runtime.engines.onnxruntime.opening import onnx_engine
from pl_compile.runtime.engines.onnxruntime.providers import CPU, Provider
from pl_compile.runtime.engines.openvino.engine import OpenVinoEngine
from pl_compile.runtime.engines.ranks.local_group import LocalGroup, RankOptions
from pl_compile.runtime.engines.ranks.nccl import communicator_of
from pl_compile.runtime.engines.tensorrt.cuda import Cuda
from pl_compile.runtime.engines.tensorrt.gpu_plan import check_package, installed, open_plan
from pl_compile.runtime.kernels import INTERFACE, rank_sums

# A communicator must outlive all contexts: a rank's process keeps one for its whole life.
_held: list[Any] = []


def open_engine(
    bundle: Bundle,
    *,
    max_batch: int | None = None,
    threads: int | None = None,
    provider: Provider | None = None,
    context_mib: int | None = None,
) -> Engine:
    """The engine that runs a bundle.

    Args:
        bundle: its files have been checked.
        max_batch: most rows that step together; if None, `DEFAULT_BATCH`, or what a plan was built
            for.
        threads: threads of the engine, or of each rank; all cores if None.
        provider: of ONNX Runtime; that of the target if None.
        context_mib: see `RaggedEngine`.

    Raises:
        ArtifactError: this runtime does not run the bundle's target, or the bundle does not load.
        RankError: a rank cannot start.
        RequestError: a provider, and a bundle that does not run on one.
    """
    manifest = bundle.manifest
    contract, dtype = manifest.graph, manifest.precision.cache_dtype
    check_target(bundle)
    check_plans(bundle)
    target = TARGETS[manifest.target]
    if target.has_plan:
        _check_built(bundle)
    if provider is not None and (not target.provider or contract.ranks > 1):
        raise RequestError(
            f"opening the bundle {bundle.folder}",
            found=f"the provider {provider.name}, and a bundle that does not run on a provider",
            fix="Leave it out.",
        )
    if contract.ranks > 1:
        if target.has_plan and max_batch is None:
            max_batch = read_plan_record(bundle.base_folder / rank_folder(0)).max_batch
        return LocalGroup(
            bundle.base_folder,
            target.name,
            contract,
            max_batch=max_batch or DEFAULT_BATCH,
            threads=threads,
            dtype=dtype,
            on_gpus=target.on_gpu,
        )
    if target.has_plan:
        return open_plan(
            bundle.base_folder, target.name, contract, max_batch=max_batch, dtype=dtype
        )
    return open_model(
        target,
        bundle.base_folder / MODEL_NAME,
        contract,
        dtype,
        max_batch=max_batch or DEFAULT_BATCH,
        threads=threads,
        provider=provider,
        own_products=has_own_products(target, manifest.precision.quantization),
        prefix_bits=manifest.precision.prefix_bits,
        context_mib=context_mib,
    )


def has_own_products(target: Target, quantization: Quantization) -> bool:
    """Whether all products of a graph are calls of our kernels: see `RaggedEngine`."""
    return target.own_kernels and quantization != "none"


def open_model(
    target: Target,
    model: Path,
    contract: GraphContract,
    dtype: str,
    *,
    max_batch: int = DEFAULT_BATCH,
    threads: int | None = None,
    provider: Provider | None = None,
    own_products: bool = False,
    prefix_bits: PrefixBits = 32,
    context_mib: int | None = None,
) -> Engine:
    """The engine on a `model.onnx` of a target without plans, which one process runs.

    Args:
        target: what it was built for.
        model: its data file lies beside it.
        contract: what it takes and gives.
        dtype: of its caches.
        max_batch: most rows that step together.
        threads: of the engine; all cores if None.
        provider: of ONNX Runtime; that of the target if None.
        own_products: see `RaggedEngine`; false where it is not known.
        prefix_bits: see `RaggedEngine`.
        context_mib: see `RaggedEngine`.

    Raises:
        ArtifactError: it does not load.
        MissingExtraError: the package that runs it is not installed.
    """
    if target.runner == "openvino":
        return OpenVinoEngine(model, contract, max_batch=max_batch, threads=threads)
    return onnx_engine(
        model,
        contract,
        max_batch=max_batch,
        threads=threads,
        provider=provider or Provider(target.provider),
        dtype=dtype,
        own_products=own_products,
        prefix_bits=prefix_bits,
        context_mib=context_mib,
    )


def check_target(bundle: Bundle) -> None:
    """Raises `ArtifactError` if a bundle needs a target or kernels that this runtime lacks."""
    name, graph = bundle.manifest.target, bundle.manifest.graph
    if name not in TARGETS:
        raise ArtifactError(
            f"opening the bundle {bundle.folder}",
            found=f"target '{name}'",
            expected=" or ".join(f"'{each}'" for each in TARGETS),
            fix="Export it again with one of these as --target.",
        )
    if bundle.manifest.kernels > INTERFACE:
        raise ArtifactError(
            f"opening the bundle {bundle.folder}",
            found=f"a graph for kernels of interface {bundle.manifest.kernels}",
            expected=f"at most {INTERFACE}",
            fix="Use the release of plc that wrote it, or a newer one.",
        )
    if graph.ranks > 1 and not TARGETS[name].ranks:
        raise ArtifactError(
            f"opening the bundle {bundle.folder}",
            found=f"{graph.ranks} ranks of target '{name}'",
            expected="1: its bases cannot be divided",
            fix="The manifest was altered: export the bundle again.",
        )


def check_plans(bundle: Bundle) -> None:
    """Raises `ArtifactError` if a plan was built from another graph than the one in its folder."""
    graph = bundle.manifest.graph
    for name in bundle.files:
        folder, _, file = name.rpartition("/")
        if file != PLAN_RECORD:
            continue
        sums = {
            each.rpartition("/")[2]: record.sha256
            for each, record in bundle.files.items()
            if each.rpartition("/")[0] == folder
        }
        record = read_plan_record(bundle.folder / folder)
        doing = f"checking the plan in {bundle.folder / folder}"
        if (record.ranks, record.capacity) != (graph.ranks, graph.capacity):
            raise ArtifactError(
                doing,
                found=f"{PLAN_RECORD} with ranks {record.ranks}, capacity {record.capacity}",
                expected=f"ranks {graph.ranks}, capacity {graph.capacity}, as the manifest says",
                fix="Build it again: plc build BUNDLE.",
            )
        if record.onnx != sum_of_onnx(sums):
            raise ArtifactError(
                doing,
                found="it was built from another model.onnx (or data) than the one beside it",
                fix="Build it again: plc build BUNDLE.",
            )


def _check_built(bundle: Bundle) -> None:
    """Raises unless the installed TensorRT built the plans, before a process or GPU is used."""
    target, ranks = bundle.manifest.target, bundle.manifest.graph.ranks
    folders = [rank_folder(rank) for rank in range(ranks)] if ranks > 1 else [""]
    records = [read_plan_record(bundle.base_folder / folder) for folder in folders]
    version = installed(target, f"opening the bundle {bundle.folder}").__version__
    for record in records:
        check_package(record, target, version)


def open_rank(options: RankOptions) -> Any:
    """The engine of one rank, in its own process."""
    communicator = None
    if options.shared is not None:
        Cuda(options.rank)  # NCCL takes the current GPU
        communicator = communicator_of(options.rank, options.contract.ranks, options.shared)
        _held.append(communicator)
    target = TARGETS[options.target]
    if target.has_plan:
        return open_plan(
            options.folder,
            options.target,
            options.contract,
            max_batch=options.max_batch,
            dtype=options.dtype,
            rank=options.rank,
            communicator=None if communicator is None else int(communicator.ptr),
        )
    provider = CPU
    if communicator is not None:
        rank_sums.use_communicator(int(communicator.ptr))
        provider = Provider(target.provider, {"device_id": str(options.rank)})
    return OnnxRuntimeEngine(
        options.folder / MODEL_NAME,
        options.contract,
        max_batch=options.max_batch,
        threads=options.threads,
        provider=provider,
        dtype=options.dtype,
        spin=options.spin,
    )
