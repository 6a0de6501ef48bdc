"""Bundles of the default base for other benchmarks, with prompts of random numbers.

    plc fetch smollm2-135m
    python benchmarks/make_bundles.py FOLDER

A prompt's numbers do not change the speed. Writes, for target `native-cpu`:

    FOLDER/none, int8, int4, int4-table4    for `inference.py`, which makes its opening of 100
                                            tokens itself
    FOLDER/serve                            int4, for `serve_load.py` and `soak.py`: tasks of 10,
                                            40, 70 and 100 virtual tokens, and one with a prefix
"""

import argparse
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

VIRTUAL = (10, 40, 70, 100)
SERVED = [
    {
        "taskname": f"virtual{count}",
        "prompt_template": "<|VIRTUAL_PROMPT_0|>\n{text}\n{answer}",
        "total_virtual_tokens": count,
        "answer_field": "answer",
    }
    for count in VIRTUAL
]


def main() -> None:
    """Writes the bundles that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    base = cached_base_folder(DEFAULT_BASE)
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "prompts.safetensors"
    if not table.exists():
        random_table(base, table)
    served = folder / "served.safetensors"
    if not served.exists():
        random_table(base, served, tasks=SERVED, prefix=True)
    bundles = {name: (table, options) for name, options in OPTIONS.items()}
    bundles["serve"] = served, OPTIONS["int4"]
    for name, (prompts, options) in bundles.items():
        if not (folder / name).exists():
            export_bundle(
                ExportRequest(
                    prompts,
                    base,
                    folder / name,
                    target="native-cpu",
                    options=options,
                    measure_parity=False,
                )
            )
            print(f"wrote {folder / name}")


if __name__ == "__main__":
    main()
