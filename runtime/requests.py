"""What a caller asks for and what comes back."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pl_compile.config.plain_values import shown, whole
from pl_compile.config.sampling import Sampling
from pl_compile.errors import RequestError, list_problems
from pl_compile.text.field_value import expected_value, is_field_value

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """One answer to be written.

    Attributes:
        task: its name in the bundle.
        fields: a value for every input field of the task's template.
        max_tokens: most tokens to write; fewer where the cache ends first. A choice is always
            written to its end: the truncate field is cut until the longest choice fits after it.
            Where cutting is not enough, the request is refused.
        min_tokens: no token that ends an answer is written before this many.
        stop: texts that end the answer; not part of it. A choice is not ended by them.
        sampling: how each token is chosen.
        constrain: whether a task with `choices` must answer with one of them.
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
        """Refuses values of a wrong type, and numbers and texts that cannot be followed."""
        doing = f"reading a request for task {shown(self.task)}"
        problems = [problem for problem, holds in self._checks() if not holds]
        if problems:
            raise RequestError(doing, found=list_problems(problems))
        most, least = whole(self.max_tokens), whole(self.min_tokens)
        if most is None or least is None or not 0 <= least <= most or most < 1:
            raise RequestError(
                doing,
                found=f"min_tokens {shown(self.min_tokens)}, max_tokens {shown(self.max_tokens)}",
                expected="whole numbers, 0 <= min_tokens <= max_tokens, and max_tokens at least 1",
            )
        if "" in self.stop:
            raise RequestError(doing, found="an empty stop text", fix="Leave it out.")
        # Copies of what was checked: the caller may change its own objects later.
        object.__setattr__(self, "max_tokens", most)
        object.__setattr__(self, "min_tokens", least)
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "fields", dict(self.fields))

    def _checks(self) -> Iterator[tuple[str, bool]]:
        """A problem for each value that is not a number, and whether the value is right."""
        yield f"task {shown(self.task)}, expected its name", isinstance(self.task, str)
        named = isinstance(self.fields, Mapping)
        yield f"fields {shown(self.fields)}, expected a mapping from name to value", named
        for name, value in self.fields.items() if named else ():
            yield f"field {shown(name)}, expected a text as its name", isinstance(name, str)
            problem = f"field {shown(name)} is {shown(value)}, expected {expected_value(value)}"
            yield problem, is_field_value(value)
        texts = isinstance(self.stop, list | tuple) and all(
            isinstance(text, str) for text in self.stop
        )
        yield f"stop {shown(self.stop)}, expected a tuple of texts", texts
        sampling = isinstance(self.sampling, Sampling)
        yield f"sampling {shown(self.sampling)}, expected a Sampling", sampling
        for name in ("constrain", "use_prompt"):
            value = getattr(self, name)
            yield f"{name} {shown(value)}, expected True or False", isinstance(value, bool)


@dataclass(frozen=True)
class Result:
    """A finished answer.

    Attributes:
        task: the request's task.
        text: the answer, without blanks at its ends, without end token and stop text. A choice is
            the text of `choices`, however its tokens are decoded.
        token_ids: the tokens written, the end token included.
        finish_reason: "stop" (an end token, a stop text or a complete choice) or "length".
        prompt_tokens: tokens of the prompt, virtual ones included.
        cut_tokens: tokens cut from the truncate field, because the prompt was longer than the
            cache.
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
        text: the new text; may be empty.
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
