"""Which kernels computed a bundle's numbers: noted in its manifest, compared by `plc verify`."""

from collections.abc import Mapping

from pl_compile.config.targets import TARGETS
from pl_compile.runtime.kernels import arithmetic


def kernels_of(target: str) -> dict[str, str]:
    """What the manifest's `toolchain` says about this project's kernels.

    Args:
        target: the bundle's; empty for targets that use no kernel of ours.

    Raises:
        KernelsError: the library cannot be used as it is (`runtime.kernels.register`).
    """
    return {"kernels": arithmetic()} if TARGETS[target].own_kernels else {}


def computed_alike(target: str, toolchain: Mapping[str, str]) -> bool:
    """Whether this machine's kernels give the bits of those that computed a bundle's vectors.

    OpenVINO's depend on the processor, and it does not say which ones it takes.

    Args:
        target: the bundle's.
        toolchain: its manifest's.

    Raises:
        KernelsError: as for `kernels_of`.
    """
    if TARGETS[target].runner == "openvino":
        return False
    return kernels_of(target).items() <= toolchain.items()
