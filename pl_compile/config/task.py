"""What a task is: its template, its virtual tokens and its labels.

The same dataclass stands in a training config, in a prompt table and in a bundle. Whether the
template and the numbers agree is checked where the template is parsed (`text/template.py`).
"""

import re
from dataclasses import dataclass
from typing import Literal

from pl_compile.config.utf8 import is_utf8
from pl_compile.errors import ConfigError

# Two underscores at the start are refused: safetensors keeps "__metadata__" for itself.
_TASKNAME = re.compile(r"(?!__)[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


def check_taskname(name: str, *, doing: str) -> None:
    """Raises `ConfigError` unless a task may have this name."""
    if not _TASKNAME.fullmatch(name):
        raise ConfigError(
            doing,
            found=f"taskname '{name}'",
            expected="1 to 64 letters, digits, '_' or '-', not beginning with '-' or '__'",
        )


@dataclass(frozen=True)
class CopiedAnswer:
    """What an answer is copied from.

    Attributes:
        span: a field that stands before the answer: each answer is a part of its text.
    """

    span: str


@dataclass(frozen=True)
class TaskConfig:
    """A named prompt. The keys are those of NeMo's `task_templates`, and a few more.

    Attributes:
        taskname: letters, digits, "_" and "-"; also the name of the task's folder in a bundle.
        prompt_template: text with `<|VIRTUAL_PROMPT_n|>` markers and `{field}` slots; `{{` and `}}`
            are literal braces.
        total_virtual_tokens: rows of the task's prompt.
        virtual_token_splits: how many of them stand at each marker. If empty, there is one marker,
            and all of them stand there.
        truncate_field: the field that is cut when an example is too long; if None, nothing is cut.
        answer_field: the field that the model writes. If None, the field that ends the template, if
            one does.
        answer_only_loss: whether the loss covers the answer only, or all real tokens.
        choices: the closed set of answers, each as in the data, leading blanks included. If empty,
            any answer is allowed.
        answer: the field that answers are copied from; if None, they need not be copied.
        whitespace: "keep" keeps the blanks around virtual tokens as they are written. "nemo" drops
            them, as the tokenizers of NeMo's time did. "transformers" keeps them too, and adds
            blanks after BOS and other added tokens of the template where the base's tokenizer
            does so in a whole text: for prompts that were trained with transformers.
        init_text: the text from which the virtual tokens start in prompt tuning and prefix tuning,
            unless their `init` says otherwise.
    """

    taskname: str
    prompt_template: str
    total_virtual_tokens: int
    virtual_token_splits: tuple[int, ...] = ()
    truncate_field: str | None = None
    answer_field: str | None = None
    answer_only_loss: bool = True
    choices: tuple[str, ...] = ()
    whitespace: Literal["keep", "nemo", "transformers"] = "keep"
    init_text: str | None = None
    answer: CopiedAnswer | None = None

    def __post_init__(self) -> None:
        """Checks what can be checked without parsing the template."""
        check_taskname(self.taskname, doing="checking a task")
        texts = (self.prompt_template, self.init_text or "", *self.choices)
        if not all(map(is_utf8, texts)):
            raise ConfigError(
                f"checking the texts of task '{self.taskname}'",
                found=f"{next(text for text in texts if not is_utf8(text))!r:.80}",
                expected="text: this holds half of a surrogate pair, or a byte that was not UTF-8",
            )
        stripped = [choice.strip() for choice in self.choices]
        if "" in stripped or len(set(stripped)) < len(stripped):
            raise ConfigError(
                f"checking the choices of task '{self.taskname}'",
                found=f"{list(self.choices)}",
                expected="texts that are not empty and that differ in more than white space",
            )
        if self.choices and self.answer is not None:
            raise ConfigError(
                f"checking task '{self.taskname}'",
                found=f"choices, and an answer that is copied from '{self.answer.span}'",
                expected="one of the two",
            )
