"""A sampler that was written from `docs/artifact-format.md` alone draws what the runtime draws.

It knows nothing of numpy's generators, and computes in plain Python numbers.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing_by_the_page import Generator, Options, choose, total

from pl_compile.config.sampling import IN_GRAPH, Sampling
from pl_compile.runtime.sampling import draw_in_graph, next_token

PAGE = Path(__file__).parents[2] / "docs/artifact-format.md"
SEEDS = (0, 1, 7, 2**32 - 1, 2**32, 2**64 + 5, 2**128 + 17, 2**200 + 99)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_page_begins_the_generator_as_the_runtime_does(seed: int) -> None:
    theirs = np.random.default_rng(seed).random(1000)
    ours = Generator(seed)

    assert [ours.uniform() for _ in range(1000)] == theirs.tolist()


def test_the_numbers_on_the_page_are_those_of_its_generator() -> None:
    rows = re.findall(r"^\| ([\d^ +]+) \| (0\.\d+), (0\.\d+), (0\.\d+) \|$", PAGE.read_text(), re.M)

    assert len(rows) == 3
    for seed, *shown in rows:
        generator = Generator(eval(seed.replace("^", "**")))
        assert [generator.uniform() for _ in shown] == [float(number) for number in shown]


def test_sums_are_taken_in_the_order_of_the_page() -> None:
    generator = np.random.default_rng(0)
    for count in (1, 7, 8, 9, 127, 128, 129, 130, 255, 257, 1000, 4097, 49_152):
        numbers = np.exp(generator.normal(0, 5, count))
        assert total(numbers.tolist()) == numbers.sum()


@pytest.mark.parametrize("trial", range(40))
def test_a_row_that_is_drawn_by_the_page_is_the_row_of_the_runtime(trial: int) -> None:
    random = np.random.default_rng(trial)
    vocab, seed = int(random.integers(5, 300)), SEEDS[trial % len(SEEDS)]
    options: dict[str, Any] = {
        "temperature": float(random.choice([0.0, 0.05, 0.7, 1.0, 3.0])),
        "top_k": int(random.choice([0, 1, 3, 40, 1000])),
        "top_p": float(random.choice([1.0, 0.9, 0.3, 1e-9])),
        "min_p": float(random.choice([0.0, 0.0, 0.02, 0.5, 1.0])),
        "repetition_penalty": float(random.choice([1.0, 1.3, 0.7])),
    }
    ours, theirs = Generator(seed), np.random.default_rng(seed)
    by_page = Options(**options, seed=seed)
    sampling = Sampling(**options, seed=seed)
    for step in range(12):
        logits = random.normal(0, 3, vocab).astype(np.float32)
        if trial % 2:  # many are equal, as of a base in few bits
            logits = (np.round(4 * logits) / 4).astype(np.float32)
        seen = random.integers(0, vocab, 20).tolist()
        blocked = (1, 3) if step < 3 else ()
        allowed = random.choice(vocab, 4, replace=False).tolist() if step % 4 == 3 else None
        limits: dict[str, Any] = {"seen": seen, "blocked": blocked, "allowed": allowed}
        # Most of the tokens, in every other step.
        bad = set(range(vocab)) - {int(random.integers(0, vocab)) for _ in range(vocab // 4)}
        left_out = bad.__contains__ if step % 2 and allowed is None else lambda token: False

        token = choose(logits.tolist(), by_page, ours, **limits, left_out=left_out)
        fits = lambda token, left_out=left_out: not left_out(token)  # noqa: E731
        assert token == next_token(logits, sampling, theirs, **limits, fits=fits)
    assert ours.uniform() == theirs.random()  # as far along


def test_a_penalty_is_rounded_to_float32_as_the_page_says() -> None:
    r = np.float32(1.3)
    logits = np.arange(1, 100, dtype=np.float32)
    above = logits[logits.astype(np.float64) / np.float64(r) > logits / r]
    options: dict[str, Any] = {"repetition_penalty": 1.3}

    assert len(above) > 0
    for logit in above:
        row = np.asarray([logit / r, logit], np.float32)  # equal after the penalty, not before
        token = next_token(row, Sampling(**options), np.random.default_rng(0), seen=[1])
        assert token == choose(row.tolist(), Options(**options), Generator(0), seen=[1]) == 0


def test_the_noise_of_a_graph_is_that_of_the_page_in_float32() -> None:
    theirs = np.random.default_rng(3)
    draw = draw_in_graph(Sampling(temperature=0.7, top_k=50, seed=3), theirs, 256, IN_GRAPH)
    ours = Generator(3)

    assert draw is not None
    expected = np.asarray([ours.noise() for _ in range(50)]).astype(np.float32)
    np.testing.assert_array_max_ulp(draw.noise, expected, 1)
    assert ours.uniform() == theirs.random()
