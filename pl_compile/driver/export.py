"""From prompt table and base to bundle: the page that reads like the flow.

table -> base -> contract -> weights -> main graph -> target's files -> tasks -> parity -> manifest
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from pl_compile import __version__
from pl_compile.artifact.bundle import (
    MODEL_NAME,
    REPORT,
    Manifest,
    is_bundle,
    task_folder,
    write_json,
    write_manifest,
    write_task,
)
from pl_compile.artifact.files import check_replaceable, folder_written_whole
from pl_compile.artifact.prompt_table import TaskEntry, check_prefix, read_prompt_table
from pl_compile.config.contract import GraphContract, PromptsMode
from pl_compile.config.decoder import DecoderConfig, read_decoder_config
from pl_compile.driver.parity import (
    Parity,
    compare,
    probe_rows,
    selftest_arrays,
    trace,
)
from pl_compile.errors import ExportError
from pl_compile.exporters import exporter_for
from pl_compile.graph.decoder import build_decoder
from pl_compile.progress import SILENT, Progress
from pl_compile.runtime.engines.onnxruntime import OnnxRuntimeEngine
from pl_compile.runtime.task_prompt import TaskPrompt
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.weights.checkpoint import Checkpoint, fingerprint_base
from pl_compile.weights.names import load_weights

DEFAULT_CAPACITY = 1024


@dataclass(frozen=True)
class ExportRequest:
    """What to compile.

    Attributes:
        table: the prompt table.
        base: the Hugging Face folder it was trained on.
        output: the bundle; one that is there is replaced at the end.
        tasks: which tasks of the table; all if empty.
        target: a key of `exporters.EXPORTERS`.
        prompts: "input" (tasks can be added later) or "baked" (constants of the graph).
        capacity: longest sequence a row can hold, virtual tokens and answer included; 1,024, or
            what the base was made for if that is less, if None.
        measure_parity: whether the bundle is compared with torch, where torch is installed.
    """

    table: Path
    base: Path
    output: Path
    tasks: tuple[str, ...] = ()
    target: str = "onnx-cpu"
    prompts: PromptsMode = "input"
    capacity: int | None = None
    measure_parity: bool = True


@dataclass(frozen=True)
class ExportResult:
    """What was compiled.

    Attributes:
        bundle: its folder.
        tasks: in order.
        parity: one comparison per task; empty where it was not measured.
        passed: "passed", "failed" or "not measured".
        size_bytes: of the whole bundle.
        seconds: wall time by step.
    """

    bundle: Path
    tasks: tuple[str, ...]
    parity: tuple[Parity, ...]
    passed: str
    size_bytes: int
    seconds: dict[str, float]


def export_bundle(request: ExportRequest, *, progress: Progress = SILENT) -> ExportResult:
    """Compiles a bundle; it is there whole or not at all.

    A bundle whose numbers differ from the reference is still written, marked "failed".

    Raises:
        ArtifactError: the table cannot be read or has no such task, a prefix does not fit base and
            template, or the disk refuses.
        ConfigError: a template that cannot be parsed.
        FingerprintError: the table was trained on another base.
        BaseModelError: the base cannot be read.
        ExportError: the target or the capacity cannot hold it.
    """
    check_replaceable(request.output, is_bundle)
    clock = _Clock()
    exporter = exporter_for(request.target)
    table = read_prompt_table(request.table)
    names = dict.fromkeys(request.tasks or table.entries)  # a task named twice is one task
    entries = [table.entry(name) for name in names]
    config = read_decoder_config(request.base)
    contract = _contract(request, config, entries)
    exporter.check(config, contract)

    progress.say(f"reading {request.base}")
    checkpoint = Checkpoint(request.base)
    table.check_base(fingerprint_base(checkpoint, config), str(request.base))
    weights = load_weights(checkpoint, config)
    tokenizer = Tokenizer.from_folder(request.base)
    for entry in entries:
        check_prefix(entry, config, f"exporting task '{entry.task.taskname}'")
        TaskPrompt.of(entry, tokenizer)  # what a session could not render is not written
    clock.lap("read")

    progress.say(f"building the graph for {request.target}, prompts {request.prompts}")
    baked = _baked_rows(entries) if request.prompts == "baked" else None
    model = build_decoder(config, contract, weights, baked)
    clock.lap("graph")

    with folder_written_whole(request.output, is_ours=is_bundle) as staging:
        (staging / "base").mkdir()
        exporter.build(model, staging / "base")
        del model, weights
        (staging / "tokenizer.json").write_text(tokenizer.text, encoding="utf-8")
        for entry in entries:
            write_task(staging, entry)
        clock.lap("write")

        parity = _measure(request, staging, contract, entries, tokenizer, progress)
        for result in parity:
            write_json(task_folder(staging, result.task) / "parity.json", asdict(result))
        clock.lap("parity")

        passed = "not measured"
        if parity:
            passed = "passed" if all(result.passed for result in parity) else "failed"
        seconds = clock.laps
        write_json(
            staging / REPORT,
            {
                "parity": passed,
                "tasks": {result.task: asdict(result) for result in parity},
                "prompt_bytes": {e.task.taskname: e.learned.nbytes for e in entries},
                "seconds": seconds,
            },
        )
        manifest = Manifest(
            base=table.base,
            target=request.target,
            graph=contract,
            tasks=tuple(entry.task.taskname for entry in entries),
            toolchain={"plc": __version__, **exporter.describe()},
            parity=passed,
        )
        progress.say("summing up")
        write_manifest(staging, manifest)
    size = sum(path.stat().st_size for path in request.output.rglob("*") if path.is_file())
    return ExportResult(request.output, manifest.tasks, tuple(parity), passed, size, seconds)


def _contract(
    request: ExportRequest, config: DecoderConfig, entries: Sequence[TaskEntry]
) -> GraphContract:
    capacity = request.capacity
    if capacity is None:
        capacity = min(DEFAULT_CAPACITY, config.positions)
    longest = max(entry.task.total_virtual_tokens for entry in entries)
    if not longest + 2 <= capacity <= config.positions:
        raise ExportError(
            "sizing the cache",
            found=f"capacity {capacity}",
            expected=f"{longest + 2} (virtual tokens, a token, an answer) to {config.positions} "
            "(positions of the base)",
            fix="Choose another --capacity.",
        )
    return GraphContract(
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        hidden=config.hidden,
        vocab=config.vocab,
        capacity=capacity,
        prompts=request.prompts,
        baked_tasks=tuple(e.task.taskname for e in entries) if request.prompts == "baked" else (),
    )


def _baked_rows(entries: Sequence[TaskEntry]) -> NDArray[np.float32]:
    """float32 `[tasks, rows, hidden]`, zero-padded to the longest prompt."""
    # At least one row, as where prompts are an input: tasks with a prefix have none.
    rows = max([1, *(len(entry.rows) for entry in entries)])
    return np.stack([np.pad(e.rows, ((0, rows - len(e.rows)), (0, 0))) for e in entries])


def _measure(
    request: ExportRequest,
    staging: Path,
    contract: GraphContract,
    entries: Sequence[TaskEntry],
    tokenizer: Tokenizer,
    progress: Progress,
) -> list[Parity]:
    """Compares the built files with torch and leaves self-test vectors in each task's folder."""
    if not request.measure_parity:
        return []
    if find_spec("torch") is None or find_spec("transformers") is None:
        progress.say("parity is not measured: torch and transformers are not installed")
        return []
    from pl_compile.training.reference import TorchEngine, reference_name

    rows = probe_rows(entries, tokenizer, vocab=contract.vocab, capacity=contract.capacity)
    reference = TorchEngine(request.base, capacity=contract.capacity)
    expected = trace(reference, rows, label="reference (torch)", progress=progress)
    engine = OnnxRuntimeEngine(staging / "base" / MODEL_NAME, contract, max_batch=len(rows))
    actual = trace(engine, rows, follow=expected.tokens, label=request.target, progress=progress)
    for entry in entries:
        name = entry.task.taskname
        arrays = selftest_arrays(rows, expected, name)
        (task_folder(staging, name) / "selftest.safetensors").write_bytes(save(arrays))
    return compare(rows, expected, actual, reference_name())


class _Clock:
    """Wall time by step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now
