"""Bundles of the default base for `benchmarks/inference.py`, with prompts of random numbers.

    plc fetch smollm2-135m
    python benchmarks/make_bundles.py FOLDER

A prompt's numbers do not change the speed, and the harness makes its opening of 100 tokens itself.
Writes FOLDER/none, int8, int4 and int4-table4, target `native-cpu`.
"""

import sys
from pathlib import Path

from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.testing import random_table
from pl_compile.weights.bases import DEFAULT_BASE, cached_base_folder

OPTIONS = {
    "none": BuildOptions("none"),
    "int8": BuildOptions("int8"),
    "int4": BuildOptions("int4"),
    "int4-table4": BuildOptions("int4", table_bits=4),
}


def main(folder: Path) -> None:
    """Writes the bundles that are not there yet."""
    base = cached_base_folder(DEFAULT_BASE)
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "prompts.safetensors"
    if not table.exists():
        random_table(base, table)
    for name, options in OPTIONS.items():
        if not (folder / name).exists():
            export_bundle(
                ExportRequest(
                    table,
                    base,
                    folder / name,
                    target="native-cpu",
                    options=options,
                    measure_parity=False,
                )
            )
            print(f"wrote {folder / name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
