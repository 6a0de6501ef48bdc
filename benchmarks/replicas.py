"""How many replicas a traffic needs: a simulation of sessions, each step by step.

    plc bench bundle --batch 1,4,16 --threads 4 --json > bench.json
    python benchmarks/replicas.py traffic.yaml --bench bench.json --first-token 0.5 --request 2

Every replica has slots and a queue, run by the runtime's own `Scheduler`, and a step takes as long
as `plc bench` has measured. Requests arrive at random times (Poisson), or as a trace says. Printed
is a row for each number of replicas, until the wanted 95th percentiles are kept: of the time to the
first token, and of the whole request. `--json` prints the same as one object.

traffic.yaml:

    rate: 12            # requests a second, on average
    tasks:              # of the requests: how many parts, and their lengths in tokens
      - {task: ticket, share: 3, opening: 120, folded: true, input: [20, 60], answer: [1, 8]}
      - {task: command, share: 1, opening: 25, folded: false, input: [5, 30], answer: [10, 40]}

`opening` counts virtual tokens and fixed text up to the first field; where it is folded, nothing of
it is computed. `input` and `answer` are the least and the most; lengths between are equally likely.
A trace (`--trace FILE`) has a JSON object a line instead: `{"seconds": 0.25, "computed": 43,
"answer": 6}`, the time of arrival and the tokens of prompt and answer that are computed.

What it leaves out: the network, the growth of a step's time with the length of its rows, and that
replicas on one machine may slow each other.
"""

import argparse
import heapq
import json
import math
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pl_compile.config.read import build, node_from_plain, read_yaml
from pl_compile.config.strict_json import parse_json, read_json_object
from pl_compile.errors import ConfigError, DataError, PlcError, check_all, reason_of
from pl_compile.runtime.continuous import scheduler_of
from pl_compile.runtime.engines.onnxruntime.ragged import PIECE_TOGETHER as PIECE
from pl_compile.runtime.scheduler import Scheduler

Router = Literal["random", "least"]


@dataclass(frozen=True)
class TaskTraffic:
    """Requests of a task: see the module's text."""

    task: str
    share: float
    input: tuple[int, ...]
    answer: tuple[int, ...]
    opening: int = 0
    folded: bool = True

    def __post_init__(self) -> None:
        ranges = {name: getattr(self, name) for name in ("input", "answer")}
        checks = {
            f"{name} {list(each)}, expected the least and the most, at least 1": (
                len(each) == 2 and 1 <= each[0] <= each[1]
            )
            for name, each in ranges.items()
        }
        checks[f"share {self.share}, expected more than 0"] = self.share > 0
        checks[f"opening {self.opening}, expected 0 or more"] = self.opening >= 0
        check_all(ConfigError, f"reading the traffic of task '{self.task}'", checks)


@dataclass(frozen=True)
class Traffic:
    """Requests a second, and of which tasks."""

    rate: float
    tasks: tuple[TaskTraffic, ...]

    def __post_init__(self) -> None:
        checks = {
            f"rate {self.rate}, expected more than 0": self.rate > 0,
            "no task": bool(self.tasks),
        }
        check_all(ConfigError, "reading the traffic", checks)

    def arrivals(self, count: int, seed: int) -> "Iterator[Arrival]":
        """So many requests, at random times."""
        draw, now = random.Random(seed), 0.0
        shares = [task.share for task in self.tasks]
        for _ in range(count):
            now += draw.expovariate(self.rate)
            (task,) = draw.choices(self.tasks, shares)
            before = 0 if task.folded else task.opening
            yield Arrival(now, before + draw.randint(*task.input), draw.randint(*task.answer))


@dataclass(frozen=True)
class Arrival:
    """A request.

    Attributes:
        seconds: when it comes.
        computed: tokens of its prompt that are computed.
        answer: tokens that it gets.
    """

    seconds: float
    computed: int
    answer: int


@dataclass(frozen=True)
class Costs:
    """What a step takes, in seconds.

    Attributes:
        decode: of a step in which so many rows get one token each; between them, interpolated.
        piece: of a piece of a prompt, whatever its length.
        token: of each token of a prompt, added to that.
    """

    decode: Mapping[int, float]
    piece: float
    token: float

    def of(self, tokens: Iterable[int]) -> float:
        """Of a turn in which rows are fed so many tokens each."""
        prompts = [count for count in tokens if count > 1]
        rows = sum(1 for count in tokens if count == 1)
        measured = sorted(self.decode)
        decode = float(np.interp(rows, measured, [self.decode[each] for each in measured]))
        return sum(self.piece + self.token * count for count in prompts) + (decode if rows else 0)


def costs_of(bench: Mapping[str, Any]) -> Costs:
    """Costs from the report of `plc bench BUNDLE --json`.

    Of it are read: of `decode` each `batch` and `tokens_per_second.median`; of `prompts` each
    `prompt_tokens`, `prefix_tokens` and `first_token_seconds.median`. A straight line through the
    prompts gives the costs of a piece and of a token.

    Raises:
        DataError: it is no such report.
    """
    try:
        decode = {
            each["batch"]: each["batch"] / each["tokens_per_second"]["median"]
            for each in bench["decode"]
        }
        computed = [each["prompt_tokens"] - each["prefix_tokens"] for each in bench["prompts"]]
        seconds = [each["first_token_seconds"]["median"] for each in bench["prompts"]]
        pieces = [math.ceil(count / PIECE) for count in computed]
        piece, token = np.linalg.lstsq(np.array([pieces, computed]).T, np.array(seconds))[0]
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise DataError(
            "reading what plc bench measured",
            found=f"{type(error).__name__}: {error}",
            expected="the report of plc bench BUNDLE --json",
        ) from error
    return Costs(decode, max(0.0, float(piece)), max(0.0, float(token)))


@dataclass(eq=False)
class _Request:
    arrival: Arrival
    unfed: int
    unwritten: int
    first: float = math.nan
    end: float = math.nan


@dataclass(eq=False)
class _Replica:
    """A session: its scheduler, and the turn that runs."""

    scheduler: Scheduler[_Request]
    requests: int = 0  # that wait or run
    fed: dict[int, int] = field(default_factory=dict)  # in this turn, by slot
    rows: dict[int, _Request] = field(default_factory=dict)
    is_busy: bool = False
    busy_seconds: float = 0.0

    def begin(self, costs: Costs) -> float | None:
        """Begins a turn; gives its seconds, or None where there is nothing to do."""
        self.scheduler.admit()
        turn = self.scheduler.turn()
        self.is_busy = turn is not None
        if turn is None:
            return None
        self.rows, self.fed = turn.stepping, turn.tokens
        seconds = costs.of(turn.tokens.values())
        self.busy_seconds += seconds
        return seconds

    def end(self, now: float) -> None:
        """Ends the turn: rows whose prompt is computed got a token."""
        over = []
        for slot, request in self.rows.items():
            if request.unfed:
                request.unfed -= self.fed[slot]
                if request.unfed:
                    continue
                request.first = now
            request.unwritten -= 1
            if not request.unwritten:
                request.end = now
                over.append(slot)
        self.scheduler.finish(over)
        self.requests -= len(over)


@dataclass(frozen=True)
class Outcome:
    """What some replicas make of a traffic; times are in seconds.

    Attributes:
        replicas: how many.
        requests: that were counted; the first tenth is not, since replicas begin empty.
        first_token_p50: from a request to its first token: half of them are at most this.
        first_token_p95: 95 % of them.
        request_p50: from a request to its last token.
        request_p95: likewise.
        request_mean: likewise.
        utilisation: the part of the time in which a replica steps.
        keeps_up: whether the queue does not grow for as long as the traffic lasts. It seems to
            where replicas step more than 95 % of the time, and the last tenth of the requests took
            more than 1.5 times as long as the tenth before the middle.
    """

    replicas: int
    requests: int
    first_token_p50: float
    first_token_p95: float
    request_p50: float
    request_p95: float
    request_mean: float
    utilisation: float
    keeps_up: bool


def simulate(
    arrivals: Sequence[Arrival],
    costs: Costs,
    *,
    replicas: int,
    slots: int,
    router: Router = "random",
    seed: int = 0,
) -> Outcome:
    """Runs all requests through some replicas.

    Args:
        arrivals: in the order of their times; at least ten.
        costs: of a step.
        replicas: how many.
        slots: of each.
        router: "random" gives a request to any replica, as a service of Kubernetes does with
            connections; "least" to one with the fewest requests.
        seed: of the router.
    """
    draw = random.Random(seed)
    pool = [_Replica(scheduler_of(slots, PIECE, together=True)) for _ in range(replicas)]
    requests = [_Request(each, each.computed, each.answer) for each in arrivals]
    ends: list[tuple[float, int]] = []  # of the turns that run

    def go_on(index: int, now: float) -> None:
        seconds = pool[index].begin(costs)
        if seconds is not None:
            heapq.heappush(ends, (now + seconds, index))

    def run_until(time: float) -> None:
        while ends and ends[0][0] <= time:
            now, index = heapq.heappop(ends)
            pool[index].end(now)
            go_on(index, now)

    for request in requests:
        now = request.arrival.seconds
        run_until(now)
        index = draw.randrange(replicas)
        if router == "least":
            index = min(range(replicas), key=lambda each: (pool[each].requests, draw.random()))
        pool[index].scheduler.submit(request, request.unfed)
        pool[index].requests += 1
        if not pool[index].is_busy:
            go_on(index, now)
    run_until(math.inf)
    return _outcome(requests, pool)


def _outcome(requests: Sequence[_Request], pool: Sequence[_Replica]) -> Outcome:
    counted = requests[len(requests) // 10 :]
    first = np.array([each.first - each.arrival.seconds for each in counted])
    whole = np.array([each.end - each.arrival.seconds for each in counted])
    seconds = max(each.end for each in requests) - requests[0].arrival.seconds
    tenth = max(1, len(counted) // 10)
    middle, last = whole[len(whole) // 2 - tenth :][:tenth].mean(), whole[-tenth:].mean()
    utilisation = sum(each.busy_seconds for each in pool) / (len(pool) * seconds)
    return Outcome(
        replicas=len(pool),
        requests=len(counted),
        first_token_p50=float(np.quantile(first, 0.5)),
        first_token_p95=float(np.quantile(first, 0.95)),
        request_p50=float(np.quantile(whole, 0.5)),
        request_p95=float(np.quantile(whole, 0.95)),
        request_mean=float(whole.mean()),
        utilisation=utilisation,
        keeps_up=bool(utilisation <= 0.95 or last <= 1.5 * middle),
    )


def alone(arrivals: Sequence[Arrival], costs: Costs) -> tuple[float, float]:
    """The least 95th percentiles that there can be: of first token and answer, without a queue."""
    step = costs.of([1])
    first = [costs.of([max(2, each.computed)]) for each in arrivals]
    whole = [
        before + step * (each.answer - 1) for before, each in zip(first, arrivals, strict=True)
    ]
    return float(np.quantile(first, 0.95)), float(np.quantile(whole, 0.95))


def replicas_for(
    arrivals: Sequence[Arrival],
    costs: Costs,
    *,
    slots: int,
    router: Router,
    is_enough: Callable[[Outcome], bool],
    most: int,
) -> list[Outcome]:
    """Outcomes for 1, 2, … replicas, until one is enough or there are `most`."""
    outcomes: list[Outcome] = []
    while len(outcomes) < most and not (outcomes and is_enough(outcomes[-1])):
        count = len(outcomes) + 1
        outcomes.append(simulate(arrivals, costs, replicas=count, slots=slots, router=router))
    return outcomes


def read_trace(path: Path) -> list[Arrival]:
    """The requests of a trace.

    Raises:
        DataError: a line is not as the module's text says, or comes before the one above it.
    """
    arrivals: list[Arrival] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        doing = f"reading {path}:{number}"
        try:
            arrival = build(Arrival, node_from_plain(parse_json(line), str(number)), doing=doing)
        except (ValueError, ConfigError) as error:
            raise DataError(doing, found=reason_of(error)) from error
        checks = {
            "earlier than the line before": not arrivals or arrival.seconds >= arrivals[-1].seconds,
            "computed or answer below 1": min(arrival.computed, arrival.answer) >= 1,
        }
        check_all(DataError, doing, checks)
        arrivals.append(arrival)
    check_all(DataError, f"reading {path}", {"fewer than ten requests": len(arrivals) >= 10})
    return arrivals


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as lines of text."""
    lines = ["replicas  first token p50, p95, s  request p50, p95, s  busy"]
    lines += [
        f"{each.replicas:8}  {each.first_token_p50:14.3f} {each.first_token_p95:7.3f}"
        f"  {each.request_p50:11.3f} {each.request_p95:7.3f}  {each.utilisation:4.0%}"
        + ("" if each.keeps_up else "  the queue grows")
        for each in outcomes
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Answers the command line; 1 where no number of replicas is enough."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traffic", type=Path, nargs="?", help="a YAML file")
    parser.add_argument("--trace", type=Path, help="a file of requests, in place of the traffic")
    parser.add_argument("--bench", type=Path, required=True, help="what plc bench --json printed")
    parser.add_argument("--slots", type=int, default=16, help="of a replica (default 16)")
    parser.add_argument("--router", choices=("random", "least"), default="random")
    parser.add_argument("--first-token", type=float, default=1.0, help="p95 wanted, s (default 1)")
    parser.add_argument("--request", type=float, default=math.inf, help="p95 wanted, s")
    parser.add_argument("--requests", type=int, default=20_000, help="simulated (default 20000)")
    parser.add_argument("--most", type=int, default=64, help="replicas to try (default 64)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    if (given.traffic is None) == (given.trace is None):
        parser.error("give a traffic or a --trace")
    if min(given.slots, given.most) < 1 or given.requests < 10:
        parser.error("--slots and --most are at least 1, --requests at least 10")
    try:
        costs = costs_of(read_json_object(given.bench, DataError, f"reading {given.bench}"))
        if given.slots > max(costs.decode):
            found = f"{given.slots} slots, and steps of at most {max(costs.decode)} rows measured"
            fix = f"Measure them: plc bench --batch 1,4,{given.slots}"
            raise DataError("simulating replicas", found=found, fix=fix)
        if given.trace is not None:
            arrivals = read_trace(given.trace)
        else:
            traffic = build(Traffic, read_yaml(given.traffic), doing=f"reading {given.traffic}")
            arrivals = list(traffic.arrivals(given.requests, given.seed))
    except (PlcError, OSError) as error:
        file = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        print(f"error: {file}{error}", file=sys.stderr)
        return 1

    def is_enough(outcome: Outcome) -> bool:
        return (
            outcome.keeps_up
            and outcome.first_token_p95 <= given.first_token
            and outcome.request_p95 <= given.request
        )

    first, whole = alone(arrivals, costs)
    if first > given.first_token or whole > given.request:
        print(
            "error: simulating replicas: where no request waits, 95 % of the first tokens take "
            f"{first:.3g} s and 95 % of the answers {whole:.3g} s; expected {given.first_token:g} "
            f"and {given.request:g} s. No number of replicas is enough.",
            file=sys.stderr,
        )
        return 1
    outcomes = replicas_for(
        arrivals,
        costs,
        slots=given.slots,
        router=given.router,
        is_enough=is_enough,
        most=given.most,
    )
    enough = is_enough(outcomes[-1])
    if given.json:
        rows = [asdict(each) for each in outcomes]
        needed = outcomes[-1].replicas if enough else None
        print(json.dumps({"replicas": needed, "costs": asdict(costs), "outcomes": rows}))
    else:
        print(table(outcomes))
        print(f"enough: {outcomes[-1].replicas}" if enough else f"not enough: {given.most}")
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
