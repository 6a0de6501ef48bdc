"""`plc train`, killed at any moment and resumed, ends like a run that nobody killed.

`PLC_KILLS=20 pytest tests/training/test_kill_and_resume.py` kills that often.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pl_compile.artifact.prompt_table import read_prompt_table
from pl_compile.importers.run_checkpoint import read_checkpoint_table
from pl_compile.testing import tiny_train_config, tone_examples, tone_tasks, write_jsonl

KILLS = int(os.environ.get("PLC_KILLS", "6"))

Records = Callable[[Path], list[dict[str, Any]]]
Sums = Callable[[Path | None], dict[str, str]]

# To start Python and torch takes longer than to train a tiny base: one process does that once, and
# forks one for each command line that it reads, which is `plc` from there on.
FORKS = """
import json, os, signal, sys, time
import matplotlib.figure, torch, transformers.models.llama.modeling_llama
import pl_compile.driver.train, pl_compile.training.read_config
from pl_compile.cli.main import main
print("ready", flush=True)
for line in sys.stdin:
    seconds, arguments = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.dup2(2, 1)
        sys.argv = ["plc", *arguments]
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)  # one that has ended keeps its number until it is waited for
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Forks:
    """Starts `plc` again and again."""

    def __init__(self, folder: Path) -> None:
        with (folder / "stderr.txt").open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", FORKS],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def plc(self, *arguments: str, kill_after: float | None = None) -> int:
        """Its exit code; that of a kill where it still ran after so many seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([kill_after, arguments]) + "\n")
        self._process.stdin.flush()
        return int(self._line())

    def end(self) -> None:
        """No more."""
        self._process.communicate()


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[Forks]:
    """`plc` in a fresh folder."""
    started = Forks(tmp_path)
    yield started
    started.end()


def write_config(folder: Path, base: Path) -> None:
    names = ("tone", "a_much_longer_name")
    plain = tiny_train_config(
        folder,
        base,
        tasks=tone_tasks(*names),
        virtual_prompt_style="p-tuning",
        p_tuning={"encoder_type": "lstm", "dropout": 0.3},
        trainer={
            "max_steps": 45,
            "global_batch_size": 8,
            "micro_batch_size": 4,
            "val_check_interval": 3,
        },
        checkpoint={"every_n_steps": 1, "save_top_k": 2},
    )
    rows = tone_examples(*names)
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "validation.jsonl", rows[:8])
    (folder / "tiny.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")


@pytest.mark.timeout(600)
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_is_not(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    forks: Forks,
    records: Records,
    prompt_sums: Sums,
) -> None:
    write_config(tmp_path, tiny_bases["llama"])
    started = time.monotonic()
    assert forks.plc("train", "tiny.yaml", "--output", "whole", "--json") == 0
    seconds = time.monotonic() - started
    moments = random.Random(7)
    expected = (records(tmp_path / "whole"), prompt_sums(tmp_path / "whole/prompts.safetensors"))
    kept = sorted(path.name for path in (tmp_path / "whole/checkpoints").iterdir())
    kills, ended, stood_at = 0, 0, []

    while kills < KILLS or ended == 0:
        run = tmp_path / f"run {ended}"
        resume = (run / "checkpoints/last.safetensors").is_file()
        code = forks.plc(
            "train",
            *("tiny.yaml", "--output", run.name, "--json"),
            *(["--resume"] if resume else []),
            # A part of the run; at last nobody kills.
            kill_after=moments.uniform(0, 0.6 * seconds) if kills < KILLS else None,
        )
        assert code in (0, -signal.SIGKILL), (tmp_path / "stderr.txt").read_text()
        if code == 0:
            assert (records(run), prompt_sums(run / "prompts.safetensors")) == expected
            assert sorted(path.name for path in (run / "checkpoints").iterdir()) == kept
            ended += 1
            continue
        kills += 1
        stood_at.append(_step_of_readable_files(run))

    print(f"{kills} kills, {ended} runs to the end; steps saved at each kill: {stood_at}")
    assert kills == KILLS
    assert len(set(stood_at)) > 1, f"killed at the same step each time: {stood_at}"


def _step_of_readable_files(run: Path) -> int:
    """The step of the last checkpoint; all that a kill left under its name is whole."""
    for path in run.glob("checkpoints/[!.]*"):
        assert set(read_checkpoint_table(path).entries) == {"tone", "a_much_longer_name"}
    if (run / "prompts.safetensors").is_file():
        read_prompt_table(run / "prompts.safetensors")
    last = run / "checkpoints/last.safetensors"
    if not last.is_file():
        return 0
    from safetensors import safe_open

    with safe_open(last, framework="numpy") as file:
        step: int = json.loads(file.metadata()["state"])["step"]
        return step
