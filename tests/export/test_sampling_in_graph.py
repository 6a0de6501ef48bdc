"""`--sampling graph`: the graph draws the tokens that the host would draw."""

from pathlib import Path

import numpy as np
import pytest

from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.runtime import Request, Sampling, Session
from pl_compile.runtime.engines.engine import Step
from pl_compile.runtime.sampling import Draw, draw_in_graph, next_token
from pl_compile.testing import random_table

CANDIDATES = 50


@pytest.fixture(scope="module")
def sessions(
    tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Session, Session]:
    """On a bundle that samples in its graph, and on one whose host samples."""
    folder = tmp_path_factory.mktemp("sampling")
    base = tiny_bases["llama"]
    table = random_table(base, folder / "table.safetensors", prefix=True)
    bundles = [
        export_bundle(
            ExportRequest(table, base, folder / name, options=options, measure_parity=False)
        ).bundle
        for name, options in (
            ("graph", BuildOptions(sampling="graph", candidates=CANDIDATES)),
            ("host", BuildOptions("none")),
        )
    ]
    graph, host = (Session.open(bundle) for bundle in bundles)
    return graph, host


SAMPLINGS = [
    Sampling(),
    Sampling(1.0, top_k=1, seed=1),
    Sampling(0.7, top_k=5, seed=2),
    Sampling(2.5, top_k=50, seed=3),
    Sampling(1.3, top_k=40, top_p=0.6, seed=4),
    Sampling(1e-8, top_k=9, seed=5),
    Sampling(1.5, top_k=20, top_p=1e-9, seed=6),
    # What the graph cannot do is done by the host, in the same batch.
    Sampling(1.0, seed=7),
    Sampling(1.0, top_k=51, seed=8),
    Sampling(1.0, top_k=8, repetition_penalty=1.3, seed=9),
]


def test_one_batch_of_all_ways_to_sample_gives_the_hosts_answers(
    sessions: tuple[Session, Session],
) -> None:
    graph, host = sessions
    requests = [
        Request("order", {"request": f"lights off {n}"}, max_tokens=24, sampling=sampling)
        for n, sampling in enumerate(SAMPLINGS)
    ]
    requests += [
        Request("tone", {"sentence": "cold"}),
        Request("ask", {"question": "why?", "place": "b"}, max_tokens=9, min_tokens=5),
    ]

    assert graph.engine.candidates == CANDIDATES
    assert graph.generate(requests) == host.generate(requests)


def test_thousands_of_draws_are_the_same(sessions: tuple[Session, Session]) -> None:
    graph, _ = sessions
    engine = graph.engine
    prompt = graph.prompts["tone"]
    generator = np.random.default_rng(0)
    different = 0
    for seed in range(250):
        count = 12
        ids = generator.integers(0, 390, (count, 3))
        ways = [
            Sampling(
                float(generator.uniform(0.2, 3)),
                top_k=int(generator.integers(1, CANDIDATES + 1)),
                top_p=float(generator.uniform(0.05, 1)),
                seed=seed * count + row,
            )
            for row in range(count)
        ]
        draws = [draw_in_graph(way, np.random.default_rng(way.seed), CANDIDATES) for way in ways]
        zero = np.zeros(count, np.int64)
        assert None not in draws
        logits, tokens = engine.step(Step(0, ids, zero, zero + 2, [prompt] * count, draws))
        expected = [
            next_token(row, way, np.random.default_rng(way.seed))
            for row, way in zip(logits, ways, strict=True)
        ]
        assert tokens is not None
        different += int((tokens != np.asarray(expected)).sum())
    assert different == 0


def test_a_temperature_of_zero_is_greedy_whatever_the_noise(
    sessions: tuple[Session, Session],
) -> None:
    graph, _ = sessions
    prompt = graph.prompts["tone"]
    ids, zero = np.asarray([[5, 9, 7]]), np.zeros(1, np.int64)
    loud = Draw(0.0, CANDIDATES, 1.0, np.linspace(0, 99, CANDIDATES).astype(np.float32))

    logits, tokens = graph.engine.step(Step(0, ids, zero, zero + 2, [prompt], [loud]))

    assert tokens is not None
    assert tokens.tolist() == logits.argmax(-1).tolist()


def test_the_hosts_noise_is_as_far_along_afterwards() -> None:
    sampling = Sampling(1.0, top_k=7)
    one, other = np.random.default_rng(3), np.random.default_rng(3)

    draw_in_graph(sampling, one, 10)
    next_token(np.arange(40, dtype=np.float32), sampling, other)

    assert one.random() == other.random()
