"""What setup.cfg cannot say: the C++ kernels, built where there is a compiler."""

from glob import glob

from setuptools import Extension, setup

# Not a Python module: ONNX Runtime loads the library. Without it everything still works, slower.
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
    ],
    extra_link_args=["-Wl,-s"],
    libraries=["dl"],
    optional=True,
)

setup(ext_modules=[KERNELS])
