"""What this machine can do, what not, and why: versions, providers, extras, targets, base.

Nothing here raises: a broken package is a finding.
"""

import importlib
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pl_compile import __version__
from pl_compile.config.targets import PROVIDERS, TARGETS, Target, proofs
from pl_compile.errors import KernelsError, MissingExtraError, PlcError, first_line_of
from pl_compile.weights.bases import DEFAULT_BASE, cached_base_folder

# The packages of each extra, and what needs them. The extras of the other targets and of NCCL are
# named by the findings of what needs them.
_EXTRAS = {
    "train": (("torch", "transformers"), "plc train, parity with torch, plc eval of a table"),
    "export": (("onnx", "onnx-ir"), "plc export"),
    "eval": (("rouge-score",), "plc eval --metric rouge"),
    "serve": (("starlette", "uvicorn", "prometheus-client"), "plc serve"),
    "gpu": (("onnxruntime-gpu", "cuda-bindings"), "target onnx-cuda, and --provider cuda"),
}
_RUNTIME = ("numpy", "onnxruntime", "tokenizers", "safetensors", "click", "pyyaml", "rich")

# Where setup.py puts what it builds for programs in C and C++.
_CMAKE_FOLDER = Path(__file__).parents[1] / "runtime" / "native" / "lib" / "cmake" / "plc_runtime"

_DEVICE = "/dev/nvidia0"
_CUDA = PROVIDERS["cuda"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what was looked at.
        works: whether it can be used here.
        detail: its version or place; if it does not work, why, and what to do.
    """

    name: str
    works: bool
    detail: str


@dataclass(frozen=True)
class Gpus:
    """The GPUs of this machine.

    Attributes:
        driver: the place of a sign of NVIDIA's driver; None if none was found.
        count: how many GPUs CUDA sees.
        capability: compute capability of the first, such as "8.9"; None if CUDA cannot say.
        why_not: why CUDA cannot say, and what to do; empty if it can.
    """

    driver: str | None
    count: int = 0
    capability: str | None = None
    why_not: str = ""


def examine() -> list[Finding]:
    """All findings; those of the base install first."""
    findings = [
        Finding("plc", True, f"{__version__}, Python {platform.python_version()} ({sys.prefix})"),
        Finding("machine", True, f"{platform.machine()}, {os.cpu_count()} cores"),
    ]
    for package in _RUNTIME:
        found = _version(package)
        findings.append(Finding(package, found is not None, found or "pip install pl-compile"))
    findings.append(_providers())
    for extra, (packages, used_for) in _EXTRAS.items():
        versions = {package: _version(package) for package in packages}
        missing = [package for package, found in versions.items() if found is None]
        detail = ", ".join(f"{package} {found}" for package, found in versions.items() if found)
        if missing:
            detail = f"needed for {used_for}: pip install 'pl-compile[{extra}]'"
        findings.append(Finding(f"extra [{extra}]", not missing, detail))
    gpus = find_gpus()
    findings.append(_gpu(gpus))
    for target in TARGETS.values():
        findings += _findings_of(target, gpus)
    ranks = [ranks_on_cpu(), ranks_on_gpus(gpus)]
    return [*findings, *ranks, _library(), _default_base()]


def cmake_dir() -> Path:
    """The folder of this package in which CMake finds `libplc_runtime`.

    Raises:
        PlcError: the package was installed without the library.
    """
    if (_CMAKE_FOLDER / "plc_runtime-config.cmake").is_file():
        return _CMAKE_FOLDER
    raise PlcError(
        "looking for libplc_runtime, which serves bundles in C and C++ programs",
        found="this installation has none: on Linux it is built where a compiler is, but not for "
        "an editable installation",
        fix="Install g++ 11 or Clang 12, or a later one, then pl-compile again, not editable; or "
        "build the library in a clone with CMake: docs/embedding.md.",
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _providers() -> Finding:
    name = "ONNX Runtime providers"
    try:
        providers = _available_providers()
    except Exception as error:  # a broken package may raise anything
        return Finding(name, False, f"onnxruntime does not load: {first_line_of(error)}")
    return Finding(name, "CPUExecutionProvider" in providers, ", ".join(providers))


def _available_providers() -> list[str]:
    # Imported from our engine module, which switches telemetry off first.
    from pl_compile.runtime.engines.onnxruntime.graph import available_providers

    return list(available_providers())


def _findings_of(target: Target, gpus: Gpus) -> list[Finding]:
    """Whether a target can be built and run here; empty if the base install is enough for it."""
    if target.has_plan:
        return tensorrt_findings(target.name, gpus)
    if target.runner == "openvino":
        return [openvino_finding(target)]
    if target.on_gpu:
        return [_onnx_cuda(target, gpus)]
    return [_kernels(target)] if target.own_kernels else []


def _shown(target: Target) -> str:
    """The GPUs that a target has been run on."""
    seen = dict.fromkeys(proof.where for proof in proofs() if proof.target == target.name)
    return f"run by this project on {', '.join(seen)}" if seen else "never run by this project"


def openvino_finding(target: Target) -> Finding:
    """Whether OpenVINO is installed, and new enough."""
    name = f"target {target.name}: run"
    from pl_compile.runtime.engines.openvino.engine import openvino_module

    try:
        module = openvino_module("looking for it")
    except PlcError as error:
        return Finding(name, False, f"{error.found}. {error.fix}")
    return Finding(name, True, str(module.__version__).partition("-")[0])


def _kernels(target: Target) -> Finding:
    name = f"kernels of target {target.name}"
    from pl_compile.runtime import kernels

    try:
        found = kernels.instruction_set()
    except KernelsError as error:
        return Finding(name, False, str(error))
    except OSError as error:
        return Finding(name, False, f"built, but do not load: {error}; install pl-compile again")
    if found is None:
        detail = f"not built: {kernels.HOW_TO_BUILD} Their bundles run, but slower."
        return Finding(name, False, detail)
    others = [name for name in kernels.instruction_sets() if name != found]
    return Finding(name, True, f"{found} (also here: {', '.join(others)})" if others else found)


def find_gpus() -> Gpus:
    """What CUDA says about this machine's GPUs."""
    from pl_compile.runtime.engines.tensorrt.cuda import Cuda

    driver = shutil.which("nvidia-smi") or next(filter(os.path.exists, [_DEVICE]), None)
    try:
        cuda = Cuda()
        return Gpus(driver, int(cuda.call("cudaGetDeviceCount")), cuda.compute_capability)
    except MissingExtraError as error:
        if driver is None:
            return Gpus(None, why_not="no driver found")
        why = f"{error.found}: pip install 'pl-compile[gpu]'"
    except PlcError as error:
        why = f"CUDA says: {first_line_of(error.found)}"
        if driver is None:
            why = f"no driver found ({why})"
    except Exception as error:  # a broken package may raise anything
        why = f"cuda-bindings does not work: {first_line_of(error)}"
    return Gpus(driver, why_not=why)


def _gpu(gpus: Gpus) -> Finding:
    name = "NVIDIA GPU"
    if gpus.capability is not None:
        many = f"{gpus.count}, the first" if gpus.count > 1 else "one,"
        return Finding(name, True, f"{many} of compute capability {gpus.capability}")
    if gpus.driver is None:
        return Finding(name, False, f"{gpus.why_not}: targets for a GPU cannot run here")
    return Finding(name, False, f"{gpus.driver}, but {gpus.why_not}")


def _onnx_cuda(target: Target, gpus: Gpus) -> Finding:
    name = f"target {target.name}: run"
    try:
        providers = _available_providers()
    except Exception as error:  # a broken package may raise anything
        return Finding(name, False, f"onnxruntime does not load: {first_line_of(error)}")
    if _CUDA not in providers:
        detail = "this ONNX Runtime was built without CUDA: pip install 'pl-compile[gpu]'"
        if _version("onnxruntime-gpu") is not None:
            # Both packages write to the same folder; the one that was installed last is loaded.
            detail = (
                "onnxruntime has overwritten onnxruntime-gpu: pip uninstall onnxruntime "
                "onnxruntime-gpu, then pip install onnxruntime-gpu"
            )
        return Finding(name, False, detail)
    if gpus.capability is None:
        return Finding(name, False, gpus.why_not)
    return Finding(name, True, f"{_CUDA}; {_shown(target)}")


def tensorrt_findings(target: str, gpus: Gpus) -> list[Finding]:
    """Whether plans of a target can be built here, and whether they can be run.

    Args:
        target: the name of one that has plans.
        gpus: of this machine.
    """
    row = TARGETS[target]
    package = row.package
    build, run = f"target {target}: build", f"target {target}: run"
    try:
        trt = importlib.import_module(package)
        found = str(trt.__version__)
    except Exception as error:  # without the driver's libraries a package may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            why = f"{package} is not installed: pip install 'pl-compile[{row.extra}]'"
        else:
            why = f"{package} does not load: {first_line_of(error)}"
        return [Finding(build, False, f"{why}; or use --defer-build"), Finding(run, False, why)]
    try:
        problem, detail = _building(trt)
    except Exception as error:
        problem, detail = f"its builder does not start: {first_line_of(error)}", ""
    if problem:
        built = Finding(build, False, f"{found}; {problem}")
    else:
        built = Finding(build, True, f"{found}; {detail}")
    problem = _running(trt, target, gpus)
    if problem:
        return [built, Finding(run, False, problem)]
    detail = f"compute capability {gpus.capability}; {_shown(row)}"
    return [built, Finding(run, True, detail)]


def _building(trt: Any) -> tuple[str, str]:
    """Why plans cannot be built here, or empty; and, if they can, details."""
    try:
        from pl_compile.exporters.tensorrt.api import has_collectives, logger_of
    except ImportError as error:
        return f"packages for graphs are missing ({error}): pip install 'pl-compile[export]'", ""
    if not hasattr(trt.LayerType, "KV_CACHE_UPDATE"):
        return "it has no layer for caches: 10.15 or newer is needed", ""
    said: list[tuple[str, str]] = []
    if trt.Builder(logger_of(trt, said)) is None:
        reason = first_line_of(said[-1][1]) if said else "it does not say why"
        return f"its builder does not start here ({reason}): --defer-build, and plc build there", ""
    sums = "a layer of its own" if has_collectives(trt) else "the plugin in runtime/plugins"
    return "", f"its builder starts here; sums over ranks: {sums}"


def _running(trt: Any, target: str, gpus: Gpus) -> str:
    """Why no plan runs here; empty if no reason is known."""
    if gpus.capability is None:
        return gpus.why_not
    # Only TensorRT for RTX has such a list.
    served = getattr(getattr(trt, "ComputeCapability", None), "__members__", None)
    if served is not None and f"SM{gpus.capability.replace('.', '')}" not in served:
        others = [other.name for other in TARGETS.values() if other.on_gpu and other.name != target]
        return (
            f"compute capability {gpus.capability} is not one that {target} serves: "
            f"use --target {' or '.join(others)}"
        )
    return ""


def ranks_on_cpu() -> Finding:
    """Whether a base can be divided among processes of this machine."""
    name = "ranks on CPU"
    from pl_compile.runtime.kernels import rank_sums

    if sys.platform != "linux":
        return Finding(name, False, "they need Linux")
    try:
        needed = rank_sums.group_bytes(2)
    except PlcError as error:
        return Finding(name, False, str(error))
    return Finding(name, True, f"2 ranks share {needed >> 20} MiB")


def ranks_on_gpus(gpus: Gpus) -> Finding:
    """Whether a base can be divided among the GPUs of this machine."""
    name = "ranks on GPUs"
    try:
        importlib.import_module("nccl.core")
    except ImportError:
        return Finding(name, False, "nccl4py is not installed: pip install 'pl-compile[nccl]'")
    except Exception as error:  # a broken package may raise anything
        return Finding(name, False, f"nccl4py does not load: {first_line_of(error)}")
    if gpus.capability is None:
        return Finding(name, False, gpus.why_not)
    if gpus.count < 2:
        return Finding(name, False, f"{gpus.count} GPU, and each rank needs one of its own")
    found = _version("nccl4py") or "of unknown version"
    return Finding(name, True, f"nccl4py {found}, {gpus.count} GPUs; never run by this project")


def _library() -> Finding:
    """Whether programs in C and C++ can be built with this package."""
    name = "library for C and C++"
    try:
        return Finding(name, True, str(cmake_dir()))
    except PlcError as error:
        return Finding(name, False, f"{error.found}. {error.fix}")


def _default_base() -> Finding:
    folder = cached_base_folder(DEFAULT_BASE)
    there = (folder / "config.json").is_file()
    detail = str(folder) if there else f"not in the cache: plc fetch {DEFAULT_BASE}"
    return Finding(f"base {DEFAULT_BASE}", there, detail)
