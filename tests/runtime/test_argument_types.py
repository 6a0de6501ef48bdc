"""The Python API with arguments of wrong types and beyond their ranges: refused where it is asked.

A value that only looks right would fail in the middle of a batch, or be served as something else.
"""

from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import PlcError, RequestError
from pl_compile.runtime import Provider, Request, Sampling, Session
from pl_compile.testing import random_table

HUGE = 10**5000  # more digits than Python writes
NAN, INF = float("nan"), float("inf")

NO_NUMBERS: tuple[Any, ...] = (
    *(None, "1", b"1", "", [], [1], (1,), {}, object(), True, False, np.bool_(True)),
    *(NAN, INF, -INF, np.float32("nan"), 1j, Decimal(1), Fraction(1), np.ones(2), np.ones(1)),
)
NOT_WHOLE: tuple[Any, ...] = (*NO_NUMBERS, 1.0, 1.5, np.float64(1), -1, -HUGE)
NO_TEXTS: tuple[Any, ...] = (None, 1, 1.5, b"tone", ["tone"], ("tone",), {}, object(), True)
NO_FLAGS: tuple[Any, ...] = (None, 0, 1, "no", "", [], np.int64(1))


@pytest.fixture(scope="module")
def bundle(tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    table = random_table(tiny_bases["llama"], folder / "table.safetensors")
    export_bundle(
        ExportRequest(
            table, tiny_bases["llama"], folder / "bundle", capacity=80, measure_parity=False
        )
    )
    return folder / "bundle"


@pytest.fixture(scope="module")
def session(bundle: Path) -> Session:
    return Session.open(bundle)


def kind(value: object) -> str:
    """Names a case: pytest would write its numbers out."""
    return type(value).__name__


def refused(doing: str, call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(RequestError) as error:
        call(*arguments, **options)
    assert str(error.value).startswith(doing)
    assert len(str(error.value)) < 600
    return str(error.value)


# Requests


def request(**changes: Any) -> Request:
    return Request(**{"task": "tone", "fields": {"sentence": "x"}, **changes})


@pytest.mark.parametrize("value", NO_TEXTS)
def test_a_task_is_a_name(value: Any) -> None:
    assert "expected its name" in refused("reading a request", request, task=value)


@pytest.mark.parametrize("value", [None, "sentence", b"", 1, [("sentence", "x")], {"sentence"}])
def test_fields_are_a_mapping(value: Any) -> None:
    text = refused("reading a request for task 'tone': ", request, fields=value)

    assert "expected a mapping from name to value" in text


@pytest.mark.parametrize("name", [None, 1, True, b"sentence", ("sentence",)])
def test_the_names_of_fields_are_texts(name: Any) -> None:
    text = refused("reading a request for task 'tone': field", request, fields={name: "x"})

    assert text.endswith("expected a text as its name.")


@pytest.mark.parametrize(
    "value",
    [*NO_NUMBERS[:1], b"1", [], [1], (1,), {}, object(), True, np.bool_(True)],
    ids=kind,
)
def test_a_field_is_a_text_or_a_number(value: Any) -> None:
    text = refused("reading a request for task 'tone': ", request, fields={"sentence": value})

    assert text.endswith(", expected text or a number.")


@pytest.mark.parametrize("value", [NAN, -INF, np.float32("inf"), HUGE, -(10**400)], ids=kind)
def test_a_number_that_no_double_holds_is_told_what_it_is(value: Any) -> None:
    text = refused("reading a request for task 'tone': ", request, fields={"sentence": value})

    assert text.endswith(", expected a finite number that a double can hold: give it as text.")


def test_half_of_a_surrogate_pair_is_no_text() -> None:
    text = refused("reading a request for task 'tone': ", request, fields={"sentence": "a\ud83d"})

    assert text.endswith("expected text that UTF-8 can write: this holds half of a surrogate pair.")


@pytest.mark.parametrize("value", NOT_WHOLE, ids=kind)
@pytest.mark.parametrize("name", ["max_tokens", "min_tokens"])
def test_lengths_are_whole_numbers(name: str, value: Any) -> None:
    text = refused("reading a request for task 'tone': ", request, **{name: value})

    assert "expected whole numbers, 0 <= min_tokens <= max_tokens" in text


@pytest.mark.parametrize("value", [None, "x", b"x", 1, (1,), [None], ["a", b"b"], {"a"}, {"a": 1}])
@pytest.mark.parametrize("name", ["stop", "bad_words"])
def test_stop_texts_and_bad_words_are_texts_in_a_row(name: str, value: Any) -> None:
    text = refused("reading a request for task 'tone': ", request, **{name: value})

    assert "expected a tuple of texts" in text


@pytest.mark.parametrize("value", [*NO_NUMBERS, 1.0, np.float64(1)], ids=kind)
def test_a_priority_is_a_whole_number(value: Any) -> None:
    text = refused("reading a request for task 'tone': priority", request, priority=value)

    assert text.endswith("expected a whole number.")
    assert request(priority=np.int8(-3)).priority == -3


@pytest.mark.parametrize("value", [*NO_NUMBERS[1:], 0, -1.0, HUGE], ids=kind)
def test_a_timeout_is_a_number_of_seconds(value: Any) -> None:
    text = refused("reading a request for task 'tone': timeout", request, timeout=value)

    assert text.endswith("expected seconds, above 0, or None.")


@pytest.mark.parametrize("value", [*NOT_WHOLE[1:], 21], ids=kind)
def test_log_probs_are_counted(value: Any) -> None:
    text = refused("reading a request for task 'tone': log_probs", request, log_probs=value)

    assert text.endswith("expected a whole number from 0 to 20, or None.")


@pytest.mark.parametrize("value", [None, {}, {"temperature": 1}, 0.7, Sampling])
def test_sampling_is_a_sampling(value: Any) -> None:
    text = refused("reading a request for task 'tone': ", request, sampling=value)

    assert "expected a Sampling" in text


@pytest.mark.parametrize("value", NO_FLAGS)
@pytest.mark.parametrize("name", ["constrain", "use_prompt"])
def test_switches_are_true_or_false(name: str, value: Any) -> None:
    text = refused("reading a request for task 'tone': ", request, **{name: value})

    assert "expected True or False" in text


def test_all_that_is_wrong_with_a_request_is_said_at_once() -> None:
    text = refused("reading a request", request, fields={"a": None, 1: "b"}, stop="x", constrain=1)

    assert "4 problems:" in text


# Sampling


@pytest.mark.parametrize("value", NOT_WHOLE, ids=kind)
@pytest.mark.parametrize("name", ["top_k", "seed", "no_repeat_ngram"])
def test_counts_of_sampling_are_whole_numbers(name: str, value: Any) -> None:
    text = refused(f"reading the sampling options: {name} ", Sampling, **{name: value})

    assert "expected a whole number, 0 or more" in text


@pytest.mark.parametrize("value", [*NO_NUMBERS, HUGE, -1.0, -1e-300], ids=kind)
@pytest.mark.parametrize("name", ["temperature", "top_p", "repetition_penalty"])
def test_the_other_options_of_sampling_are_numbers_in_their_range(name: str, value: Any) -> None:
    refused(f"reading the sampling options: {name} ", Sampling, **{name: value})


@pytest.mark.parametrize("value", [0, 1e-4, 1001, 1e300])
def test_a_penalty_that_makes_logits_infinite_is_refused(value: float) -> None:
    text = refused("reading the sampling options: ", Sampling, repetition_penalty=value)

    assert "expected a number from 0.001 to 1000" in text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 5e-324},
        {"temperature": 1e-300, "top_k": 3, "top_p": 5e-324},
        {"temperature": 1e308},
        {"temperature": 1.0, "top_k": HUGE, "seed": HUGE},
        {"temperature": 1.0, "seed": 2**64},
        {"temperature": 1.0, "repetition_penalty": 1000},
        {"temperature": 1.0, "repetition_penalty": 0.001},
    ],
)
def test_whatever_is_accepted_is_served(session: Session, sampling: dict[str, Any]) -> None:
    for constrain in (True, False):
        asked = request(max_tokens=5, sampling=Sampling(**sampling), constrain=constrain)

        assert len(session.generate([asked])[0].token_ids) >= 1


# What looks unusual, and is meant


def test_numbers_of_numpy_are_numbers() -> None:
    numbers: tuple[Any, ...] = (np.float32(0.5), np.int32(3), np.float64(1), 1, np.array(7))

    of_numpy = request(max_tokens=np.int64(9), min_tokens=np.uint8(2), sampling=Sampling(*numbers))

    assert of_numpy == request(max_tokens=9, min_tokens=2, sampling=Sampling(0.5, 3, 1.0, 1.0, 7))
    assert {type(of_numpy.max_tokens), type(of_numpy.sampling.seed)} == {int}
    assert type(of_numpy.sampling.temperature) is float


@pytest.mark.parametrize("number", [np.int64(3), np.float32(3), 3, 3.0, 2**70])
def test_any_number_fills_a_field(session: Session, number: Any) -> None:
    text = session.generate([request(fields={"sentence": str(number)})])

    assert session.generate([request(fields={"sentence": number})]) == text


def test_a_text_of_another_type_is_the_text_that_it_is(session: Session) -> None:
    class Word(str):
        def __str__(self) -> str:  # as a member of an enumeration has it
            return "Word.GOOD"

    answers = session.generate([request(fields={"sentence": w}) for w in (Word("good"), "good")])

    assert answers[0] == answers[1]


def test_a_request_keeps_what_it_was_made_of() -> None:
    fields, stop = {"sentence": "x"}, ["a"]
    asked = request(fields=MappingProxyType(fields), stop=stop)

    fields["sentence"] = "y"
    stop.append("b")

    assert (asked.fields, asked.stop) == ({"sentence": "x"}, ("a",))


# Calls of a session


@pytest.mark.parametrize("call", ["generate", "stream", "score"])
@pytest.mark.parametrize(
    ("requests", "doing"),
    [
        (None, "reading the requests: None"),
        (7, "reading the requests: 7"),
        (np.array(2), "reading the requests: array(2)"),
        (request(), "reading the requests: Request("),
        ("tone", "serving request 0: 't'"),
        ({"task": "tone"}, "serving request 0: 'task'"),
        ([None], "serving request 0: None"),
        ([request(), {"task": "tone"}], "serving request 1: {'task': 'tone'}"),
    ],
)
def test_requests_come_in_a_list(session: Session, call: str, requests: Any, doing: str) -> None:
    if call == "score":
        doing = doing.replace("serving", "scoring")
    text = refused(doing, lambda: list(getattr(session, call)(requests)))

    assert "; expected a" in text
    assert session.generate([request()])[0].text  # the session can still be used


def test_a_single_request_is_checked_as_those_of_a_list(session: Session) -> None:
    refused("checking a request: None; expected a Request", session.check, None)


def test_requests_may_come_from_a_generator(session: Session) -> None:
    def two() -> Iterator[Request]:
        yield request()
        yield request(fields={"sentence": "y"})

    listed = list(two())

    assert session.generate(two()) == session.generate(listed)
    assert session.score(two()) == session.score(listed)
    assert [e for e in session.stream(two()) if e.result] != []
    assert session.generate([]) == []


@pytest.mark.parametrize("value", [None, 1, b"bundle", ["bundle"], Path])
def test_a_bundle_is_a_path(value: Any) -> None:
    text = refused("opening a session: bundle ", Session.open, value)

    assert "expected a path" in text


@pytest.mark.parametrize(
    "value", [*(each for each in NOT_WHOLE if each is not None), 0, 10**6, HUGE], ids=kind
)
@pytest.mark.parametrize("name", ["max_batch", "threads"])
def test_rows_and_threads_are_few_whole_numbers(bundle: Path, name: str, value: Any) -> None:
    text = refused(f"opening a session: {name} ", Session.open, bundle, **{name: value})

    assert "expected a whole number, at least 1 and at most " in text


@pytest.mark.parametrize("value", ["cpu", {"name": "cpu"}, 1, Provider])
def test_a_provider_is_a_provider(bundle: Path, value: Any) -> None:
    text = refused("opening a session: provider ", Session.open, bundle, provider=value)

    assert "expected a Provider" in text


@pytest.mark.parametrize("value", NO_FLAGS)
def test_a_failed_bundle_is_allowed_by_true_alone(bundle: Path, value: Any) -> None:
    refused("opening a session: allow", Session.open, bundle, allow_failed_parity=value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((3,), "bundle 3, expected a path"),
        (("other", "tone"), "tasks 'tone', expected a list of names"),
        (("other", 3), "tasks 3, expected a list of names"),
        (("other", ["tone", 3]), "expected a list of names"),
    ],
)
def test_tasks_are_added_by_their_names(
    session: Session, arguments: tuple[Any, ...], said: str
) -> None:
    assert said in refused("adding tasks: ", session.add_tasks, *arguments)


@pytest.mark.parametrize("name", [3, None, ["tone"]])
def test_a_task_is_removed_by_its_name(session: Session, name: Any) -> None:
    assert "does not exist" in refused("removing a task: ", session.remove_task, name)


@pytest.mark.parametrize(
    "arguments",
    [
        *((value,) for value in (*NO_TEXTS, "\0", "\ud800")),
        *(("cpu", value) for value in (None, "a=b", ["a"], {"a": 1}, {1: "a"}, {"a": None})),
        *(("cpu", {value: value}) for value in ("a\0", "\ud800")),
        *(("cpu", {}, value) for value in (1, b"lib.so", ["lib.so"], True)),
        *(("cuda", {"device_id": value}) for value in ("", "-1", "x", "²", "1" * 5000)),
    ],
)
def test_a_provider_is_made_of_texts(arguments: tuple[Any, ...]) -> None:
    refused("reading the provider: ", Provider, *arguments)


def test_options_without_effect_are_refused(bundle: Path) -> None:
    provider = Provider("cpu", {"intra_op_num_threads": "1"})

    text = refused("choosing the execution provider", Session.open, bundle, provider=provider)

    assert "options: intra_op_num_threads; expected none" in text


def test_what_a_session_accepts_it_can_open_with(bundle: Path) -> None:
    counts: dict[str, Any] = {"max_batch": np.int64(4096), "threads": np.int32(1)}

    opened = Session.open(str(bundle), **counts)

    assert opened.engine.max_batch == 4096
    assert opened.generate([request()])[0].text


@pytest.mark.parametrize("name", ["a\udcff", "\ud83d"])
def test_a_message_can_be_printed_whatever_a_path_holds(tmp_path: Path, name: str) -> None:
    with pytest.raises(PlcError, match="opening the bundle") as error:
        Session.open(tmp_path / name)

    assert str(error.value).encode()
