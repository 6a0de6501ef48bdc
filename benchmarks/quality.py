"""What each method reaches on each task within a fixed time: the table of docs/quality.md.

    plc prepare phrasebank --input … --output DATA/phrasebank      (and assistant, squad)
    python benchmarks/quality.py DATA --minutes 6 --output results.jsonl [--only squad:prefix …]
    python benchmarks/quality.py DATA --output results.jsonl --table

Every run has the same time for its training steps. First, each task and method is timed alone on
all cores; the number of steps follows from that. After that the time of a step no longer matters,
so several runs may share the machine (`--workers`). All methods start from the same text, see the
same examples and have 20 virtual tokens; plc uses its own defaults. PEFT gets the same rate,
schedule, batch and first rows, in the HF Trainer under bf16 autocast. Every table is compiled and
scored by the same runtime in float32. A result that the file has already is not made again.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

BASE = "smollm2-135m"
VIRTUAL = 20

TASKS: dict[str, dict[str, Any]] = {
    "sentiment": {
        "files": "phrasebank/financial_phrase_bank",
        "prompt_template": "<|VIRTUAL_PROMPT_0|> {sentence} sentiment:{label}",
        "truncate_field": "sentence",
        "choices": [" positive", " neutral", " negative"],
        "init_text": "Classify the sentiment of this financial news sentence as positive, neutral "
        "or negative for an investor.",
        "batch": 16,
    },
    "intent_and_slot": {
        "files": "assistant/assistant",
        "prompt_template": "<|VIRTUAL_PROMPT_0|> Predict intent and slot:\n{utterance}{label}",
        "truncate_field": "utterance",
        "init_text": "Name the intent of this request to a home assistant and list the slots that "
        "it fills with their values.",
        "batch": 16,
    },
    "squad": {
        "files": "squad/squad",
        "prompt_template": "<|VIRTUAL_PROMPT_0|> Context: {context}\n\nQuestion: {question}\n\n"
        "Answer: {answer}",
        "truncate_field": "context",
        "init_text": "Answer the question with a few words copied from the context, as short as "
        "possible.",
        "batch": 8,
    },
}
METHODS: dict[str, dict[str, Any]] = {
    "prompt": {"virtual_prompt_style": "prompt-tuning", "prompt_tuning": {"init": "text"}},
    "p-mlp": {"virtual_prompt_style": "p-tuning", "p_tuning": {"encoder_type": "mlp"}},
    "p-lstm": {"virtual_prompt_style": "p-tuning", "p_tuning": {"encoder_type": "lstm"}},
    "prefix": {"virtual_prompt_style": "prefix-tuning"},
    "peft": {"virtual_prompt_style": "prompt-tuning", "prompt_tuning": {"init": "text"}},
    "none": {"virtual_prompt_style": "no-prompts"},
}
# Enough to watch a run, and so few that they take little of its time.
VALIDATION_ROWS, TEST_ROWS = 100, 200
TIMED_STEPS = 8


def first_rows(source: Path, rows: int, folder: Path) -> Path:
    """Writes the first rows of a file into a folder; returns the new file."""
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    target = folder / source.name
    target.write_text("".join(lines[:rows]), encoding="utf-8")
    return target


def config_of(task: str, method: str, seed: int, data: Path, folder: Path) -> dict[str, Any]:
    """The training config as plain data."""
    spec = dict(TASKS[task])
    files, batch = data / spec.pop("files"), spec.pop("batch")
    return {
        "base": BASE,
        "tasks": [{"taskname": task, "total_virtual_tokens": VIRTUAL, **spec}],
        "data": {
            "train": [f"{files}_train.jsonl"],
            "validation": [str(first_rows(Path(f"{files}_val.jsonl"), VALIDATION_ROWS, folder))],
            "max_seq_length": 384,
        },
        "trainer": {
            "global_batch_size": batch,
            "micro_batch_size": batch,
            "precision": "bf16",
            "val_check_interval": 10**6,
        },
        "seed": seed,
        **METHODS[method],
    }


def train_plc(config: dict[str, Any], steps: int, folder: Path) -> tuple[Path, list[float]]:
    """Trains with `plc train` and returns the table and the seconds of each step."""
    import yaml

    path, output = folder / "train.yaml", folder / "run"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    plc("train", str(path), "--set", f"trainer.max_steps={steps}", "--output", str(output))
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "train_loss" in record]
    return output / "prompts.safetensors", [record["seconds"] for record in records]


def train_peft(config: dict[str, Any], steps: int, folder: Path) -> tuple[Path, list[float]]:
    """Trains PEFT prompt tuning in the HF Trainer on the same ids, and imports its adapter."""
    import torch
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from pl_compile.config.read import build, node_from_plain
    from pl_compile.config.train import TrainConfig
    from pl_compile.driver.bring_in import PeftImport, import_peft
    from pl_compile.families.read import read_decoder_config
    from pl_compile.progress import SILENT
    from pl_compile.text.tokenizer import Tokenizer
    from pl_compile.training.data.load import load_sequences, sequence_rules
    from pl_compile.training.methods import METHODS as PLC_METHODS
    from pl_compile.training.methods.first_tokens import tokens_of_text
    from pl_compile.weights.bases import find_base

    node = node_from_plain({**config, "trainer": {**config["trainer"], "max_steps": 1}}, "here")
    read = build(TrainConfig, node, doing="reading the config")
    base = find_base(BASE)
    decoder, tokenizer = read_decoder_config(base), Tokenizer.from_folder(base)
    rules = sequence_rules(read, decoder, tokenizer)
    sequences = load_sequences(read, read.data.train, decoder, tokenizer, rules, SILENT)
    rows = []
    for sequence in (sequence.without_virtual() for sequence in sequences):
        ids = sequence.rendered.token_ids.tolist()
        in_loss = sequence.in_loss.tolist()
        labels = [token if wanted else -100 for token, wanted in zip(ids, in_loss, strict=True)]
        rows.append({"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)})

    def padded(batch: list[dict[str, list[int]]]) -> dict[str, Any]:
        longest = max(len(row["input_ids"]) for row in batch)
        fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
        return {
            key: torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in batch])
            for key, value in fill.items()
        }

    torch.manual_seed(config["seed"])
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.config.use_cache = False
    first = model.get_input_embeddings().weight[tokens_of_text(read.tasks[0], tokenizer)]
    tuned: Any = get_peft_model(
        model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL)
    )
    tuned.prompt_encoder["default"].embedding.weight.data.copy_(first.detach())
    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(perf_counter() - self.started)

    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=config["trainer"]["global_batch_size"],
        max_steps=steps,
        learning_rate=PLC_METHODS["prompt-tuning"].default_lr,
        lr_scheduler_type="cosine",
        warmup_steps=round(0.05 * steps),
        weight_decay=0.01,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        seed=config["seed"],
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=True,
        disable_tqdm=True,
    )
    Trainer(
        model=tuned,
        args=arguments,
        train_dataset=rows,
        data_collator=padded,
        callbacks=[Clock()],
    ).train()
    tuned.save_pretrained(folder / "adapter")
    spec, table = read.tasks[0], folder / "prompts.safetensors"
    import_peft(
        PeftImport(
            folder / "adapter",
            table,
            spec.taskname,
            spec.prompt_template,
            spec.choices,
            spec.truncate_field,
            BASE,
        )
    )
    return table, seconds


def score(task: str, table: Path, data: Path, folder: Path, *, prompt: bool) -> dict[str, float]:
    """Compiles a table and scores it on the test rows."""
    bundle = folder / "bundle"
    plc(
        *("export", "--prompts", str(table), "--base", BASE, "--output", str(bundle)),
        *("--target", "onnx-cpu", "--quantize", "none", "--no-parity"),
    )
    test = first_rows(
        Path(f"{data / TASKS[task]['files']}_test_ground_truth.jsonl"), TEST_ROWS, folder
    )
    baseline = [] if not prompt else ["--no-baseline"]
    printed = plc("eval", str(bundle), "--data", str(test), "--json", *baseline)
    result: dict[str, float] = json.loads(printed)["tasks"][0][
        "with_prompt" if prompt else "without_prompt"
    ]
    return result


def plc(*arguments: str) -> str:
    """Runs a command of plc and returns its standard output."""
    command = [sys.executable, "-m", "pl_compile.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"plc {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def one_run(task: str, method: str, seed: int, steps: int, data: Path) -> dict[str, Any]:
    """Trains and scores, or of a few steps says how long one takes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = config_of(task, method, seed, data, folder)
        if steps == TIMED_STEPS:
            config["data"]["validation"] = []
        if method == "none":  # any table will do: its prompt is left out
            config.update(METHODS["prompt"])
        table, seconds = (train_peft if method == "peft" else train_plc)(config, steps, folder)
        made = {"task": task, "method": method, "step_seconds": statistics.median(seconds[2:])}
        if steps == TIMED_STEPS and method != "none":
            return made
        scores = score(task, table, data, folder, prompt=method != "none")
    steps = 0 if method == "none" else steps
    return {"task": task, "method": method, "seed": seed, "steps": steps, **scores}


def in_a_process(arguments: list[str], threads: int) -> dict[str, Any]:
    """`one_run` in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def print_table(results: list[dict[str, Any]]) -> None:
    """Prints the results as Markdown; several seeds as their mean and half their range."""
    shown = {"sentiment": ["accuracy"], "squad": ["exact_match", "f1"]}
    shown["intent_and_slot"] = ["intent_accuracy", "joint_accuracy"]
    for task in TASKS:
        print(f"\n| {task} | " + " | ".join(shown[task]) + " | seconds a step | steps | seeds |")
        print("|---" * (len(shown[task]) + 4) + "|")
        for method in METHODS:
            runs = [
                r for r in results if "seed" in r and (r["task"], r["method"]) == (task, method)
            ]
            if not runs:
                continue
            cells = [method]
            for key in shown[task]:
                values = [run[key] for run in runs]
                spread = f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}")
            pace = [r["step_seconds"] for r in results if is_pace(r, task, method)]
            cells += [f"{pace[0]:.2f}" if pace else "", str(runs[0]["steps"])]
            cells += [", ".join(str(run["seed"]) for run in runs)]
            print("| " + " | ".join(cells) + " |")


def is_pace(result: dict[str, Any], task: str, method: str) -> bool:
    """Whether a line of the results is the timing of this task and method."""
    return "seed" not in result and (result["task"], result["method"]) == (task, method)


def main() -> None:
    """Makes the runs that are missing, or prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the prepared data sets")
    parser.add_argument("--minutes", type=float, default=6.0, help="of training steps, a run")
    parser.add_argument("--output", type=Path, default=Path("quality.jsonl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="+", metavar="TASK:METHOD", help="these runs only")
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time")
    parser.add_argument("--table", action="store_true", help="print what the file holds")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        task, method, seed, steps = options.one
        print(json.dumps(one_run(task, method, int(seed), int(steps), options.data)))
        return
    results: list[dict[str, Any]] = []
    if options.output.is_file():
        results = [json.loads(line) for line in options.output.read_text().splitlines()]
    if options.table:
        print_table(results)
        return
    data = str(options.data.absolute())
    cores = os.cpu_count() or 1
    pairs = [
        tuple(pair.split(":"))
        for pair in options.only or [f"{task}:{method}" for task in TASKS for method in METHODS]
    ]

    def add(arguments: list[Any], threads: int) -> None:
        result = in_a_process([data, "--one", *map(str, arguments)], threads)
        print(json.dumps(result), file=sys.stderr)
        results.append(result)
        with options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")

    for task, method in pairs:
        if method != "none" and not any(is_pace(r, task, method) for r in results):
            add([task, method, 1, TIMED_STEPS], cores)
    paces = {(r["task"], r["method"]): r["step_seconds"] for r in results if "seed" not in r}
    done = {(r["task"], r["method"], r["seed"]) for r in results if "seed" in r}
    with ThreadPoolExecutor(options.workers) as pool:
        runs = [
            pool.submit(
                add,
                [
                    task,
                    method,
                    seed,
                    math.floor(options.minutes * 60 / paces[task, method])
                    if method != "none"
                    else TIMED_STEPS,
                ],
                max(1, cores // options.workers),
            )
            for seed in options.seeds
            for task, method in pairs
            if (task, method, seed) not in done
        ]
        for run in runs:
            run.result()


if __name__ == "__main__":
    main()
