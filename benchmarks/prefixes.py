"""What long prefixes cost a step: 16 rows over 4 tasks, beside rows without prefixes.

    python benchmarks/prefixes.py BUNDLE [--rows 16] [--tasks 4] [--prefix 2048] [--own 60]
                                         [--turns 7] [--threads 2]

BUNDLE is of target `native-cpu`, with a capacity for all of it. Each row has a prefix of random
numbers, the task's, and then `--own` entries of its own. Rows without prefixes have as many of
their own. Prints as JSON the medians of tokens a second over single steps, and what part of the
rate without prefixes each is. The three take turns, step by step, so that what else the machine
does falls on all alike. With `--threads 1` processor time counts instead of the clock's: so a
machine that others use, too, can measure.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pl_compile.artifact.bundle import Bundle, read_bundle
from pl_compile.config.contract import PrefixBits
from pl_compile.runtime.engines.opening import open_engine
from pl_compile.runtime.stepping import Batch

# Steps of a turn: the caches of a processor are filled by the ones before the first that counts.
STEPS = 6


@dataclass(frozen=True)
class IdsAlone:
    """What an engine needs of a prompt, for requests that are token ids already."""

    rows: Any
    prefix_kv: Any = None
    task_id: int = 0


def stepper(
    bundle: Bundle,
    bits: PrefixBits,
    prefixes: Sequence[Any],
    *,
    rows: int,
    own: int,
    threads: int | None,
) -> Callable[[], float]:
    """A function that makes a step, and says how long it took, in seconds.

    Args:
        bundle: what steps.
        bits: of its prefixes.
        prefixes: of the tasks; empty for rows without.
        rows: how many step together.
        own: entries of each besides its prefix.
        threads: of the engine; all cores if None.
    """
    precision = replace(bundle.manifest.precision, prefix_bits=bits)
    bundle = replace(bundle, manifest=replace(bundle.manifest, precision=precision))
    engine = open_engine(bundle, max_batch=rows, threads=threads)
    empty = np.zeros((0, bundle.manifest.graph.hidden), np.float32)
    batch = Batch(engine)
    ids = np.random.default_rng(0).integers(1000, 40000, (rows, own))
    for row in range(rows):
        kv = prefixes[row % len(prefixes)] if prefixes else None
        batch.admit(row, IdsAlone(empty, kv))
    outputs = batch.feed(dict(enumerate(ids)))
    clock = time.process_time if threads == 1 else time.perf_counter

    def step() -> float:
        nonlocal outputs
        fed = {row: output.logits.argmax(axis=0, keepdims=True) for row, output in outputs.items()}
        started = clock()
        outputs = batch.feed(fed)
        return clock() - started

    return step


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    for name, default in (("rows", 16), ("tasks", 4), ("prefix", 2048), ("own", 60), ("turns", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    bundle = read_bundle(given.bundle)
    graph = bundle.manifest.graph
    needed = given.prefix + given.own + given.turns * (STEPS + 1)
    if needed > graph.capacity:
        parser.error(f"{given.bundle} has a capacity of {graph.capacity}; this takes {needed}")
    random = np.random.default_rng(1)
    shape = (graph.layers, 2, graph.kv_heads, given.prefix, graph.head_dim)
    prefixes = [random.standard_normal(shape, np.float32) for _ in range(given.tasks)]
    sizes = {"rows": given.rows, "own": given.own, "threads": given.threads}
    steppers = {
        "without": stepper(bundle, 32, [], **sizes),
        "float32": stepper(bundle, 32, prefixes, **sizes),
        "int8": stepper(bundle, 8, prefixes, **sizes),
    }
    rates: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(given.turns):
        for name, step in steppers.items():
            step()
            rates[name].append(given.rows / statistics.median(step() for _ in range(STEPS)))
    found = {name: statistics.median(values) for name, values in rates.items()}
    parts = {
        name: statistics.median(
            one / bare for one, bare in zip(values, rates["without"], strict=True)
        )
        for name, values in rates.items()
    }
    print(json.dumps({"tokens_per_second": found, "of_the_rate_without": parts}, indent=2))


if __name__ == "__main__":
    main()
