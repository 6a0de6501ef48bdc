"""The properties of this folder for minutes instead of seconds, each in a process of its own.

    python tests/fuzz/deep.py --minutes 5                   all of them, inputs by hypothesis
    python tests/fuzz/deep.py --minutes 5 test_bundles      those of one file, or of one name
    python tests/fuzz/deep.py --minutes 5 --atheris         inputs that reach new code (libFuzzer)

Ends in a table: inputs, how many of them were refused, minutes, and whether something was found;
what was found follows, and the exit code is 1. A found input becomes a test with a name beside the
others of its room. Atheris is no part of the development install: `pip install atheris`.
"""

import argparse
import importlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
_RESULT = "result: "
_MEMORY_MIB = 6144
_TRIAL_SECONDS = 60
# Hypothesis says between two rounds of so many inputs whether time is up.
_ROUND = 200
# Inputs that libFuzzer begins with.
_FIRST = 40


@dataclass(frozen=True)
class Found:
    """What came of a property.

    Attributes:
        name: its file and function.
        inputs: how many were tried.
        refused: how often an error of ours was the answer; None where libFuzzer ended the process.
        seconds: that the process took.
        failure: the end of what it printed, if it failed.
    """

    name: str
    inputs: int
    refused: int | None
    seconds: float
    failure: str


def _properties() -> list[str]:
    """All of them, as "file:function"."""
    return [
        f"{path.stem}:{name}"
        for path in sorted(_FOLDER.glob("test_*.py"))
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]


def _load(name: str) -> Any:
    file, _, function = name.partition(":")
    return getattr(importlib.import_module(file), function)


def _with_hypothesis(name: str, seconds: float) -> None:
    """Rounds of random inputs until time is up; a failure is made small, and raised."""
    test = _load(name)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        test()


def _with_atheris(name: str, seconds: float) -> None:
    """Inputs that libFuzzer changes towards code not reached yet; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["pl_compile"]):
        test = _load(name)
    corpus = Path.cwd() / "corpus"
    corpus.mkdir()
    options = [
        str(corpus),
        f"-max_total_time={int(seconds)}",
        f"-rss_limit_mb={_MEMORY_MIB}",
        f"-timeout={_TRIAL_SECONDS}",
        "-print_final_stats=1",
        "-max_len=8192",
        "-len_control=0",
    ]
    (argument, strategy), *more = test.strategies.items()
    if not more and argument in ("data", "text"):
        # A file as it is: what libFuzzer changes are its bytes, not the choices of a strategy.
        trial, decode = test.hypothesis.inner_test, argument == "text"

        def one(data: bytes) -> None:
            trial(**{argument: data.decode(errors="replace") if decode else data})

        with warnings.catch_warnings(action="ignore"):  # that `example` is for trying things out
            first = [strategy.example() for _ in range(_FIRST)]
        first = [item.encode("utf-8", "replace") if decode else item for item in first]
    else:
        one = test.hypothesis.fuzz_one_input
        first = [random.randbytes(length) for length in range(50, 50 * _FIRST, 50)]
    for number, data in enumerate(first):
        (corpus / str(number)).write_bytes(data)
    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


def _one(name: str, seconds: float, *, atheris: bool) -> None:
    """The child's part."""
    import fuzzing

    try:
        (_with_atheris if atheris else _with_hypothesis)(name, seconds)
    finally:
        print(_RESULT + json.dumps(fuzzing.made), flush=True)


def _run(name: str, seconds: float, *, atheris: bool) -> Found:
    """A property in a process of its own, which may hang, fill memory or die."""
    start = time.monotonic()
    command = [sys.executable, __file__, "--one", name, "--minutes", str(seconds / 60)]
    given = os.environ.get("PYTHONPATH")
    paths = [str(_FOLDER), *([given] if given else []), str(_FOLDER.parents[1])]
    environment = {
        **os.environ,
        "PLC_FUZZ_EXAMPLES": str(_ROUND),
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "error::RuntimeWarning",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    with tempfile.TemporaryDirectory() as folder:  # where libFuzzer leaves what it found
        try:
            child = subprocess.run(
                command + ["--atheris"] * atheris,
                capture_output=True,
                text=True,
                errors="replace",
                cwd=folder,
                env={**environment, "TMPDIR": folder},
                # The last round, and a failure that is made small.
                timeout=seconds + 10 * _TRIAL_SECONDS,
                check=False,
            )
            code, output, log = child.returncode, child.stdout, child.stderr
        except subprocess.TimeoutExpired as error:
            code, output, log = -1, "", f"no end after {error.timeout:.0f} s"
    counts: dict[str, Any] = {"trials": 0, "refused": None}
    for line in output.splitlines():
        if line.startswith(_RESULT):
            counts = json.loads(line.removeprefix(_RESULT))
    executed = re.search(r"number_of_executed_units: (\d+)", log)
    inputs = int(executed.group(1)) if executed else counts["trials"]
    failure = f"{output[-4000:]}\n{log[-4000:]}" if code else ""
    return Found(name, inputs, counts["refused"], time.monotonic() - start, failure)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", help="parts of the names of properties or files")
    parser.add_argument("--minutes", type=float, default=5, help="for each property")
    parser.add_argument("--atheris", action="store_true", help="inputs by atheris")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        _one(given.one, given.minutes * 60, atheris=given.atheris)
        return
    found = []
    for name in _properties():
        if not given.names or any(part in name for part in given.names):
            found.append(_run(name, given.minutes * 60, atheris=given.atheris))
            last = found[-1]
            refused = "?" if last.refused is None else last.refused
            print(
                f"{last.inputs:9,} inputs {refused:>9} refused {last.seconds / 60:6.1f} min "
                f"{'FOUND ' if last.failure else 'nothing'} {last.name}",
                flush=True,
            )
    print(f"{sum(one.inputs for one in found):9,} inputs in all")
    for one in found:
        if one.failure:
            print(f"\n{one.name}\n{one.failure}")
    sys.exit(any(one.failure for one in found))


if __name__ == "__main__":
    main()
