"""What setup.cfg cannot say: what is built of C++, where there is a compiler."""

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

LINUX = sys.platform == "linux"
NATIVE = Path("runtime/native")

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

# For programs in C and C++, which find it with CMake: docs/embedding.md, "With pip". As
# runtime/native/CMakeLists.txt builds it, but no CMake is needed to install a package.
ABI = re.findall(
    r"^#define PLC_ABI_VERSION (\d+)", (NATIVE / "include/plc_runtime.h").read_text(), re.M
)[0]
LIBRARY = Extension(
    "pl_compile.runtime.native.lib.libplc_runtime",
    sources=[*KERNELS.sources, *sorted(glob("runtime/native/src/*.cc"))],
    depends=[
        *KERNELS.depends,
        *sorted(glob("runtime/native/src/*.h")),
        *sorted(glob("runtime/native/cmake/**/*.*", recursive=True)),
    ],
    include_dirs=["runtime/native/include", "runtime/native/src", "runtime/kernels"],
    language="c++",
    extra_compile_args=[
        "-std=c++17",
        "-O2",
        "-g0",
        "-fvisibility=hidden",
        "-fvisibility-inlines-hidden",
    ],
    extra_link_args=[
        f"-Wl,-soname,libplc_runtime.so.{ABI}",
        "-Wl,--version-script=runtime/native/cmake/plc_runtime.map",
        "-Wl,--no-undefined",
        "-Wl,-z,max-page-size=16384",
        "-Wl,-s",
    ],
    libraries=["dl"],
    optional=True,
)


class Build(build_ext):
    """Compiles all files side by side, each once, and puts what CMake needs beside the library."""

    def run(self) -> None:
        """Leaves the library out where the package is a clone."""
        if getattr(self, "editable_mode", False) or self.inplace:
            # Who works on a clone builds the library with CMake, where it is wanted.
            self.extensions = [each for each in self.extensions if each is not LIBRARY]
        super().run()

    def build_extensions(self) -> None:
        """Begins with all files at once."""
        compile_files = self.compiler.compile

        @cache
        def started() -> dict[str, Any]:
            """The objects of all sources, in the making."""
            flags = {source: each for each in reversed(self.extensions) for source in each.sources}
            return {
                source: jobs.submit(
                    compile_files,
                    [source],
                    output_dir=self.build_temp,
                    include_dirs=of.include_dirs,
                    extra_postargs=of.extra_compile_args,
                )
                for source, of in flags.items()
            }

        def objects(sources: list[str], **_: Any) -> list[str]:
            return [path for source in sources for path in started()[source].result()]

        with ThreadPoolExecutor(os.cpu_count()) as jobs:
            self.compiler.compile = objects
            super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        """Links one of the two."""
        super().build_extension(ext)
        if ext is LIBRARY:
            lay_out(
                Path(self.get_ext_fullpath(ext.name)).parents[1], self.distribution.get_version()
            )

    def get_ext_filename(self, fullname: str) -> str:
        """The name that programs ask for, not that of a Python module."""
        if fullname.endswith("libplc_runtime"):
            return f"{fullname.replace('.', '/')}.so.{ABI}"
        return super().get_ext_filename(fullname)


def lay_out(folder: Path, version: str) -> None:
    """Puts headers and the files of CMake and pkg-config beside the library.

    Args:
        folder: has the library in `lib`. It may be moved later.
        version: of this package.
    """
    (folder / "include").mkdir(exist_ok=True)
    for header in (NATIVE / "include").iterdir():
        (folder / "include" / header.name).write_bytes(header.read_bytes())
    # Wheels hold no links, which is what this name is elsewhere.
    (folder / "lib/libplc_runtime.so").write_text(f"INPUT(libplc_runtime.so.{ABI})\n")
    values = {
        "ABI": ABI,
        "PROJECT_VERSION": version,
        "PROJECT_VERSION_MAJOR": version.partition(".")[0],
        "PROJECT_DESCRIPTION": "Serves prompt-tuned GPTs from compiled bundles",
        "CMAKE_INSTALL_LIBDIR": "lib",
        "CMAKE_INSTALL_INCLUDEDIR": "include",
        "prefix_of_pc": "../..",
    }
    for source, made in (
        ("wheel/plc_runtime-config.cmake.in", "cmake/plc_runtime/plc_runtime-config.cmake"),
        (
            "wheel/plc_runtime-config-version.cmake.in",
            "cmake/plc_runtime/plc_runtime-config-version.cmake",
        ),
        ("plc_runtime.pc.in", "pkgconfig/plc_runtime.pc"),
    ):
        text = (NATIVE / "cmake" / source).read_text()
        path = folder / "lib" / made
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(re.sub(r"@(\w+)@", lambda name: values[name[1]], text))


setup(ext_modules=[KERNELS, LIBRARY] if LINUX else [KERNELS], cmdclass={"build_ext": Build})
