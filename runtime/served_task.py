"""A task of an artifact as a session needs it: how to render it, and what to give the engine."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pl_compile.artifact.bundle import LABELS_NAME, Bundle, Precision, task_folder
from pl_compile.artifact.folded_prefix import PrefixIdentity, check_identity, sum_of_array
from pl_compile.artifact.mapped_file import untouch
from pl_compile.artifact.prompt_table import TaskEntry
from pl_compile.errors import ArtifactError, PlcError, reason_of
from pl_compile.runtime.engines.engine import NO_TOKENS, Engine, PrefixKv, PromptRows, prefix_length
from pl_compile.runtime.stepping import Batch
from pl_compile.text.label_trie import LabelTrie
from pl_compile.text.render import Rendered, Renderer
from pl_compile.text.template import parse_template
from pl_compile.text.tokenizer import Tokenizer

# Virtual and real tokens alike take positions 0, 1, 2 … from the row's start.
POSITIONS = "from 0, virtual tokens included"


@dataclass(frozen=True)
class ServedTask:
    """A task as a renderer and an engine need it: it is the `Prompt` of its rows.

    Attributes:
        renderer: fields to token ids.
        rows: float32 `[virtual, hidden]`; `virtual` is 0 where prefix tuning learned the task.
        prefix_kv: float32 `[layers, 2, kv_heads, prefix, head_dim]` of the first positions, where
            the task has a learned or a folded prefix; else None.
        task_id: its number in a graph with baked prompts.
        trie: its closed set of answers as a tree of tokens, if it has one.
    """

    renderer: Renderer
    rows: PromptRows
    prefix_kv: PrefixKv | None
    task_id: int
    trie: LabelTrie | None

    @classmethod
    def of(
        cls,
        entry: TaskEntry,
        tokenizer: Tokenizer,
        task_id: int = 0,
    ) -> "ServedTask":
        """The task of an entry, as it was learned.

        Raises:
            ConfigError: a template that cannot be parsed.
            DataError: the base has no row for a token that the task always has.
            ArtifactError: a learned prefix, and virtual tokens that are not all at the very start.
        """
        template = parse_template(entry.task)
        if entry.prefix_kv is not None and not template.opens_with_all_virtual_tokens:
            raise ArtifactError(
                f"matching the prefix of task '{entry.task.taskname}' with its template",
                found="a template with virtual tokens after its start",
                expected="one marker, at the very start: a prefix stands before everything",
                fix="Move the marker to the start and train the task again.",
            )
        renderer = Renderer(template, tokenizer, entry.rules)
        trie = renderer.label_trie() if entry.task.choices else None
        return cls(renderer, entry.rows, entry.prefix_kv, task_id, trie)

    @property
    def choices(self) -> tuple[str, ...]:
        """The closed set of answers; empty where it is open."""
        return self.trie.labels if self.trie else ()

    @property
    def is_copied(self) -> bool:
        """Whether its answers are parts of a field."""
        return self.renderer.template.task.answer is not None

    def trie_after(self, fields: Mapping[str, object]) -> LabelTrie | None:
        """The tree of answers to a prompt with these fields."""
        if self.trie is None or self.trie.fixed:
            return self.trie
        return self.renderer.label_trie(fields)

    def without_prefix(self) -> "ServedTask":
        """The same without its prefix, for a row that is answered by the base alone."""
        return self if self.prefix_kv is None else replace(self, prefix_kv=None)

    def folded(self, engine: Engine) -> "ServedTask":
        """The same with its opening as a prefix that an engine computes."""
        return next(fold([self], engine, rows=1))

    def to_feed(self, rendered: Rendered) -> Rendered:
        """The part of a rendered prompt that a row is fed: what its prefix does not hold already.

        At least the last token is fed, since a step without tokens has no logits. The exception
        is a last token that is virtual and of a learned prefix: it has no row to be given.
        """
        most = len(rendered) - 1
        if not len(self.rows):
            most = max(most, int((rendered.virtual_rows >= 0).sum()))
        return rendered.after(max(0, min(prefix_length(self), most)))


def fold(tasks: Iterable[ServedTask], engine: Engine, rows: int) -> Iterator[ServedTask]:
    """The tasks, in order, with their openings as prefixes that an engine computes.

    A task with nothing to compute is given as it is: nothing stands between its learned prefix and
    the first field.

    Args:
        tasks: as they were learned.
        engine: none of its rows is in use.
        rows: most openings of a step, up to the engine's `max_batch`: 1 where a row's numbers may
            depend on the rows beside it. More than a piece of tokens are not computed at once.
    """
    batch = Batch(engine)
    waiting: list[ServedTask] = []
    tokens = 0
    for task in tasks:
        count = len(task.to_feed(task.renderer.opening()))
        if waiting and (len(waiting) == rows or tokens + count > engine.piece):
            yield from _folded(waiting, batch, engine.vocab)
            waiting, tokens = [], 0
        waiting.append(task)
        tokens += count
    yield from _folded(waiting, batch, engine.vocab)


def _folded(tasks: Sequence[ServedTask], batch: Batch, vocab: int) -> Iterator[ServedTask]:
    """Tasks whose openings are computed in one step."""
    openings = [task.renderer.opening() for task in tasks]
    to_feed = [task.to_feed(opening) for task, opening in zip(tasks, openings, strict=True)]
    given = {slot: each.input_ids(vocab) for slot, each in enumerate(to_feed) if len(each)}
    for slot in given:
        batch.admit(slot, tasks[slot])
    if given:
        batch.feed(given, looked_at=dict.fromkeys(given, NO_TOKENS))
    for slot, (task, opening) in enumerate(zip(tasks, openings, strict=True)):
        if slot not in given:
            yield task
        else:
            yield replace(task, prefix_kv=batch.cached(slot, len(opening)))
    batch.retire(given)


def identity_of(
    entry: TaskEntry, prompt: ServedTask, *, base: str, graph: str, precision: Precision
) -> PrefixIdentity:
    """What a folded prefix of a task is computed from.

    Args:
        entry: the task.
        prompt: of the same task, for its renderer.
        base: fingerprint of the base.
        graph: sum over the target's files (`Bundle.base_sum`).
        precision: of the compiled base.
    """
    opening = prompt.renderer.opening()
    layout = json.dumps([opening.token_ids.tolist(), opening.virtual_rows.tolist()])
    return PrefixIdentity(
        base=base,
        graph=graph,
        prompt=sum_of_array(entry.learned),
        layout=hashlib.sha256(layout.encode()).hexdigest(),
        positions=POSITIONS,
        dtype=precision.dtype,
        quantization=precision.quantization,
    )


def learned_tasks(entries: Mapping[str, TaskEntry], tokenizer: Tokenizer) -> dict[str, ServedTask]:
    """Tasks as they were learned, by name. Their order numbers them in a graph with baked prompts.

    Raises:
        PlcError: as for `ServedTask.of`.
    """
    return {
        name: ServedTask.of(entry, tokenizer, number)
        for number, (name, entry) in enumerate(entries.items())
    }


def tasks_of_bundle(bundle: Bundle, tokenizer: Tokenizer) -> dict[str, ServedTask]:
    """All tasks of a bundle, each with its folded prefix where it has one.

    Raises:
        ArtifactError: a task that cannot be rendered, a prefix that was computed from something
            that this bundle does not hold, or labels that are not those of the task.
    """
    prompts = {}
    # Manifests list baked tasks in the order of the tasks: the reader checks it.
    for task_id, (name, entry) in enumerate(bundle.entries.items()):
        try:
            prompt = ServedTask.of(entry, tokenizer, task_id)
        except PlcError as error:
            doing = f"reading task '{name}' of the bundle {bundle.folder}"
            raise ArtifactError(doing, found=reason_of(error), fix=error.fix) from error
        if bundle.labels(name) != prompt.trie:
            # Served as it is, a path with a wrong text would become the answer.
            raise ArtifactError(
                f"reading {task_folder(bundle.folder, name) / LABELS_NAME}",
                found="another tree of labels than template, choices and tokenizer give",
                fix="Export the bundle again.",
            )
        prefix = bundle.folded(name)
        if prefix is not None:
            manifest = bundle.manifest
            expected = identity_of(
                entry,
                prompt,
                base=manifest.base.fingerprint,
                graph=bundle.base_sum,
                precision=manifest.precision,
            )
            doing = f"reading the folded prefix of task '{name}' in {bundle.folder}"
            check_identity(prefix.identity, expected, doing)
            opening = len(prompt.renderer.opening())
            if prefix.kv.shape[3] != opening:
                raise ArtifactError(
                    doing, found=f"{prefix.kv.shape[3]} positions", expected=f"{opening}"
                )
            prompt = replace(prompt, prefix_kv=prefix.kv)
        untouch(entry.learned)
        prompts[name] = prompt
    return prompts
