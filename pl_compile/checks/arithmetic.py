"""Which kernels computed a bundle's numbers: noted in its manifest, compared by `plc verify`."""

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
