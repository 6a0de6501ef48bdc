"""Training on the GPU: losses as on the CPU, no copy of the base to the host, and PEFT's speed."""

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import train_vs_peft

from gpu_parts.bases import SMALL, STAND_IN, llama_base
from gpu_parts.report import Job, Report
from pl_compile.testing import tiny_run, tone_examples, tone_tasks
from pl_compile.training.run import run_training

METHODS = ("prompt-tuning", "p-tuning", "prefix-tuning")
STEPS = 20
# Relative to the loss of the same step on the CPU in float32. Once numbers differ, runs drift
# apart, so this is wider than one step needs.
LIMITS = {"fp32": 1e-3, "bf16": 0.05}


def run(report: Report, job: Job) -> None:
    """The part."""
    for method in METHODS:
        with report.trying(f"{method}: losses"):
            _losses(report, job, method)
    base = llama_base(job.work / "base", SMALL if job.on_gpu else STAND_IN)
    for precision in ("bf16", "fp32"):
        with report.trying(f"beside PEFT, {precision}"):
            _beside_peft(report, job, base, precision)
    with report.trying("copies to the host"):
        _copies(report, job, base)


def _losses(report: Report, job: Job, method: str) -> None:
    base = llama_base(job.work / "small", STAND_IN, vocab=401)
    with tempfile.TemporaryDirectory(dir=job.work) as folder:
        expected = _run(Path(folder), base, method, "fp32", "cpu")
        for precision, limit in LIMITS.items():
            found = _run(Path(folder), base, method, precision, job.device)
            worst = max(abs(a - b) / b for a, b in zip(found, expected, strict=True))
            name = f"{method}, {precision}: losses of {STEPS} steps to the CPU's"
            report.at_most(name, worst, limit)
        fell = statistics.mean(expected[-4:]) / statistics.mean(expected[:4])
        report.at_most(f"{method}: the last losses over the first", fell, 0.99)


def _run(folder: Path, base: Path, method: str, precision: str, device: str) -> list[float]:
    names = ("tone", "mood")  # p-tuning needs tasks of one size
    config = tiny_run(
        Path(tempfile.mkdtemp(dir=folder)),
        base,
        rows=tone_examples(*names),
        tasks=tone_tasks(*names),
        virtual_prompt_style=method,
        trainer={"max_steps": STEPS, "val_check_interval": STEPS, "precision": precision},
    )
    output = Path(tempfile.mkdtemp(dir=folder))
    run_training(config, output, device=device)
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [record["train_loss"] for record in records if "train_loss" in record]


def _beside_peft(report: Report, job: Job, base: Path, precision: str) -> None:
    steps = 10 if job.on_gpu else 1
    ours = _timed(job, train_vs_peft.run_plc, base, precision, steps)
    theirs = _timed(job, train_vs_peft.run_trainer, base, precision, steps)
    for name, (seconds, peak, _) in {"plc": ours, "PEFT + HF Trainer": theirs}.items():
        report.figure(f"{name}, {precision}: steps a second", 1 / seconds)
        if job.on_gpu:
            report.figure(f"{name}, {precision}: peak memory, MiB", peak)
    report.figure(f"plc to PEFT, {precision}: steps a second", theirs[0] / ours[0])
    if job.on_gpu:
        report.figure(f"plc to PEFT, {precision}: peak memory", ours[1] / theirs[1])
    worst = max(abs(a - b) / b for a, b in zip(ours[2], theirs[2], strict=True))
    report.at_most(f"plc to PEFT, {precision}: losses", worst, LIMITS[precision])


def _timed(
    job: Job, system: Callable[..., Any], base: Path, precision: str, steps: int
) -> tuple[float, float, Sequence[float]]:
    """Median seconds of a step after the first, peak MiB of the GPU, and the losses."""
    import torch

    if job.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds, losses = system(base, precision, steps + 1, job.device)
    peak = torch.cuda.max_memory_allocated() / 2**20 if job.on_gpu else 0.0
    return statistics.median(seconds[1:]), peak, losses


def _copies(report: Report, job: Job, base: Path) -> None:
    """Counts bytes that go from the GPU to the host in the loop, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    steps = 5 if job.on_gpu else 1
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if job.on_gpu else [])]
    with profile(activities=activities) as seen:
        train_vs_peft.run_plc(base, "bf16", steps, job.device)
    with tempfile.TemporaryDirectory(dir=job.work) as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    if job.on_gpu:
        # A profiler that does not see the GPU would count no copies at all; each loss is one copy.
        seen_there = sum(event.get("cat") == "kernel" for event in events)
        report.expect("kernels that the profiler has seen", seen_there, "some", seen_there > 0)
        copies = sum(map(is_copy_to_host, events))
        report.expect("copies that it has seen", copies, f"at least {steps}", copies >= steps)
    moved = bytes_to_host(events)
    size = (base / "model.safetensors").stat().st_size
    report.at_most(f"bytes to the host in {steps} steps, of the base's", moved / size, 0.01)


def bytes_to_host(events: Sequence[dict[str, Any]]) -> int:
    """The bytes of all copies from a GPU to the host in a trace of torch's profiler."""
    copies = filter(is_copy_to_host, events)
    return sum(int(event.get("args", {}).get("bytes", 0)) for event in copies)


def is_copy_to_host(event: dict[str, Any]) -> bool:
    """Whether an event of a trace is a copy from a GPU to the host."""
    return event.get("cat") == "gpu_memcpy" and "DtoH" in event.get("name", "")
