"""The session on a compiled bundle: mixed batches, options, streaming, refusals."""

import json
import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import ArtifactError, RequestError
from pl_compile.runtime import Request, Sampling, Session
from pl_compile.runtime.one_reader import OneReader
from pl_compile.runtime.requests import Event
from pl_compile.runtime.row_maker import RowMaker
from pl_compile.runtime.stepping import Output
from pl_compile.testing import (
    byte_fallback_tokenizer,
    random_table,
    sign_bundle,
    tiny_examples,
    write_tiny_base,
)


@pytest.fixture(scope="module", params=["input", "baked"])
def bundle(
    tiny_bases: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    base = tiny_bases["llama"]
    table = random_table(base, folder / "table.safetensors")
    export_bundle(
        ExportRequest(
            table, base, folder / "bundle", prompts=request.param, capacity=80, measure_parity=False
        )
    )
    return folder / "bundle"


@pytest.fixture(scope="module")
def session(bundle: Path) -> Session:
    return Session.open(bundle)


def mixed_requests(count: int, **options: object) -> list[Request]:
    requests = []
    for row in tiny_examples(count, seed=3):
        fields = {k: v for k, v in row.items() if k not in ("taskname", "answer", "label")}
        requests.append(
            Request(row["taskname"], fields, max_tokens=12, constrain=False, **options)  # type: ignore[arg-type]
        )
    return requests


def test_a_mixed_batch_equals_one_by_one(session: Session) -> None:
    requests = mixed_requests(11)

    together = session.generate(requests)

    assert together == [session.generate([request])[0] for request in requests]
    assert len({result.prompt_tokens for result in together}) > 4
    assert {result.task for result in together} == {"tone", "ask"}


def test_sampled_answers_do_not_depend_on_the_batch(session: Session) -> None:
    sampling = Sampling(temperature=0.9, top_k=40, top_p=0.95, repetition_penalty=1.2, seed=5)
    requests = mixed_requests(7, sampling=sampling)

    together = session.generate(requests)

    assert together == [session.generate([request])[0] for request in requests]


def test_more_requests_than_rows_are_answered_in_order(bundle: Path) -> None:
    requests = mixed_requests(9)

    narrow = Session.open(bundle, max_batch=2).generate(requests)

    assert narrow == Session.open(bundle, max_batch=16).generate(requests)


def test_what_numpy_does_about_errors_is_the_callers_and_changes_nothing(bundle: Path) -> None:
    requests = [
        *mixed_requests(3, sampling=Sampling(temperature=0.001)),
        *mixed_requests(3, sampling=Sampling(temperature=1e-300, repetition_penalty=1000.0)),
    ]
    labelled = [Request("tone", {"sentence": "so cold"})]
    session = Session.open(bundle)
    answers, scores = session.generate(requests), session.score(labelled)

    with np.errstate(all="raise"):
        session = Session.open(bundle)
        assert session.generate(requests) == answers
        assert session.score(labelled) == scores
        stream = session.stream(requests)
        next(stream)
        assert set(np.geterr().values()) == {"raise"}
        assert [event.result for event in stream][-1] is not None


def test_seeds_change_draws_and_repeat_them(session: Session) -> None:
    def answer(seed: int) -> tuple[int, ...]:
        request = Request(
            "ask",
            {"question": "who?", "place": "a"},
            max_tokens=20,
            min_tokens=20,
            sampling=Sampling(temperature=2.0, seed=seed),
        )
        return session.generate([request])[0].token_ids

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_streamed_pieces_make_the_text_of_the_result(session: Session) -> None:
    requests = mixed_requests(6)
    pieces = [""] * len(requests)
    results = {}

    for event in session.stream(requests):
        pieces[event.index] += event.text
        if event.result is not None:
            results[event.index] = event.result

    assert pieces == [results[index].text for index in range(len(requests))]
    assert sum(map(bool, pieces)) >= 5


def test_max_and_min_tokens_are_kept(session: Session) -> None:
    fields = {"question": "why?", "place": "x"}

    short = session.generate([Request("ask", fields, max_tokens=4)])[0]
    long = session.generate([Request("ask", fields, max_tokens=25, min_tokens=25)])[0]

    assert len(short.token_ids) <= 4
    assert len(long.token_ids) == 25
    assert long.finish_reason == "length"


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(session: Session) -> None:
    fields = {"question": "why?", "place": "x"}
    whole = session.generate([Request("ask", fields, max_tokens=20, min_tokens=20)])[0]
    stop = whole.text[5:8]

    stopped = session.generate([Request("ask", fields, max_tokens=20, min_tokens=20, stop=(stop,))])

    assert stopped[0].text == whole.text[: whole.text.index(stop)].rstrip(" ")
    assert stopped[0].finish_reason == "stop"


def test_a_stop_text_that_only_the_end_shows_ends_the_answer_too(session: Session) -> None:
    """An unfinished character is not text until no more tokens come; then it is U+FFFD."""
    request = Request("ask", {"question": "why?", "place": "x"}, max_tokens=1, stop=("\ufffd",))
    fox = session.tokenizer.encode("🦊", opens=False, markup=False)[0]
    maker = RowMaker(session.tokenizer, session.tasks, session.engine)
    row = maker.row(0, request, "testing")

    event = row.advance(Output(np.zeros((1, 397), np.float32), fox))

    assert event.result is not None
    assert (event.result.text, event.result.finish_reason) == ("", "stop")


def test_a_task_with_choices_answers_one_of_them(session: Session) -> None:
    requests = [
        Request("tone", {"sentence": text}, sampling=Sampling(temperature=3.0, seed=seed))
        for seed, text in enumerate(["so cold", "a parcel", "the bill", "login?", "x"])
    ]

    results = session.generate(requests)

    assert {result.text for result in results} <= {"positive", "negative", "neutral"}
    assert {result.finish_reason for result in results} == {"stop"}


def test_the_prompt_changes_the_answer(session: Session) -> None:
    fields = {"question": "who was there?", "place": "a café"}
    with_, without = session.generate(
        [
            Request("ask", fields, max_tokens=12, min_tokens=12),
            Request("ask", fields, max_tokens=12, min_tokens=12, use_prompt=False),
        ]
    )

    assert with_.token_ids != without.token_ids
    assert with_.prompt_tokens == without.prompt_tokens + 5


def test_a_long_field_is_cut_and_leaves_room_for_the_answer(session: Session) -> None:
    request = Request("ask", {"question": "who was there? " * 40, "place": "a"}, max_tokens=10)

    result = session.generate([request])[0]

    assert result.prompt_tokens <= 80 - 10


def test_a_prompt_longer_than_the_capacity_is_refused(session: Session) -> None:
    request = Request("tone", {"sentence": "so cold " * 60})

    with pytest.raises(RequestError, match=r"request 0.*no truncate_field; expected at most 80"):
        session.generate([request])


def test_an_answer_ends_where_the_cache_does(session: Session) -> None:
    fields = {"sentence": "cold " * 20}
    request = Request("tone", fields, max_tokens=200, min_tokens=200, constrain=False)

    result = session.generate([request])[0]

    assert result.finish_reason == "length"
    assert result.prompt_tokens + len(result.token_ids) == 80


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("tome", {}), "task 'tome' does not exist.*Did you mean 'tone'.*tone, ask"),
        (Request("tone", {}), "field 'sentence' is missing.*Its fields: sentence"),
        (
            Request("tone", {"sentense": "x"}),
            "'sentence' is missing.*Did you mean 'sentense'.*'sentense' is not in the template",
        ),
        (
            Request("tone", {"sentence": "x", "label": "positive"}),
            "field 'label' is what the model writes: leave it out",
        ),
    ],
)
def test_requests_that_cannot_be_served_say_why(
    session: Session, request_: Request, message: str
) -> None:
    good = Request("tone", {"sentence": "fine"})

    with pytest.raises(RequestError, match=f"(?s)serving request 1.*{message}"):
        session.generate([good, request_])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens 9, max_tokens 3"),
        ({"stop": ("",)}, "an empty stop text"),
    ],
)
def test_requests_with_impossible_options_are_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        Request("tone", {}, **options)  # type: ignore[arg-type]


def test_a_prompt_that_fits_is_never_cut_whatever_max_tokens_is(session: Session) -> None:
    fields = {"question": "who was there? " * 4, "place": "a"}

    results = session.generate(
        [Request("ask", fields, max_tokens=count, min_tokens=8) for count in (8, 60, 500)]
    )

    assert len({result.prompt_tokens for result in results}) == 1
    assert {result.cut_tokens for result in results} == {0}
    assert {result.token_ids[:8] for result in results} == {results[0].token_ids[:8]}


def test_a_cut_is_counted_in_the_result(session: Session) -> None:
    fields = {"question": "who was there? " * 40, "place": "a"}

    result = session.generate([Request("ask", fields, max_tokens=500)])[0]

    assert result.cut_tokens > 0
    assert result.prompt_tokens == pytest.approx(80 - 80 // 4, abs=3)


def test_a_choice_is_written_to_its_end_through_any_stop_text(session: Session) -> None:
    fields = {"sentence": "the year was cold"}
    whole = session.generate([Request("tone", fields)])[0]

    stopped = session.generate([Request("tone", fields, stop=(whole.text[1:3], whole.text[0]))])[0]

    assert stopped == whole


def test_a_choice_is_written_to_its_end_whatever_max_tokens_is(session: Session) -> None:
    result = session.generate([Request("tone", {"sentence": "x"}, max_tokens=1)])[0]

    assert result.text in ("positive", "negative", "neutral")


def test_streams_of_one_session_share_its_slots_and_change_nothing(session: Session) -> None:
    requests = mixed_requests(6)
    expected = session.generate(requests)
    first, second = session.stream(requests[:4]), session.stream(requests[4:])
    begun = next(first)

    with pytest.raises(RequestError, match="task 'nobody'"):
        session.generate([Request("nobody", {})])
    others = [event.result for event in second if event.result is not None]
    scores = session.score([Request("tone", {"sentence": "so cold"})])
    rest = [event for event in (begun, *first) if event.result is not None]

    assert sorted(others, key=expected.index) == expected[4:]
    results = {event.index: event.result for event in rest}
    assert [results[index] for index in range(4)] == expected[:4]
    assert scores == session.score([Request("tone", {"sentence": "so cold"})])


def test_a_stream_that_is_closed_leaves_its_slots(bundle: Path) -> None:
    session = Session.open(bundle, max_batch=2)
    requests = mixed_requests(5)
    stream = session.stream(requests)
    next(stream)

    stream.close()

    assert len(session.generate(requests)) == 5


@pytest.mark.parametrize("error", [ArtifactError("running", found="x"), KeyboardInterrupt()])
def test_a_step_that_fails_ends_all_streams_and_the_session_begins_anew(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    session = Session.open(bundle, max_batch=4)
    requests = mixed_requests(6)
    expected = session.generate(requests)
    first, second = session.stream(requests[:3]), session.stream(requests[3:])
    next(first)
    next(second)

    def failing(step: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(session.engine, "step", failing)
        with pytest.raises(type(error)):
            list(first)
    with pytest.raises((ArtifactError, RequestError)) as told:
        list(second)

    assert "interrupted" in str(told.value) or told.value is error
    assert session.generate(requests) == expected


def test_threads_get_the_answers_that_each_would_get_alone(session: Session) -> None:
    requests = mixed_requests(24, sampling=Sampling(temperature=0.8, top_k=20, seed=2))
    expected = session.generate(requests)
    scored = Request("tone", {"sentence": "so cold"})
    scores = session.score([scored])
    found: dict[int, object] = {}

    def ask(number: int) -> None:
        part = requests[number * 3 : number * 3 + 3]
        found[number] = session.score([scored]) if number == 7 else session.generate(part)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)

    assert found.pop(7) == scores
    for number, results in found.items():
        assert results == expected[number * 3 : number * 3 + 3]


def test_a_closed_session_answers_nothing_more_and_holds_nothing(bundle: Path) -> None:
    request = Request("tone", {"sentence": "x"})
    with Session.open(bundle) as session:
        assert session.generate([request])[0].text
        engine = weakref.ref(session.engine)
        begun = session.stream(mixed_requests(2))
        next(begun)
    session.close()  # once more

    assert engine() is None
    for call in (
        lambda: session.generate([request]),
        lambda: session.generate([]),
        lambda: next(session.stream([request])),
        lambda: session.score([request]),
        lambda: session.score([]),
        lambda: session.check(request),
        lambda: session.engine,
        lambda: next(begun),
        session.__enter__,
    ):
        with pytest.raises(RequestError) as error:
            call()
        assert str(error.value) == (
            "using a session: one that was closed. Open another one: Session.open(bundle)."
        )


def test_a_session_is_closed_whatever_happens_in_it(bundle: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Session.open(bundle) as session:
        raise KeyboardInterrupt

    with pytest.raises(RequestError, match="one that was closed"):
        session.generate([])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("capacity", 50),
        ("capacity", 10**9),
        ("capacity", -3),
        ("layers", 1),
        ("layers", 5),
        ("vocab", 10),
        ("kv_heads", 1),
        ("hidden", 23),
        ("baked_tasks", ["ask", "tone"]),
    ],
)
def test_a_manifest_that_does_not_describe_the_graph_is_refused(
    bundle: Path, tmp_path: Path, key: str, value: object
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["graph"][key] = value
    (copy / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(ArtifactError):
        Session.open(copy)


def test_a_bundle_that_failed_parity_is_served_only_on_demand(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "parity": "failed"}))

    with pytest.raises(ArtifactError, match=r"parity failed.*See plc verify"):
        Session.open(copy)

    assert Session.open(copy, allow_failed_parity=True).tasks


def test_an_empty_batch_size_is_refused(bundle: Path) -> None:
    with pytest.raises(RequestError, match="max_batch 0; expected a whole number, at least 1"):
        Session.open(bundle, max_batch=0)


@pytest.fixture(scope="module")
def byte_fallback_session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("bytes")
    base = write_tiny_base(folder / "base", "llama", tokenizer=byte_fallback_tokenizer("prepend"))
    table = random_table(base, folder / "table.safetensors")
    request = ExportRequest(table, base, folder / "bundle", measure_parity=False)
    return Session.open(export_bundle(request).bundle)


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_an_answer_is_what_decode_gives_of_its_tokens_whatever_the_model_writes(
    session: Session, byte_fallback_session: Session, kind: str
) -> None:
    session = session if kind == "byte level" else byte_fallback_session
    broken = 0
    for seed in range(6):
        sampling = Sampling(temperature=50.0, seed=seed)
        pieces = [""] * 11
        for event in session.stream(mixed_requests(11, sampling=sampling)):
            pieces[event.index] += event.text
            if event.result is not None:
                ids = list(event.result.token_ids)
                eos_id = session.tasks[event.result.task].renderer.rules.eos_id
                text = session.tokenizer.decode([key for key in ids if key != eos_id])
                assert pieces[event.index] == event.result.text == text.strip(" ")
                broken += "\ufffd" in text
    assert broken > 6


def test_a_bundle_is_served_from_any_path_in_any_locale(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "naïve 😀")
    code = (
        "import sys; from pl_compile.runtime import Request, Session; "
        "session = Session.open(sys.argv[1], threads=1); "
        "print(session.generate([Request('tone', {'sentence': 'x'})])[0].finish_reason)"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    served = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "naïve 😀")],
        env={**os.environ, **locale},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (served.returncode, served.stdout) == (0, "stop\n"), served.stderr


def test_a_second_thread_that_reads_a_stream_is_refused_by_name() -> None:
    reading, go_on = threading.Event(), threading.Event()
    piece = Event(0, "text")
    got: list[Event] = []

    def events() -> Generator[Event, None, None]:
        reading.set()
        assert go_on.wait(60)
        yield piece

    stream = OneReader(events())
    thread = threading.Thread(target=lambda: got.extend(stream))
    thread.start()
    assert reading.wait(60)
    with pytest.raises(RequestError, match="reading a stream: two threads that read it at once"):
        next(stream)
    go_on.set()
    thread.join(60)

    assert got == [piece]


def test_a_graph_that_cannot_be_loaded_is_one_error_and_prints_nothing(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    model = folder / "base" / "model.onnx"
    # One of several places: what names it elsewhere finds it no more. And no UTF-8, which stands in
    # the library's message then.
    model.write_bytes(model.read_bytes().replace(b"layers.0", b"layers.\xf5", 1))
    sign_bundle(folder)

    with pytest.raises(ArtifactError, match=f"loading {model}: "):
        Session.open(folder)
    assert capfd.readouterr() == ("", "")
