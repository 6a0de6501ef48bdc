"""OpenAI's shapes: a body as a `Request`, and an answer as JSON. A task is a `model`.

The tables below say which keys a body may have. They check it, and stand in `/openapi.json`. A key
that is not in them is refused: an option that is ignored silently is a wrong answer that nobody
notices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pl_compile.config.sampling import SAMPLING_NUMBERS, Sampling
from pl_compile.config.sizes import MOST
from pl_compile.runtime.requests import BestLabel, LabelScore, Request, Result, TokenLogProbs
from pl_compile.runtime.served_task import ServedTask
from pl_compile.runtime.server.faults import HttpError
from pl_compile.runtime.server.limits import Limits
from pl_compile.runtime.server.schema import (
    Schema,
    anything,
    count,
    flag,
    list_of,
    named,
    number,
    object_of,
    one_of,
    only,
    or_null,
    problems_of,
    text,
)

Kind = Literal["completion", "chat", "classify"]

# Each token of an answer is compared with all texts of `stop` and `bad_words`.
_MOST_TEXTS = 16
_MOST_CHARACTERS = 256
_MOST_FIELDS = 256

# Keys that OpenAI's clients send and that change nothing here: they are about accounts and storage.
WITHOUT_EFFECT = (
    "metadata",
    "prompt_cache_key",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)

# Keys of OpenAI's that are refused, and what to do instead.
NOT_SERVED = {
    "functions": "A task writes text only.",
    "logit_bias": "OpenAI's is by token id; use 'text_bias', which is by the texts of a choice.",
    "max_output_tokens": "Use 'max_tokens'.",
    "modalities": "A task writes text only.",
    "reasoning_effort": "",
    "suffix": "A task's template says what stands where.",
    "tool_choice": "A task writes text only.",
    "tools": "A task writes text only.",
}

_FIELDS = named(
    {"type": ["string", "number"]},
    "A value for every input field of the task's template (see /v1/models).",
    most=_MOST_FIELDS,
)
_MESSAGE = object_of(
    {
        "role": text('"user".'),
        "content": one_of(
            text(),
            list_of(
                object_of({"type": only("text"), "text": text()}, required=("type", "text")),
                most=_MOST_FIELDS,
            ),
        ),
        "name": or_null(text("Changes nothing.")),
    },
    required=("role", "content"),
)


def _sampling_keys() -> dict[str, Schema]:
    return {
        row.name: or_null(
            number(
                row.help,
                least=row.least,
                most=2**63 - 1 if row.kind is int else row.most,
                above=row.above,
                kind="integer" if row.kind is int else "number",
            )
        )
        for row in SAMPLING_NUMBERS
    }


def _asked_of_the_task() -> dict[str, Schema]:
    return {
        "model": text("The name of a task."),
        "fields": or_null(_FIELDS),
        "use_prompt": or_null(flag("false: the base's own answer, without the task's prompt.")),
        "timeout": or_null(
            number(
                "Most seconds; the server's own limit holds too.", least=0, most=None, above=True
            )
        ),
        **dict.fromkeys(WITHOUT_EFFECT, anything("Accepted, without effect.")),
    }


def _generation_keys(limits: Limits) -> dict[str, Schema]:
    tokens = count("Most tokens of the answer.", least=1, most=limits.max_tokens)
    short = text(most=_MOST_CHARACTERS)
    texts = list_of(short, most=_MOST_TEXTS)
    return {
        **_asked_of_the_task(),
        **_sampling_keys(),
        "max_tokens": or_null(tokens),
        "min_tokens": or_null(count("No end before this many.", most=limits.max_tokens)),
        "stop": or_null(one_of(short, texts, about="Texts that end the answer.")),
        "bad_words": or_null({**texts, "description": "Texts that the answer never contains."}),
        "priority": or_null(
            count("Larger ones are admitted first.", least=-(2**31), most=2**31 - 1)
        ),
        "constrain": or_null(flag("Whether a task with labels must answer with one of them.")),
        "text_bias": or_null(
            named(
                number(least=-100, most=100),
                "Added to the logits of tokens of the labels, by their texts.",
                most=_MOST_FIELDS,
            )
        ),
        "n": or_null(only(1)),
        "stream": or_null(flag("Whether the answer is sent in pieces.")),
        "stream_options": or_null(
            object_of({"include_usage": or_null(flag("One more piece, with the usage."))})
        ),
        "presence_penalty": or_null(only(0, 0.0, about="Use 'repetition_penalty'.")),
        "frequency_penalty": or_null(only(0, 0.0, about="Use 'repetition_penalty'.")),
    }


def body_schema(kind: Kind, limits: Limits) -> Schema:
    """What the body of a route may hold."""
    prompt = or_null(text("The value of the task's only input field."))
    if kind == "classify":
        best = flag("Only the likeliest label, which takes fewer steps where there are many.")
        keys = {**_asked_of_the_task(), "prompt": prompt, "best": or_null(best)}
        return object_of(keys, required=("model",))
    keys = _generation_keys(limits)
    if kind == "completion":
        likeliest = count("Of each token, and of so many likeliest ones.", most=MOST["log_probs"])
        keys |= {"prompt": prompt, "best_of": or_null(only(1)), "echo": or_null(only(False))}
        keys |= {"logprobs": or_null(likeliest)}
        return object_of(keys, required=("model",))
    keys |= {
        "messages": list_of(
            _MESSAGE,
            "One message of the user's, for the task's only input field; none with 'fields'.",
            most=_MOST_FIELDS,
        ),
        "max_completion_tokens": keys["max_tokens"],
        "logprobs": or_null(flag("Of each token of the answer.")),
        "top_logprobs": or_null(count("Of so many likeliest tokens, too.", most=MOST["log_probs"])),
        "response_format": or_null(object_of({"type": only("text")}, required=("type",))),
    }
    return object_of(keys, required=("model", "messages"))


@dataclass(frozen=True)
class Asked:
    """What a body asks for.

    Attributes:
        request: for the session.
        stream: whether the answer is sent in pieces.
        include_usage: whether another piece says how many tokens there were.
        timeout: the client's, in seconds.
        best: whether only the likeliest label is asked for.
    """

    request: Request
    stream: bool
    include_usage: bool
    timeout: float | None
    best: bool = False


def check_body(body: Any, schema: Schema) -> None:
    """Raises `HttpError` with all that does not fit."""
    found = list(problems_of(body, schema))
    if not found:
        return
    messages = [
        f"key '{key}' is not served. {NOT_SERVED[key]}".rstrip(" .")
        if key in NOT_SERVED
        else message
        for key, message in found
    ]
    more = [f"and {len(messages) - 20} more"] if len(messages) > 20 else []
    listed = "; ".join(messages[:20] + more)
    raise HttpError("invalid_request", f"reading the body: {listed}.", param=found[0][0] or None)


def asked_of(kind: Kind, body: Mapping[str, Any], task: ServedTask, limits: Limits) -> Asked:
    """The request of a body that was checked.

    Raises:
        HttpError: the fields are given twice, or not in a way that fits the task.
        RequestError: numbers that do not go together.
    """
    given = {key: value for key, value in body.items() if value is not None}
    streaming = given.get("stream", False)
    if "stream_options" in given and not streaming:
        raise HttpError(
            "invalid_request",
            "key 'stream_options' without 'stream': true, where it has no effect. Leave it out.",
            param="stream_options",
        )
    plain = ("min_tokens", "constrain", "use_prompt", "priority", "bad_words")
    options: dict[str, Any] = {key: given[key] for key in plain if key in given}
    options["max_tokens"] = _tokens(given) or min(Request.max_tokens, limits.max_tokens)
    if "stop" in given:
        stop = given["stop"]
        options["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    options["log_probs"] = _log_probs(kind, given)
    numbers = {row.name: given[row.name] for row in SAMPLING_NUMBERS if row.name in given}
    sampling = Sampling(**numbers, logit_bias=given.get("text_bias", {}))
    idle = sorted(sampling.changed & {"min_p", "top_k", "top_p"})
    if idle and "temperature" not in given:
        raise HttpError(
            "invalid_request",
            f"{', '.join(idle)} without temperature, which is 0 here if left out: the likeliest "
            "token is taken. Set a temperature.",
            param=idle[0],
        )
    fields = _fields(kind, given, task)
    request = Request(given["model"], fields, sampling=sampling, **options)
    usage = bool(given.get("stream_options", {}).get("include_usage", False))
    best = bool(given.get("best", False))
    return Asked(request, streaming, usage, given.get("timeout"), best)


def _log_probs(kind: Kind, given: Mapping[str, Any]) -> int | None:
    """How many of the likeliest tokens are noted; None where none is, not even the token's own."""
    if kind != "chat":
        likeliest: int | None = given.get("logprobs")
        return likeliest
    if not given.get("logprobs", False):
        if "top_logprobs" in given:
            raise HttpError(
                "invalid_request",
                "key 'top_logprobs' without 'logprobs': true, where it has no effect.",
                param="top_logprobs",
            )
        return None
    top: int = given.get("top_logprobs", 0)
    return top


def _tokens(given: Mapping[str, Any]) -> int | None:
    tokens: int | None = given.get("max_tokens")
    newer: int | None = given.get("max_completion_tokens", tokens)
    if tokens is not None and newer != tokens:
        raise HttpError(
            "invalid_request",
            f"max_tokens {tokens} and max_completion_tokens {newer}: give one of them.",
            param="max_completion_tokens",
        )
    return newer


def _fields(kind: Kind, given: Mapping[str, Any], task: ServedTask) -> Mapping[str, Any]:
    """The values of the template's fields."""
    key = "messages" if kind == "chat" else "prompt"
    lone = _message(given["messages"]) if kind == "chat" else given.get("prompt")
    wanted = task.renderer.template.input_fields
    listed = ", ".join(f"'{name}'" for name in wanted) or "none"
    if "fields" in given:
        if lone:
            found = (
                f"both '{key}' and 'fields'. The task's fields are {listed}: give 'fields' alone"
            )
            raise HttpError("invalid_request", f"{found}.", param=key)
        fields: Mapping[str, Any] = given["fields"]
        return fields
    if lone is None:
        return {}  # where the task has fields, the session says which are missing
    if len(wanted) != 1:
        found = f"key '{key}', and a task with {len(wanted)} input fields: {listed}"
        raise HttpError(
            "invalid_request", f"{found}. Give 'fields' with a value for each.", param=key
        )
    return {wanted[0]: lone}


def _message(messages: list[Mapping[str, Any]]) -> str | None:
    """The text of the user's only message; None where there is none."""
    if not messages:
        return None
    roles = [f"{message['role']:.20}" for message in messages]
    if roles != ["user"]:
        raise HttpError(
            "invalid_request",
            f"messages of {', '.join(roles[:8])}: a task's template is its whole prompt, so any "
            "message but one of the user's would have no effect. Send that one alone.",
            param="messages",
        )
    content = messages[0]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


# Answers.


@dataclass(frozen=True)
class Shape:
    """The JSON of one answer.

    Attributes:
        kind: of the route.
        id: of the answer.
        created: in seconds since 1970.
        task: its name.
    """

    kind: Kind
    id: str
    created: int
    task: str

    def whole(self, result: Result) -> dict[str, Any]:
        """The answer in one piece."""
        said: dict[str, Any] = {"text": result.text}
        if self.kind == "chat":
            said = {"message": {"role": "assistant", "content": result.text, "refusal": None}}
        choice = _choice(said, result.finish_reason, self._log_probs(result))
        return {**self._head(""), "choices": [choice], "usage": usage_of(result)}

    def piece(self, text: str, *, first: bool, last: Result | None = None) -> dict[str, Any]:
        """A piece of a stream; the last one holds the log probabilities of all tokens."""
        said: dict[str, Any] = {"text": text}
        if self.kind == "chat":
            role = {"role": "assistant"} if first else {}
            said = {"delta": {**role, "content": text} if text or first else {}}
        ended = (None, None) if last is None else (last.finish_reason, self._log_probs(last))
        return {**self._head(".chunk"), "choices": [_choice(said, *ended)]}

    def usage(self, result: Result) -> dict[str, Any]:
        """The piece of a stream that says how many tokens there were."""
        return {**self._head(".chunk"), "choices": [], "usage": usage_of(result)}

    def _log_probs(self, result: Result) -> dict[str, Any] | None:
        if result.log_probs is None:
            return None
        if self.kind == "chat":
            content = [_chat_log_prob(token) for token in result.log_probs]
            return {"content": content, "refusal": None}
        return {
            "tokens": [token.text for token in result.log_probs],
            "token_logprobs": [token.log_prob for token in result.log_probs],
            "top_logprobs": [_by_text(token) for token in result.log_probs],
            "text_offset": None,  # texts of tokens alone do not add up to the answer's
        }

    def _head(self, suffix: str) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self.kind == "chat" else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.task}


def _choice(
    said: Mapping[str, Any], finish_reason: str | None, log_probs: dict[str, Any] | None
) -> dict[str, Any]:
    return {"index": 0, **said, "logprobs": log_probs, "finish_reason": finish_reason}


def _by_text(token: TokenLogProbs) -> dict[str, float]:
    """The likeliest tokens by their texts: of several with one text, the likeliest."""
    found: dict[str, float] = {}
    for _, name, log_prob in token.top:  # parts of characters all have the text U+FFFD
        found.setdefault(name, log_prob)
    return found


def _chat_log_prob(token: TokenLogProbs) -> dict[str, Any]:
    top = [{"token": text, "logprob": prob, "bytes": None} for _, text, prob in token.top]
    return {"token": token.text, "logprob": token.log_prob, "bytes": None, "top_logprobs": top}


def usage_of(result: Result) -> dict[str, Any]:
    """How many tokens were read and written."""
    written = len(result.token_ids)
    held = result.prefix_tokens + result.shared_tokens
    details = {"cached_tokens": held, "cut_tokens": result.cut_tokens}
    return {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": result.prompt_tokens + written,
        "prompt_tokens_details": details,
    }


def labels_of(task: str, scores: tuple[LabelScore, ...]) -> dict[str, Any]:
    """The answer of `/v1/classify`: all labels, in the order of the task's choices."""
    best = max(scores, key=lambda score: score.probability)
    labels = [vars(score) for score in scores]
    return {"object": "classification", "model": task, "label": best.label, "labels": labels}


def likeliest_of(task: str, best: BestLabel) -> dict[str, Any]:
    """The answer of `/v1/classify` where only the likeliest label was asked for."""
    return {"object": "classification", "model": task, **vars(best)}


def model_of(name: str, task: ServedTask, created: int) -> dict[str, Any]:
    """A task as `/v1/models` lists it."""
    template = task.renderer.template
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "plc",
        "fields": list(template.input_fields),
        "labels": [label.strip() for label in task.choices],
        "virtual_tokens": template.task.total_virtual_tokens,
        "truncate_field": template.task.truncate_field,
    }
