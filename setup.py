"""What setup.cfg cannot say: the C++ kernels, built where there is a compiler."""

import sys
from glob import glob

from setuptools import Extension, setup

LINUX = sys.platform == "linux"

# Not a Python module: ONNX Runtime loads the library. Without it bundles run
# all the same, slower; those that are divided among ranks on CPU need it.
KERNELS = Extension(
    "pl_compile.runtime.kernels._kernels",
    sources=sorted(glob("runtime/kernels/*.cc")),
    depends=sorted(glob("runtime/kernels/*.h") + glob("runtime/kernels/*.inc")),
    language="c++",
    # No contraction: a sum must be rounded alike in whichever loop computes it.
    extra_compile_args=[
        "-std=c++17",
        "-O3",
        "-ffp-contract=off",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Wno-psabi",
        "-Wno-uninitialized",  # of GCC 12's own intrinsics
        "-Wno-maybe-uninitialized",
        "-Wno-unknown-warning-option",  # Clang's, for those that only GCC knows
    ],
    extra_link_args=["-Wl,-s"] if LINUX else [],
    libraries=["dl"] if LINUX else [],
    optional=True,
)

setup(ext_modules=[KERNELS])
