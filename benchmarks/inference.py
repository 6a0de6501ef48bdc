"""Decode, prefill, first token, memory and cold start: our bundles and other systems.

    python benchmarks/make_bundles.py BUNDLES
    python benchmarks/inference.py plc:int4=BUNDLES/int4 genai:int4=FOLDER openvino:int8=FOLDER \\
        llama:q4_0=FILE.gguf --python genai=VENV/bin/python openvino=VENV/bin/python [--json]

Each system is KIND:NAME=PATH; kinds are `plc` (a bundle), `genai` (onnxruntime-genai), `openvino`
(OpenVINO GenAI), `ctranslate2`, each run by the interpreter that `--python` names for its kind, and
`llama` (llama.cpp's own tools, in the folder that LLAMA_BIN names). Every scenario of every system
is a process of its own; systems take turns, `--repeats` times; printed are medians, and the ratio
of each system to the first one. All get the same token ids and threads; EOS stops none of them.
`--environment "plc slow" PLC_KERNELS=avx2` sets a variable for the processes of one system.

    decode_1, decode_4, decode_16    tokens a second, 48 steps after 40 tokens a row
    decode_1_128, decode_1_900       the same of one row, after 128 and 900 tokens
    prefill_512                      tokens a second of a prompt of 512
    task_ttft                        seconds to the first token of a request with 30 tokens of its
                                     own after an opening of 100 tokens: folded by our system,
                                     in the prompt cache of others
    whole_ttft                       the same request with its opening computed, too
    cold                             seconds from the start of a process to its first token
    peak_mib                         resident memory of a process that decodes one row, at its peak,
                                     weights that are mapped included
"""

import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

# Imports of this file count as a system's memory, so little is imported at the top.

SCENARIOS = (
    "decode_1",
    "decode_1_128",
    "decode_1_900",
    "decode_4",
    "decode_16",
    "prefill_512",
    "task_ttft",
    "whole_ttft",
    "cold",
)
PROMPT, STEPS, OPENING, OWN = 40, 48, 100, 30
PACKAGES = (
    "pl-compile",
    "onnxruntime",
    "onnxruntime-genai",
    "openvino-genai",
    "ctranslate2",
    "numpy",
)


class System(Protocol):
    """A system under test."""

    def decode(self, rows: int, prompt: int = PROMPT) -> float:
        """Tokens a second over `STEPS` steps after a prompt, all rows together."""

    def prefill(self, tokens: int) -> float:
        """Seconds to the first token of a prompt."""

    def task(self) -> Callable[[], float]:
        """Prepares a task with an opening; each call gives seconds to a request's first token."""


def ids_of(rows: int, tokens: int, seed: int = 0) -> Any:
    """The same random ids for every system: int64 `[rows, tokens]`."""
    import numpy as np

    generator = random.Random(seed)  # numpy's own would count as a system's memory
    return np.asarray(
        [[generator.randrange(1000, 40000) for _ in range(tokens)] for _ in range(rows)]
    )


@dataclass(frozen=True)
class IdsAlone:
    """What an engine needs of a prompt, for requests that are token ids already."""

    rows: Any
    prefix_kv: Any = None
    task_id: int = 0


class Plc:
    """A bundle, on the engine of its target.

    Args:
        path: of the bundle.
        rows: most rows that step together.
        provider: name of ONNX Runtime's provider that runs it; that of its target if None.
    """

    def __init__(self, path: Path, rows: int, provider: str | None = None) -> None:
        import numpy as np

        from pl_compile.artifact.bundle import read_bundle
        from pl_compile.runtime.engines.onnxruntime.providers import Provider
        from pl_compile.runtime.engines.opening import open_engine

        bundle = read_bundle(path)
        given = None if provider is None else Provider(provider)
        self.engine = open_engine(bundle, max_batch=rows, provider=given)
        self.bare = IdsAlone(np.zeros((0, bundle.manifest.graph.hidden), np.float32))

    def _batch(self, prompts: Sequence[IdsAlone]) -> Any:
        from pl_compile.runtime.stepping import Batch

        batch = Batch(self.engine)
        for row, prompt in enumerate(prompts):
            batch.admit(row, prompt)
        return batch

    def decode(self, rows: int, prompt: int = PROMPT) -> float:
        batch = self._batch([self.bare] * rows)
        outputs = batch.feed(dict(enumerate(ids_of(rows, prompt))))
        started = time.perf_counter()
        for _ in range(STEPS):
            outputs = batch.feed(
                {row: output.logits.argmax(keepdims=True) for row, output in outputs.items()}
            )
        return rows * STEPS / (time.perf_counter() - started)

    def prefill(self, tokens: int) -> float:
        batch = self._batch([self.bare])
        started = time.perf_counter()
        batch.feed({0: ids_of(1, tokens)[0]})[0].logits.argmax()
        return time.perf_counter() - started

    def task(self) -> Callable[[], float]:
        opening = self._batch([self.bare])
        opening.feed({0: ids_of(1, OPENING)[0]})
        prompt = replace(self.bare, prefix_kv=opening.cached(0, OPENING).copy())

        def first_token() -> float:
            started = time.perf_counter()
            batch = self._batch([prompt])
            batch.feed({0: ids_of(1, OWN, seed=1)[0]})[0].logits.argmax()
            return time.perf_counter() - started

        return first_token


class Genai:
    """onnxruntime-genai; a task is a generator that is rewound to the end of its opening."""

    def __init__(self, path: Path, rows: int) -> None:
        import onnxruntime_genai as og

        self._og = og
        config = og.Config(str(path))
        threads = os.cpu_count()
        config.overlay(
            json.dumps(
                {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
            )
        )
        self._model = og.Model(config)

    def _generator(self, rows: int, length: int) -> Any:
        parameters = self._og.GeneratorParams(self._model)
        parameters.set_search_options(
            max_length=length, min_length=length, batch_size=rows, do_sample=False
        )
        return self._og.Generator(self._model, parameters)

    def decode(self, rows: int, prompt: int = PROMPT) -> float:
        generator = self._generator(rows, prompt + STEPS + 1)
        generator.append_tokens(ids_of(rows, prompt).astype("int32"))
        generator.generate_next_token()
        started = time.perf_counter()
        for _ in range(STEPS):
            generator.generate_next_token()
            generator.get_next_tokens()
        return rows * STEPS / (time.perf_counter() - started)

    def prefill(self, tokens: int) -> float:
        generator = self._generator(1, tokens + 1)
        started = time.perf_counter()
        generator.append_tokens(ids_of(1, tokens).astype("int32"))
        generator.generate_next_token()
        generator.get_next_tokens()
        return time.perf_counter() - started

    def task(self) -> Callable[[], float]:
        generator = self._generator(1, OPENING + OWN + 2)
        generator.append_tokens(ids_of(1, OPENING).astype("int32"))

        def first_token() -> float:
            generator.rewind_to(OPENING)
            started = time.perf_counter()
            generator.append_tokens(ids_of(1, OWN, seed=1).astype("int32"))
            generator.generate_next_token()
            generator.get_next_tokens()
            return time.perf_counter() - started

        return first_token


class OpenVino:
    """OpenVINO GenAI's continuous batching; a task is its prefix cache."""

    def __init__(self, path: Path, rows: int) -> None:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import openvino
        import openvino_genai

        self._ov, self._genai = openvino, openvino_genai
        self._path = str(path)
        self._pipe = self._pipeline(caching=False)

    def _pipeline(self, *, caching: bool) -> Any:
        scheduler = self._genai.SchedulerConfig()
        scheduler.enable_prefix_caching = caching
        scheduler.cache_size = 1
        scheduler.max_num_batched_tokens = 4096
        threads = os.cpu_count()
        return self._genai.LLMPipeline(
            self._path, "CPU", INFERENCE_NUM_THREADS=threads, scheduler_config=scheduler
        )

    def _generate(self, pipe: Any, ids: Any, count: int) -> float:
        import numpy as np

        tensors = self._ov.Tensor(ids), self._ov.Tensor(np.ones_like(ids))
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
        config.apply_chat_template = False
        started = time.perf_counter()
        pipe.generate(self._genai.TokenizedInputs(*tensors), config)
        return time.perf_counter() - started

    def decode(self, rows: int, prompt: int = PROMPT) -> float:
        ids = ids_of(rows, prompt)
        first = self._generate(self._pipe, ids, 1)
        return rows * STEPS / (self._generate(self._pipe, ids, STEPS + 1) - first)

    def prefill(self, tokens: int) -> float:
        return self._generate(self._pipe, ids_of(1, tokens), 1)

    def task(self) -> Callable[[], float]:
        import numpy as np

        del self._pipe
        pipe, opening = self._pipeline(caching=True), ids_of(1, OPENING)
        turn = iter(range(1, 1000))

        def first_token() -> float:
            # Other tokens of its own each time: else the cache would hold the whole prompt.
            return self._generate(pipe, np.hstack([opening, ids_of(1, OWN, seed=next(turn))]), 1)

        return first_token


class CTranslate2:
    """CTranslate2; a task is a static prompt."""

    def __init__(self, path: Path, rows: int) -> None:
        import ctranslate2

        threads = os.cpu_count() or 1
        self._generator = ctranslate2.Generator(str(path), intra_threads=threads)
        self._words = json.loads((path / "vocabulary.json").read_text(encoding="utf-8"))

    def _generate(self, ids: Any, count: int, opening: Any = None) -> float:
        rows = [[self._words[i] for i in row] for row in ids.tolist()]
        static = None if opening is None else [self._words[i] for i in opening[0].tolist()]
        started = time.perf_counter()
        self._generator.generate_batch(
            rows,
            max_length=count,
            min_length=count,
            beam_size=1,
            sampling_topk=1,
            end_token=[],
            include_prompt_in_result=False,
            static_prompt=static,
        )
        return time.perf_counter() - started

    def decode(self, rows: int, prompt: int = PROMPT) -> float:
        ids = ids_of(rows, prompt)
        first = self._generate(ids, 1)
        return rows * STEPS / (self._generate(ids, STEPS + 1) - first)

    def prefill(self, tokens: int) -> float:
        return self._generate(ids_of(1, tokens), 1)

    def task(self) -> Callable[[], float]:
        opening = ids_of(1, OPENING)
        return lambda: self._generate(ids_of(1, OWN, seed=1), 1, opening)


class Llama:
    """llama.cpp's own tools; a task is its server's prompt cache.

    After a cached opening its flash attention is slower for short requests, so it is off there.
    Elsewhere it has its default (on).
    """

    def __init__(self, path: Path, rows: int) -> None:
        self._bin, self._model = Path(os.environ["LLAMA_BIN"]), str(path)
        threads = str(os.cpu_count())
        self._common = ["-m", self._model, "-t", threads, "-tb", threads]

    def _run(self, tool: str, *options: str) -> str:
        import subprocess

        command = [str(self._bin / tool), *self._common, *options]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def decode(self, rows: int, prompt: int = PROMPT) -> float:
        sizes = ["-npp", str(prompt), "-ntg", str(STEPS), "-npl", str(rows)]
        # The whole cache is taken at once: one larger than needed would count as its memory.
        cells = str(max(256, rows * (prompt + STEPS)))
        out = self._run("llama-batched-bench", *sizes, "-c", cells, "--output-format", "jsonl")
        (line,) = [line for line in out.splitlines() if line.startswith("{")]
        speed: float = json.loads(line)["speed_tg"]
        return speed

    def prefill(self, tokens: int) -> float:
        import subprocess

        command = [str(self._bin / "llama-bench"), *self._common[:4], "-r", "3", "-o", "json"]
        command += ["-p", str(tokens), "-n", "0"]
        done = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        nanoseconds: list[float] = json.loads(done)[0]["samples_ns"]
        return min(nanoseconds) / 1e9

    def task(self) -> Callable[[], float]:
        return self._server(cached=True)

    def whole(self) -> Callable[[], float]:
        """As `task`, with the opening computed each time."""
        return self._server(cached=False)

    def _server(self, *, cached: bool) -> Callable[[], float]:
        import atexit
        import http.client
        import socket
        import subprocess

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        options = ["-np", "1", "-c", "1024", "-cram", "0", "-fit", "off", "--port", str(port)]
        flash = ["-fa", "off"] if cached else []
        command = [str(self._bin / "llama-server"), *self._common, *options, *flash]
        quiet = subprocess.DEVNULL
        server = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
        atexit.register(server.kill)
        opening = ids_of(1, OPENING)[0].tolist()
        turn = iter(range(1, 1000))

        def ask() -> float:
            # Other tokens of its own each time: else the cache would hold the whole prompt.
            ids = opening + ids_of(1, OWN, seed=next(turn))[0].tolist()
            wanted = {"prompt": ids, "n_predict": 1, "temperature": 0, "ignore_eos": True}
            body = json.dumps({**wanted, "cache_prompt": cached})
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.connect()
            started = time.perf_counter()
            connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            took = time.perf_counter() - started
            assert "timings" in answer, answer
            return took

        for _ in range(600):
            try:
                ask()
                return ask
            except (OSError, AssertionError, http.client.HTTPException):
                time.sleep(0.1)
        sys.exit("llama-server did not start")

    def cold(self) -> float:
        """Seconds from the start of its command line tool to the first byte that it prints."""
        import subprocess

        options = ["-c", "512", "-n", "2", "--ignore-eos", "-no-cnv", "--no-display-prompt"]
        options += ["--no-warmup", "-fit", "off", "-p", "word " * PROMPT]
        command = [str(self._bin / "llama-completion"), *self._common, *options]
        started = time.perf_counter()
        quiet = subprocess.DEVNULL
        with subprocess.Popen(
            command, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet, bufsize=0
        ) as process:
            assert process.stdout is not None
            process.stdout.read(1)
            took = time.perf_counter() - started
            process.stdout.read()
        return took


KINDS: dict[str, Callable[[Path, int], System]] = {
    "plc": Plc,
    "genai": Genai,
    "openvino": OpenVino,
    "ctranslate2": CTranslate2,
    "llama": Llama,
}


def run_scenario(kind: str, path: Path, scenario: str, began: float) -> dict[str, float]:
    """The work of one process of `sample`."""
    name, _, size = scenario.partition("_")
    rows, _, prompt = size.partition("_") if name == "decode" else ("1", "", "")
    system = KINDS[kind](path, int(rows))
    if name == "decode":
        given = int(rows), int(prompt or PROMPT)
        system.decode(*given)
        value = max(system.decode(*given) for _ in range(2))
    elif name == "prefill":
        system.prefill(int(size))
        value = int(size) / min(system.prefill(int(size)) for _ in range(3))
    elif name in ("task", "whole"):
        if name == "task":
            ask = system.task()
        elif isinstance(system, Llama):
            ask = system.whole()
        else:
            ask = lambda: system.prefill(OPENING + OWN)  # noqa: E731
        ask()
        value = sorted(ask() for _ in range(7))[3]
    elif isinstance(system, Llama):
        value = system.cold()
    else:
        system.prefill(PROMPT)
        value = time.time() - began
    found = {scenario: value}
    if scenario == "decode_1":
        who = resource.RUSAGE_CHILDREN if isinstance(system, Llama) else resource.RUSAGE_SELF
        found["peak_mib"] = resource.getrusage(who).ru_maxrss / 1024
    return found


def sample(
    python: str, kind: str, path: str, scenario: str, environment: Mapping[str, str]
) -> dict[str, float]:
    """One scenario of one system, in a process of its own."""
    import subprocess

    command = [python, __file__, "--sample", kind, path, scenario, str(time.time())]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        sys.exit(f"{kind} {path} {scenario} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def versions(python: str) -> dict[str, str]:
    """The versions of packages that an interpreter has installed."""
    import subprocess

    code = (
        "import json, importlib.metadata as m\n"
        "all = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        f"print(json.dumps({{p: all[p] for p in {PACKAGES!r} if p in all}}))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def instruction_sets(python: str) -> list[str]:
    """The instruction sets of our kernels on this processor, best first."""
    import subprocess

    code = "from pl_compile.runtime.kernels import instruction_sets; print(*instruction_sets())"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def show(medians: dict[str, dict[str, float]]) -> None:
    """Prints a Markdown table: medians, and in brackets the ratio to the first system."""
    names = list(medians)
    keys = [key for key in [*SCENARIOS, "peak_mib"] if key in medians[names[0]]]
    print("| system | " + " | ".join(keys) + " |")
    print("|---" * (len(keys) + 1) + "|")
    for name in names:
        cells = []
        for key in keys:
            value, first = medians[name][key], medians[names[0]][key]
            cells.append(f"{value:.4g} ({value / first:.2f})")
        print(f"| {name} | " + " | ".join(cells) + " |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all samples in turn and prints medians."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments[:1]) == ["--sample"]:
        kind, path, scenario, began = arguments[1:]
        print(json.dumps(run_scenario(kind, Path(path), scenario, float(began))))
        return
    import argparse
    import statistics

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("systems", nargs="*", metavar="KIND:NAME=PATH")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument(
        "--python", nargs="+", default=[], metavar="KIND=PATH", help="interpreters of other kinds"
    )
    parser.add_argument(
        "--environment", nargs=2, action="append", default=[], metavar=("SYSTEM", "NAME=VALUE")
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args(arguments)
    systems = {}
    for given in options.systems:
        kind, _, rest = given.partition(":")
        name, _, path = rest.partition("=")
        if kind not in KINDS or not name or not path:
            parser.error(f"{given}: expected KIND:NAME=PATH, with a kind of {', '.join(KINDS)}")
        systems[f"{kind} {name}"] = (kind, path)
    if not systems:
        parser.error("no system to run")
    environments: dict[str, dict[str, str]] = {name: {} for name in systems}
    for system, setting in options.environment:
        if system not in systems:
            parser.error(f"--environment {system}: expected one of {', '.join(systems)}")
        name, equals, value = setting.partition("=")
        if not name or not equals:
            parser.error(f"--environment {system} {setting}: expected NAME=VALUE")
        environments[system][name] = value
    pythons = dict.fromkeys(KINDS, sys.executable)
    pythons |= dict(given.split("=", 1) for given in options.python)
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in systems}
    for repeat in range(options.repeats):
        for scenario in options.scenarios:
            for name, (kind, path) in systems.items():
                found = sample(pythons[kind], kind, path, scenario, environments[name])
                for key, number in found.items():
                    samples[name].setdefault(key, []).append(number)
                    said = f"{repeat + 1}/{options.repeats} {name} {key} {number:.4g}"
                    print(said, file=sys.stderr)
    medians = {
        name: {key: statistics.median(values) for key, values in found.items()}
        for name, found in samples.items()
    }
    show(medians)
    if options.json:
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        kinds = {kind for kind, _ in systems.values()}
        record = {
            "command": command,
            "versions": {kind: versions(pythons[kind]) for kind in sorted(kinds)},
            "cores": os.cpu_count(),
            "instruction_sets": instruction_sets(pythons["plc"]),
            "environments": environments,
        }
        print(json.dumps({**record, "medians": medians, "samples": samples}))


if __name__ == "__main__":
    main()
