"""Decode, prefill, first token, memory and cold start: our bundles beside other systems.

    python benchmarks/inference.py plc:int8=BUNDLE genai:int4=FOLDER openvino:int8=FOLDER … [--json]

Each system is KIND:NAME=PATH; kinds are `plc` (a bundle), `genai` (onnxruntime-genai), `openvino`
(OpenVINO GenAI) and `ctranslate2`, each where it is installed. Every scenario of every system is a
process of its own; systems take turns, `--repeats` times; printed are medians, and the ratio of
each system to the first one. All get the same token ids and threads; EOS stops none of them.

    decode_1, decode_4, decode_16    tokens a second, 48 steps behind 40 tokens a row
    prefill_512                      tokens a second of a prompt of 512
    task_ttft                        seconds to the first token of a request with 30 tokens of its
                                     own behind a constant head of 100: folded where the system is
                                     ours, its own prompt cache elsewhere
    cold                             seconds from the start of a process to its first token
    peak_mib                         resident memory of a process that decodes one row, at its peak
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

SCENARIOS = ("decode_1", "decode_4", "decode_16", "prefill_512", "task_ttft", "cold")
PROMPT, STEPS, HEAD, OWN = 40, 48, 100, 30
PACKAGES = ("onnxruntime", "onnxruntime-genai", "openvino-genai", "ctranslate2", "numpy")


class System(Protocol):
    """A system under test."""

    def decode(self, rows: int) -> float:
        """Tokens a second over `STEPS` steps, all rows together."""

    def prefill(self, tokens: int) -> float:
        """Seconds to the first token of a prompt."""

    def task(self) -> Callable[[], float]:
        """Prepares a task with a constant head; a call gives seconds to a request's first token."""


def ids_of(rows: int, tokens: int, seed: int = 0) -> Any:
    """The same random ids for every system: int64 `[rows, tokens]`."""
    import numpy as np

    return np.random.default_rng(seed).integers(1000, 40000, (rows, tokens))


class Plc:
    """A bundle, by the runtime's own engine."""

    def __init__(self, path: Path, rows: int) -> None:
        from dataclasses import replace

        from pl_compile.artifact.bundle import MODEL_NAME, read_bundle
        from pl_compile.runtime.engines.onnxruntime import OnnxRuntimeEngine
        from pl_compile.runtime.task_prompt import prompts_of_bundle
        from pl_compile.text.tokenizer import Tokenizer

        bundle = read_bundle(path)
        self.engine = OnnxRuntimeEngine(
            bundle.base_folder / MODEL_NAME, bundle.manifest.graph, max_batch=rows
        )
        prompts = prompts_of_bundle(bundle, Tokenizer.from_folder(path))
        self.bare = next(iter(prompts.values())).without_prefix()
        self._with_prefix: Callable[[Any], Any] = lambda kv: replace(self.bare, prefix_kv=kv)

    def decode(self, rows: int) -> float:
        import numpy as np

        ids, past = ids_of(rows, PROMPT), np.zeros(rows, np.int64)
        prompts = [self.bare] * rows
        logits = self.engine.step(ids, past, past + PROMPT - 1, prompts)
        past = past + PROMPT
        started = time.perf_counter()
        for _ in range(STEPS):
            tokens = logits.argmax(-1)[:, None]
            logits = self.engine.step(tokens, past, past * 0, prompts)
            past = past + 1
        return rows * STEPS / (time.perf_counter() - started)

    def prefill(self, tokens: int) -> float:
        import numpy as np

        zero = np.zeros(1, np.int64)
        started = time.perf_counter()
        self.engine.step(ids_of(1, tokens), zero, zero + tokens - 1, [self.bare]).argmax()
        return time.perf_counter() - started

    def task(self) -> Callable[[], float]:
        import numpy as np

        zero = np.zeros(1, np.int64)
        self.engine.step(ids_of(1, HEAD), zero, zero + HEAD - 1, [self.bare])
        prompt = self._with_prefix(self.engine.cached(HEAD))

        def first_token() -> float:
            started = time.perf_counter()
            past = self.engine.start([prompt])
            own = ids_of(1, OWN, seed=1)
            self.engine.step(own, past, zero + OWN - 1, [prompt]).argmax()
            return time.perf_counter() - started

        return first_token


class Genai:
    """onnxruntime-genai; a task is a generator that is rewound to its head."""

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

    def decode(self, rows: int) -> float:
        generator = self._generator(rows, PROMPT + STEPS + 1)
        generator.append_tokens(ids_of(rows, PROMPT).astype("int32"))
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
        generator = self._generator(1, HEAD + OWN + 2)
        generator.append_tokens(ids_of(1, HEAD).astype("int32"))

        def first_token() -> float:
            generator.rewind_to(HEAD)
            started = time.perf_counter()
            generator.append_tokens(ids_of(1, OWN, seed=1).astype("int32"))
            generator.generate_next_token()
            generator.get_next_tokens()
            return time.perf_counter() - started

        return first_token


class OpenVino:
    """OpenVINO GenAI's continuous batching; a task is its prefix cache."""

    def __init__(self, path: Path, rows: int) -> None:
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

    def decode(self, rows: int) -> float:
        ids = ids_of(rows, PROMPT)
        first = self._generate(self._pipe, ids, 1)
        return rows * STEPS / (self._generate(self._pipe, ids, STEPS + 1) - first)

    def prefill(self, tokens: int) -> float:
        return self._generate(self._pipe, ids_of(1, tokens), 1)

    def task(self) -> Callable[[], float]:
        import numpy as np

        del self._pipe
        pipe, head = self._pipeline(caching=True), ids_of(1, HEAD)
        turn = iter(range(1, 1000))

        def first_token() -> float:
            # Other own tokens each time: it would find the whole prompt otherwise.
            return self._generate(pipe, np.hstack([head, ids_of(1, OWN, seed=next(turn))]), 1)

        return first_token


class CTranslate2:
    """CTranslate2; a task is a static prompt."""

    def __init__(self, path: Path, rows: int) -> None:
        import ctranslate2

        threads = os.cpu_count() or 1
        self._generator = ctranslate2.Generator(str(path), intra_threads=threads)
        self._words = json.loads((path / "vocabulary.json").read_text(encoding="utf-8"))

    def _generate(self, ids: Any, count: int, head: Any = None) -> float:
        rows = [[self._words[i] for i in row] for row in ids.tolist()]
        static = None if head is None else [self._words[i] for i in head[0].tolist()]
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

    def decode(self, rows: int) -> float:
        ids = ids_of(rows, PROMPT)
        first = self._generate(ids, 1)
        return rows * STEPS / (self._generate(ids, STEPS + 1) - first)

    def prefill(self, tokens: int) -> float:
        return self._generate(ids_of(1, tokens), 1)

    def task(self) -> Callable[[], float]:
        head = ids_of(1, HEAD)
        return lambda: self._generate(ids_of(1, OWN, seed=1), 1, head)


KINDS: dict[str, Callable[[Path, int], System]] = {
    "plc": Plc,
    "genai": Genai,
    "openvino": OpenVino,
    "ctranslate2": CTranslate2,
}


def run_scenario(kind: str, path: Path, scenario: str, began: float) -> dict[str, float]:
    """What a process of `sample` does."""
    name, _, size = scenario.partition("_")
    rows = int(size) if name == "decode" else 1
    system = KINDS[kind](path, rows)
    if name == "decode":
        system.decode(rows)
        value = max(system.decode(rows) for _ in range(2))
    elif name == "prefill":
        system.prefill(int(size))
        value = int(size) / min(system.prefill(int(size)) for _ in range(3))
    elif name == "task":
        ask = system.task()
        ask()
        value = statistics.median(ask() for _ in range(7))
    else:
        system.prefill(PROMPT)
        value = time.time() - began
    found = {scenario: value}
    if scenario == "decode_1":
        found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def sample(kind: str, path: str, scenario: str) -> dict[str, float]:
    """One scenario of one system, in a process of its own."""
    command = [sys.executable, __file__, "--sample", kind, path, scenario, str(time.time())]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{kind} {path} {scenario} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def versions() -> dict[str, str]:
    """Of what is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def show(medians: dict[str, dict[str, float]]) -> None:
    """A Markdown table: medians, and in brackets the ratio to the first system."""
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("systems", nargs="*", metavar="KIND:NAME=PATH")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--sample", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.sample:
        kind, path, scenario, began = options.sample
        print(json.dumps(run_scenario(kind, Path(path), scenario, float(began))))
        return
    systems = {}
    for given in options.systems:
        kind, _, rest = given.partition(":")
        name, _, path = rest.partition("=")
        if kind not in KINDS or not name or not path:
            parser.error(f"{given}: expected KIND:NAME=PATH, with a kind of {', '.join(KINDS)}")
        systems[f"{kind} {name}"] = (kind, path)
    if not systems:
        parser.error("no system to run")
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in systems}
    for repeat in range(options.repeats):
        for scenario in options.scenarios:
            for name, (kind, path) in systems.items():
                for key, value in sample(kind, path, scenario).items():
                    samples[name].setdefault(key, []).append(value)
                    print(
                        f"{repeat + 1}/{options.repeats} {name} {key} {value:.4g}", file=sys.stderr
                    )
    medians = {
        name: {key: statistics.median(values) for key, values in found.items()}
        for name, found in samples.items()
    }
    show(medians)
    if options.json:
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        record = {"command": command, "versions": versions(), "cores": os.cpu_count()}
        print(json.dumps({**record, "medians": medians, "samples": samples}))


if __name__ == "__main__":
    main()
