"""The session for asyncio: every answer equals the answer alone, whoever leaves or fails."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import AnswerError, RequestError
from pl_compile.runtime import AsyncSession, Request, Result, Sampling, Session
from pl_compile.runtime.stepping import Batch
from pl_compile.testing import random_table

TEXTS = ["so cold", "a parcel, a bill", "the lazy dog is not here " * 2, "x"]


def request_of(number: int) -> Request:
    """One of many requests: of several tasks, lengths and ways to choose a token."""
    random = Random(number)
    text, place = random.choice(TEXTS), random.choice(TEXTS)
    sampling = random.choice([Sampling(), Sampling(temperature=0.9, seed=number)])
    tokens = random.randint(1, 12)
    if random.random() < 0.5:
        return Request("tone", {"sentence": text}, tokens, sampling=sampling)
    return Request("ask", {"question": text, "place": place}, tokens, sampling=sampling)


@pytest.fixture(scope="module")
def bundle(tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    table = random_table(tiny_bases["llama"], folder / "table.safetensors")
    request = ExportRequest(
        table, tiny_bases["llama"], folder / "bundle", capacity=96, measure_parity=False
    )
    export_bundle(request)
    return folder / "bundle"


@pytest.fixture(scope="module")
def alone(bundle: Path) -> Any:
    """What a request gives alone."""
    session, known = Session.open(bundle, max_batch=1), dict[str, Result]()

    def answer(request: Request) -> Result:
        key = repr(request)
        if key not in known:
            known[key] = session.generate([request])[0]
        return known[key]

    return answer


@contextmanager
def step_runs(session: Session, before: Any) -> Iterator[None]:
    """Calls `before` at the start of each step of the engine."""
    assert session._flow is not None
    rows = session._flow.batch._rows
    step = rows.step

    def noted(given: Any) -> Any:
        before()
        return step(given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "step", noted)
        yield


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), min_size=1, max_size=24))
def test_answers_of_many_tasks_with_random_cancels_equal_those_alone(
    bundle: Path, alone: Any, drawn: list[tuple[int, int]]
) -> None:
    """A row leaves after as many events as drawn; from 6 on it stays to its end."""

    async def ask(session: AsyncSession, number: int, leaves: int) -> None:
        request = request_of(number)
        if number % 3 == 0:
            task = asyncio.ensure_future(session.generate(request))
            if leaves < 6:
                await asyncio.sleep(0.001 * leaves)
                task.cancel()
            with suppress(asyncio.CancelledError):
                assert await task == alone(request)
            return
        text, result = "", None
        async with aclosing(session.stream(request)) as events:
            seen = 0
            async for event in events:
                text, result, seen = text + event.text, event.result, seen + 1
                if seen > leaves and leaves < 6:
                    break
        expected = alone(request)
        assert expected.text.startswith(text)
        assert leaves < 6 or (result, text) == (expected, expected.text)

    async def ask_all() -> None:
        async with AsyncSession(Session.open(bundle, max_batch=3)) as session:
            async with asyncio.TaskGroup() as group:
                for number, leaves in drawn:
                    group.create_task(ask(session, number, leaves))
            # The slots of those that left are free.
            assert await session.generate(request_of(41)) == alone(request_of(41))

    asyncio.run(ask_all())


def test_threads_and_coroutines_share_a_session(bundle: Path, alone: Any) -> None:
    requests = [request_of(number) for number in range(12)]
    session = Session.open(bundle, max_batch=3)
    found: list[list[Result]] = []

    async def ask() -> list[Result]:
        async with AsyncSession(session) as answers:
            threads = [
                threading.Thread(target=lambda: found.append(session.generate(requests)))
                for _ in range(3)
            ]
            for thread in threads:
                thread.start()
            results = await asyncio.gather(*map(answers.generate, requests))
            for thread in threads:
                await asyncio.to_thread(thread.join)
        return results

    results = asyncio.run(ask())

    assert [*found, results] == [[alone(request) for request in requests]] * 4


def test_two_loops_share_a_session(bundle: Path, alone: Any) -> None:
    session = AsyncSession(Session.open(bundle, max_batch=2))
    requests = [request_of(number) for number in range(6)]
    found: list[list[Result]] = []

    async def ask() -> None:
        found.append(await asyncio.gather(*map(session.generate, requests)))

    threads = [threading.Thread(target=lambda: asyncio.run(ask())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(session.close())

    assert found == [[alone(request) for request in requests]] * 2


def test_a_step_reaches_the_loop_in_one_call(bundle: Path) -> None:
    async def ask() -> tuple[int, int, int]:
        calls, steps, events = [0], [0], 0
        session = Session.open(bundle, max_batch=8)
        advance, loop = session.advance, asyncio.get_running_loop()
        call = loop.call_soon_threadsafe

        def counted(*arguments: Any, **more: Any) -> Any:
            calls[0] += threading.current_thread().name == "plc-steps"
            return call(*arguments, **more)

        def noted() -> None:
            steps[0] += 1
            advance()

        async def read(answers: AsyncSession, number: int) -> int:
            request = Request(
                "ask", {"question": f"{number}", "place": "x"}, max_tokens=20, min_tokens=20
            )
            return len([event async for event in answers.stream(request)])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "call_soon_threadsafe", counted)
            patch.setattr(session, "advance", noted)
            async with AsyncSession(session) as answers:
                events = sum(await asyncio.gather(*(read(answers, each) for each in range(8))))
        return calls[0], steps[0], events

    calls, steps, events = asyncio.run(ask())

    assert events == 8 * 20
    assert calls <= steps < events / 2


def test_probabilities_of_labels(bundle: Path) -> None:
    request = Request("tone", {"sentence": "so cold"})
    expected = Session.open(bundle).score([request])[0]

    async def ask() -> None:
        async with AsyncSession(Session.open(bundle)) as session:
            writing = asyncio.ensure_future(session.generate(request_of(1)))
            assert await session.score(request) == expected
            with pytest.raises(RequestError, match="task 'ask' has no choices"):
                await session.score(Request("ask", {"question": "a", "place": "b"}))
            assert (await writing).text is not None

    asyncio.run(ask())


def test_errors_of_a_request_reach_its_awaiter_only(bundle: Path, alone: Any) -> None:
    async def ask() -> None:
        async with AsyncSession(Session.open(bundle)) as session:
            wrong = Request("tune", {"sentence": "x"})
            good, bad = await asyncio.gather(
                session.generate(request_of(2)), session.generate(wrong), return_exceptions=True
            )
            assert good == alone(request_of(2))
            assert isinstance(bad, RequestError)
            assert "task 'tune' does not exist" in str(bad)
            with pytest.raises(RequestError, match="field 'sentence' is missing"):
                async for _ in session.stream(Request("tone", {})):
                    pass

    asyncio.run(ask())


def test_a_step_that_fails_ends_its_requests_and_not_the_session(bundle: Path, alone: Any) -> None:
    failing = [True]

    def fail() -> None:
        if failing[0]:
            raise MemoryError("no room")

    async def ask() -> None:
        session = Session.open(bundle)
        async with AsyncSession(session) as answers:
            with step_runs(session, fail):
                found = await asyncio.gather(
                    *(answers.generate(request_of(each)) for each in range(3)),
                    return_exceptions=True,
                )
                assert [type(each) for each in found] == [MemoryError] * 3
                failing[0] = False
                assert await answers.generate(request_of(4)) == alone(request_of(4))

    asyncio.run(ask())


def test_numbers_that_are_not_finite_are_an_error_of_their_request(bundle: Path) -> None:
    async def ask() -> None:
        session = Session.open(bundle)
        feed = Batch.feed

        def broken(batch: Batch, *given: Any, **more: Any) -> Any:
            outputs = feed(batch, *given, **more)
            for output in outputs.values():
                output.after[:] = float("nan")
            return outputs

        async with AsyncSession(session) as answers:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Batch, "feed", broken)
                with pytest.raises(AnswerError, match=r"the request \(task 'tone'\): logits"):
                    await answers.generate(Request("tone", {"sentence": "x"}))

    asyncio.run(ask())


def test_a_row_that_is_cancelled_frees_its_slot_before_the_next_step(bundle: Path) -> None:
    async def ask() -> None:
        session = Session.open(bundle, max_batch=1)
        long = Request("ask", {"question": "a", "place": "b"}, max_tokens=60, min_tokens=60)
        async with AsyncSession(session) as answers:
            steps = []
            with step_runs(session, lambda: steps.append(1)):
                events = answers.stream(long)
                await anext(events)
                await events.aclose()
                await answers.generate(Request("ask", {"question": "a", "place": "b"}, 2))
            assert len(steps) < 30

    asyncio.run(ask())


def test_closing_ends_what_runs_and_what_waits(bundle: Path) -> None:
    long = Request("ask", {"question": "a", "place": "b"}, max_tokens=60, min_tokens=60)

    async def ask() -> None:
        session = AsyncSession(Session.open(bundle, max_batch=1))
        running = asyncio.ensure_future(session.generate(long))
        waiting = asyncio.ensure_future(session.generate(long))
        events = session.stream(long)
        reading = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        await session.close()
        found = await asyncio.gather(running, waiting, reading, return_exceptions=True)
        assert [type(each) for each in found] == [RequestError] * 3
        assert all("one that was closed" in str(each) for each in found)
        with pytest.raises(RequestError, match="one that was closed"):
            await session.generate(long)
        await session.close()

    asyncio.run(ask())


def test_rows_of_a_loop_that_was_closed_are_taken_out(bundle: Path, alone: Any) -> None:
    session = Session.open(bundle, max_batch=1)
    answers = AsyncSession(session)
    long = Request("ask", {"question": "a", "place": "b"}, max_tokens=60, min_tokens=60)
    loop = asyncio.new_event_loop()
    events = answers.stream(long)
    loop.run_until_complete(anext(events))
    loop.close()

    assert asyncio.run(answers.generate(request_of(3))) == alone(request_of(3))
    asyncio.run(answers.close())


def test_a_thread_that_steps_all_the_time_lets_others_in(bundle: Path) -> None:
    """Without a fair lock, `check` would wait until the long answer has ended."""
    long = Request("ask", {"question": "a", "place": "b"}, max_tokens=60, min_tokens=60)

    async def ask() -> None:
        session = Session.open(bundle, max_batch=1)
        async with AsyncSession(session) as answers:
            for _ in range(3):
                events = answers.stream(long)
                await anext(events)
                await asyncio.to_thread(session.check, long)
                rest = [event async for event in events]
                assert rest[-1].result is not None
                assert len(rest) > 10

    asyncio.run(ask())
