"""Servers under load, side by side: ours and others, closed loop, on this machine.

    python benchmarks/make_bundles.py BUNDLES
    LLAMA_BIN=FOLDER python benchmarks/serve_load.py plc:int4=BUNDLES/serve llama:q4_0=FILE.gguf \\
        openvino:int8=FOLDER --python openvino=VENV/bin/python [--json]

Each system is KIND:NAME=PATH. `plc` is a bundle on `plc serve`, `llama` is llama.cpp's server (in
the folder that LLAMA_BIN names), with its prompt cache on. `openvino` is the continuous batching
pipeline of OpenVINO GenAI with its prefix cache on, called in a process of its own that
`--python openvino=` names: no HTTP, so it is spared what the other two pay. `session` is our bundle
called the same way, by `Session`: what it gains over `plc` is what HTTP and the clients cost.

Four tasks take turns. Ours have 10, 40, 70 and 100 virtual tokens (`make_bundles.py`); for others
the same number of words stands before the text. A request adds about 60 tokens and gets 32, and
end tokens end none. Each of 8, then 32 clients asks again when it has its answer. Systems take
turns, `--rounds` times; each sample is a server of its own, which answers some requests before it
is measured. Printed are medians and, in brackets, the ratio to the first system.

    tokens/s         written for all clients together
    first token p95  seconds, from the request on; 95 % of the requests had it by then
    request p95      seconds to the whole answer
    resident, MiB    of the server and its processes, after the load

Prompt tokens are printed, too, as each server counts them: they say whether the work is the same.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pl_compile.driver.bench.client import Address, Answer
from pl_compile.driver.bench.load import Ask, closed_loop, figures_of
from pl_compile.driver.bench.machine import Watch, memory_of, this_machine, versions
from pl_compile.driver.bench.texts import words

VIRTUAL = (10, 40, 70, 100)
INPUT, WRITTEN = 60, 32
# Cache entries of a request, with room for words that are several tokens.
ENTRIES = 256
ROOT = Path(__file__).resolve().parents[1]
# A share of the processors that others may take.
QUIET = 0.08
# A server that has not started by then does not.
SECONDS_TO_START = 120.0


@dataclass(frozen=True)
class System:
    """A system under test.

    Attributes:
        kind: "plc", "session", "llama" or "openvino".
        name: of it, in the table.
        path: of its model.
        python: that runs it.
    """

    kind: str
    name: str
    path: str
    python: str


def opening_of(task: int) -> str:
    """The words before a request's own, where a task has no virtual tokens."""
    return words(VIRTUAL[task % len(VIRTUAL)], seed=10_000 + task % len(VIRTUAL))


def task_of(number: int) -> str:
    """The task of a request to ours."""
    return f"virtual{VIRTUAL[number % len(VIRTUAL)]}"


def prompt_of(number: int) -> str:
    """A request as text."""
    return f"{opening_of(number)}\n{words(INPUT, seed=number)}"


def free_port() -> int:
    """A port that nobody listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def command_of(system: System, clients: int, port: int) -> list[str]:
    """What starts the server of a system."""
    if system.kind == "plc":
        command = [system.python, "-m", "pl_compile.cli", "serve", system.path]
        return [*command, "--host", "127.0.0.1", "--port", str(port), "--batch", str(clients)]
    threads = str(os.cpu_count())
    command = [str(Path(os.environ["LLAMA_BIN"]) / "llama-server"), "-m", system.path]
    command += ["-t", threads, "-tb", threads, "-np", str(clients), "-c", str(clients * ENTRIES)]
    return [*command, "--host", "127.0.0.1", "--port", str(port), "--no-webui"]


def ask_of(system: System, address: Address) -> Ask:
    """How a server of a system is asked."""
    fixed = {"max_tokens": WRITTEN, "temperature": 0}
    if system.kind == "plc":

        def body(number: int) -> dict[str, Any]:
            fields = {"text": words(INPUT, seed=number)}
            return {"model": task_of(number), "fields": fields, "min_tokens": WRITTEN}
    else:

        def body(number: int) -> dict[str, Any]:
            return {"prompt": prompt_of(number), "ignore_eos": True, "cache_prompt": True}

    return lambda number, since: address.stream({**fixed, **body(number)}, since=since)


@contextmanager
def running(
    command: Sequence[str], log: Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A server's process, with more variables of its environment; ends with the block."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_it_answers(ask: Ask, process: subprocess.Popen[bytes], log: Path) -> None:
    """Asks a server until it answers."""
    until = time.monotonic() + SECONDS_TO_START
    while True:
        answer = ask(-1, None)
        if answer.error is None:
            return
        if process.poll() is not None or time.monotonic() > until:
            said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            sys.exit(f"{' '.join(map(str, process.args))} did not answer: {answer}\n{said}")  # type: ignore[arg-type]
        time.sleep(0.1)


def sample_of_server(system: System, clients: int, requests: int, log: Path) -> dict[str, Any]:
    """A server, started, asked and ended."""
    port = free_port()
    ask = ask_of(system, Address("127.0.0.1", port, timeout=300))
    with running(command_of(system, clients, port), log) as process:
        wait_until_it_answers(ask, process, log)
        # As many as are asked at once, of texts that are not asked again.
        closed_loop(lambda n, since: ask(10**6 + n, since), clients=clients, requests=clients)
        watch, busy = Watch(process.pid, os.getpid()), time.process_time()
        answers = closed_loop(ask, clients=clients, requests=requests)
        busy = time.process_time() - busy
        return sample_of(answers, process.pid, watch, busy)


def sample_of(answers: list[Answer], process: int, watch: Watch, busy: float) -> dict[str, Any]:
    """The figures of a sample."""
    others, memory = watch.others(), memory_of(process)
    figures = figures_of(answers)
    if figures.errors:
        sys.exit(f"requests failed: {figures.errors} {figures.examples}")
    assert figures.first_token is not None
    assert figures.latency is not None
    assert figures.between_tokens is not None
    return {
        "tokens/s": figures.tokens_per_second,
        "first token p50": figures.first_token.p50,
        "first token p95": figures.first_token.p95,
        "between tokens p95": figures.between_tokens.p95,
        "request p95": figures.latency.p95,
        "resident, MiB": 0.0 if memory is None else memory.resident_mib,
        "prompt tokens": figures.prompt_tokens or 0.0,
        "written tokens": figures.written_tokens,
        "other load": others,
        "client load": busy / figures.seconds,
    }


def sample_in_process(system: System, clients: int, requests: int, log: Path) -> dict[str, Any]:
    """A pipeline in a process of its own; it says when it is ready, then its answers."""
    kind = f"--{system.kind}"
    command = [system.python, __file__, kind, system.path, str(clients), str(requests)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=environment
        )
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError), process:
        ready = process.stdout.readline()
        watch = Watch(process.pid, os.getpid())
        answers = [Answer(**each) for each in json.loads(process.stdout.readline() or "[]")]
        if ready.strip() != b"ready" or not answers:
            process.kill()
            sys.exit(f"{' '.join(command)} failed: {log.read_text(errors='replace')[-2000:]}")
        return sample_of(answers, process.pid, watch, 0.0)
    raise AssertionError("not reached")


def run_openvino(path: str, clients: int, requests: int) -> None:
    """The program of OpenVINO's process. Its own Python has no package of ours but this tree."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    scheduler.cache_size = 1  # GB
    scheduler.max_num_seqs = 64
    scheduler.max_num_batched_tokens = 2048
    threads = {"INFERENCE_NUM_THREADS": os.cpu_count()}
    pipe = genai.ContinuousBatchingPipeline(path, scheduler, "CPU", threads)
    tokenizer = pipe.get_tokenizer()
    wanted = genai.GenerationConfig()
    wanted.max_new_tokens, wanted.ignore_eos, wanted.do_sample = WRITTEN, True, False

    def closed(first: int, count: int) -> list[Answer]:
        """As `load.closed_loop`, in one thread: the pipeline has one."""
        live: dict[int, tuple[Any, Answer]] = {}
        done: list[Answer] = []
        numbers = iter(range(first, first + count))

        def submit() -> None:
            number = next(numbers, None)
            if number is not None:
                answer = Answer(time.perf_counter(), tokens=0)
                ids = tokenizer.encode(prompt_of(number)).input_ids
                answer.prompt_tokens = ids.shape[1]
                live[number] = pipe.add_request(number, ids, wanted), answer

        for _ in range(clients):
            submit()
        while live:
            pipe.step()
            for number, (handle, answer) in list(live.items()):
                while handle.can_read():
                    written = sum(len(each.generated_ids) for each in handle.read().values())
                    answer.tokens = (answer.tokens or 0) + written
                    answer.pieces.append(time.perf_counter())
                if handle.get_status() == genai.GenerationStatus.FINISHED:
                    answer.ended = time.perf_counter()
                    done.append(answer)
                    del live[number]
                    submit()
        return done

    tell(closed, clients, requests)


def run_session(path: str, clients: int, requests: int) -> None:
    """The same for our bundle."""
    from pl_compile.runtime.requests import Request
    from pl_compile.runtime.rows import Row
    from pl_compile.runtime.session import Brought, Session

    session = Session.open(path, max_batch=clients)

    def closed(first: int, count: int) -> list[Answer]:
        live: dict[Row, Answer] = {}
        done: list[Answer] = []
        numbers = iter(range(first, first + count))

        def submit() -> None:
            number = next(numbers, None)
            if number is not None:
                answer = Answer(time.perf_counter())
                task, fields = task_of(number), {"text": words(INPUT, seed=number)}
                request = Request(task, fields, max_tokens=WRITTEN, min_tokens=WRITTEN)
                row = session.prepare(request)
                live[row] = answer
                session.submit([row], take)

        def take(brought: Brought) -> None:
            now = time.perf_counter()
            for row, event in brought:
                assert event is not None
                live[row].pieces.append(now)
                if event.result is not None:
                    answer = live.pop(row)
                    answer.ended, answer.tokens = now, len(event.result.token_ids)
                    answer.prompt_tokens = event.result.prompt_tokens
                    done.append(answer)

        for _ in range(clients):
            submit()
        while live:
            session.advance()
            for _ in range(clients - len(live)):
                submit()
        return done

    tell(closed, clients, requests)


def tell(closed: Callable[[int, int], list[Answer]], clients: int, requests: int) -> None:
    """Warms a pipeline, then measures it, and says so to the process that asked."""
    closed(10**6, clients)
    print("ready", flush=True)
    answers = closed(0, requests)
    print(json.dumps([asdict(answer) for answer in answers]), flush=True)
    sys.stdin.read()  # its memory is read before it ends


# Systems that are called in a process of their own, without HTTP.
IN_PROCESS = {"openvino": run_openvino, "session": run_session}


def show(clients: int, medians: dict[str, dict[str, float]]) -> None:
    """Prints a Markdown table: medians, and in brackets the ratio to the first system."""
    first = next(iter(medians.values()))
    keys = [key for key in first if key not in ("other load", "client load")]
    print(f"\n{clients} clients\n")
    print("| system | " + " | ".join(keys) + " |")
    print("|---" * (len(keys) + 1) + "|")
    for name, found in medians.items():
        cells = [
            f"{found[key]:.4g}" + (f" ({found[key] / first[key]:.2f})" if first[key] else "")
            for key in keys
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")
    busiest = max(found.get("other load", 0.0) for found in medians.values())
    if busiest > QUIET:
        print(
            f"\nOther processes took {busiest:.0%} of the processors meanwhile. Systems whose "
            "threads wait by spinning lose far more by that than others: measure again."
        )


def median_of(samples: list[dict[str, Any]]) -> dict[str, float]:
    """The median of each figure."""
    return {
        key: statistics.median(sample[key] for sample in samples if sample[key] is not None)
        for key in samples[0]
        if samples[0][key] is not None
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all samples in turn and prints medians."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and (kind := arguments[0].removeprefix("--")) in IN_PROCESS:
        folder, at_once, in_all = arguments[1:]
        IN_PROCESS[kind](folder, int(at_once), int(in_all))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("systems", nargs="+", metavar="KIND:NAME=PATH")
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--per-client", type=int, default=3, help="requests of each client")
    parser.add_argument("--python", nargs="+", default=[], metavar="KIND=PATH")
    parser.add_argument("--logs", type=Path, default=Path("build/serve_load"))
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args(arguments)
    pythons = dict(given.split("=", 1) for given in options.python)
    systems = []
    for given in options.systems:
        kind, _, rest = given.partition(":")
        name, _, path = rest.partition("=")
        if kind not in ("plc", "llama", *IN_PROCESS) or not name or not path:
            kinds = "plc, session, llama or openvino"
            parser.error(f"{given}: expected KIND:NAME=PATH, with {kinds} as kind")
        absolute = str(Path(path).resolve())
        systems.append(System(kind, f"{kind} {name}", absolute, pythons.get(kind, sys.executable)))
    options.logs.mkdir(parents=True, exist_ok=True)
    samples: dict[int, dict[str, list[dict[str, Any]]]] = {
        clients: {system.name: [] for system in systems} for clients in options.clients
    }
    for turn in range(options.rounds):
        for clients in options.clients:
            for system in systems:
                log = options.logs / f"{system.name.replace(' ', '-')}.log"
                run = sample_in_process if system.kind in IN_PROCESS else sample_of_server
                found = run(system, clients, clients * options.per_client, log)
                samples[clients][system.name].append(found)
                said = ", ".join(f"{key} {value:.4g}" for key, value in found.items() if value)
                print(
                    f"{turn + 1}/{options.rounds}, {clients}: {system.name}: {said}",
                    file=sys.stderr,
                )
    medians = {
        clients: {name: median_of(each) for name, each in found.items()}
        for clients, found in samples.items()
    }
    for each, by_system in medians.items():
        show(each, by_system)
    if options.json:
        record = {
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "machine": asdict(this_machine()),
            "versions": versions(),
            "medians": medians,
            "samples": samples,
        }
        print(json.dumps(record))


if __name__ == "__main__":
    main()
