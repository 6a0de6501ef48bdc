"""What a caller asks for and what comes back."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from pl_compile.config.plain_values import finite, shown, whole
from pl_compile.config.sampling import Sampling
from pl_compile.config.sizes import MOST
from pl_compile.errors import RequestError, list_problems
from pl_compile.text.field_value import expected_value, is_field_value

FinishReason = Literal["stop", "length", "timeout"]


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
        constrain: whether a task with `choices` must answer with one of them, and one whose answers
            are copied with a part of the field.
        use_prompt: where false, the virtual tokens or the learned prefix are left out: the base's
            own answer, for comparison.
        priority: requests of a larger one are admitted first, always; below 0 too.
        timeout: seconds from submission, waiting included, after which the answer ends as it is;
            None for no limit.
        log_probs: how many of the likeliest tokens are noted at each token of the answer, besides
            the token itself; 0 to 20. None notes nothing.
        bad_words: texts that the answer never contains, inside words too. They are looked for
            before blanks at its ends are taken off.
    """

    task: str
    fields: Mapping[str, Any]
    max_tokens: int = 64
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    constrain: bool = True
    use_prompt: bool = True
    priority: int = 0
    timeout: float | None = None
    log_probs: int | None = None
    bad_words: tuple[str, ...] = ()

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
        if any(not word or "\ufffd" in word for word in self.bad_words):
            raise RequestError(
                doing,
                found=f"bad_words {shown(self.bad_words)}",
                expected="texts that are not empty, without U+FFFD, which stands for broken "
                "characters",
            )
        # Copies of what was checked: the caller may change its own objects later.
        copies: dict[str, Any] = {
            "max_tokens": most,
            "min_tokens": least,
            "stop": tuple(self.stop),
            "fields": dict(self.fields),
            "priority": whole(self.priority),
            "timeout": finite(self.timeout),
            "log_probs": whole(self.log_probs),
            "bad_words": tuple(self.bad_words),
        }
        for name, value in copies.items():
            object.__setattr__(self, name, value)

    def _checks(self) -> Iterator[tuple[str, bool]]:
        """A problem for each value that is not a number, and whether the value is right."""
        yield f"task {shown(self.task)}, expected its name", isinstance(self.task, str)
        named = isinstance(self.fields, Mapping)
        yield f"fields {shown(self.fields)}, expected a mapping from name to value", named
        for name, value in self.fields.items() if named else ():
            yield f"field {shown(name)}, expected a text as its name", isinstance(name, str)
            problem = f"field {shown(name)} is {shown(value)}, expected {expected_value(value)}"
            yield problem, is_field_value(value)
        for name in ("stop", "bad_words"):
            value = getattr(self, name)
            texts = isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
            yield f"{name} {shown(value)}, expected a tuple of texts", texts
        sampling = isinstance(self.sampling, Sampling)
        yield f"sampling {shown(self.sampling)}, expected a Sampling", sampling
        for name in ("constrain", "use_prompt"):
            value = getattr(self, name)
            yield f"{name} {shown(value)}, expected True or False", isinstance(value, bool)
        yield (
            f"priority {shown(self.priority)}, expected a whole number",
            whole(self.priority) is not None,
        )
        seconds = finite(self.timeout)
        yield (
            f"timeout {shown(self.timeout)}, expected seconds, above 0, or None",
            self.timeout is None or (seconds is not None and seconds > 0),
        )
        count = whole(self.log_probs)
        yield (
            f"log_probs {shown(self.log_probs)}, expected a whole number from 0 to "
            f"{MOST['log_probs']}, or None",
            self.log_probs is None or (count is not None and 0 <= count <= MOST["log_probs"]),
        )


_OF_SAMPLING = tuple(each.name for each in fields(Sampling))

# The names by which `with_options` takes the options of a request.
OPTIONS = (
    *(each.name for each in fields(Request) if each.name not in ("task", "fields", "sampling")),
    *_OF_SAMPLING,
)


def with_options(request: Request, options: Mapping[str, Any]) -> Request:
    """A request with some of its options changed.

    Args:
        request: the others are its own.
        options: by their names in `OPTIONS`: those of `Request` and those of `Sampling` together.

    Raises:
        RequestError: a value of a wrong type, or beyond its range.
    """
    of_sampling = {name: options[name] for name in options if name in _OF_SAMPLING}
    others = {name: options[name] for name in options if name not in _OF_SAMPLING}
    sampling = replace(request.sampling, **of_sampling)
    return replace(request, **others, sampling=sampling)


@dataclass(frozen=True)
class TokenLogProbs:
    """How likely a token of an answer was, as the base itself sees it.

    The logarithms (natural ones) are of the softmax over all logits of the base: before bias,
    penalty, temperature and choices.

    Attributes:
        token_id: the token that was written.
        text: what it decodes to alone, blanks included; its name in the vocabulary where it is
            special and no text. U+FFFD where it holds only a part of a character.
        log_prob: of this token.
        top: id, text and logarithm of the likeliest tokens, the likeliest first, of equal ones the
            lowest id: as many as `Request.log_probs` says.
    """

    token_id: int
    text: str
    log_prob: float
    top: tuple[tuple[int, str, float], ...]

    def record(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        names = ("token_id", "text", "log_prob")
        top = [dict(zip(names, each, strict=True)) for each in self.top]
        return {**{name: getattr(self, name) for name in names}, "top": top}


@dataclass(frozen=True)
class Result:
    """A finished answer.

    Attributes:
        task: the request's task.
        text: the answer, without blanks at its ends, without end token and stop text. A choice is
            the text of `choices`, and a copied answer is the field's, however tokens are decoded.
        token_ids: the tokens written, the end token included.
        finish_reason: "stop" (an end token, a stop text, a complete choice, or no token that may
            follow), "length", or "timeout": the text is what was certain by then. That of a choice
            is what the choices that were still possible begin with alike, and never a whole choice.
        prompt_tokens: tokens of the prompt, virtual ones included.
        cut_tokens: tokens cut from the truncate field, because the prompt was longer than the
            cache.
        prefix_tokens: of `prompt_tokens`, those whose keys and values a learned or a folded prefix
            holds: nothing was computed for them.
        log_probs: of each of `token_ids`, where the request asks for them; else None.
        shared_tokens: of `prompt_tokens`, those whose keys and values were there, since an earlier
            request began alike. It depends on what else was asked, so it counts for nothing where
            results are compared.
    """

    task: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    cut_tokens: int = 0
    prefix_tokens: int = 0
    log_probs: tuple[TokenLogProbs, ...] | None = None
    shared_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Event:
    """A piece of an answer that is being written.

    Attributes:
        index: place of the request in the list that was given.
        text: the new text; may be empty.
        result: the whole answer, with the last piece; None before.
        labels: what was found out about labels, where that was asked for.
    """

    index: int
    text: str
    result: Result | None = None
    labels: "tuple[LabelScore, ...] | BestLabel | None" = None

    @property
    def is_last(self) -> bool:
        """Whether nothing follows for its request."""
        return self.result is not None or self.labels is not None


@dataclass(frozen=True)
class BestLabel:
    """The likeliest label of a closed set.

    Attributes:
        label: the answer, without blanks at its ends.
        log_probability: natural logarithm of the probability that the base writes just this.
    """

    label: str
    log_probability: float


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
