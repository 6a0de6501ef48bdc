"""What a caller asks for and what comes back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pl_compile.errors import RequestError
from pl_compile.runtime.sampling import Sampling

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """One answer to be written.

    Attributes:
        task: its name in the bundle.
        fields: a value for every input field of the task's template.
        max_tokens: most tokens to write; fewer where the cache ends first. A choice is always
            written to its end.
        min_tokens: no token that ends an answer is written before this many.
        stop: texts that end the answer; not part of it.
        sampling: how each token is chosen.
        constrain: whether a task with `choices` may only answer with one of them.
        use_prompt: where false, the virtual tokens or the learned prefix are left out: the base's
            own answer, for comparison.
    """

    task: str
    fields: Mapping[str, Any]
    max_tokens: int = 64
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    constrain: bool = True
    use_prompt: bool = True

    def __post_init__(self) -> None:
        """Refuses numbers and texts that cannot be honoured."""
        doing = f"reading a request for task '{self.task}'"
        if not 0 <= self.min_tokens <= self.max_tokens or self.max_tokens < 1:
            raise RequestError(
                doing,
                found=f"min_tokens {self.min_tokens}, max_tokens {self.max_tokens}",
                expected="0 <= min_tokens <= max_tokens, and max_tokens at least 1",
            )
        if isinstance(self.stop, str) or not isinstance(self.fields, Mapping):
            raise RequestError(
                doing,
                found=f"stop {self.stop!r}, fields {type(self.fields).__name__}",
                expected="a tuple of texts, and a mapping from name to value",
            )
        if "" in self.stop:
            raise RequestError(doing, found="an empty stop text", fix="Leave it out.")


@dataclass(frozen=True)
class Result:
    """A finished answer.

    Attributes:
        task: the request's task.
        text: the answer, without blanks at its ends, without end token and stop text.
        token_ids: the tokens written, the end token included.
        finish_reason: "stop" (an end token, a stop text or a complete choice) or "length".
        prompt_tokens: tokens given, virtual ones included.
        cut_tokens: tokens that the truncate field lost, since the prompt was longer than the cache.
    """

    task: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    cut_tokens: int = 0


@dataclass(frozen=True)
class Event:
    """A piece of an answer that is being written.

    Attributes:
        index: place of the request in the list that was given.
        text: what is new; may be empty.
        result: the whole answer, with the last piece; None before.
    """

    index: int
    text: str
    result: Result | None = None


@dataclass(frozen=True)
class LabelScore:
    """How likely a label of a closed set is.

    Attributes:
        label: the answer, without blanks at its ends.
        probability: among the labels of its task; they sum to 1.
        log_probability: natural logarithm of the probability that the base writes just this.
    """

    label: str
    probability: float
    log_probability: float
