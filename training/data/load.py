"""A run's examples, from files to sequences: rendered once, then taken from the cache."""

import os
from collections.abc import Sequence
from pathlib import Path

from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.train import TrainConfig
from pl_compile.config.utf8 import check_regular
from pl_compile.errors import ConfigError, DataError, TrainingError, list_problems, reason_of
from pl_compile.progress import Progress
from pl_compile.text.end_tokens import end_tokens
from pl_compile.text.examples import read_examples
from pl_compile.text.render import Renderer, SequenceRules
from pl_compile.text.template import parse_templates
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.data.cache import cached, dataset_key, datasets_folder
from pl_compile.training.data.dataset import SkipReport, TrainingSequence, render_examples
from pl_compile.weights.bases import find_base


def sequence_rules(config: TrainConfig, base: DecoderConfig, tokenizer: Tokenizer) -> SequenceRules:
    """The BOS and the end tokens of the run's sequences.

    The first of the base's end tokens is learned; the others end an answer too. Without `add_eos`
    no token ends an answer.

    Raises:
        BaseModelError: the base's files name an end token that it does not have.
        ConfigError: the base has no such token.
    """
    ends: tuple[int, ...] = ()
    if config.data.add_eos:
        ends = end_tokens(find_base(config.base), tokenizer, base.vocab)
    eos_id = ends[0] if ends else None
    for wanted, key, token_id in (
        (config.data.add_bos, "add_bos", base.bos_id),
        (config.data.add_eos, "add_eos", eos_id),
    ):
        if wanted and token_id is None:
            raise ConfigError(
                f"reading data.{key}",
                found=f"true, but the base '{config.base}' does not name such a token",
                fix=f"Set data.{key}: false.",
            )
    bos_id = base.bos_id if config.data.add_bos else None
    return SequenceRules(bos_id, eos_id, ends[1:], tokenizer.rendering)


def check_lengths(config: TrainConfig, base: DecoderConfig, progress: Progress) -> None:
    """Refuses tasks whose virtual tokens leave no room for text, before any example is read.

    Args:
        config: tasks and lengths.
        base: its longest sequence.
        progress: gets a message about a length that is beyond the base's.

    Raises:
        ConfigError: all such tasks.
    """
    limit, asked = _longest(config, base), config.data.max_seq_length
    whose = "data.max_seq_length" if asked == limit else "the positions of the base"
    problems = [
        f"task '{task.taskname}' has {task.total_virtual_tokens} virtual tokens"
        for task in config.tasks
        if task.total_virtual_tokens >= limit
    ]
    if problems:
        raise ConfigError(
            "checking the lengths of the tasks",
            found=list_problems(problems),
            expected=f"fewer than {limit}, {whose}: a text must fit too",
        )
    if asked is not None and asked > limit:
        progress.say(f"data.max_seq_length {asked} is more than the base has: {limit} is taken")


def _longest(config: TrainConfig, base: DecoderConfig) -> int:
    return min(config.data.max_seq_length or base.positions, base.positions)


def load_sequences(
    config: TrainConfig,
    paths: Sequence[Path],
    base: DecoderConfig,
    tokenizer: Tokenizer,
    rules: SequenceRules,
    progress: Progress,
) -> list[TrainingSequence]:
    """The sequences of the examples in `paths`; `progress` gets what is left out.

    Args:
        config: tasks and lengths.
        paths: example files; no sequences if there are none.
        base: its longest sequence.
        tokenizer: the base's.
        rules: BOS and EOS.
        progress: gets messages.

    Raises:
        DataError: something is wrong with the examples.
    """
    if not paths:
        return []
    _check_files(paths)
    templates = parse_templates(config.tasks)
    renderers = {name: Renderer(t, tokenizer, rules) for name, t in templates.items()}
    limit = _longest(config, base)

    def render() -> tuple[list[TrainingSequence], SkipReport]:
        return render_examples(
            read_examples(paths, templates),
            renderers,
            max_length=limit,
            min_length=config.data.min_seq_length,
            progress=progress,
        )

    if config.data.cache:
        key = dataset_key(
            tokenizer, renderers, paths, max_length=limit, min_length=config.data.min_seq_length
        )
        sequences, report = cached(key, render, datasets_folder(), progress=progress)
    else:
        sequences, report = render()
    for line in report.lines():
        progress.say(line)
    return sequences


def _check_files(paths: Sequence[Path]) -> None:
    """Refuses files that cannot be read, or can be read only once.

    A file is read more than once: for its examples, and for the sum by which a resumed run checks
    that it is the same file.
    """
    problems = []
    for path in paths:
        try:
            check_regular(path)
        except (OSError, ValueError) as error:
            problems.append(f"{path}: {reason_of(error)}")
        else:
            if not os.access(path, os.R_OK):
                problems.append(f"{path}: it may not be read")
    if problems:
        raise DataError(
            "reading the examples",
            found=list_problems(problems),
            expected="files, which a run reads more than once",
        )


def check_every_task_occurs(config: TrainConfig, training: Sequence[TrainingSequence]) -> None:
    """Raises `TrainingError` unless each task has an example to learn from."""
    for index, task in enumerate(config.tasks):
        if not any(sequence.task == index for sequence in training):
            raise TrainingError(
                f"reading the examples of task '{task.taskname}'",
                found="none that can be used for training",
                expected="at least one",
                fix="Add examples, shorten its prompt, or take the task out of the config.",
            )
