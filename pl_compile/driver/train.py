"""Training with what lies outside its room: answers scored on the way, a bundle for the loggers.

The trainer sees neither runtime nor compiler; here they are handed to it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from pl_compile.artifact.prompt_table import PromptTable, TaskEntry
from pl_compile.config.build import BuildOptions
from pl_compile.config.train import TrainConfig
from pl_compile.driver.evaluate import EvalOptions, read_to_score, score_examples
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.progress import SILENT, Progress
from pl_compile.runtime.session import Session
from pl_compile.text.examples import Example
from pl_compile.text.template import parse_templates
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.data.load import sequence_rules
from pl_compile.training.reference import TorchEngine
from pl_compile.training.run import Helpers, Scores, TrainResult, run_training
from pl_compile.training.team import leads


def train_run(
    config: TrainConfig, output: Path, *, resume: bool = False, progress: Progress = SILENT
) -> TrainResult:
    """Trains as `run_training` does, with scores and bundles where the config asks for them.

    Raises:
        PlcError: anything that keeps the run from its end.
    """
    progress = progress if leads() else SILENT  # of several processes, one talks
    examples = cache(lambda: _examples(config))  # read at the first scores, for all

    def score(
        config: TrainConfig, base: FrozenBase, tokenizer: Tokenizer, table: PromptTable | None
    ) -> Scores:
        return score_answers(config, base, tokenizer, table, examples(), progress=progress)

    def bundle(table: Path, base: Path, output: Path) -> None:
        # For any machine: nobody knows where a bundle that is uploaded will be served.
        request = ExportRequest(
            table, base, output, target="onnx-cpu", options=BuildOptions(quantize="none")
        )
        export_bundle(request, progress=progress)

    helpers = Helpers(score, bundle)
    return run_training(config, output, resume=resume, progress=progress, helpers=helpers)


def score_answers(
    config: TrainConfig,
    base: FrozenBase,
    tokenizer: Tokenizer,
    table: PromptTable | None,
    examples: Mapping[str, Sequence[Example]],
    *,
    progress: Progress = SILENT,
) -> Scores:
    """Answers the validation examples with the base as it is loaded, and scores the answers.

    Args:
        config: `validation` says how many, and by which metric.
        base: of the run, in its precision.
        tokenizer: the base's.
        table: the prompts; None for none.
        examples: of each task, as `read_to_score` gives them.
        progress: who is told.
    """
    entries = _without_prompts(config, base, tokenizer) if table is None else table.entries
    session = Session.of_entries(tokenizer, entries, TorchEngine(base))
    options = replace(_options(config), prompt=table is not None)
    scores = score_examples(session, examples, options, progress=progress)
    predictions = [
        {
            "task": score.task,
            "prompt": json.dumps(asked, ensure_ascii=False),
            "answer": answer,
            "expected": expected,
        }
        for score in scores
        for asked, answer, expected in zip(
            score.asked, score.predictions, score.expected, strict=True
        )
    ]
    return Scores({score.task: score.with_prompt for score in scores}, predictions)


def _examples(config: TrainConfig) -> dict[str, list[Example]]:
    templates = parse_templates(config.tasks)
    return read_to_score(config.data.validation, templates, _options(config))


def _options(config: TrainConfig) -> EvalOptions:
    wanted = config.validation
    return EvalOptions(
        metric=wanted.metric,
        baseline=False,
        max_tokens=wanted.max_tokens,
        limit=wanted.limit,
        tell_cuts=False,
    )


def _without_prompts(
    config: TrainConfig, base: FrozenBase, tokenizer: Tokenizer
) -> dict[str, TaskEntry]:
    rules = sequence_rules(config, base.config, tokenizer)
    return {
        task.taskname: TaskEntry(
            task,
            np.zeros((task.total_virtual_tokens, base.hidden), np.float32),
            rules,
            "no-prompts",
        )
        for task in config.tasks
    }
