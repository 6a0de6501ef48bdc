"""Checks this project on a machine with an NVIDIA GPU: every part that CPUs cannot show.

    python benchmarks/gpu_check.py --output build/gpu-check [--limit 420] [--wheels FOLDER]
    python benchmarks/gpu_check.py --output build/gpu-check --parts onnx-float16 nccl
    python benchmarks/gpu_check.py --fetch-wheels FOLDER          on a machine with a network

Each part is a process of its own with a limit of time; `PARTS` lists them in their order. Every
result becomes a line of `results.jsonl` as soon as it is known. What the parts print goes to
`log.txt`; the table at the end also goes to `table.md`. A part that fails, hangs or lacks something
says so in one line, and the next one runs. Another call with the same output continues: it skips
parts that are done, unless `--parts` names them.

Without a GPU every part runs on stand-ins: tiny bases on the CPU, ONNX Runtime's CPU provider, host
memory in place of a GPU. That shows that the script works, but nothing about a GPU.

It needs no network. `--wheels` names a folder with the wheels that the machine lacks;
`--fetch-wheels` fills such a folder. Wheels that were cut into pieces (`--most-mib`) are joined.
`python benchmarks/proven.py` writes what a check has shown into docs/targets.md.
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

Line = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        name: its module's name; after a hyphen, the form.
        seconds: its limit.
        says: what it shows.
    """

    name: str
    seconds: float
    says: str


PARTS = (
    Part("machine", 60, "what is installed, and plc doctor"),
    Part("train", 110, "three methods in bf16 and fp32, beside the CPU and PEFT"),
    Part("large", 80, "p-tuning on bases of 1.3, 5 and 20 billion weights"),
    Part("onnx-float32", 60, "a bundle of onnx-cuda: parity, rows, caches, speed, CUDA graph"),
    Part("onnx-float16", 60, "the same in float16"),
    Part("onnx-int4", 60, "the same in 4 bits"),
    Part("peft", 60, "generate of transformers with PEFT, on the same ids"),
    Part("cuda", 45, "memory, streams and graphs through cuda-bindings"),
    Part("nccl", 90, "a communicator of one rank, and the operator over it"),
    Part("tensorrt-float32", 60, "a plan: build, run, probe, parity"),
    Part("tensorrt-float16", 60, "the same in float16"),
)

# How a part may end.
DONE, FAILED, MISSING, TIME = "done", "failed", "missing", "out of time"

# Packages that a machine with torch and CUDA may lack. A version is that of this environment, if
# the package is installed in it.
WHEELS = ("transformers", "onnxruntime-gpu", "nccl4py", "cuda-core", "cuda-pathfinder")

# Long enough for a part to begin at all.
_LEAST_SECONDS = 10
# A driver may hold a process that was killed; after this many seconds it is left alone.
_PATIENCE = 5
_PIP_SECONDS = 120


def has_gpu() -> bool:
    """Whether NVIDIA's driver shows a GPU, whatever its number."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


class Record:
    """The lines of one output folder, each written as soon as it is known.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lines = list(read_lines(path))
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n")  # ends a line that was left half written

    def add(self, line: Line) -> None:
        """Appends a line."""
        self.lines.append(line)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def ended(self, part: str, device: str) -> str:
        """How the last run of a part on a device ended; empty if no run ended."""
        ends = [
            line["ended"]
            for line in self.lines
            if (line["part"], line["device"]) == (part, device) and "ended" in line
        ]
        return ends[-1] if ends else ""

    def latest(self, device: str) -> list[Line]:
        """The lines of each part's last run on a device."""
        mine = [line for line in self.lines if line["device"] == device]
        last = {line["part"]: line["run"] for line in mine}
        return [line for line in mine if line["run"] == last[line["part"]]]


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a record; one that a killed process left half written is dropped."""
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            yield json.loads(text)


def run_part(
    part: Part,
    record: Record,
    *,
    run: Line,
    seconds: float,
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
) -> str:
    """Runs a part to its end or its limit; returns how it ended.

    Args:
        part: the part.
        record: gets its lines.
        run: what each of its lines says about this call.
        seconds: its limit.
        command: starts the part; each line of its standard output is a result.
        environment: of its process.
        log: gets what it prints on standard error.
    """
    started = time.monotonic()

    def take(line: Line) -> None:
        record.add({"part": part.name, **run, **line})
        print(_row(line), file=sys.stderr)

    with log.open("ab") as file:
        file.write(f"\n=== {part.name}\n".encode())
        file.flush()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=file,
            stdin=subprocess.DEVNULL,
            env=dict(environment),
            process_group=0,  # so that processes that it started end with it
        )
        try:
            last, end_line = _read(process, seconds, file, take)
        except BaseException:  # Ctrl-C reaches this process alone
            _kill(process)
            raise
    if end_line is None:
        why = f"the process ended with {_code(process.returncode)}, {last}: {_last_of(log)}"
        end_line = {"ended": FAILED, "why": why}
    took = round(time.monotonic() - started, 1)
    record.add({"part": part.name, **run, **end_line, "seconds": took})
    ended: str = end_line["ended"]
    return ended


def _read(
    process: subprocess.Popen[bytes], seconds: float, log: IO[bytes], take: Callable[[Line], None]
) -> tuple[str, Line | None]:
    """Takes a process's lines until it ends or its time is over.

    Returns:
        The last result, in words; and the last line, which says how the part ended: None if it did
        not say.
    """
    last, end_line = "nothing was shown before", None
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def read() -> None:  # in a thread: a pipe may stay open for ever
        assert process.stdout is not None
        with process.stdout as pipe:
            for text in pipe:
                lines.put(text)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    ends = time.monotonic() + seconds
    while True:
        try:
            text = lines.get(timeout=max(ends - time.monotonic(), 0))
        except queue.Empty:
            _kill(process)
            why = f"its limit of {seconds:.0f} s, {last}"
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                why += "; its process does not end"
            return last, {"ended": TIME, "why": why}
        if text is None:
            process.wait()
            _kill(process)  # and the processes that it started
            return last, end_line
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # a library has printed this
            log.write(text)
            continue
        if "ended" in line:
            end_line = line
        else:
            take(line)
            last = f"after: {line['name']}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _code(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _last_of(log: Path) -> str:
    return _last_line(log.read_text(encoding="utf-8", errors="replace"))


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")[:300]


def _row(line: Line) -> str:
    mark = {True: "ok  ", False: "FAIL", None: "    "}[line.get("ok")]
    limit = f" (expected {line['expected']})" if line.get("expected") else ""
    return f"  {mark} {line['name']}: {shown(line['value'])}{limit}"


def shown(value: Any) -> str:
    """A value of a line as a person reads it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(lines: Sequence[Line]) -> str:
    """The lines as Markdown: parts and how they ended, then every result."""
    rows = ["| part | ended | seconds | |", "|---|---|---|---|"]
    rows += [
        f"| {line['part']} | {line['ended']} | {line['seconds']} | {line.get('why', '')} |"
        for line in lines
        if "ended" in line
    ]
    rows += ["", "| part | result | value | expected | |", "|---|---|---|---|---|"]
    marks = {True: "ok", False: "**not**", None: ""}
    rows += [
        f"| {line['part']} | {line['name']} | {shown(line['value'])} | "
        f"{line.get('expected') or ''} | {marks[line.get('ok')]} |"
        for line in lines
        if "name" in line
    ]
    return "\n".join(rows) + "\n"


def install(wheels: Path, site: Path) -> None:
    """Installs wheels into a folder of their own; joins those that were cut into pieces first.

    Raises:
        OSError: there are no wheels, or pip refuses them.
    """
    joined: dict[str, list[Path]] = {}
    for piece in sorted(wheels.rglob("*.whl.*")):
        joined.setdefault(piece.name.rpartition(".")[0], []).append(piece)
    found = [path for path in wheels.rglob("*.whl") if path.is_file()]
    site.mkdir(parents=True, exist_ok=True)
    for name, pieces in joined.items():
        whole = site.parent / name
        with whole.open("wb") as file:
            for piece in pieces:
                file.write(piece.read_bytes())
        found.append(whole)
    if not found:
        raise FileNotFoundError(f"{wheels}: no wheels there")
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site)]
    try:
        done = subprocess.run(
            [*command, *map(str, found)], capture_output=True, text=True, timeout=_PIP_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"pip did not end within {_PIP_SECONDS} s") from None
    if done.returncode:
        raise OSError(f"pip: {_last_line(done.stderr)}")


def fetch_wheels(folder: Path, python: str, most_mib: int) -> None:
    """Fetches what `WHEELS` lists, for Linux on x86-64, and cuts what is larger than `most_mib`.

    Whole wheels and pieces are spread over `part0`, `part1`, …, each at most that large.
    """
    from importlib.metadata import PackageNotFoundError, version

    platforms = [
        f"--platform=manylinux{each}_x86_64" for each in ("_2_28", "_2_27", "_2_17", "2014")
    ]
    kind = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
    with tempfile.TemporaryDirectory() as brought:
        for name in WHEELS:
            try:
                wanted = f"{name}=={version(name)}"
            except PackageNotFoundError:
                wanted = name
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            subprocess.run([*command, *kind, *platforms, "-d", brought, wanted], check=True)
        most, number, left = most_mib << 20, -1, 0
        for path in sorted(Path(brought).glob("*.whl"), key=lambda path: path.stat().st_size):
            data = path.read_bytes()
            for index, start in enumerate(range(0, len(data), most)):
                piece = data[start : start + most]
                name = path.name if len(data) <= most else f"{path.name}.{index:02}"
                if len(piece) > left:
                    number, left = number + 1, most
                left -= len(piece)
                into = folder / f"part{number}"
                into.mkdir(parents=True, exist_ok=True)
                (into / name).write_bytes(piece)
                print(into / name)


def check(
    output: Path,
    *,
    parts: Sequence[Part],
    limit: float,
    gpu: bool,
    wheels: Path | None = None,
    work: Path | None = None,
    again: bool = False,
    search: Sequence[Path] = (HERE,),
) -> bool:
    """Runs parts and writes what they show; returns whether all was as expected.

    Args:
        output: gets `results.jsonl`, `log.txt` and `table.md`.
        parts: what to run.
        limit: seconds for all of it.
        gpu: whether there is one; parts run on stand-ins otherwise.
        wheels: a folder of wheels of packages that this environment lacks.
        work: for bases and bundles; a temporary folder if None.
        again: whether to run also parts that are done.
        search: folders in which Python finds the package `gpu_parts`.
    """
    output.mkdir(parents=True, exist_ok=True)
    record = Record(output / "results.jsonl")
    # The number of earlier lines tells apart runs that begin in the same second.
    name = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {len(record.lines)}"
    run = {"run": name, "device": "cuda" if gpu else "cpu"}
    ends = time.monotonic() + limit
    with tempfile.TemporaryDirectory(prefix="plc-gpu-check-") as scratch:
        work = work or Path(scratch)
        site = work / "site"
        environment = dict(os.environ)
        paths = [site, *search, ROOT]
        if wheels is not None:
            try:
                install(wheels, site)
                record.add(_end("wheels", run, DONE, f"{wheels} are used"))
            except OSError as error:
                print(f"the wheels of {wheels} are not used: {error}", file=sys.stderr)
                record.add(_end("wheels", run, FAILED, f"{wheels} are not used: {error}"))
        given = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([*map(str, paths), *([given] if given else [])])
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        environment.setdefault("CUDA_VISIBLE_DEVICES", "0")  # else the HF Trainer takes them all
        for part in parts:
            if record.ended(part.name, run["device"]) == DONE and not again:
                print(f"{part.name}: done before", file=sys.stderr)
                continue
            seconds = min(part.seconds, ends - time.monotonic())
            print(f"{part.name} ({part.says}), at most {seconds:.0f} s", file=sys.stderr)
            if seconds < _LEAST_SECONDS:
                record.add(_end(part.name, run, TIME, f"the limit of {limit:.0f} s for all"))
                continue
            options = {"device": run["device"], "seconds": seconds, "work": str(work)}
            command = [sys.executable, "-m", "gpu_parts", part.name, json.dumps(options)]
            ended = run_part(
                part,
                record,
                run=run,
                seconds=seconds,
                command=command,
                environment=environment,
                log=output / "log.txt",
            )
            print(f"  {ended}", file=sys.stderr)
    lines = record.latest(run["device"])
    note = "" if gpu else "No GPU: all results are of stand-ins, and say nothing about a GPU.\n\n"
    (output / "table.md").write_text(note + table(lines), encoding="utf-8")
    print(note + table(lines))
    return all(line.get("ended", DONE) in (DONE, MISSING) for line in lines) and all(
        line.get("ok") is not False for line in lines
    )


def _end(part: str, run: Line, ended: str, why: str) -> Line:
    return {"part": part, **run, "ended": ended, "why": why, "seconds": 0.0}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 1 if something was not as expected."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="Parts: " + "; ".join(f"{part.name}: {part.says}" for part in PARTS),
    )
    parser.add_argument("--output", type=Path, default=Path("build/gpu-check"))
    parser.add_argument("--parts", nargs="+", choices=names, help="these, done before or not")
    parser.add_argument("--limit", type=float, default=540, help="seconds for all of it")
    parser.add_argument("--seconds", type=float, help="of each part, in place of its own limit")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--gpu", action="store_true", help="also where no GPU is seen")
    kind.add_argument("--stand-ins", action="store_true", help="as if there were no GPU")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to use")
    parser.add_argument("--work", type=Path, help="for bases and bundles, kept")
    parser.add_argument("--fetch-wheels", type=Path, metavar="FOLDER", help="fetch them, and end")
    parser.add_argument("--python", default="3.12", help="of the wheels that are fetched")
    parser.add_argument("--most-mib", type=int, default=58, help="of a piece of a wheel")
    options = parser.parse_args(arguments)
    if options.fetch_wheels:
        fetch_wheels(options.fetch_wheels, options.python, options.most_mib)
        return 0
    chosen = [part for part in PARTS if options.parts is None or part.name in options.parts]
    if options.seconds:
        chosen = [replace(part, seconds=options.seconds) for part in chosen]
    passed = check(
        options.output,
        parts=chosen,
        limit=options.limit,
        gpu=options.gpu or (has_gpu() and not options.stand_ins),
        wheels=options.wheels,
        work=options.work,
        again=options.parts is not None,
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
