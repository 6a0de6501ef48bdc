"""Requests of strangers: refused where they are made, or answered alone as in any batch."""

import functools
import json
from typing import Any

import numpy as np
from fuzzing import SCALARS, TEXTS, VALUES, attempt, fresh, fuzzed, json_texts, tiny_bundle, utf8
from hypothesis import assume
from hypothesis import strategies as st

from pl_compile.driver.answer_file import answer_file
from pl_compile.errors import PlcError, RequestError
from pl_compile.runtime import Request, Sampling, Session
from pl_compile.testing import tiny_examples

_OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": st.integers(1, 12),
    "min_tokens": st.integers(0, 6),
    "stop": st.lists(st.text("the \n", min_size=1, max_size=3), max_size=2).map(tuple),
    "constrain": st.booleans(),
    "use_prompt": st.booleans(),
    "priority": st.integers(-2, 2),
    "timeout": st.none() | st.floats(1e5, 1e300),
    "log_probs": st.none() | st.integers(0, 20),
    "bad_words": st.lists(st.text("the \n", min_size=1, max_size=3), max_size=2).map(tuple),
}
_SAMPLING: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0, 4) | st.sampled_from((1e-300, 1e-3, 1e30)),
    "top_k": st.integers(0, 500),
    "top_p": st.floats(0.001, 1),
    "repetition_penalty": st.floats(0.01, 10),
    "seed": st.integers(0, 2**70),
    "no_repeat_ngram": st.integers(0, 4),
}
_TASKS: dict[str, tuple[str, ...]] = {
    "tone": ("sentence",),
    "ask": ("question", "place"),
    "order": ("request",),
}
_FIELDS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(("the year 1987", "<|end|>", "<|VIRTUAL_PROMPT_0|>", "{label}", "a " * 200)),
    st.integers(-5, 5),
    st.floats(allow_nan=False, allow_infinity=False),
)


@functools.cache
def _session(max_batch: int = 4) -> Session:
    return Session.open(tiny_bundle(), max_batch=max_batch, threads=1)


@st.composite
def good(draw: st.DrawFn) -> Request:
    """A request that can be made, and as a rule be served."""
    task = draw(st.sampled_from(sorted(_TASKS)))
    fields = {name: draw(_FIELDS) for name in _TASKS[task]}
    chosen = draw(st.sets(st.sampled_from(sorted(_OPTIONS))))
    options = {name: draw(_OPTIONS[name]) for name in sorted(chosen)}
    options["max_tokens"] = max(options.get("min_tokens", 0), options.get("max_tokens", 8))
    drawn = draw(st.sets(st.sampled_from(sorted(_SAMPLING))))
    sampling = Sampling(**{name: draw(_SAMPLING[name]) for name in sorted(drawn)})
    return Request(task, fields, sampling=sampling, **options)


@fuzzed(60, requests=st.lists(good(), min_size=1, max_size=6))
def test_an_answer_does_not_depend_on_what_runs_beside_it(requests: list[Request]) -> None:
    session = _session()
    served = [
        request
        for request in requests
        if not isinstance(attempt(functools.partial(session.check, request)), PlcError)
    ]
    assume(served)

    together = session.generate(served)

    assert together == [_session().generate([request])[0] for request in served]
    pieces = [""] * len(served)
    for event in session.stream(served):
        pieces[event.index] += event.text
    assert pieces == [result.text for result in together]
    for request, result in zip(served, together, strict=True):
        choices = session.tasks[request.task].choices
        if choices and request.constrain:
            assert result.text in choices
        assert not any(word in result.text for word in request.bad_words)
        assert (result.log_probs is None) == (request.log_probs is None)
        assert all(0 <= number < session.engine.vocab for number in result.token_ids)


@fuzzed(40, requests=st.lists(good(), min_size=1, max_size=4))
def test_scores_do_not_depend_on_what_runs_beside_them(requests: list[Request]) -> None:
    session = _session()
    alone = [attempt(functools.partial(session.score, [request])) for request in requests]
    scored = [r for r, found in zip(requests, alone, strict=True) if isinstance(found, list)]

    together = session.score(scored)

    assert together == [scores for found in alone if isinstance(found, list) for scores in found]
    for scores in together:
        assert abs(sum(score.probability for score in scores) - 1) < 1e-6
        assert all(score.log_probability <= 1e-6 for score in scores)


@st.composite
def request_files(draw: st.DrawFn) -> str:
    """Lines of requests, some of them wrong."""
    rows: list[dict[str, Any]] = [dict(row) for row in tiny_examples(draw(st.integers(1, 3)))]
    lines = [draw(json_texts(row)) if draw(st.booleans()) else json.dumps(row) for row in rows]
    return "\n".join(lines)


@fuzzed(80, text=request_files())
def test_a_file_of_requests_is_refused_or_each_is_answered(text: str) -> None:
    path = fresh("requests") / "requests.jsonl"
    path.write_bytes(utf8(text))

    found = attempt(lambda: answer_file(_session(), path, {"max_tokens": 3, "constrain": False}))

    if not isinstance(found, PlcError):
        rows = [
            json.loads(line) for line in text.removeprefix("\ufeff").split("\n") if line.strip()
        ]
        assert [answer.request.task for answer in found] == [row["taskname"] for row in rows]
        for answer in found:
            assert _session().generate([answer.request]) == [answer.result]


_NUMPY = st.sampled_from((np.int64(3), np.float32(0.5), np.array(2), np.array([1]), np.bool_(True)))
_ANYTHING = st.one_of(
    VALUES,
    _NUMPY,
    st.sampled_from((b"the", object(), ..., (1,), ("the", None), ("",), {1: "x"}, 2 + 3j, int)),
    st.tuples(TEXTS),
    st.dictionaries(st.sampled_from(("sentence", "", 1, None)), SCALARS | st.just(b"x")),
)


@st.composite
def wishes(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of a request and of its sampling, some of them of any type."""
    request: dict[str, Any] = {"task": "tone", "fields": {"sentence": "the year"}, "max_tokens": 4}
    sampling: dict[str, Any] = {}
    names = draw(
        st.lists(
            st.sampled_from((*_OPTIONS, *_SAMPLING, "task", "fields", "sampling")),
            min_size=1,
            max_size=2,
        )
    )
    for name in names:
        (sampling if name in _SAMPLING else request)[name] = draw(_ANYTHING)
    return request, sampling


@fuzzed(300, wish=wishes())
def test_arguments_of_any_type_are_refused_where_they_are_given_or_served(
    wish: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    arguments, options = wish
    session = _session()

    def make() -> Request:
        sampling = Sampling(**options)
        return Request(**{"sampling": sampling, **arguments})

    request = attempt(make)
    if isinstance(request, PlcError):
        assert isinstance(request, RequestError)
        return
    # From here on only what the bundle cannot serve is refused, and before the first step.
    checked = attempt(lambda: session.check(request))
    answers = attempt(lambda: session.generate([request]))

    assert isinstance(checked, PlcError) == isinstance(answers, PlcError)
    assert not isinstance(answers, PlcError) or isinstance(answers, RequestError)


@fuzzed(60, given=_ANYTHING | st.lists(_ANYTHING, max_size=2), method=st.integers(0, 3))
def test_what_is_no_list_of_requests_is_refused(given: Any, method: int) -> None:
    session = _session()
    call = (
        session.generate,
        session.score,
        session.check,
        lambda requests: list(session.stream(requests)),
    )[method]

    found = attempt(lambda: call(given))

    assert isinstance(found, RequestError) or found == []


@fuzzed(
    40,
    option=st.sampled_from(("max_batch", "threads", "provider", "allow_failed_parity", "bundle")),
    value=_ANYTHING,
)
def test_a_session_is_opened_or_what_is_wrong_is_said(option: str, value: Any) -> None:
    # Numbers of threads and rows that a machine may have are tried elsewhere.
    assume(not isinstance(value, int) or not 16 < value < 10**5)
    arguments: dict[str, Any] = {"bundle": tiny_bundle(), "threads": 1, option: value}

    found = attempt(lambda: Session.open(**arguments))

    if isinstance(found, Session):
        request = Request("ask", {"question": "who?", "place": "a"}, max_tokens=2)
        assert found.generate([request]) == _session().generate([request])
