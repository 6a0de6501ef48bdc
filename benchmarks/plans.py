"""TensorRT plans of one base in five precisions: the cost of building, and the parser's errors.

    python benchmarks/plans.py OUTPUT --prompts prompts.safetensors --base smollm2-135m
    python benchmarks/plans.py OUTPUT --random gpt2

prints the table of docs/targets.md: seconds and bytes of each plan, and the largest difference
between torch and the graph as TensorRT's parser understood it, over prompts and decode steps of all
tasks. Needs no GPU.
"""

import argparse
from pathlib import Path

from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.testing import random_table, write_tiny_base
from pl_compile.weights.bases import find_base

PRECISIONS = {
    "float32": BuildOptions("none"),
    "float16": BuildOptions("none", dtype="float16"),
    "bfloat16": BuildOptions("none", dtype="bfloat16"),
    "int8 with float16": BuildOptions("int8", dtype="float16"),
    "int4 with float16": BuildOptions("int4", dtype="float16"),
}


def main() -> None:
    """Builds the plans, and prints a row for each precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--random", choices=["llama", "gpt2"], help="A tiny random base instead.")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    base, table = given.output / "base", given.output / "prompts.safetensors"
    if given.random:
        write_tiny_base(base, given.random, blocks=True)
        random_table(base, table, prefix=True)
    else:
        base, table = find_base(given.base), given.prompts
    print("| precision | build, s | plan, MB | difference of largest logit | equal tokens |")
    print("|---|---|---|---|---|")
    for name, options in PRECISIONS.items():
        folder = given.output / name.replace(" ", "_")
        result = export_bundle(
            ExportRequest(table, base, folder, target="tensorrt-rtx", options=options)
        )
        (record,) = result.plans
        worst = max(parity.relative_difference for parity in result.parity)
        equal = sum(parity.equal_tokens for parity in result.parity)
        steps = sum(parity.rows * parity.steps for parity in result.parity)
        print(
            f"| {name} | {record.seconds:.1f} | {record.plan_bytes / 1e6:.1f} | {worst:.1e} | "
            f"{equal}/{steps} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
