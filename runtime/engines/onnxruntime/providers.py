"""Execution providers of ONNX Runtime: their names, and how a session gets one."""

import importlib.util
import re
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from pl_compile.config.plain_values import shown
from pl_compile.config.targets import PROVIDERS
from pl_compile.errors import ArtifactError, RequestError, check_all, first_line_of, unknown_name

_WRITTEN = {**PROVIDERS, **{full.lower(): full for full in PROVIDERS.values()}}
# Default options of providers. By itself ONNX Runtime would multiply float32 in TF32, which has 10
# bits of fraction: who wants that speed can use float16.
_DEFAULTS = {PROVIDERS["cuda"]: {"use_tf32": "0"}}
# Their tensors lie in a GPU's memory.
_ON_CUDA = tuple(PROVIDERS[name] for name in ("cuda", "tensorrt", "nv-tensorrt-rtx"))


@dataclass(frozen=True)
class Provider:
    """What runs a graph.

    Attributes:
        name: ONNX Runtime's name for it, or one of `PROVIDERS`, in upper or lower case.
        options: the provider's own, as text.
        library: of a plug-in provider, which is registered under `name`; None for one that ONNX
            Runtime was built with.
    """

    name: str = "cpu"
    options: Mapping[str, str] = field(default_factory=dict)
    library: Path | None = None

    def __post_init__(self) -> None:
        """Refuses values of a wrong type, and a device that is not a number."""
        options = self.options
        texts = isinstance(options, Mapping) and all(
            _is_written(text) for pair in options.items() for text in pair
        )
        library = self.library is None or isinstance(self.library, str | Path)
        doing = "reading the provider"
        checks = {
            f"name {shown(self.name)}, expected its name": _is_written(self.name),
            f"options {shown(options)}, expected a mapping from text to text": texts,
            f"library {shown(self.library)}, expected a path": library,
        }
        check_all(RequestError, doing, checks)
        device = options.get("device_id", "0")
        if not re.fullmatch("[0-9]{1,6}", device):
            raise RequestError(
                doing, found=f"device_id={device:.80}", expected="the number of a GPU"
            )

    @property
    def full_name(self) -> str:
        """ONNX Runtime's name for it."""
        return _WRITTEN.get(self.name.lower(), self.name)

    @property
    def device(self) -> str:
        """Where its caches lie, in ONNX Runtime's words."""
        return "cuda" if self.full_name in _ON_CUDA else "cpu"

    @property
    def device_id(self) -> int:
        """Which of the devices; only GPUs are numbered."""
        return int(self.options.get("device_id", "0")) if self.device == "cuda" else 0


def _is_written(text: object) -> bool:
    """Whether a value is a text that ONNX Runtime, which is in C++, can take."""
    return isinstance(text, str) and text.isprintable()


CPU = Provider()


def provider_of(name: str, pairs: tuple[str, ...] = (), library: Path | None = None) -> Provider:
    """A provider as the command line names it.

    Args:
        name: of the provider.
        pairs: its options, `key=value` each.
        library: of a plug-in.

    Raises:
        RequestError: an option that is not `key=value`, or a device that is not a number.
    """
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise RequestError(
                "reading the provider's options", found=f"'{pair}'", expected="name=value"
            )
        options[key] = value
    return Provider(name, options, library)


def choose(onnxruntime: Any, options: Any, provider: Provider) -> list[Any]:
    """Registers or chooses a provider; returns what `InferenceSession` takes as `providers`.

    Args:
        onnxruntime: the package.
        options: of the session; a plug-in's devices are added to them.
        provider: the choice.

    Raises:
        ArtifactError: the provider is not there, or offers no device.
        RequestError: no provider has that name, or there are options for one that takes none.
    """
    name, doing = provider.full_name, f"choosing the execution provider {provider.full_name}"
    if provider.library is not None:
        return _plug_in(onnxruntime, options, provider, doing)
    available = onnxruntime.get_available_providers()
    if name not in available:
        gpu = "Those for NVIDIA's GPUs come with: pip install 'pl-compile[gpu]'"
        if name in onnxruntime.get_all_providers():  # some build of ONNX Runtime has it
            here = ", ".join(available)
            raise ArtifactError(
                doing, found="this ONNX Runtime was built without it", expected=here, fix=gpu
            )
        short = [short for short, full in PROVIDERS.items() if full in available]
        found, known = unknown_name(provider.name, (*short, *available), what="provider")
        raise RequestError("choosing the execution provider", found=found, fix=f"{known} {gpu}")
    if name == PROVIDERS["cpu"] and provider.options:
        raise RequestError(
            doing,
            found=f"options: {', '.join(provider.options)}",
            expected="none: this provider takes no options",
            fix="Leave them out.",
        )
    if name in _ON_CUDA:
        load_cuda(onnxruntime)
    its_own = {**_DEFAULTS.get(name, {}), **provider.options}
    chosen: list[Any] = [(name, its_own)] if its_own else [name]
    return chosen if name == PROVIDERS["cpu"] else [*chosen, PROVIDERS["cpu"]]


def _plug_in(onnxruntime: Any, options: Any, provider: Provider, doing: str) -> list[Any]:
    name = provider.full_name
    try:
        onnxruntime.register_execution_provider_library(name, str(provider.library))
    except Exception as error:  # the library's errors have no common base class
        if "already" not in str(error):
            raise ArtifactError(
                doing,
                found=f"{provider.library} does not load: {first_line_of(error)}",
                fix="See plc doctor.",
            ) from error
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
    if not devices:
        raise ArtifactError(
            doing, found="its library offers no device here", expected="a GPU that it supports"
        )
    if provider.device_id >= len(devices):
        raise ArtifactError(
            doing,
            found=f"device_id {provider.device_id}",
            expected=f"0 to {len(devices) - 1}: its library offers {len(devices)}",
        )
    chosen = devices[provider.device_id : provider.device_id + 1]
    options.add_provider_for_devices(chosen, dict(provider.options))
    return []  # the options name it


def load_cuda(onnxruntime: Any) -> None:
    """Loads CUDA and cuDNN from NVIDIA's Python packages, where ONNX Runtime does not look itself.

    What is not found there is left to the system's own search. `check_used` then shows whether that
    was enough.
    """
    with redirect_stdout(StringIO()):  # it prints what it does not find
        onnxruntime.preload_dlls()
        for folder in _nvidia_libraries():
            onnxruntime.preload_dlls(directory=folder)


def _nvidia_libraries() -> list[str]:
    """Folders of libraries in NVIDIA's packages, wherever on Python's path these are installed.

    ONNX Runtime looks for them only beside itself. That is another folder if it was installed with
    `pip --target`, or into an environment on top of another one.
    """
    found = importlib.util.find_spec("nvidia")
    places = [Path(each) for each in (found.submodule_search_locations or ())] if found else []
    return [str(path) for place in places for path in sorted(place.glob("*/lib")) if path.is_dir()]


def check_used(session: Any, provider: Provider, model: Path) -> None:
    """Raises `ArtifactError` if ONNX Runtime has silently fallen back to the CPU."""
    used = session.get_providers()
    if provider.full_name not in used:
        raise ArtifactError(
            f"loading {model}",
            found=f"ONNX Runtime runs it on {', '.join(used)}",
            expected=provider.full_name,
            fix="Its libraries, or a driver, are missing: see plc doctor.",
        )
