"""What continuous batching costs beside a static batch, and the memory of its keys and values.

    python benchmarks/make_bundles.py BUNDLES
    python benchmarks/batching.py BUNDLES/serve [--rows 8] [--groups 4] [--rounds 7] [--json]

The same requests are answered in two ways, which take turns. The static batch is a bare loop over
the engine: all prompts of a group of `--rows` rows in one feed, then a token of each row at a time,
the largest logit, until all have their tokens; no scheduler, no text. Continuous batching is
`Session.generate`, with as many slots. All answers have the same length, so no slot of the static
batch is ever idle: it is as fast as a batch can be. The run ends with an error if the two write
other tokens. Printed are tokens a second of both, and the median of their ratio within a turn.

Memory: `--slots` rows of different lengths come and go for a while. After each step in which all
slots are taken, the resident memory of the arrays of keys and values is divided by that of the
entries in use. Prefixes, which are in memory once, are counted in neither.
"""

import argparse
import ctypes
import json
import mmap
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pl_compile.config.kernel_layout import ENTRIES_OF_BLOCK
from pl_compile.driver.bench.machine import this_machine
from pl_compile.driver.bench.texts import words
from pl_compile.runtime import Request, Session
from pl_compile.runtime.engines.onnxruntime.ragged import RaggedEngine
from pl_compile.runtime.stepping import Batch

INPUT, WRITTEN = 60, 32


def request_of(session: Session, number: int, given: int, written: int) -> Request:
    """A request with so many words, and so many tokens of its answer; tasks take turns."""
    tasks = [name for name, task in session.tasks.items() if not task.choices]
    task = tasks[number % len(tasks)]
    fields = session.tasks[task].renderer.template.input_fields
    texts = {**dict.fromkeys(fields, ""), fields[0]: words(given, seed=number)}
    return Request(task, texts, max_tokens=written, min_tokens=written)


def static(session: Session, requests: Sequence[Request], rows: int) -> list[list[int]]:
    """The tokens of a static batch: groups of rows that begin and end together."""
    found: list[list[int]] = []
    batch = Batch(session.engine)
    for first in range(0, len(requests), rows):
        group = [session.prepare(request) for request in requests[first : first + rows]]
        ends = group[0].task.renderer.rules.ends
        for slot, row in enumerate(group):
            batch.admit(slot, row.task, row.held)
        feeds = {slot: row.input_ids for slot, row in enumerate(group)}
        written: list[list[int]] = [[] for _ in group]
        for _ in range(WRITTEN):
            outputs = batch.feed(feeds)
            for slot, output in outputs.items():
                token = output.largest
                if token in ends:  # as `min_tokens` has it
                    logits = output.logits.copy()
                    logits[list(ends)] = -np.inf
                    token = int(logits.argmax())
                written[slot].append(token)
                feeds[slot] = np.asarray([token])
        batch.retire(range(len(group)))
        found += written
    return found


def continuous(session: Session, requests: Sequence[Request]) -> list[list[int]]:
    """The tokens of `Session.generate`."""
    return [list(result.token_ids) for result in session.generate(requests)]


def speed(bundle: Path, rows: int, groups: int, rounds: int) -> dict[str, Any]:
    """Both ways in turn, on sessions of their own: the engine's rows belong to one of them."""
    both = [Session.open(bundle, max_batch=rows, context_mib=0) for _ in range(2)]
    times: list[tuple[float, float]] = []
    for turn in range(rounds + 1):  # the first one warms
        first = turn * rows * groups
        numbers = range(first, first + rows * groups)
        requests = [request_of(both[0], number, INPUT, WRITTEN) for number in numbers]
        begin = time.perf_counter()
        expected = static(both[0], requests, rows)
        between = time.perf_counter()
        found = continuous(both[1], requests)
        end = time.perf_counter()
        if found != expected:
            raise SystemExit("the two ways wrote other tokens")
        times.append((between - begin, end - between))
    del times[0]
    tokens = rows * groups * WRITTEN
    return {
        "rows": rows,
        "static, tok/s": tokens / statistics.median(each for each, _ in times),
        "continuous, tok/s": tokens / statistics.median(each for _, each in times),
        "continuous / static": statistics.median(a / b for a, b in times),
    }


def memory(bundle: Path, slots: int, count: int) -> dict[str, Any]:
    """Resident memory of keys and values as a multiple of the entries in use, over all steps."""
    session = Session.open(bundle, max_batch=slots, context_mib=0)
    engine = session.engine
    assert isinstance(engine, RaggedEngine)
    arrays = engine.caches.arrays
    entry_bytes = sum(array[0].nbytes for array in arrays) // ENTRIES_OF_BLOCK
    draw = random.Random(0)
    requests = [
        request_of(session, number, draw.randint(5, 100), draw.randint(4, 64))
        for number in range(count)
    ]
    rows = [session.prepare(request) for request in requests]
    session.submit(rows, lambda _: None)
    shares = []
    while rows:
        session.advance()
        rows = [row for row in rows if row.is_live]
        load = session.load
        if load.running == slots and load.waiting:
            own = sum(len(row.input_ids) + len(row.token_ids) - row.left for row in rows)
            shares.append(sum(map(resident_bytes, arrays)) / (own * entry_bytes))
    return {
        "slots": slots,
        "steps": len(shares),
        "resident / in use, median": statistics.median(shares),
        "resident / in use, most": max(shares),
    }


def resident_bytes(array: NDArray[Any]) -> int:
    """How much of an array is in memory, by the system's word (mincore(2))."""
    page = mmap.PAGESIZE
    begin = array.ctypes.data // page * page
    pages = -(-(array.ctypes.data + array.nbytes - begin) // page)
    found: NDArray[np.uint8] = np.zeros(pages, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    where, size = ctypes.c_void_p(begin), ctypes.c_size_t(pages * page)
    if libc.mincore(where, size, ctypes.c_void_p(found.ctypes.data)):
        raise OSError(ctypes.get_errno(), "mincore")
    return int((found & 1).sum()) * page


def main() -> None:
    """Measures what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--groups", type=int, default=4, help="of rows, in a turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--slots", type=int, default=32, help="for the memory")
    parser.add_argument("--json", action="store_true", help="with the machine")
    options = parser.parse_args()
    found = speed(options.bundle, options.rows, options.groups, options.rounds)
    found |= memory(options.bundle, options.slots, 4 * options.slots)
    if options.json:
        found["machine"] = asdict(this_machine())
    print(json.dumps(found, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
