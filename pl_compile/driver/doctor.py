"""What this machine can do, and what it cannot and why: versions, providers, extras, base."""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pl_compile import __version__
from pl_compile.weights.bases import DEFAULT_BASE, cached_base_folder

# What each extra brings, and what a user cannot do without it.
_EXTRAS = {
    "train": (("torch", "transformers"), "plc train, parity with torch, plc eval of a table"),
    "export": (("onnx", "onnx-ir"), "plc export"),
    "eval": (("rouge-score",), "plc eval --metric rouge"),
    "gpu": (("onnxruntime-gpu",), "ONNX Runtime on CUDA"),
}
_RUNTIME = ("numpy", "onnxruntime", "tokenizers", "safetensors", "click", "pyyaml", "rich")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        works: whether it can be used here.
        detail: version or place; why not, and what to do, where it does not work.
    """

    name: str
    works: bool
    detail: str


def examine() -> list[Finding]:
    """All findings; those of the base install first."""
    findings = [
        Finding("plc", True, f"{__version__}, Python {platform.python_version()} ({sys.prefix})"),
        Finding("machine", True, f"{platform.machine()}, {os.cpu_count()} cores"),
    ]
    for package in _RUNTIME:
        found = _version(package)
        findings.append(Finding(package, found is not None, found or "pip install pl-compile"))
    findings += [_providers(), _kernels()]
    for extra, (packages, used_for) in _EXTRAS.items():
        versions = {package: _version(package) for package in packages}
        missing = [package for package, found in versions.items() if found is None]
        detail = ", ".join(f"{package} {found}" for package, found in versions.items() if found)
        if missing:
            detail = f"needed for {used_for}: pip install 'pl-compile[{extra}]'"
        findings.append(Finding(f"extra [{extra}]", not missing, detail))
    findings += [_gpu(), _default_base()]
    return findings


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _providers() -> Finding:
    name = "ONNX Runtime providers"
    try:
        # Through our engine module, which switches telemetry off first.
        from pl_compile.runtime.engines.onnxruntime import available_providers

        providers = available_providers()
    except ImportError as error:
        return Finding(name, False, f"onnxruntime does not load: {error}")
    return Finding(name, "CPUExecutionProvider" in providers, ", ".join(providers))


def _kernels() -> Finding:
    name = "kernels of target native-cpu"
    from pl_compile.runtime.kernels import instruction_set

    try:
        found = instruction_set()
    except OSError as error:
        return Finding(name, False, f"built, and do not load: {error}; install pl-compile again")
    if found is None:
        detail = "not built: install g++, then pl-compile again; their bundles run, slower"
        return Finding(name, False, detail)
    return Finding(name, True, found)


def _gpu() -> Finding:
    driver = shutil.which("nvidia-smi")
    if driver is None and not Path("/dev/nvidia0").exists():
        return Finding("NVIDIA GPU", False, "no driver found: targets for a GPU can not run here")
    return Finding("NVIDIA GPU", True, driver or "/dev/nvidia0")


def _default_base() -> Finding:
    folder = cached_base_folder(DEFAULT_BASE)
    there = (folder / "config.json").is_file()
    detail = str(folder) if there else f"not in the cache: plc fetch {DEFAULT_BASE}"
    return Finding(f"base {DEFAULT_BASE}", there, detail)
