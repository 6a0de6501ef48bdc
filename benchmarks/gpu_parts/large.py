"""P-tuning on bases of NeMo's sizes: seconds a step, and at most one copy of the base.

The bases are random GPT-2s of the shapes of NeMo Megatron-GPT 1.3B, 5B and 20B. Two tasks have 20
virtual tokens each, from one encoder (`mlp`); a step is 8 examples of 128 tokens.
"""

import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_parts.bases import gpt_of_zeros
from gpu_parts.report import Job, MissingError, OutOfTimeError, Report, waiter

VIRTUAL, TASKS, BATCH, TOKENS = 20, 2, 8, 128


@dataclass(frozen=True)
class Shape:
    """The shape of a base.

    Attributes:
        name: its usual name.
        layers: how many.
        hidden: their width.
        heads: attention heads of a layer.
        most: largest allowed peak memory of the GPU, as a multiple of the base's size. It is below
            2, which would be a second copy of the base, and less where a step's activations are a
            smaller part.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    most: float


SHAPES = (
    Shape("1.3B", 24, 2048, 16, 1.9),
    Shape("5B", 24, 4096, 32, 1.6),
    Shape("20B", 44, 6144, 48, 1.5),
)
STAND_INS = (Shape("stand-in", 2, 96, 6, 1.9),)
VOCAB, STAND_IN_VOCAB = 50304, 401

# For a whole base: the least bytes a second of loading it and drawing its numbers, and seconds for
# the steps.
_RATE, _STEPS_SECONDS = 1.5e9, 10


def run(report: Report, job: Job) -> None:
    """The part."""
    for shape in SHAPES if job.on_gpu else STAND_INS:
        with report.trying(shape.name):
            _one(report, job, shape)


def _one(report: Report, job: Job, shape: Shape) -> None:
    vocab = VOCAB if job.on_gpu else STAND_IN_VOCAB
    folder = job.work / f"gpt-{shape.name}"
    shutil.rmtree(folder, ignore_errors=True)
    layers, hidden, heads = shape.layers, shape.hidden, shape.heads
    gpt_of_zeros(folder, layers=layers, hidden=hidden, heads=heads, vocab=vocab)
    try:
        size = (folder / "model.safetensors").stat().st_size
        _check_room(job, size)
        seconds, loss, peak = _train(job, folder)
    finally:
        shutil.rmtree(folder)
    report.figure(f"{shape.name}: base, GiB", size / 2**30)
    report.figure(f"{shape.name}: seconds a step", seconds)
    report.expect(f"{shape.name}: loss", loss, "a number", loss == loss)
    if job.on_gpu:
        report.at_most(f"{shape.name}: peak memory, of the base's size", peak / size, shape.most)


def _check_room(job: Job, size: int) -> None:
    needed = size / _RATE + _STEPS_SECONDS if job.on_gpu else 0
    if needed > job.left:
        raise OutOfTimeError(f"a base of {size / 2**30:.0f} GiB needs {needed:.0f} s")
    if job.on_gpu:
        import torch

        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        if 1.5 * size > free:
            raise MissingError(f"memory of the GPU: {free / 2**30:.0f} GiB are free")


def _train(job: Job, folder: Path) -> tuple[float, float, int]:
    """Median seconds of a step, the last loss, and the peak of the GPU's memory in bytes."""
    import numpy as np
    import torch

    from pl_compile.config.train import PTuningConfig
    from pl_compile.text.render import Rendered
    from pl_compile.training.base_model import FrozenBase
    from pl_compile.training.data.dataset import TrainingSequence
    from pl_compile.training.data.packing import pack
    from pl_compile.training.methods.encoders import ENCODERS
    from pl_compile.training.methods.p_tuning import PTuning

    if job.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    base = FrozenBase(folder, "bf16", device=job.device)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in base.model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02)
            elif name.endswith("weight"):  # a norm's weight
                parameter.fill_(1)
    names = [base.embeddings_of(torch.tensor([5 + task])) for task in range(TASKS)]
    encoder = ENCODERS["mlp"](PTuningConfig(), VIRTUAL, base.hidden)
    method: Any = PTuning(encoder, names).to(job.device)
    optimizer = torch.optim.AdamW(method.parameters(), 1e-3)
    generator = np.random.default_rng(0)
    seconds, loss = [], float("nan")
    wait = waiter(job.device)
    for _ in range(6 if job.on_gpu else 2):
        rows = []
        for index in range(BATCH):
            ids = generator.integers(2, 390, VIRTUAL + TOKENS)
            virtual = np.asarray([*range(VIRTUAL), *[-1] * TOKENS])
            ids[:VIRTUAL] = 0
            in_loss = np.arange(len(ids)) >= len(ids) - 5
            rendered = Rendered(ids, virtual, len(ids) - 5)
            rows.append(TrainingSequence(index % TASKS, rendered, in_loss))
        wait()
        started = time.perf_counter()
        prompts = {task: method.prompt(task) for task in range(TASKS)}
        losses = base.token_losses(pack(rows).to(base.device), prompts)
        mean = losses.mean()
        torch.autograd.backward(mean)
        optimizer.step()
        optimizer.zero_grad()
        loss = float(mean.detach())
        wait()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if job.on_gpu else 0
    return statistics.median(seconds[1:]), loss, peak
