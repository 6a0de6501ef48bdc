"""A bundle measured in this process: first token, tokens a second, memory.

Each repeat measures everything once, in the same order, so a machine that becomes slower does so
for all figures. The first repeat warms up and is discarded.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from pl_compile.artifact.bundle import read_bundle
from pl_compile.config.targets import TARGETS
from pl_compile.driver.bench.machine import (
    Machine,
    Memory,
    Watch,
    memory_of,
    this_machine,
    versions,
)
from pl_compile.driver.bench.numbers import Percentiles, Spread
from pl_compile.driver.bench.texts import most_words, words
from pl_compile.driver.doctor import find_gpus
from pl_compile.errors import RequestError, check_all, unknown_name
from pl_compile.progress import SILENT, Progress
from pl_compile.runtime.engines.onnxruntime.providers import Provider
from pl_compile.runtime.kernels import instruction_set
from pl_compile.runtime.requests import Request
from pl_compile.runtime.session import Session

FORMAT = "plc.bench.bundle"
VERSION = 1

DEFAULT_BATCHES = (1, 4, 16)
DEFAULT_INPUTS = (64, 512)
# A bundle may hold very many tasks.
MOST_TASKS = 4


@dataclass(frozen=True)
class BundleLoad:
    """What is measured of a bundle.

    Attributes:
        tasks: their names; the first `MOST_TASKS` of the bundle if empty. A batch mixes them.
        batch: rows that are decoded together, one figure for each. If empty, those of
            `DEFAULT_BATCHES` that the bundle has slots for.
        input_tokens: about how many tokens the fields of a prompt have, one figure for each. If
            empty, those of `DEFAULT_INPUTS` for which there is room. Decoding begins after prompts
            of the first one.
        tokens: of each answer that is decoded.
        repeat: how often everything is measured.
    """

    tasks: tuple[str, ...] = ()
    batch: tuple[int, ...] = ()
    input_tokens: tuple[int, ...] = ()
    tokens: int = 64
    repeat: int = 5

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be measured."""
        checks = {
            f"tokens {self.tokens}, expected at least 2": self.tokens >= 2,
            f"repeat {self.repeat}, expected at least 1": self.repeat >= 1,
            f"batch {self.batch}, expected at least 1 each": min(self.batch, default=1) >= 1,
            f"input_tokens {self.input_tokens}, expected at least 1 each": (
                min(self.input_tokens, default=1) >= 1
            ),
        }
        check_all(RequestError, "reading what to measure", checks)


@dataclass(frozen=True)
class Subject:
    """The bundle that was measured.

    Attributes:
        name: of its folder.
        base: name of its base.
        fingerprint: of its base.
        target: that it was built for.
        precision: what its weights are stored in, such as "int4".
        capacity: cache entries of a row.
        size_mib: of its files.
    """

    name: str
    base: str
    fingerprint: str
    target: str
    precision: str
    capacity: int
    size_mib: float


@dataclass(frozen=True)
class RunsOn:
    """What ran the bundle.

    Attributes:
        instruction_set: of this project's kernels; None where the bundle does not use them.
        threads: of the engine, or of each rank; None where it took its own number: all cores.
        provider: of ONNX Runtime, where one was chosen; else None.
        slots: rows that can step together.
        gpu: compute capability of the GPU; None for a bundle that needs none.
    """

    instruction_set: str | None
    threads: int | None
    provider: str | None
    slots: int
    gpu: str | None


@dataclass(frozen=True)
class PromptFigures:
    """One prompt of a task, alone.

    Attributes:
        task: its name.
        input_tokens: that were wanted in its fields.
        prompt_tokens: that it has, virtual tokens included.
        prefix_tokens: of these, those that a learned or folded prefix holds.
        first_token_seconds: from the request to its first token.
        prefill_tokens_per_second: tokens of the prompt that were computed, by that time.
    """

    task: str
    input_tokens: int
    prompt_tokens: int
    prefix_tokens: int
    first_token_seconds: Spread
    prefill_tokens_per_second: Spread


@dataclass(frozen=True)
class DecodeFigures:
    """Several rows that are decoded together.

    Attributes:
        batch: how many.
        tokens_per_second: of all of them, while all of them get tokens.
        between_tokens_p50_seconds: from a token of a row to its next one, the median.
        between_tokens_p95_seconds: the same, what 95 % do not exceed.
    """

    batch: int
    tokens_per_second: Spread
    between_tokens_p50_seconds: Spread
    between_tokens_p95_seconds: Spread


@dataclass(frozen=True)
class BundleReport:
    """What `bench_bundle` found. docs/performance.md describes it as JSON.

    Attributes:
        bundle: what was measured.
        machine: that ran it.
        versions: of packages, by name.
        runs_on: what ran it.
        load: what was measured, every default filled in.
        open_seconds: until the bundle was checked and ready.
        prompts: for each task and size of input.
        decode: for each batch.
        opened: memory once the bundle is open; None where the system does not say.
        memory: memory after everything was measured.
        other_load: the share of the machine's processors that other processes took meanwhile.
        format: what this is.
        version: of the format; it grows when a key changes its meaning or goes.
    """

    bundle: Subject
    machine: Machine
    versions: dict[str, str]
    runs_on: RunsOn
    load: BundleLoad
    open_seconds: float
    prompts: tuple[PromptFigures, ...]
    decode: tuple[DecodeFigures, ...]
    opened: Memory | None
    memory: Memory | None
    other_load: float | None
    format: str = FORMAT
    version: int = VERSION


def bench_bundle(
    bundle: Path,
    load: BundleLoad,
    *,
    threads: int | None = None,
    provider: Provider | None = None,
    progress: Progress = SILENT,
) -> BundleReport:
    """Measures a bundle in this process.

    Answers are greedy, of a fixed length, and held to no choices, so they depend on speed alone.

    Args:
        bundle: the folder that `plc export` wrote.
        load: what to measure.
        threads: of the engine; all cores if None.
        provider: of ONNX Runtime; that of the bundle's target if None.
        progress: is told how far it is.

    Raises:
        RequestError: an unknown task, or prompts and answers that do not fit into the cache.
        ArtifactError: the bundle cannot be opened: as for `Session.open`.
        AnswerError: its numbers are not finite.
    """
    subject = _subject(bundle)
    watch = Watch(os.getpid())
    started = time.perf_counter()
    slots = max(load.batch, default=None)
    # Prompts of several repeats begin alike, and each is to be computed.
    with Session.open(
        bundle, max_batch=slots, threads=threads, provider=provider, context_mib=0
    ) as session:
        open_seconds = time.perf_counter() - started
        opened = memory_of(os.getpid())
        bench = _Bench(session, load)
        prompts, decode = bench.run(progress)
        return BundleReport(
            bundle=subject,
            machine=this_machine(),
            versions=versions(),
            runs_on=_runs_on(subject.target, session, threads, provider),
            load=bench.load,
            open_seconds=open_seconds,
            prompts=prompts,
            decode=decode,
            opened=opened,
            memory=memory_of(os.getpid()),
            other_load=watch.others(),
        )


def _subject(folder: Path) -> Subject:
    bundle = read_bundle(folder)
    manifest = bundle.manifest
    return Subject(
        name=folder.resolve().name,
        base=manifest.base.name,
        fingerprint=manifest.base.fingerprint,
        target=manifest.target,
        precision=manifest.precision.stored,
        capacity=manifest.graph.capacity,
        size_mib=sum(record.size_bytes for record in bundle.files.values()) / 2**20,
    )


def _runs_on(name: str, session: Session, threads: int | None, provider: Provider | None) -> RunsOn:
    target = TARGETS[name]
    return RunsOn(
        instruction_set=instruction_set() if target.own_kernels else None,
        threads=threads,
        provider=None if provider is None else provider.name,
        slots=session.engine.max_batch,
        gpu=find_gpus().capability if target.on_gpu else None,
    )


@dataclass(frozen=True)
class _Prompts:
    """The prompts of a task whose fields have about so many tokens."""

    task: str
    input_tokens: int
    words: int
    fields: tuple[str, ...]

    def request(self, seed: int, tokens: int) -> Request:
        """One of them, as a request for an answer of exactly so many tokens."""
        texts = {
            name: words(self.words, seed * len(self.fields) + place)
            for place, name in enumerate(self.fields)
        }
        # Held to no choices, and ended by no end token.
        return Request(self.task, texts, max_tokens=tokens, min_tokens=tokens, constrain=False)


@dataclass(frozen=True)
class _Sample:
    """When the tokens of some rows came, in seconds from the request: by row."""

    times: tuple[tuple[float, ...], ...]

    def while_all_decode(self) -> list[tuple[float, ...]]:
        """Of each row, the tokens between the first one of the last row and the end of a row."""
        begin = max(row[0] for row in self.times)
        end = min(row[-1] for row in self.times)
        # Tokens of one step come one by one. So each row is counted from its own first token until
        # its own last one, or the rows at one end would lose a token.
        kept = []
        for row in self.times:
            before = [time for time in row if time <= begin]
            kept.append((*before[-1:], *(time for time in row if begin < time <= end)))
        return kept

    @property
    def tokens_per_second(self) -> float:
        """The speeds of all rows, added up."""
        rows = self.while_all_decode()
        return sum((len(row) - 1) / (row[-1] - row[0]) for row in rows if len(row) > 1)

    @property
    def gaps(self) -> Percentiles:
        """The times from token to token."""
        gaps = [
            after - before for row in self.while_all_decode() for before, after in pairwise(row)
        ]
        found = Percentiles.of(gaps)
        assert found is not None
        return found


@dataclass
class _Samples:
    """What was measured so far: by the index of a prompt, and by batch."""

    first: dict[int, list[float]] = field(default_factory=dict)
    decode: dict[int, list[_Sample]] = field(default_factory=dict)


class _Bench:
    """The measurements of an open session.

    Args:
        session: nothing else runs on it.
        load: what to measure.
    """

    def __init__(self, session: Session, load: BundleLoad) -> None:
        self._session = session
        tasks = load.tasks or tuple(session.tasks)[:MOST_TASKS]
        for name in tasks:
            if name not in session.tasks:
                found, fix = unknown_name(name, tuple(session.tasks), what="task")
                raise RequestError("choosing what to measure", found=found, fix=fix)
        slots = session.engine.max_batch
        batch = load.batch or tuple(each for each in DEFAULT_BATCHES if each <= slots)
        wanted = load.input_tokens or DEFAULT_INPUTS
        groups = {size: [self._prompts_of(task, size) for task in tasks] for size in wanted}
        by_default = wanted[1:] if not load.input_tokens else ()
        for size, group in list(groups.items()):
            if size in by_default and not all(self._fits(each, load.tokens) for each in group):
                del groups[size]
        for each in (each for group in groups.values() for each in group):
            self._check_room(each, load.tokens)
        self._prompts = [each for group in groups.values() for each in group]
        self.load = replace(load, tasks=tasks, batch=batch, input_tokens=tuple(groups))

    def _prompts_of(self, task: str, size: int) -> _Prompts:
        """Prompts of a task; its fields share the tokens."""
        renderer = self._session.tasks[task].renderer
        fields = renderer.template.input_fields
        empty = _Prompts(task, size, 0, fields)
        if not fields:
            return empty
        bare = len(renderer.prompt(dict.fromkeys(fields, "")))

        def tokens(count: int) -> int:
            return len(renderer.prompt(replace(empty, words=count).request(0, 1).fields)) - bare

        return replace(empty, words=most_words(size, tokens))

    def _length(self, prompts: _Prompts) -> int:
        """Tokens of a prompt. Other words of another seed may have an eighth more."""
        length = len(
            self._session.tasks[prompts.task].renderer.prompt(prompts.request(0, 1).fields)
        )
        return length + length // 8

    def _fits(self, prompts: _Prompts, tokens: int) -> bool:
        return self._length(prompts) + tokens <= self._session.engine.capacity

    def _check_room(self, prompts: _Prompts, tokens: int) -> None:
        """Raises `RequestError` if a prompt and its answer do not fit into the cache."""
        if self._fits(prompts, tokens):
            return
        raise RequestError(
            f"measuring task '{prompts.task}'",
            found=f"prompts of up to {self._length(prompts)} tokens, and answers of {tokens}",
            expected=f"at most {self._session.engine.capacity} together: the cache's capacity",
            fix="Lower --input-tokens or --tokens.",
        )

    def run(
        self, progress: Progress
    ) -> tuple[tuple[PromptFigures, ...], tuple[DecodeFigures, ...]]:
        """Measures everything `repeat` times, after once for nothing."""
        samples = _Samples()
        with progress.bar("measuring", self.load.repeat + 1) as bar:
            for turn in range(self.load.repeat + 1):
                self._turn(turn, samples if turn else _Samples())
                bar.advance()
        prompts = [self._prompt_figures(index, samples) for index in range(len(self._prompts))]
        decode = [_decode_figures(batch, samples.decode[batch]) for batch in self.load.batch]
        return tuple(prompts), tuple(decode)

    def _turn(self, turn: int, samples: _Samples) -> None:
        for index, prompts in enumerate(self._prompts):
            ((first,),) = self._timed([prompts.request(turn, 1)]).times
            samples.first.setdefault(index, []).append(first)
        shortest = self._prompts[: len(self.load.tasks)]
        for batch in self.load.batch:
            requests = [
                shortest[row % len(shortest)].request(turn * batch + row, self.load.tokens)
                for row in range(batch)
            ]
            samples.decode.setdefault(batch, []).append(self._timed(requests))

    def _timed(self, requests: Sequence[Request]) -> _Sample:
        """Answers requests together, and notes when each token comes."""
        times: list[list[float]] = [[] for _ in requests]
        started = time.perf_counter()
        for event in self._session.stream(requests):
            times[event.index].append(time.perf_counter() - started)
        for request, row in zip(requests, times, strict=True):
            assert len(row) == request.max_tokens, f"{len(row)} tokens of {request.max_tokens}"
        return _Sample(tuple(map(tuple, times)))

    def _prompt_figures(self, index: int, samples: _Samples) -> PromptFigures:
        prompts, seconds = self._prompts[index], samples.first[index]
        task = self._session.tasks[prompts.task]
        lengths, computed = [], []
        for turn in range(1, self.load.repeat + 1):
            rendered = task.renderer.prompt(prompts.request(turn, 1).fields)
            lengths.append(len(rendered))
            computed.append(len(task.to_feed(rendered)))
        speeds = [count / time for count, time in zip(computed, seconds, strict=True)]
        return PromptFigures(
            task=prompts.task,
            input_tokens=prompts.input_tokens,
            prompt_tokens=lengths[0],
            prefix_tokens=lengths[0] - computed[0],
            first_token_seconds=Spread.of(seconds),
            prefill_tokens_per_second=Spread.of(speeds),
        )


def _decode_figures(batch: int, samples: Sequence[_Sample]) -> DecodeFigures:
    gaps = [sample.gaps for sample in samples]
    return DecodeFigures(
        batch=batch,
        tokens_per_second=Spread.of([sample.tokens_per_second for sample in samples]),
        between_tokens_p50_seconds=Spread.of([each.p50 for each in gaps]),
        between_tokens_p95_seconds=Spread.of([each.p95 for each in gaps]),
    )
