"""The simulation of replicas agrees with queueing theory where that has closed forms.

A session with one slot, and steps that take as long whatever they hold, is a queue with one server:
M/D/1 where all answers have one length, M/G/1 else (Pollaczek and Khinchine). The seeds are fixed,
so the simulated numbers are always the same ones.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pl_compile.errors import DataError

HOME = Path(__file__).parents[2]


@pytest.fixture
def replicas(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(HOME / "benchmarks"))
    import replicas

    return replicas


def poisson(
    replicas: ModuleType, rate: float, count: int, answer: Callable[[random.Random], int]
) -> list[Any]:
    draw, now, found = random.Random(7), 0.0, []
    for _ in range(count):
        now += draw.expovariate(rate)
        found.append(replicas.Arrival(now, 1, answer(draw)))
    return found


def geometric(mean: float) -> Callable[[random.Random], int]:
    def draw(source: random.Random) -> int:
        count = 1
        while source.random() > 1 / mean:
            count += 1
        return count

    return draw


def waited(rate: float, mean: float, mean_square: float) -> float:
    """The mean time in the queue of an M/G/1 (Pollaczek and Khinchine)."""
    return rate * mean_square / (2 * (1 - rate * mean))


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_slot_and_equal_requests_are_an_m_d_1_queue(replicas: ModuleType, load: float) -> None:
    second = replicas.Costs({1: 1.0}, piece=0, token=0)

    found = replicas.simulate(
        poisson(replicas, load, 20_000, lambda _: 1), second, replicas=1, slots=1
    )

    assert found.request_mean == pytest.approx(1 + waited(load, 1, 1), rel=0.04)
    assert found.utilisation == pytest.approx(load, rel=0.02)
    assert found.first_token_p95 == found.request_p95
    assert found.keeps_up


def test_answers_of_random_length_wait_as_pollaczek_and_khinchine_say(
    replicas: ModuleType,
) -> None:
    mean, rate = 3.0, 0.2
    mean_square = mean * mean * (2 - 1 / mean)  # of a geometric length
    second = replicas.Costs({1: 1.0}, piece=0, token=0)

    found = replicas.simulate(
        poisson(replicas, rate, 20_000, geometric(mean)), second, replicas=1, slots=1
    )

    assert found.request_mean == pytest.approx(mean + waited(rate, mean, mean_square), rel=0.05)


def test_replicas_at_random_are_queues_by_themselves(replicas: ModuleType) -> None:
    second = replicas.Costs({1: 1.0}, piece=0, token=0)
    arrivals = poisson(replicas, 3 * 0.6, 30_000, lambda _: 1)

    found = replicas.simulate(arrivals, second, replicas=3, slots=1)
    fewest = replicas.simulate(arrivals, second, replicas=3, slots=1, router="least")

    assert found.request_mean == pytest.approx(1 + waited(0.6, 1, 1), rel=0.04)
    assert fewest.request_mean < found.request_mean


def test_slots_share_steps(replicas: ModuleType) -> None:
    # Steps of up to four rows take a second, and prompts are one token each.
    costs = replicas.Costs({1: 1.0, 4: 1.0}, piece=0, token=0)
    arrivals = [replicas.Arrival(0.0, 1, 5)] * 20

    alone = replicas.simulate(arrivals, costs, replicas=1, slots=1)
    together = replicas.simulate(arrivals, costs, replicas=1, slots=4)

    assert (alone.request_p50, alone.utilisation) == (55.0 + 2.5, 1.0)
    assert together.request_mean < alone.request_mean / 2


def test_a_long_prompt_is_computed_in_pieces_between_the_tokens_of_others(
    replicas: ModuleType,
) -> None:
    costs = replicas.Costs({1: 0.01, 2: 0.01}, piece=0.1, token=0.001)
    writing = replicas.Arrival(0.0, 1, 400)
    arrivals = [writing, replicas.Arrival(1.0, 600, 1)] * 5

    found = replicas.simulate(sorted(arrivals, key=at), costs, replicas=5, slots=2, router="least")

    # Four pieces of 128 tokens and one of 88, each beside a token of the other row; and up to one
    # token's time before the first.
    assert found.first_token_p95 == pytest.approx(5 * 0.1 + 0.6 + 5 * 0.01, abs=0.011)
    # The other row's steps take as much longer.
    assert found.request_p95 == pytest.approx(400 * 0.01 + 5 * 0.1 + 0.6)


def at(arrival: Any) -> float:
    return float(arrival.seconds)


def test_costs_are_read_from_a_report_of_plc_bench(replicas: ModuleType) -> None:
    report = {
        "decode": [
            {"batch": 1, "tokens_per_second": {"median": 100.0}},
            {"batch": 4, "tokens_per_second": {"median": 200.0}},
        ],
        "prompts": [
            {
                "prompt_tokens": 100 + computed,
                "prefix_tokens": 100,
                "first_token_seconds": {"median": 0.01 * pieces + 0.002 * computed},
            }
            for computed, pieces in ((20, 1), (200, 2), (500, 4))
        ],
    }

    costs = replicas.costs_of(report)

    assert costs.decode == {1: 0.01, 4: 0.02}
    assert costs.piece == pytest.approx(0.01)
    assert costs.token == pytest.approx(0.002)
    assert costs.of([1, 1]) == pytest.approx(0.01 + 0.01 / 3)
    assert costs.of([1, 1, 1, 256]) == pytest.approx(0.05 / 3 + 0.01 + 0.512)
    for key in report:
        with pytest.raises(DataError, match="plc bench BUNDLE --json"):
            replicas.costs_of({**report, key: [{}]})


BENCH = {
    "decode": [{"batch": batch, "tokens_per_second": {"median": 100.0}} for batch in (1, 16)],
    "prompts": [
        {
            "prompt_tokens": tokens,
            "prefix_tokens": 0,
            "first_token_seconds": {"median": tokens / 1000},
        }
        for tokens in (16, 64)
    ],
}
TRAFFIC = """
rate: 8
tasks:
  - {task: ticket, share: 3, opening: 100, folded: FOLDED, input: [20, 60], answer: [1, 8]}
  - {task: command, share: 1, input: [5, 30], answer: [10, 40]}
"""


@pytest.fixture
def needed(
    replicas: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, Any]]:
    def run(*arguments: str | Path) -> dict[str, Any]:
        bench = tmp_path / "bench.json"
        bench.write_text(json.dumps(BENCH), encoding="utf-8")
        code = replicas.main([*map(str, arguments), "--bench", str(bench), "--json"])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert code == (found["replicas"] is None)
        return found

    return run


def test_folding_saves_replicas(needed: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    counts = {}
    for folded in ("true", "false"):
        path = tmp_path / f"{folded}.yaml"
        path.write_text(TRAFFIC.replace("FOLDED", folded), encoding="utf-8")
        found = needed(path, "--first-token", "0.5", "--requests", "3000")
        counts[folded] = found["replicas"]
        outcomes = found["outcomes"]
        assert [each["replicas"] for each in outcomes] == list(range(1, found["replicas"] + 1))
        assert outcomes[-1]["first_token_p95"] <= 0.5
        assert all(each["first_token_p95"] > 0.5 or not each["keeps_up"] for each in outcomes[:-1])

    assert counts["true"] < counts["false"]


def test_too_few_replicas_do_not_keep_up(
    needed: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "traffic.yaml"
    path.write_text(TRAFFIC.replace("FOLDED", "true").replace("8", "12", 1), encoding="utf-8")

    found = needed(path, "--most", "1", "--first-token", "1e9", "--requests", "3000")

    assert found["replicas"] is None
    assert not found["outcomes"][0]["keeps_up"]
    assert found["outcomes"][0]["utilisation"] > 0.99


def test_a_trace_is_read(needed: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [{"seconds": float(n), "computed": 20, "answer": 2} for n in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    found = needed("--trace", path)

    assert found["replicas"] == 1
    assert found["outcomes"][0]["request_p95"] == pytest.approx(0.02 + 0.01)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"seconds": 0, "computed": 0, "answer": 1}', "computed or answer below 1"),
        ('{"seconds": 0}', "computed"),
        ('{"seconds": -1, "computed": 1, "answer": 1}', "earlier than the line before"),
        ("{", "Expecting"),
    ],
)
def test_a_trace_that_cannot_be_is_refused_with_its_line(
    replicas: ModuleType, tmp_path: Path, line: str, said: str
) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"seconds": 0, "computed": 1, "answer": 1}\n' + line, encoding="utf-8")

    with pytest.raises(DataError) as error:
        replicas.read_trace(path)

    assert f"{path}:2" in str(error.value)
    assert said in str(error.value)


def test_more_slots_than_were_measured_are_refused(
    replicas: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("bench.json", json.dumps(BENCH)), ("traffic.yaml", TRAFFIC)):
        (tmp_path / name).write_text(text.replace("FOLDED", "true"), encoding="utf-8")

    code = replicas.main(
        [str(tmp_path / "traffic.yaml"), "--bench", str(tmp_path / "bench.json"), "--slots", "32"]
    )

    assert code == 1
    assert "plc bench --batch 1,4,32" in capsys.readouterr().err
