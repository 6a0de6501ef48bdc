"""What several processes that serve one bundle share of their memory.

    python benchmarks/shared_memory.py BUNDLE --processes 1 2 4

Each process opens the bundle, with one thread, and answers as many requests at once as it has
slots. Then Linux's `smaps` says of each page whether it belongs to a file of the bundle, to another
file (libraries), or to none, and how many processes have it. Memory of all processes together is
the sum of their proportional shares (Pss). MiB.
"""

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

PROGRAM = """
import sys
from pl_compile.runtime import Request, Session
bundle, slots = sys.argv[1], int(sys.argv[2])
session = Session.open(bundle, max_batch=slots, threads=1, context_mib=0)
requests = []
for index in range(slots):
    task = list(session.tasks)[index % len(session.tasks)]
    fields = session.tasks[task].renderer.template.input_fields
    texts = {name: "the parcel was lost in the rain " * 4 for name in fields}
    requests.append(Request(task, texts, max_tokens=32, min_tokens=32, constrain=False))
session.generate(requests)
print("ready", flush=True)
sys.stdin.read()
"""
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)$")


def memory_of(process: int, bundle: Path) -> Counter[str]:
    """KiB of a process: `kind/resident`, `kind/share` and `kind/private`, by kind of page."""
    found: Counter[str] = Counter()
    kind = ""
    for line in Path(f"/proc/{process}/smaps").read_text(encoding="utf-8").splitlines():
        if mapping := _MAPPING.match(line):
            path = mapping[1]
            is_file = path.startswith("/") and not path.endswith("(deleted)")
            in_bundle = is_file and Path(path).is_relative_to(bundle)
            kind = "bundle" if in_bundle else "other files" if is_file else "no file"
        name, _, rest = line.partition(":")
        part = {"Rss": "resident", "Pss": "share"}.get(name)
        if name in ("Private_Clean", "Private_Dirty"):
            part = "private"
        if part:
            found[f"{kind}/{part}"] += int(rest.split()[0])
    return found


def measure(bundle: Path, processes: int, slots: int) -> Counter[str]:
    """KiB of all processes together."""
    command = [sys.executable, "-c", PROGRAM, str(bundle), str(slots)]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    total: Counter[str] = Counter()
    try:
        for process in running:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                sys.exit("a process ended")
        for process in running:
            total += memory_of(process.pid, bundle.resolve())
    finally:
        for process in running:
            process.communicate("")
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--slots", type=int, default=16)
    given = parser.parse_args()
    for processes in given.processes:
        found = measure(given.bundle, processes, given.slots)
        mib = {name: round(kib / 1024, 1) for name, kib in sorted(found.items())}
        print(json.dumps({"processes": processes, **mib}))


if __name__ == "__main__":
    main()
