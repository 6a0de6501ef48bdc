"""What is installed, against what setup.cfg asks for; and what `plc doctor` says of it."""

import configparser
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gpu_parts.report import Job, Report

_SETUP = Path(__file__).resolve().parents[2] / "setup.cfg"
# Packages that the other parts use; those for a GPU count only if there is one.
_EXTRAS, _ON_GPU = ("train", "export"), ("gpu", "nccl")
_BESIDE = (
    "numpy",
    "peft",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "cuda-core",
    "cuda-pathfinder",
    "nvidia-nccl-cu13",
    "nvidia-cudnn-cu13",
)
# Packages that no part imports.
_NOT_USED = ("gguf",)


def run(report: Report, job: Job) -> None:
    """The part."""
    report.figure("system", f"{platform.platform()}, Python {platform.python_version()}")
    report.figure("processors", os.cpu_count())
    if job.on_gpu:
        _gpu(report)
    config = configparser.ConfigParser()
    config.read(_SETUP, encoding="utf-8")
    for extra in (*_EXTRAS, *(_ON_GPU if job.on_gpu else ())):
        for line in config["options.extras_require"][extra].split("\n"):
            if ">=" in line:
                _package(report, line)
    for name in _BESIDE:
        report.figure(name, _version(name) or "not installed")
    import onnxruntime  # this one is imported: another may be installed, too

    providers = ", ".join(onnxruntime.get_available_providers())
    report.figure("onnxruntime", f"{onnxruntime.__version__} ({providers})")
    from pl_compile.driver.doctor import examine

    for finding in examine():
        report.figure(
            f"doctor: {finding.name}",
            ("works: " if finding.works else "does not: ") + finding.detail,
        )


def _gpu(report: Report) -> None:
    import torch

    report.figure("torch", f"{torch.__version__}, CUDA {torch.version.cuda}")
    found = torch.cuda.is_available()
    report.expect("torch sees a GPU", found, "yes", found)
    if found:
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        major, minor = torch.cuda.get_device_capability()
        name = f"{torch.cuda.get_device_name()}, {major}.{minor}, {memory:.0f} GiB"
        report.figure("GPU", name)
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with report.trying("driver"):
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20)
        report.figure("driver", (done.stdout or done.stderr).strip())


def _package(report: Report, requirement: str) -> None:
    name, _, least = requirement.strip().partition(">=")
    name = name.partition("[")[0]
    found = _version(name)
    ok = found is not None and _numbers(found) >= _numbers(least)
    if name in _NOT_USED:
        report.figure(name, found or "not installed")
    else:
        report.expect(name, found or "not installed", f"{least} or newer", ok)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> list[int]:
    plain = text.partition("+")[0].split(".")
    return [int("".join(c for c in part if c.isdigit()) or 0) for part in plain]
