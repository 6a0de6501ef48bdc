"""Many requests at once: from clients that wait for their answers, or at a rate.

A closed loop has so many clients; each sends its next request when it has its answer. A slow server
is asked less often. An open loop sends requests at random times whatever comes back, as a crowd
does; a time is counted from when a request was to be sent, so a queue that grows is seen.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pl_compile.driver.bench.client import Answer
from pl_compile.driver.bench.numbers import Percentiles
from pl_compile.progress import SILENT, Progress

# Sends request number n, to be sent at a time of `time.perf_counter`; None is now.
Ask = Callable[[int, float | None], Answer]


@dataclass(frozen=True)
class Figures:
    """What some answers say of a server. Times are seconds, of requests that were answered.

    Attributes:
        seconds: from the first request to the last answer.
        answered: requests.
        errors: how many requests failed, by kind.
        examples: what the server said about the first failure of each kind.
        requests_per_second: that were answered.
        tokens_per_second: written for them.
        prompt_tokens: of a prompt on average, as the server counts them; None if it does not.
        written_tokens: of an answer on average.
        finish_reasons: how many answers ended so, by the server's word.
        first_token: from the request to the first piece of its answer.
        between_tokens: from a piece to the next one. A server may send several tokens in one.
        per_token: of each answer, the time after its first piece, for each further token.
        latency: from the request to the end of its answer.
    """

    seconds: float
    answered: int
    errors: dict[str, int]
    examples: dict[str, str]
    requests_per_second: float
    tokens_per_second: float
    prompt_tokens: float | None
    written_tokens: float
    finish_reasons: dict[str, int]
    first_token: Percentiles | None
    between_tokens: Percentiles | None
    per_token: Percentiles | None
    latency: Percentiles | None


def closed_loop(
    ask: Ask, *, clients: int, requests: int, progress: Progress = SILENT
) -> list[Answer]:
    """Sends `requests` requests from `clients` clients; gives the answers as they ended.

    Args:
        ask: sends one request; called by several threads.
        clients: that wait for their answers.
        requests: of all clients together.
        progress: is told how far it is.
    """
    numbers = iter(range(requests))
    answers: list[Answer] = []
    lock = threading.Lock()
    with progress.bar("requests", requests) as bar:

        def client() -> None:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                answer = ask(number, None)
                with lock:
                    answers.append(answer)
                    bar.advance()

        _run([threading.Thread(target=client, daemon=True) for _ in range(clients)])
    return answers


def open_loop(
    ask: Ask, *, rate: float, requests: int, seed: int = 0, progress: Progress = SILENT
) -> list[Answer]:
    """Sends `requests` requests at random times, `rate` a second on average.

    Args:
        ask: as for `closed_loop`.
        rate: requests a second; the times between them are those of a Poisson process.
        requests: how many.
        seed: of the times.
        progress: is told how far it is.
    """
    generator = random.Random(seed)
    answers: list[Answer] = []
    lock = threading.Lock()
    threads = []
    with progress.bar("requests", requests) as bar:

        def client(number: int, due: float) -> None:
            answer = ask(number, due)
            with lock:
                answers.append(answer)
                bar.advance()

        due = time.perf_counter()
        for number in range(requests):
            due += generator.expovariate(rate)
            time.sleep(max(0.0, due - time.perf_counter()))
            threads.append(threading.Thread(target=client, args=(number, due), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join()
    return answers


def _run(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def figures_of(answers: list[Answer]) -> Figures:
    """What answers say, at least one of them, in any order."""
    good = [answer for answer in answers if answer.error is None]
    seconds = max(each.ended for each in answers) - min(each.started for each in answers)
    errors: dict[str, int] = {}
    examples: dict[str, str] = {}
    for answer in answers:
        if answer.error is not None:
            errors[answer.error] = errors.get(answer.error, 0) + 1
            examples.setdefault(answer.error, answer.words)
    reasons: dict[str, int] = {}
    for answer in good:
        reason = answer.finish_reason or "not said"
        reasons[reason] = reasons.get(reason, 0) + 1
    written = sum(answer.written for answer in good)
    prompts = [each.prompt_tokens for each in good if each.prompt_tokens is not None]
    gaps = [
        after - before
        for answer in good
        for before, after in zip(answer.pieces, answer.pieces[1:], strict=False)
    ]
    per_token = [
        (answer.pieces[-1] - answer.pieces[0]) / (answer.written - 1)
        for answer in good
        if answer.written > 1
    ]
    return Figures(
        seconds=seconds,
        answered=len(good),
        errors=errors,
        examples=examples,
        requests_per_second=len(good) / seconds,
        tokens_per_second=written / seconds,
        prompt_tokens=sum(prompts) / len(prompts) if prompts else None,
        written_tokens=written / len(good) if good else 0.0,
        finish_reasons=reasons,
        first_token=Percentiles.of([answer.pieces[0] - answer.started for answer in good]),
        between_tokens=Percentiles.of(gaps),
        per_token=Percentiles.of(per_token),
        latency=Percentiles.of([answer.ended - answer.started for answer in good]),
    )
