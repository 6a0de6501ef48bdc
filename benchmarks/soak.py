"""Random requests for minutes or hours: is every answer the one that it is alone?

    python benchmarks/make_bundles.py BUNDLES
    python benchmarks/soak.py BUNDLES/serve --minutes 10 --output build/soak
    python benchmarks/soak.py BUNDLES/serve --minutes 10 --serve --output build/soak

Requests of all tasks come at random times, `--rate` a second. Of ten, seven are read to their end,
two are left after some pieces, one before its first piece. They go to a session of this process,
or with `--serve` to `plc serve`, which is started, and whose clients close their connections.

Every `--change-every` seconds a task is taken away, and brought back a little later. Its requests
under way must be answered; those that come meanwhile are refused, and counted as `not_served`.

Each of the `--requests` different requests was answered alone before. A finished answer is compared
with that. At the end, when nobody asks any more, no slot may be taken. `--output` gets

    soak.json      the counts
    memory.csv     once a second: MiB in memory, and what was answered by then
    memory.png     the same as a picture, where matplotlib is installed

The exit code is 1 if an answer differs, a request fails, or a slot is not free.
"""

import argparse
import csv
import json
import os
import random
import secrets
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from serve_load import free_port, running

from pl_compile.config.sampling import Sampling
from pl_compile.driver.bench.client import LEFT, Address, Answer
from pl_compile.driver.bench.machine import memory_of, this_machine, versions
from pl_compile.driver.bench.texts import words
from pl_compile.errors import PlcError
from pl_compile.runtime import Request, Result, Session

# Requests under way at once, at most: those that come meanwhile wait to be sent.
MOST_AT_ONCE = 32
# How a server says that it has too much to do.
TURNED_AWAY = ("HTTP 429", "HTTP 503", "HTTP 504")
SECONDS_TO_START = 120.0
SECONDS_OF_SILENCE = 300.0
# Seconds that a server has to notice that its clients are gone.
SECONDS_TO_END = 10.0

# Sends a request, and leaves after so many pieces; None reads it to its end.
Ask = Callable[[Request, int | None], Answer]


@dataclass
class Counts:
    """What happened.

    Attributes:
        answered: requests that were read to their end.
        left: requests that were not.
        differences: answers that are not those of the same request alone: what was asked and both
            texts.
        failed: requests with an error, by its kind.
        not_served: requests of a task that was away.
        turned_away: requests that a server refused because it had too much to do.
        changes: how often a task was taken away and brought back.
    """

    answered: int = 0
    left: int = 0
    not_served: int = 0
    turned_away: int = 0
    changes: int = 0
    differences: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def take(self, request: Request, alone: Result, answer: Answer, *, away: bool = False) -> None:
        """Counts an answer.

        Args:
            request: what was asked.
            alone: the right answer.
            answer: what came.
            away: whether the task was away at some time meanwhile.
        """
        with self.lock:
            if answer.error == LEFT:
                self.left += 1
            elif away and "does not exist" in answer.words:
                self.not_served += 1
            elif answer.error in TURNED_AWAY:
                self.turned_away += 1
            elif answer.error is not None:
                kind = f"{answer.error} {answer.words}".strip()
                self.failed[kind] = self.failed.get(kind, 0) + 1
            else:
                self.answered += 1
                found = answer.text, answer.finish_reason, answer.tokens
                expected = alone.text, alone.finish_reason, len(alone.token_ids)
                if found != expected:
                    asked = {"task": request.task, "fields": dict(request.fields)}
                    self.differences.append({**asked, "alone": expected, "found": found})


def requests_of(session: Session, count: int, longest: int, seed: int) -> list[Request]:
    """Different requests of all tasks, greedy ones and drawn ones.

    Args:
        session: its tasks are asked for.
        count: how many.
        longest: most words of a field.
        seed: of everything that is drawn.
    """
    generator = random.Random(seed)
    tasks = list(session.tasks)
    requests = []
    for index in range(count):
        task = tasks[index % len(tasks)]
        names = session.tasks[task].renderer.template.input_fields
        fields = {name: words(generator.randint(1, longest), seed + 31 * index) for name in names}
        temperature = generator.choice((0.0, 0.0, 0.8))
        requests.append(
            Request(
                task,
                fields,
                max_tokens=generator.randint(1, 40),
                sampling=Sampling(temperature=temperature, seed=index if temperature else 0),
            )
        )
    return requests


def answers_alone(options: argparse.Namespace) -> list[tuple[Request, Result]]:
    """Requests, and the answer of each one alone."""
    with Session.open(options.bundle, max_batch=1) as session:
        requests = requests_of(session, options.requests, options.words, options.seed)
        return [(request, session.generate([request])[0]) for request in requests]


def ask_session(session: Session) -> Ask:
    """A session that is asked by many threads; a request is left by closing its stream."""

    def ask(request: Request, leave_after: int | None) -> Answer:
        answer = Answer(time.perf_counter())
        try:
            stream = session.stream([request])
            if leave_after == 0:
                stream.close()
                answer.fail(LEFT)
                return answer
            for event in stream:
                answer.pieces.append(time.perf_counter())
                answer.texts.append(event.text)
                if event.result is not None:
                    answer.tokens = len(event.result.token_ids)
                    answer.finish_reason = event.result.finish_reason
                elif len(answer.pieces) == leave_after:
                    stream.close()
                    answer.fail(LEFT)
                    return answer
        except PlcError as error:
            answer.fail(type(error).__name__, error.found)
        return answer

    return ask


def ask_server(address: Address) -> Ask:
    """`plc serve`, each request on a connection of its own."""

    def ask(request: Request, leave_after: int | None) -> Answer:
        body: dict[str, Any] = {
            "model": request.task,
            "fields": dict(request.fields),
            "max_tokens": request.max_tokens,
            "temperature": request.sampling.temperature,
        }
        if request.sampling.temperature:
            body["seed"] = request.sampling.seed
        return address.stream(body, leave_after=leave_after)

    return ask


@dataclass(frozen=True)
class Subject:
    """What is asked.

    Attributes:
        ask: sends a request.
        process: whose memory is measured.
        in_use: how many slots are in use, or waited for.
        remove: serves a task no more.
        add: serves it again.
    """

    ask: Ask
    process: int
    in_use: Callable[[], int]
    remove: Callable[[str], object]
    add: Callable[[str], object]


class Changes:
    """Tasks that are taken away, one at a time, and brought back.

    Args:
        subject: what serves them.
        tasks: their names.
        counts: are told of each.
        every: seconds from one to the next; 0 for none.
        seed: of what is drawn.
    """

    def __init__(
        self, subject: Subject, tasks: Sequence[str], counts: Counts, every: float, seed: int
    ) -> None:
        self._subject, self._tasks, self._counts = subject, tasks, counts
        self._every, self._generator = every, random.Random(seed)
        # Odd while a task may be away; it grows before it goes and once it is back.
        self.versions = dict.fromkeys(tasks, 0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Changes":
        """Begins."""
        if self._every:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends, with all tasks back."""
        self._ended.set()
        if self._every:
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            task = self._generator.choice(self._tasks)
            self.versions[task] += 1
            try:
                self._subject.remove(task)
                self._ended.wait(self._generator.uniform(0, self._every))
                self._subject.add(task)
            except Exception as error:
                with self._counts.lock:
                    kind = f"changing a task: {error}"
                    self._counts.failed[kind] = self._counts.failed.get(kind, 0) + 1
                return
            self.versions[task] += 1
            self._counts.changes += 1


class Curve:
    """Memory and counts, once a second, in a file.

    Args:
        path: of the CSV.
        process: whose memory it is, with its children.
        counts: that grow meanwhile.
    """

    def __init__(self, path: Path, process: int, counts: Counts) -> None:
        self.rows: list[tuple[float, float, float, int, int]] = []
        self._path, self._process, self._counts = path, process, counts
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Curve":
        """Begins to measure."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Measures no more."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        started = time.monotonic()
        with self._path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["seconds", "resident_mib", "anonymous_mib", "answered", "left"])
            while True:
                memory = memory_of(self._process)
                if memory is not None:
                    row = (
                        round(time.monotonic() - started, 2),
                        round(memory.resident_mib, 2),
                        round(memory.anonymous_mib, 2),
                        self._counts.answered,
                        self._counts.left,
                    )
                    self.rows.append(row)
                    writer.writerow(row)
                    file.flush()
                if self._ended.wait(1.0):
                    return

    def growth(self) -> float | None:
        """MiB between the medians of the second and of the last quarter of the time."""
        quarter = len(self.rows) // 4
        if not quarter:
            return None
        resident = [row[1] for row in self.rows]
        last = statistics.median(resident[-quarter:])
        return round(last - statistics.median(resident[quarter : 2 * quarter]), 2)


def soak(
    ask: Ask,
    known: Sequence[tuple[Request, Result]],
    counts: Counts,
    changes: Changes,
    load: argparse.Namespace,
) -> None:
    """Sends requests at random times until the time is over, and waits for the last of them."""
    generator = random.Random(load.seed)
    places = threading.BoundedSemaphore(MOST_AT_ONCE)
    threads: list[threading.Thread] = []

    def client(request: Request, alone: Result, leave_after: int | None) -> None:
        before = changes.versions[request.task]
        try:
            answer = ask(request, leave_after)
            after = changes.versions[request.task]
            counts.take(request, alone, answer, away=before % 2 == 1 or after != before)
        finally:
            places.release()

    until = time.monotonic() + 60 * load.minutes
    due = time.monotonic()
    while due < until:
        due += generator.expovariate(load.rate)
        time.sleep(max(0.0, due - time.monotonic()))
        request, alone = generator.choice(known)
        fate = generator.random()
        leave_after = None if fate < 0.7 else 0 if fate > 0.9 else generator.randint(1, 20)
        places.acquire()
        due = max(due, time.monotonic() - 1)  # a queue at the clients is not made up for
        thread = threading.Thread(target=client, args=(request, alone, leave_after), daemon=True)
        thread.start()
        threads = [each for each in threads if each.is_alive()] + [thread]
    for thread in threads:
        thread.join()


def slots_of_server(address: Address) -> int:
    """How many requests run or wait, as `/metrics` says."""
    text = address.text("GET", "/metrics")
    found = 0.0
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name in ("plc_requests_running", "plc_requests_waiting"):
            found += float(value)
    return int(found)


def slots_of_session(session: Session) -> int:
    """How many slots a session holds, and streams that somebody reads."""
    flow = session._flow  # a leak is looked for inside
    assert flow is not None
    return len(flow.batch.entries) + len(session._inboxes)


@contextmanager
def subject_of(options: argparse.Namespace) -> Iterator[Subject]:
    """A session in this process, or a server that is started."""
    if not options.serve:
        with Session.open(options.bundle) as session:
            served: Any = session
            yield Subject(
                ask_session(session),
                os.getpid(),
                lambda: slots_of_session(session),
                lambda task: served.remove_task(task),
                lambda task: served.add_tasks(options.bundle, [task]),
            )
        return
    port, key = free_port(), secrets.token_hex()
    command = [sys.executable, "-m", "pl_compile.cli", "serve", str(options.bundle.resolve())]
    address = Address("127.0.0.1", port, timeout=SECONDS_OF_SILENCE)
    admin = replace(address, api_key=key)
    log = options.output / "server.log"
    with running([*command, "--port", str(port)], log, PLC_ADMIN_KEY=key) as process:
        until = time.monotonic() + SECONDS_TO_START
        while True:
            try:
                address.call("GET", "/v1/models")
                break
            except PlcError:
                if process.poll() is not None or time.monotonic() > until:
                    sys.exit(f"plc serve did not start: see {log}")
                time.sleep(0.2)
        yield Subject(
            ask_server(address),
            process.pid,
            lambda: slots_of_server(address),
            lambda task: admin.text("DELETE", f"/admin/tasks/{task}"),
            lambda task: admin.text("POST", "/admin/tasks", {"task": task}),
        )


def left_over(subject: Subject) -> int:
    """Slots in use once nobody asks any more."""
    until = time.monotonic() + SECONDS_TO_END
    while (count := subject.in_use()) and time.monotonic() < until:
        time.sleep(0.1)
    return count


def draw(curve: Curve, path: Path) -> bool:
    """The curve as a picture; whether matplotlib is there to draw it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    minutes = [row[0] / 60 for row in curve.rows]
    axes.plot(minutes, [row[1] for row in curve.rows], label="resident")
    axes.plot(minutes, [row[2] for row in curve.rows], label="of it no file's")
    axes.set_xlabel("minutes")
    axes.set_ylabel("MiB")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path)
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs it, and prints the counts as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=8, help="requests a second")
    parser.add_argument("--requests", type=int, default=64, help="different ones")
    parser.add_argument("--words", type=int, default=90, help="most of a field")
    parser.add_argument("--serve", action="store_true", help="ask plc serve over HTTP")
    parser.add_argument("--change-every", type=float, default=5, help="seconds; 0 for never")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("build/soak"))
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    known = answers_alone(options)
    counts = Counts()
    tasks = list(dict.fromkeys(request.task for request, _ in known))
    with (
        subject_of(options) as subject,
        Curve(options.output / "memory.csv", subject.process, counts) as curve,
    ):
        with Changes(subject, tasks, counts, options.change_every, options.seed) as changes:
            soak(subject.ask, known, counts, changes, options)
        leaked = left_over(subject)
    report = {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": asdict(this_machine()),
        "versions": versions(),
        "minutes": options.minutes,
        "answered": counts.answered,
        "left": counts.left,
        "not_served": counts.not_served,
        "turned_away": counts.turned_away,
        "changes": counts.changes,
        "differences": len(counts.differences),
        "failed": counts.failed,
        "slots_not_free": leaked,
        "most_resident_mib": max((row[1] for row in curve.rows), default=None),
        "growth_mib": curve.growth(),
        "examples": counts.differences[:5],
    }
    draw(curve, options.output / "memory.png")
    (options.output / "soak.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(json.dumps(report))
    if counts.differences or counts.failed or leaked:
        sys.exit(1)


if __name__ == "__main__":
    main()
