"""libplc_runtime as a package of Conan 2: `conan create runtime/native`.

Conan is not among this project's tools: the recipe uses what its documentation describes, and was
never run here.
"""

# mypy: ignore-errors

import re
from pathlib import Path

from conan import ConanFile
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load


class PlcRuntime(ConanFile):
    """Serves prompt-tuned GPTs from compiled bundles."""

    name = "plc_runtime"
    license = "Apache-2.0"
    description = "Serves prompt-tuned GPTs from compiled bundles"
    package_type = "library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"shared": [True, False], "kernels": [True, False]}  # noqa: RUF012
    default_options = {"shared": True, "kernels": True}  # noqa: RUF012

    def set_version(self):
        """The version of the Python package."""
        text = load(self, Path(self.recipe_folder) / "../../pl_compile/__init__.py")
        self.version = re.search(r'^__version__ = "(.*)"', text, re.MULTILINE)[1]

    def export_sources(self):
        """The files that the build reads, where they stand in the project."""
        root = Path(self.recipe_folder).parents[1]
        for pattern in (
            "runtime/native/*",
            "runtime/kernels/*",
            "pl_compile/__init__.py",
            "LICENSE",
        ):
            excludes = "runtime/native/build/*"
            copy(self, pattern, root, self.export_sources_folder, excludes=excludes)

    def layout(self):
        """The project's CMakeLists.txt is not at its root."""
        cmake_layout(self, src_folder=".")
        self.cpp.source.includedirs = ["runtime/native/include"]

    def generate(self):
        """The settings of the build."""
        CMakeDeps(self).generate()
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables["PLC_KERNELS"] = bool(self.options.kernels)
        toolchain.generate()

    def build(self):
        """As by hand."""
        cmake = CMake(self)
        cmake.configure(build_script_folder="runtime/native")
        cmake.build()

    def package(self):
        """As by hand."""
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, Path(self.package_folder) / "licenses")

    def package_info(self):
        """The target that CMake users link with."""
        self.cpp_info.libs = ["plc_runtime"]
        self.cpp_info.set_property("cmake_target_name", "plc_runtime::plc_runtime")
        if not self.options.shared:
            self.cpp_info.system_libs = ["dl", "pthread", "m"]
