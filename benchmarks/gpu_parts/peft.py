"""`generate` of transformers with a prompt of PEFT's, on the same ids as the bundles."""

from functools import partial

import inference
import torch
import train_vs_peft

from gpu_parts.bases import SMALL, STAND_IN, llama_base
from gpu_parts.onnx import ROWS
from gpu_parts.report import Job, Report, median_seconds, waiter


def run(report: Report, job: Job) -> None:
    """The part."""
    base = llama_base(job.work / "base", SMALL if job.on_gpu else STAND_IN)

    dtype = torch.float16 if job.on_gpu else torch.float32
    model = train_vs_peft.peft_model(base).to(job.device, dtype).eval()
    model.config.use_cache = True
    wait = waiter(job.device)
    steps = inference.STEPS if job.on_gpu else 2

    def generate(rows: int, prompt: int, count: int) -> None:
        ids = torch.from_numpy(inference.ids_of(rows, prompt)).to(job.device)
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=1,
        )

    repeats = 5 if job.on_gpu else 1
    for rows in ROWS if job.on_gpu else ROWS[:1]:
        first, whole = (
            median_seconds(partial(generate, rows, inference.PROMPT, count), repeats, wait)
            for count in (1, steps + 1)
        )
        name = f"transformers with PEFT, {str(dtype).rpartition('.')[2]}: decode, {rows} rows"
        report.figure(f"{name}: tokens a second", rows * steps / (whole - first))
    own = median_seconds(lambda: generate(1, inference.OPENING + inference.OWN, 1), repeats, wait)
    report.figure("transformers with PEFT: first token: s", own)
