"""The simulation of `replicas.py` beside a real session: the same requests at the same times.

    python benchmarks/check_replicas.py BUNDLE --rate 3 --threads 1

Requests of the bundle's tasks arrive at random times (Poisson), each on a thread of its own. Then
the same arrivals are simulated, with the times that the engine's steps took in this very run: so a
machine that others slow down is no error of the simulation. `--bench bench.json` takes the times of
`plc bench` instead; the machine must be as fast then as it was for them.
"""

import argparse
import json
import math
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from replicas import Arrival, Costs, costs_of, simulate

from pl_compile.runtime import Request, Session
from pl_compile.runtime.engines.onnxruntime.ragged import PIECE_TOGETHER as PIECE
from pl_compile.runtime.stepping import Batch, Output

WORDS = ("the", "parcel", "was", "lost", "in", "rain", "and", "nobody", "could", "say", "where")


class Watch:
    """Notes how long each step takes, and how many tokens its rows get."""

    def __init__(self) -> None:
        self.steps: list[tuple[list[int], float]] = []
        feed = Batch.feed

        def noted(batch: Batch, ids: Any, *given: Any, **more: Any) -> dict[int, Output]:
            began = time.perf_counter()
            found = feed(batch, ids, *given, **more)
            lengths = [len(each) for each in ids.values()]
            self.steps.append((lengths, time.perf_counter() - began))
            return found

        Batch.feed = noted  # type: ignore[method-assign, assignment]

    def costs(self) -> Costs:
        """The means of steps that decode, by rows; a line through what prompts add to them."""
        decode: dict[int, list[float]] = {}
        for tokens, seconds in self.steps:
            if max(tokens) == 1:
                decode.setdefault(len(tokens), []).append(seconds)
        means = {rows: sum(found) / len(found) for rows, found in decode.items()}
        only_decode = Costs(means, 0.0, 0.0)
        prompts = []
        for tokens, seconds in self.steps:
            fed = [count for count in tokens if count > 1]
            pieces = sum(math.ceil(count / PIECE) for count in fed)
            if fed:
                prompts.append((pieces, sum(fed), seconds - only_decode.of(tokens)))
        sizes = np.array(prompts)
        (piece, token), *_ = np.linalg.lstsq(sizes[:, :2], sizes[:, 2])
        return Costs(means, max(0.0, float(piece)), max(0.0, float(token)))


def requests_of(session: Session, count: int, draw: random.Random) -> list[Request]:
    """Requests of all tasks, 5 to 60 words and 1 to 40 tokens each."""
    made = []
    for _ in range(count):
        task = draw.choice(list(session.tasks))
        fields = session.tasks[task].renderer.template.input_fields
        words = draw.randint(5, 60) // max(1, len(fields))
        texts = {name: " ".join(draw.choices(WORDS, k=max(1, words))) for name in fields}
        tokens = draw.randint(1, 40)
        made.append(Request(task, texts, max_tokens=tokens, min_tokens=tokens, constrain=False))
    return made


def arrival_of(session: Session, request: Request, seconds: float) -> Arrival:
    task = session.tasks[request.task]
    computed = task.to_feed(task.renderer.prompt(request.fields))
    return Arrival(seconds, len(computed), request.max_tokens)


def run(
    session: Session, requests: Sequence[Request], times: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Seconds to the first token and to the last one of each request."""
    first, whole = [0.0] * len(requests), [0.0] * len(requests)
    began = time.perf_counter()

    def answer(index: int) -> None:
        for event in session.stream([requests[index]]):
            now = time.perf_counter() - began - times[index]
            first[index] = first[index] or now
            if event.result is not None:
                whole[index] = now

    threads = []
    for index, at in enumerate(times):
        time.sleep(max(0.0, began + at - time.perf_counter()))
        threads.append(threading.Thread(target=answer, args=(index,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return first, whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--bench", type=Path)
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    with Session.open(
        given.bundle, max_batch=given.slots, threads=given.threads, context_mib=0
    ) as session:
        requests = requests_of(session, given.requests, draw)
        times, now = [], 0.0
        for _ in requests:
            now += draw.expovariate(given.rate)
            times.append(now)
        pairs = zip(requests, times, strict=True)
        arrivals = [arrival_of(session, request, at) for request, at in pairs]
        session.generate(requests[:4])  # warms up
        watch = Watch()
        first, whole = run(session, requests, times)
    if given.bench is None:
        costs = watch.costs()
    else:
        costs = costs_of(json.loads(given.bench.read_text(encoding="utf-8")))
    simulated = simulate(arrivals, costs, replicas=1, slots=given.slots)
    busy = sum(seconds for _, seconds in watch.steps) / (max(np.add(times, whole)) - times[0])
    counted = slice(len(requests) // 10, None)
    real = {
        "first_token_p50": np.quantile(first[counted], 0.5),
        "first_token_p95": np.quantile(first[counted], 0.95),
        "request_p50": np.quantile(whole[counted], 0.5),
        "request_p95": np.quantile(whole[counted], 0.95),
        "request_mean": np.mean(whole[counted]),
    }
    expected = asdict(simulated)
    print(f"steps take {busy:.0%} of the time, simulated {simulated.utilisation:.0%}")
    for name, value in real.items():
        print(
            f"{name:16} real {value:.3f}  simulated {expected[name]:.3f}  "
            f"simulated / real {expected[name] / value:.2f}"
        )


if __name__ == "__main__":
    main()
