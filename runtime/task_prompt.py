"""A task of an artifact as a session needs it: how to render it, and what the engine is given."""

from dataclasses import dataclass, replace

from pl_compile.artifact.prompt_table import TaskEntry
from pl_compile.errors import ArtifactError
from pl_compile.runtime.engines.engine import Float32
from pl_compile.text.render import Rendered, Renderer, SequenceRules
from pl_compile.text.template import parse_template
from pl_compile.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TaskPrompt:
    """A task as an engine and a renderer need it.

    Attributes:
        renderer: fields to token ids.
        rows: float32 `[virtual, hidden]`; none where the task has a prefix.
        prefix_kv: float32 `[layers, 2, kv_heads, virtual, head_dim]`; None where it has rows.
        task_id: its number in a graph with baked prompts.
        choices: its closed set of answers, if any.
    """

    renderer: Renderer
    rows: Float32
    prefix_kv: Float32 | None
    task_id: int
    choices: tuple[str, ...]

    @classmethod
    def of(cls, entry: TaskEntry, tokenizer: Tokenizer, task_id: int = 0) -> "TaskPrompt":
        """The prompt of an entry.

        Raises:
            ConfigError: a template that cannot be parsed.
            ArtifactError: a learned prefix, and virtual tokens elsewhere than at the very start.
        """
        template = parse_template(entry.task)
        if entry.prefix_kv is not None and not template.opens_with_all_virtual_tokens:
            raise ArtifactError(
                f"matching the prefix of task '{entry.task.taskname}' with its template",
                found="a template with virtual tokens after its head",
                expected="one marker, at the very start: a prefix stands before everything",
                fix="Move the marker to the start and train the task again.",
            )
        renderer = Renderer(template, tokenizer, SequenceRules(entry.bos_id, entry.eos_id))
        return cls(renderer, entry.rows, entry.prefix_kv, task_id, entry.task.choices)

    def without_prefix(self) -> "TaskPrompt":
        """The same without its prefix, for a row that is answered by the base alone."""
        return self if self.prefix_kv is None else replace(self, prefix_kv=None)

    def fed(self, rendered: Rendered) -> Rendered:
        """What of a rendered prompt is given as ids: not what the cache holds already."""
        return rendered if self.prefix_kv is None else rendered.without_virtual()
