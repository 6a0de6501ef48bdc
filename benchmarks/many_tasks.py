"""A thousand tasks on one base: how much memory they take, and whether each is as fast as alone.

    plc fetch smollm2-135m
    python benchmarks/many_tasks.py FOLDER [--tasks 1000] [--rounds 7] [--json]

The tasks have 20 virtual tokens with random numbers, which change no speed. FOLDER gets a bundle of
all of them, one of the first two and one of a task more, for `native-cpu` in 4 bits, unless they
are there. What is compared takes turns; printed are medians over the rounds, and medians of the
ratios within a round.

    opening                     from `Session.open` to the session, in a process of its own; the
                                files lie in the system's cache after the first time
    memory                      of that process, before and after an answer of every task: what
                                belongs to no file, and pages of files, which processes share
    16 tasks against 1          a step of 16 rows, each of its own task, and of 16 rows of one
    all against 2               the same step with all tasks resident, and with two
    adding                      one task while 16 rows are answered: the time `add_tasks` takes, the
                                longest gap between two steps meanwhile, and that of as many steps
                                without it
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from pl_compile.config.build import BuildOptions
from pl_compile.driver.bench.machine import this_machine
from pl_compile.driver.bench.texts import words
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.runtime import Request, Session
from pl_compile.testing import random_table
from pl_compile.weights.bases import DEFAULT_BASE, cached_base_folder

ROWS = 16
INPUT, WRITTEN = 30, 24
ADDED = "added"
# Tokens of a row before a task is added.
FIRST = 20


def spec_of(name: str) -> dict[str, Any]:
    """A task, as a config has it."""
    return {
        "taskname": name,
        "prompt_template": "<|VIRTUAL_PROMPT_0|>\n{text}\n{answer}",
        "total_virtual_tokens": 20,
        "answer_field": "answer",
    }


def write_bundle(folder: Path, names: Sequence[str]) -> Path:
    """A bundle of tasks, unless it is there."""
    if not folder.exists():
        base = cached_base_folder(DEFAULT_BASE)
        folder.parent.mkdir(parents=True, exist_ok=True)
        table = folder.with_suffix(".safetensors")
        random_table(base, table, tasks=[spec_of(name) for name in names])
        options = BuildOptions("int4")
        request = ExportRequest(
            table, base, folder, target="native-cpu", options=options, measure_parity=False
        )
        result = export_bundle(request)
        print(f"wrote {folder}: {result.seconds}", file=sys.stderr)
    return folder


def requests_of(names: Sequence[str], written: int = WRITTEN, given: int = INPUT) -> list[Request]:
    """One request of each task, all of the same length."""
    fields = {"text": words(given, seed=1)}
    return [Request(name, fields, max_tokens=written, min_tokens=written) for name in names]


def seconds_a_step(session: Session, names: Sequence[str]) -> float:
    """The median time between two events of the same row, which are a step apart."""
    last: dict[int, float] = {}
    gaps = []
    for event in session.stream(requests_of(names)):
        now = time.perf_counter()
        if event.index in last:
            gaps.append(now - last[event.index])
        last[event.index] = now
    return statistics.median(gaps)


def memory() -> dict[str, float]:
    """MiB of this process: what belongs to no file, and pages of files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if "Rss" in line}
    return {"no file, MiB": found["RssAnon"], "files, MiB": found["RssFile"]}


def opened(bundle: Path, *, asks: bool) -> dict[str, float]:
    """Opens a bundle, and may ask each task: for a process of its own."""
    begin = time.perf_counter()
    session = Session.open(bundle, max_batch=ROWS, context_mib=0)
    found = {"opening, s": time.perf_counter() - begin}
    found |= {f"opened: {name}": value for name, value in memory().items()}
    if not asks:
        return found
    session.generate(requests_of(list(session.tasks), written=1, given=1))
    return {**found, **{f"answered: {name}": value for name, value in memory().items()}}


def opened_apart(bundle: Path, how: str) -> dict[str, float]:
    """What `opened` gives in a process of its own."""
    command = [sys.executable, __file__, str(bundle), how]
    found: dict[str, float] = json.loads(subprocess.check_output(command))
    return found


def wait(seconds: float) -> float:
    """Does nothing for as long as adding took."""
    time.sleep(seconds)
    return seconds


def longest_gap(session: Session, names: Sequence[str], add: Callable[[], float]) -> list[float]:
    """Seconds that `add` took in a thread, and the longest time between two steps meanwhile."""
    took: list[float] = []
    span: list[float] = []

    def run() -> None:
        took.append(add())
        span.append(time.perf_counter())

    other = threading.Thread(target=run)
    stream = session.stream(requests_of(names, written=128))
    times = []
    for event in stream:
        if event.index == 0:
            times.append(time.perf_counter())
        if len(times) == FIRST and not span:  # by now all prompts are computed
            span.append(times[-1])
            other.start()
    other.join()
    begin, end = span
    gaps = [b - a for a, b in pairwise(times) if b > begin and a < end]
    return [took[0], max(gaps)]


def measure(folder: Path, tasks: int, rounds: int) -> dict[str, Any]:
    """All figures, by name."""
    names = [f"task{number:04}" for number in range(tasks)]
    many = write_bundle(folder / f"tasks{tasks}", names)
    few = write_bundle(folder / "tasks2", names[:2])
    more = write_bundle(folder / "more", [ADDED])
    found: dict[str, Any] = {"machine": asdict(this_machine()), "tasks": tasks}
    for name, bundle in (("all", many), ("two", few)):
        last = opened_apart(bundle, "--open-and-ask")
        runs = [last, *(opened_apart(bundle, "--open") for _ in range(rounds - 1))]
        last["opening, s"] = statistics.median(run["opening, s"] for run in runs)
        found[name] = {key: round(value, 2) for key, value in last.items()}

    full, small = (Session.open(each, max_batch=ROWS, context_mib=0) for each in (many, few))
    ways = {
        "16 tasks, all resident": (full, names[-ROWS:]),
        "1 task, all resident": (full, names[:1] * ROWS),
        "1 task, two resident": (small, names[:1] * ROWS),
    }
    steps: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        order = list(ways)[turn % 3 :] + list(ways)[: turn % 3]
        for name in order:
            seconds = seconds_a_step(*ways[name])
            if turn:  # the first round fills caches
                steps[name].append(seconds)
    found["step, ms"] = {n: round(1e3 * statistics.median(s), 2) for n, s in steps.items()}
    found["tokens/s"] = {n: round(ROWS / statistics.median(s), 1) for n, s in steps.items()}
    found["ratios"] = {
        "16 tasks against 1": ratio(steps, "16 tasks, all resident", "1 task, all resident"),
        "all against 2": ratio(steps, "1 task, all resident", "1 task, two resident"),
    }

    def add() -> float:
        begin = time.perf_counter()
        full.add_tasks(more, [ADDED])
        return time.perf_counter() - begin

    adding, without = [], []
    for _ in range(rounds):
        adding.append(longest_gap(full, names[:ROWS], add))
        full.remove_task(ADDED)
        without.append(longest_gap(full, names[:ROWS], partial(wait, adding[-1][0])))
    found["adding, ms"] = {
        "add_tasks": in_ms(a for a, _ in adding),
        "longest gap": in_ms(gap for _, gap in adding),
        "longest gap without": in_ms(gap for _, gap in without),
    }
    return found


def in_ms(seconds: Any) -> dict[str, float]:
    """Median and largest of some times."""
    times = [1e3 * each for each in seconds]
    return {"median": round(statistics.median(times), 1), "largest": round(max(times), 1)}


def ratio(steps: dict[str, list[float]], one: str, other: str) -> dict[str, float]:
    """The ratio of two times within each round: its median, least and largest."""
    ratios = [a / b for a, b in zip(steps[one], steps[other], strict=True)]
    found = {"median": statistics.median(ratios), "least": min(ratios), "largest": max(ratios)}
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    for how in ("--open", "--open-and-ask"):
        parser.add_argument(how, action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.open or given.open_and_ask:
        print(json.dumps(opened(given.folder, asks=given.open_and_ask)))
        return
    found = measure(given.folder, given.tasks, given.rounds)
    if given.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(name)
        for key, each in value.items() if isinstance(value, dict) else {"": value}.items():
            print(f"    {key:40} {each}")


if __name__ == "__main__":
    main()
