"""What `plc doctor` finds of TensorRT, of GPUs and of ranks: on stand-ins for what is not here."""

import importlib
import shutil
import sys
from collections.abc import Callable
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest

from pl_compile.driver import doctor
from pl_compile.driver.doctor import (
    Finding,
    Gpus,
    examine,
    find_gpus,
    ranks_on_cpu,
    ranks_on_gpus,
    tensorrt_findings,
)
from pl_compile.errors import KernelsError, RankError
from pl_compile.runtime import kernels
from pl_compile.runtime.kernels import rank_sums

NO_GPU = Gpus(None, why_not="no driver found")
ADA, HOPPER = Gpus("smi", 1, "8.9"), Gpus("smi", 2, "9.0")
CUDA, NCCL = "cuda.bindings.runtime", "nccl.core"


def tensorrt(
    *layers: str, builder: Callable[[Any], Any] = lambda logger: object(), **more: Any
) -> Any:
    """A package with the few names that are looked at."""
    names = layers or ("KV_CACHE_UPDATE", "DIST_COLLECTIVE")
    kinds = SimpleNamespace(**dict.fromkeys(names))
    logger = type("ILogger", (), {"WARNING": 2, "__init__": lambda self: None})
    return SimpleNamespace(
        __version__="10.99", LayerType=kinds, ILogger=logger, Builder=builder, **more
    )


def speechless(logger: Any) -> None:
    logger.log(1, "CUDA error 35\nmore")


def broken(_: Any) -> None:
    raise RuntimeError("no symbol cuInit")


def cuda(*, count: int = 1, capability: tuple[int, int] = (8, 9), error: int = 0) -> Any:
    """CUDA's runtime."""
    return SimpleNamespace(
        cudaSetDevice=lambda device: (error,),
        cudaStreamCreate=lambda: (0, 7),
        cudaGetDeviceCount=lambda: (0, count),
        cudaDeviceAttr=SimpleNamespace(
            cudaDevAttrComputeCapabilityMajor=0, cudaDevAttrComputeCapabilityMinor=1
        ),
        cudaDeviceGetAttribute=lambda kind, device: (0, capability[kind]),
        cudaGetErrorString=lambda code: (0, b"no CUDA-capable device is detected"),
    )


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi")


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(doctor, "_DEVICE", "/nowhere")


def put(monkeypatch: pytest.MonkeyPatch, **modules: Any) -> None:
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


# TensorRT


@pytest.mark.parametrize(
    ("target", "package"), [("tensorrt-rtx", "tensorrt_rtx"), ("tensorrt", "tensorrt")]
)
def test_a_missing_package_names_its_extra_and_what_goes_without(
    monkeypatch: pytest.MonkeyPatch, target: str, package: str
) -> None:
    put(monkeypatch, **{package: None})

    build, run = tensorrt_findings(target, ADA)

    why = f"{package} is not installed: pip install 'pl-compile[{target}]'"
    assert build == Finding(f"target {target}: build", False, f"{why}; or use --defer-build")
    assert run == Finding(f"target {target}: run", False, why)


@pytest.mark.parametrize(
    ("package", "works", "said"),
    [
        (tensorrt(), True, "10.99; its builder starts here; sums over ranks: a layer of its own"),
        (tensorrt("KV_CACHE_UPDATE"), True, "sums over ranks: the plugin in runtime/plugins"),
        (tensorrt("MATRIX_MULTIPLY"), False, "no layer for caches: 10.15 or newer is needed"),
        (tensorrt(builder=speechless), False, "does not start here (CUDA error 35): --defer-build"),
        (tensorrt(builder=lambda _: None), False, "does not start here (it does not say why)"),
        (tensorrt(builder=broken), False, "its builder does not start: no symbol cuInit"),
    ],
    ids=["own layer", "plugin", "too old", "no driver", "speechless", "broken"],
)
def test_building_asks_the_package_itself(
    monkeypatch: pytest.MonkeyPatch, package: Any, works: bool, said: str
) -> None:
    put(monkeypatch, tensorrt=package)

    build = tensorrt_findings("tensorrt", NO_GPU)[0]

    assert build.works is works
    assert said in build.detail


def test_building_needs_what_writes_the_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, tensorrt=tensorrt())
    monkeypatch.setitem(sys.modules, "pl_compile.exporters.tensorrt.api", None)

    build = tensorrt_findings("tensorrt", NO_GPU)[0]

    assert not build.works
    assert "pip install 'pl-compile[export]'" in build.detail


def test_the_real_package_builds_here_without_a_gpu() -> None:
    """Where it is not installed, the stand-ins of test_building_asks_the_package_itself remain."""
    pytest.importorskip(
        "tensorrt_rtx",
        reason="needs tensorrt_rtx (pip install tensorrt-rtx-cu13); without it: "
        "test_building_asks_the_package_itself",
    )

    build, run = tensorrt_findings("tensorrt-rtx", NO_GPU)

    assert build.works
    assert "a layer of its own" in build.detail
    assert run == Finding("target tensorrt-rtx: run", False, "no driver found")


class RtxCapability(Enum):
    SM86 = 0
    SM89 = 1


@pytest.mark.parametrize(
    ("target", "gpus", "works", "said"),
    [
        ("tensorrt-rtx", ADA, True, "compute capability 8.9; never run by this project"),
        (
            "tensorrt-rtx",
            HOPPER,
            False,
            "9.0 is not one that tensorrt-rtx serves: use --target onnx",
        ),
        ("tensorrt", HOPPER, True, "compute capability 9.0"),
        ("tensorrt", NO_GPU, False, "no driver found"),
    ],
)
def test_plans_run_where_the_flavour_serves_the_gpu(
    monkeypatch: pytest.MonkeyPatch, target: str, gpus: Gpus, works: bool, said: str
) -> None:
    rtx = tensorrt(ComputeCapability=RtxCapability)
    put(monkeypatch, tensorrt_rtx=rtx, tensorrt=tensorrt())

    run = tensorrt_findings(target, gpus)[1]

    assert run.works is works
    assert said in run.detail


# GPUs


@pytest.mark.usefixtures("driver")
def test_cuda_says_which_gpus_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, **{CUDA: cuda(count=2, capability=(12, 0))})

    assert find_gpus() == Gpus("/usr/bin/nvidia-smi", 2, "12.0")
    gpu = by_name(examine())["NVIDIA GPU"]
    assert gpu == Finding("NVIDIA GPU", True, "2, the first of compute capability 12.0")


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("bindings", "said"),
    [
        (None, "'cuda-bindings' is not installed: pip install 'pl-compile[gpu]'"),
        (cuda(error=100), "CUDA says: no CUDA-capable device is detected"),
        (SimpleNamespace(), "cuda-bindings does not work: "),
    ],
    ids=["missing", "an error", "broken"],
)
def test_a_driver_that_cuda_cannot_use_says_why(
    monkeypatch: pytest.MonkeyPatch, bindings: Any, said: str
) -> None:
    put(monkeypatch, **{CUDA: bindings})

    gpu = by_name(examine())["NVIDIA GPU"]

    assert not gpu.works
    assert "/usr/bin/nvidia-smi, but " in gpu.detail
    assert said in gpu.detail


@pytest.mark.usefixtures("no_driver")
def test_without_a_driver_nothing_is_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, **{CUDA: None})

    assert find_gpus() == NO_GPU


@pytest.mark.usefixtures("no_driver")
def test_without_a_driver_what_cuda_says_comes_second(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, **{CUDA: cuda(error=35)})

    gpu = by_name(examine())["NVIDIA GPU"]

    assert not gpu.works
    assert gpu.detail.startswith("no driver found (CUDA says: no CUDA-capable device is detected)")


@pytest.mark.usefixtures("no_driver")
def test_a_gpu_that_cuda_knows_needs_no_other_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Jetson, which may have neither nvidia-smi nor that device file."""
    put(monkeypatch, **{CUDA: cuda(capability=(8, 7))})

    assert find_gpus() == Gpus(None, 1, "8.7")
    assert by_name(examine())["NVIDIA GPU"].works


@pytest.mark.parametrize(
    ("providers", "installed", "gpus", "works", "said"),
    [
        (["CPUExecutionProvider"], {}, ADA, False, "pip install 'pl-compile[gpu]'"),
        (
            ["CPUExecutionProvider"],
            {"onnxruntime-gpu": "1.31"},
            ADA,
            False,
            "pip uninstall onnxruntime onnxruntime-gpu",
        ),
        (["CUDAExecutionProvider"], {}, NO_GPU, False, "no driver found"),
        (["CUDAExecutionProvider"], {}, ADA, True, "never run by this project"),
    ],
    ids=["none", "hidden by the other package", "no GPU", "there"],
)
def test_onnx_runtime_on_cuda(
    monkeypatch: pytest.MonkeyPatch,
    providers: list[str],
    installed: dict[str, str],
    gpus: Gpus,
    works: bool,
    said: str,
) -> None:
    monkeypatch.setattr(doctor, "_available_providers", lambda: providers)
    monkeypatch.setattr(doctor, "_version", installed.get)
    monkeypatch.setattr(doctor, "find_gpus", lambda: gpus)

    found = by_name(examine())["target onnx-cuda: run"]

    assert found.works is works
    assert said in found.detail


# Ranks


def test_ranks_on_cpu_say_what_they_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_sums, "group_bytes", lambda ranks: (ranks << 21) + 128)

    found = ranks_on_cpu()

    assert found.works is sys.platform.startswith("linux")
    assert not found.works or found.detail == "2 ranks share 4 MiB"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RankError("summing", found="not built", fix=kernels.HOW_TO_BUILD), "Install g++ 11"),
        (KernelsError("loading", found="interface 1", fix="Install it again."), "Install it again"),
    ],
    ids=["not built", "of another version"],
)
def test_ranks_on_cpu_need_the_kernels(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(_: int) -> int:
        raise error

    monkeypatch.setattr(rank_sums, "group_bytes", fail)

    found = ranks_on_cpu()

    assert not found.works
    assert said in found.detail


def test_ranks_on_cpu_need_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    assert ranks_on_cpu() == Finding("ranks on CPU", False, "they need Linux")


@pytest.mark.parametrize(
    ("nccl", "gpus", "works", "said"),
    [
        (None, HOPPER, False, "nccl4py is not installed: pip install 'pl-compile[nccl]'"),
        (SimpleNamespace(), NO_GPU, False, "no driver found"),
        (SimpleNamespace(), ADA, False, "1 GPU, and each rank needs one of its own"),
        (SimpleNamespace(), HOPPER, True, "2 GPUs; never run by this project"),
    ],
    ids=["no NCCL", "no GPU", "one GPU", "two GPUs"],
)
def test_ranks_on_gpus_need_nccl_and_a_gpu_each(
    monkeypatch: pytest.MonkeyPatch, nccl: Any, gpus: Gpus, works: bool, said: str
) -> None:
    put(monkeypatch, **{NCCL: nccl})

    found = ranks_on_gpus(gpus)

    assert found.works is works
    assert said in found.detail


def test_packages_that_break_on_import_are_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def fail(name: str, package: str | None = None) -> Any:
        if name in ("tensorrt", "tensorrt_rtx", NCCL, CUDA):
            raise OSError(f"{name}: libcuda.so.1: cannot open shared object file")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", fail)

    findings = by_name(examine())

    for target in ("tensorrt-rtx", "tensorrt"):
        for what in ("build", "run"):
            found = findings[f"target {target}: {what}"]
            assert not found.works
            assert "does not load" in found.detail
            assert "libcuda.so.1" in found.detail
    assert "nccl4py does not load" in findings["ranks on GPUs"].detail
    assert not findings["NVIDIA GPU"].works
