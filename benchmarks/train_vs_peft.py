"""A training step of prompt tuning, against PEFT with the HF Trainer and PEFT in a bare loop.

    python benchmarks/train_vs_peft.py [--precision fp32 bf16] [--repeats 5] [--steps 5] [--json]

The same workload for all: SmolLM2-135M-Instruct, 20 virtual tokens from the same first rows, the
same batches of 8 examples of 40 to 200 tokens with answers of 3 to 7, loss on the answers, AdamW at
a constant rate, gradients clipped at 1. Every sample is a process of its own; the systems take
turns. It compares seconds of a step after a warm-up, the peak of the resident memory, and the
losses, which show that all compute the same. The default precision is bf16, or fp32 where the
hardware would emulate bf16. In bf16 PEFT computes under autocast over float32 weights, as the
Trainer does; plc stores the frozen weights in bfloat16.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

SYSTEMS = ("plc", "trainer", "loop")
LABELS = {"plc": "plc", "trainer": "PEFT + HF Trainer", "loop": "PEFT, bare loop"}
VIRTUAL, BATCH, LR = 20, 8, 1e-3


def examples(base: Path, count: int) -> list[tuple[list[int], int]]:
    """Token ids and the length of the answer: pieces of this project's pages."""
    from pl_compile.text.tokenizer import Tokenizer

    root = Path(__file__).resolve().parent.parent
    pages = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    ids = Tokenizer.from_folder(base).encode(text, opens=True, markup=False)
    draw = random.Random(7)
    rows = []
    for _ in range(count):
        length, answer = draw.randint(40, 200), draw.randint(3, 7)
        start = draw.randrange(len(ids) - length)
        rows.append((ids[start : start + length], answer))
    return rows


def run_plc(
    base: Path, dtype: str, steps: int, device: str = "cpu"
) -> tuple[list[float], list[float]]:
    """The trainer's own loop, without files."""
    import numpy as np
    import torch

    from pl_compile.progress import SILENT
    from pl_compile.text.render import Rendered
    from pl_compile.training.base_model import FrozenBase
    from pl_compile.training.data.batches import BatchOrder
    from pl_compile.training.data.dataset import TrainingSequence
    from pl_compile.training.loop import Job, LoopHooks, LoopSettings, train
    from pl_compile.training.methods.prompt_tuning import PromptTuning
    from pl_compile.training.run_state import RunState
    from pl_compile.training.schedule import CosineSchedule

    sequences = []
    for ids, answer in examples(base, BATCH * steps):
        tokens = np.asarray([0] * VIRTUAL + ids)
        virtual = np.asarray([*range(VIRTUAL), *[-1] * len(ids)])
        start = len(tokens) - answer
        in_loss = np.arange(len(tokens)) >= start
        sequences.append(TrainingSequence(0, Rendered(tokens, virtual, start), in_loss))
    frozen = FrozenBase(base, dtype, device=device)
    method = PromptTuning([frozen.embeddings_of(torch.arange(VIRTUAL))]).to(device)
    settings = LoopSettings(
        seed=0,
        gradient_clip_val=1.0,
        validate_every=steps + 1,
        save_every=None,
        log_every=1,
        validation_batch_size=BATCH,
        max_seconds=float("inf"),
        max_skipped=1,
        patience=None,
        min_delta=0.0,
    )
    job = Job(
        frozen,
        method,
        torch.optim.AdamW(method.parameters(), LR, (0.9, 0.999), weight_decay=0.0),
        torch.amp.GradScaler(device, enabled=False),
        CosineSchedule(LR, LR, 0, 0, steps),
        BatchOrder(len(sequences), BATCH, BATCH, seed=0, shuffle=False),
        sequences,
        [],
        settings,
    )
    records: list[dict[str, Any]] = []
    hooks = LoopHooks(records.append, lambda s: {}, lambda s: None)
    train(job, hooks, RunState(), SILENT)
    return [r["seconds"] for r in records], [r["train_loss"] for r in records]


def peft_model(base: Path) -> Any:
    """The base with PEFT's prompt tuning. Its prompt starts as plc's does."""
    import torch
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.config.use_cache = False
    first = model.get_input_embeddings().weight[:VIRTUAL].detach().clone()
    tuned: Any = get_peft_model(
        model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL)
    )
    tuned.prompt_encoder["default"].embedding.weight.data.copy_(first)
    return tuned


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """Pads on the right, as the Trainer's own collators do."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, value: int) -> Any:
        return torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])

    return {
        "input_ids": padded("input_ids", 0),
        "labels": padded("labels", -100),
        "attention_mask": padded("attention_mask", 0),
    }


def peft_rows(base: Path, steps: int) -> list[dict[str, list[int]]]:
    """The examples as PEFT takes them."""
    return [
        {
            "input_ids": ids,
            "labels": [-100] * (len(ids) - answer) + ids[-answer:],
            "attention_mask": [1] * len(ids),
        }
        for ids, answer in examples(base, BATCH * steps)
    ]


def run_loop(base: Path, dtype: str, steps: int) -> tuple[list[float], list[float]]:
    """PEFT in a bare loop."""
    import torch

    model, rows = peft_model(base), peft_rows(base, steps)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, LR, weight_decay=0.0)
    seconds, losses = [], []
    for step in range(steps):
        started = perf_counter()
        batch = collate(rows[step * BATCH : (step + 1) * BATCH])
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(perf_counter() - started)
        losses.append(loss.item())
    return seconds, losses


def run_trainer(
    base: Path, dtype: str, steps: int, device: str = "cpu"
) -> tuple[list[float], list[float]]:
    """PEFT with the Trainer of transformers."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    seconds: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(perf_counter() - self.started)

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                losses.append(logs["loss"])

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=device == "cpu",
        bf16=dtype == "bf16",
        disable_tqdm=True,
    )
    trainer = InOrder(
        model=peft_model(base),
        args=arguments,
        train_dataset=peft_rows(base, steps),
        data_collator=collate,
        callbacks=[Clock()],
    )
    trainer.train()
    return seconds, losses


RUN = {"plc": run_plc, "trainer": run_trainer, "loop": run_loop}


def sample(system: str, dtype: str, steps: int) -> dict[str, Any]:
    """One process of one system: the median step, the peak memory and the losses."""
    command = [sys.executable, __file__, "--sample", system, dtype, "--steps", str(steps)]
    quiet = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=quiet, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{system} {dtype} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def one_sample(system: str, dtype: str, steps: int) -> None:
    """The work of one process of `sample`."""
    import torch

    from pl_compile.weights.bases import find_base

    torch.manual_seed(0)
    seconds, losses = RUN[system](find_base("smollm2-135m"), dtype, steps + 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": statistics.median(seconds[1:]), "mib": peak, "losses": losses}))


def precision_of_this_machine() -> str:
    """What `trainer.precision: auto` takes here, on the CPU."""
    from pl_compile.training.precision import has_unit

    return "bf16" if has_unit("bf16", "cpu")[0] else "fp32"


def main() -> None:
    """Runs all samples in turn and prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="steps of a sample, after a warm-up")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), help="one or both")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--sample", nargs=2, metavar=("SYSTEM", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sample:
        one_sample(options.sample[0], options.sample[1], options.steps)
        return

    dtypes = options.precision or [precision_of_this_machine()]
    samples: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for repeat in range(options.repeats):
        for dtype in dtypes:
            for system in SYSTEMS:
                result = sample(system, dtype, options.steps)
                samples.setdefault((system, dtype), []).append(result)
                print(
                    f"{repeat + 1}/{options.repeats} {dtype} {LABELS[system]:18} "
                    f"{result['seconds']:6.2f} s a step, {result['mib']:5.0f} MiB",
                    file=sys.stderr,
                )

    def median(system: str, dtype: str, key: str) -> float:
        values: list[float] = [result[key] for result in samples[system, dtype]]
        return statistics.median(values)

    summary: dict[str, Any] = {}
    for dtype in dtypes:
        print(f"\n{dtype}: medians of {options.repeats} samples of {options.steps} steps")
        for system in SYSTEMS:
            seconds, mib = (median(system, dtype, key) for key in ("seconds", "mib"))
            faster = seconds / median("plc", dtype, "seconds")
            memory = median("plc", dtype, "mib") / mib
            worst = max(
                abs(one - other)
                for one, other in zip(
                    samples[system, dtype][0]["losses"],
                    samples["plc", dtype][0]["losses"],
                    strict=True,
                )
            )
            print(
                f"  {LABELS[system]:18} {seconds:6.2f} s, {mib:5.0f} MiB; plc: {faster:.2f} times "
                f"the steps a second, {memory:.2f} of the memory; losses differ by {worst:.1e}"
            )
            if system != "plc":
                summary[f"{dtype}_{system}"] = {
                    "steps_per_second_ratio": round(faster, 3),
                    "peak_memory_ratio": round(memory, 3),
                    "largest_loss_difference": worst,
                }
    summary["losses"] = {f"{d}_{s}": samples[s, d][0]["losses"] for s in SYSTEMS for d in dtypes}
    if options.json:
        headline = {
            key: summary[f"{dtypes[0]}_trainer"][key]
            for key in ("steps_per_second_ratio", "peak_memory_ratio")
        }
        print(json.dumps({**headline, **summary}))


if __name__ == "__main__":
    main()
