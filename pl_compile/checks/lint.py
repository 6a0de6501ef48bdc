"""Finds what looks wrong with a task, before a model runs.

In: tasks, their base and its tokenizer. Out: findings, as sentences for the report. A finding never
stops an export: a task that cannot work at all is refused when it is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pl_compile.artifact.prompt_table import TaskEntry
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.errors import BaseModelError, DataError
from pl_compile.runtime.served_task import ServedTask
from pl_compile.text.end_tokens import end_tokens
from pl_compile.text.tokenizer import Tokenizer

# Training seldom gives rows this many times longer or shorter than embeddings.
_UNUSUAL = 50.0
_ROOM_AT_LEAST = 16

# The end of `method` of a task that was imported from PEFT.
_BY_PEFT = "(PEFT)"


@dataclass(frozen=True)
class TaskLint:
    """What was looked at, and what was found.

    Attributes:
        task: its name.
        smallest_norm: smallest norm of a virtual token's row, or of its keys and values.
        largest_norm: the largest one.
        embedding_norm: median norm of the base's embeddings as its first layer sees them; None for
            a learned prefix.
        bos: whether its sequences begin with BOS.
        head_tokens: tokens of its opening; reports have this name from earlier releases.
        room: cache entries that are left for fields and answer.
        findings: what looks wrong, as sentences.
    """

    task: str
    smallest_norm: float
    largest_norm: float
    embedding_norm: float | None
    bos: bool
    head_tokens: int
    room: int
    findings: tuple[str, ...]


def lint_tasks(
    entries: Sequence[TaskEntry],
    prompts: Mapping[str, ServedTask],
    config: DecoderConfig,
    contract: GraphContract,
    embedding: NDArray[np.float32],
    base: Path,
    tokenizer: Tokenizer,
) -> list[TaskLint]:
    """Looks at every task.

    Args:
        entries: the tasks.
        prompts: the same, for their renderers.
        config: the base.
        contract: the graph that they are compiled into.
        embedding: float32 `[vocab, hidden]`.
        base: its folder, whose files name end tokens.
        tokenizer: the base's.
    """
    median = config.embedding_scale * float(np.median(np.linalg.norm(embedding, axis=1)))
    with_bos = [entry.task.taskname for entry in entries if entry.rules.bos_id is not None]
    try:
        ends, unread = end_tokens(base, tokenizer, config.vocab), []
    except BaseModelError as error:
        ends, unread = (), [f"it is not known which tokens end answers of its base: {error}"]
    found = []
    for entry in entries:
        prompt = prompts[entry.task.taskname]
        lint = _lint(entry, prompt, config, contract, median, len(with_bos))
        more = unread + _older_rules(entry, prompt, tokenizer, ends)
        if entry.method.endswith(_BY_PEFT) and entry.rules.bos_id is None:
            more += filter(None, [opening_left_out(prompt, tokenizer)])
        found.append(replace(lint, findings=(*lint.findings, *more)))
    return found


def _lint(
    entry: TaskEntry,
    prompt: ServedTask,
    config: DecoderConfig,
    contract: GraphContract,
    median: float,
    with_bos: int,
) -> TaskLint:
    # A row of a prefix is all that one virtual token has in all layers.
    by_token = entry.rows if entry.prefix_kv is None else np.moveaxis(entry.prefix_kv, 3, 0)
    norms = np.linalg.norm(by_token.reshape(len(by_token), -1).astype(np.float64), axis=1)
    findings = []
    if not norms.min() > 0:
        findings.append("a virtual token is all zeros: nothing was learned there")
    if entry.prefix_kv is None and 0 < _UNUSUAL * median < norms.max():
        findings.append(
            f"a virtual token is {norms.max() / median:.0f} times as long as the base's "
            "embeddings: was the learning rate too high?"
        )
    if entry.prefix_kv is None and 0 < norms.min() < median / _UNUSUAL:
        findings.append(
            f"a virtual token is {median / norms.min():.0f} times shorter than the base's "
            "embeddings"
        )
    if entry.rules.bos_id is None and entry.prefix_kv is None and with_bos:
        findings.append("other tasks of this bundle begin with BOS, this one does not")
    if entry.rules.bos_id is not None and entry.rules.bos_id != config.bos_id:
        findings.append(
            f"it begins with id {entry.rules.bos_id}, and the base's BOS is {config.bos_id}"
        )
    if entry.rules.eos_id is None and not entry.rules.end_ids:
        findings.append("no EOS ends its answers: they end by length, stop text or choice only")
    opening = len(prompt.renderer.opening())
    room = contract.capacity - len(prompt.renderer.prompt(dict.fromkeys(_fields(prompt), "")))
    if room < _ROOM_AT_LEAST:
        findings.append(f"{room} tokens are left for fields and answer: raise --capacity")
    if prompt.trie is not None:
        findings += prompt.trie.problems()
        if not prompt.trie.fixed:
            findings.append(
                "no text stands between a field and its answer, so what the field holds changes "
                "how choices are tokenised: put text there"
            )
    return TaskLint(
        entry.task.taskname,
        float(norms.min()),
        float(norms.max()),
        median if entry.prefix_kv is None else None,
        entry.rules.bos_id is not None,
        opening,
        room,
        tuple(findings),
    )


def opening_left_out(prompt: ServedTask, tokenizer: Tokenizer) -> str:
    """A note if an imported task lacks what its tokenizer puts before a text; else empty."""
    opening = prompt.renderer.opening()
    ids = opening.token_ids[opening.virtual_rows < 0].tolist()
    front = tokenizer.in_front
    if ids[: len(front)] == front:
        return ""
    text = "".join(map(tokenizer.token_name, front))
    return (
        f"the tokenizer puts {text!r} before a text, and the template does not open with it: if "
        "the adapter was trained with it, import it with that in its --template"
    )


def _older_rules(
    entry: TaskEntry, prompt: ServedTask, tokenizer: Tokenizer, ends: Sequence[int]
) -> list[str]:
    """Findings about a task of an earlier release: what it lacks or renders in another way."""
    findings = []
    own = prompt.renderer.rules.ends
    missing = [f"'{tokenizer.token_name(each)}' ({each})" for each in ends if each not in own]
    if own and missing:
        findings.append(
            f"its base names end tokens that do not end its answers: {', '.join(missing)}; unless "
            "that is meant, import or train it again"
        )
    if entry.rules.rendering < tokenizer.rendering:
        findings.append(
            "an earlier release made it, which read the text of an added token in a field as that "
            "token; now it is characters: if fields hold such texts, import or train it again"
        )
    by_peft = entry.method.endswith(_BY_PEFT) and entry.task.whitespace == "keep"
    if by_peft and _is_other_as_one_text(entry, prompt, tokenizer):
        findings.append(
            "an earlier release imported it with `whitespace: keep`, but transformers puts blanks "
            "where that has none: import it again"
        )
    return findings


def _is_other_as_one_text(entry: TaskEntry, prompt: ServedTask, tokenizer: Tokenizer) -> bool:
    """Whether `whitespace: transformers` gives other tokens, with empty or with filled fields."""
    whole = replace(entry, task=replace(entry.task, whitespace="transformers"))
    renderers = prompt.renderer, ServedTask.of(whole, tokenizer).renderer
    for text in ("", "a"):
        fields = dict.fromkeys(_fields(prompt), text)
        try:
            one, other = (renderer.prompt(fields).token_ids.tolist() for renderer in renderers)
        except DataError:  # a text that this base has no token for
            continue
        if one != other:
            return True
    return False


def _fields(prompt: ServedTask) -> tuple[str, ...]:
    return prompt.renderer.template.input_fields
