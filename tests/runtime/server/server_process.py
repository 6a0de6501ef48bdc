"""`plc serve` as a process."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

# A server whose steps wait while a file is there, so that requests stay under way as long as a test
# needs. The file may say how many steps go on all the same.
SLOW = """
import contextlib, pathlib, sys, time
from pl_compile.runtime.engines.onnxruntime.engine import OnnxRuntimeEngine as Engine
step, hold = Engine.step, pathlib.Path(sys.argv.pop(1))
def slow(self, given):
    while hold.exists():
        with contextlib.suppress(FileNotFoundError):
            if left := int(hold.read_text() or 0):
                hold.write_text(str(left - 1))
                break
        time.sleep(0.002)
    return step(self, given)
Engine.step = slow
from pl_compile.cli.main import main
main()
"""


class Process:
    """A running `plc serve`."""

    def __init__(self, started: "subprocess.Popen[str]") -> None:
        self.started = started
        assert started.stdout is not None
        line = started.stdout.readline()
        assert line, started.communicate()[1]
        said = json.loads(line)
        self.url: str = said["url"]
        self.tasks: list[str] = said["tasks"]
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.started.stderr is not None
        self.lines += iter(self.started.stderr.readline, "")

    def signalled(self, number: int) -> None:
        self.started.send_signal(number)

    def ended(self) -> int:
        code = self.started.wait(60)
        self._reader.join()
        assert self.started.stdout is not None
        assert self.started.stderr is not None
        self.started.stdout.close()
        self.started.stderr.close()
        return code

    def gauge(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))

    def wait_for(self, name: str, value: float) -> None:
        while self.gauge(name) != value:
            time.sleep(0.005)

    def wait_for_line(self, text: str) -> None:
        while not any(text in line for line in self.lines):
            assert self.started.poll() is None, self.lines
            time.sleep(0.005)


def starter(folder: Path) -> Iterator[Callable[..., Process]]:
    """Starts `plc serve` in a folder; ends what still runs at the end."""
    running: list[Process] = []

    def make(*arguments: str | Path, hold: Path | None = None, **env: str) -> Process:
        run = ["-m", "pl_compile.cli"] if hold is None else ["-c", SLOW, str(hold)]
        command = [sys.executable, *run, "serve", *map(str, arguments), "--port", "0", "--json"]
        started = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, **env},
        )
        running.append(Process(started))
        return running[-1]

    yield make
    for process in running:
        if process.started.poll() is None:
            process.started.kill()
            process.ended()
