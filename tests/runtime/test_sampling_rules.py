from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pl_compile.config.sampling import Sampling
from pl_compile.errors import RequestError
from pl_compile.runtime.requests import Request
from pl_compile.runtime.sampling import next_token, ranked
from pl_compile.shapes import Float32

LOGITS = np.asarray([0.5, -1.0, 2.0, 1.5, -3.0], np.float32)


def written(*given: Any, **options: Any) -> int:
    token = next_token(*given, **options)
    assert token is not None
    return token


def logits_of(*probabilities: float) -> Float32:
    return np.log(np.asarray(probabilities, np.float32))


def draws(logits: Float32, sampling: Sampling, count: int = 4000, **options: Any) -> Float32:
    """How often each token came, as a share of all draws."""
    generator = np.random.default_rng(sampling.seed)
    tokens = [written(logits, sampling, generator, **options) for _ in range(count)]
    return (np.bincount(tokens, minlength=len(logits)) / count).astype(np.float32)


def one(logits: Float32, sampling: Sampling | None = None, **options: Any) -> int:
    return written(logits, sampling or Sampling(), np.random.default_rng(0), **options)


# Greedy


def test_without_a_temperature_the_likeliest_token_comes() -> None:
    assert one(LOGITS) == 2


def test_of_two_equally_likely_tokens_the_first_comes() -> None:
    assert one(np.asarray([1.0, 3.0, 3.0], np.float32)) == 1


def test_greedy_uses_no_noise() -> None:
    generator = np.random.default_rng(7)

    next_token(LOGITS, Sampling(), generator)

    assert generator.random() == np.random.default_rng(7).random()


def test_logits_are_left_as_they_are() -> None:
    before = LOGITS.copy()

    one(LOGITS, Sampling(0.7, repetition_penalty=1.3), seen=[0, 1, 2], blocked=[3])

    assert np.array_equal(LOGITS, before)


# Temperature


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_come_as_often_as_the_softmax_says(temperature: float) -> None:
    scaled = np.exp(LOGITS / temperature)

    shares = draws(LOGITS, Sampling(temperature=temperature, seed=5))

    # Four standard deviations of a share near one half: 4 * sqrt(0.25 / 4000) = 0.032.
    assert shares == pytest.approx(scaled / scaled.sum(), abs=0.032)


def test_a_low_temperature_is_nearly_greedy() -> None:
    assert draws(LOGITS, Sampling(temperature=0.02), 200)[2] == 1


def test_the_same_seed_makes_the_same_draws_and_another_seed_others() -> None:
    flat = np.zeros(50, np.float32)

    def tokens(seed: int) -> list[int]:
        generator = np.random.default_rng(seed)
        return [written(flat, Sampling(1.0, seed=seed), generator) for _ in range(20)]

    assert tokens(3) == tokens(3)
    assert tokens(3) != tokens(4)


# Top-k and top-p


def test_top_k_keeps_the_k_likeliest_in_their_proportions() -> None:
    shares = draws(logits_of(0.1, 0.4, 0.2, 0.3), Sampling(temperature=1.0, top_k=2))

    assert shares == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=0.032)


def test_top_k_of_one_is_greedy_at_any_temperature() -> None:
    assert draws(LOGITS, Sampling(temperature=5.0, top_k=1), 50)[2] == 1


def test_a_top_k_beyond_the_vocabulary_keeps_all() -> None:
    shares = draws(logits_of(0.5, 0.3, 0.2), Sampling(temperature=1.0, top_k=99))

    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.032)


@pytest.mark.parametrize("top_k", [0, 1, 40, 1000, 5000])
@pytest.mark.parametrize("step", [1, 1 / 16])
def test_equal_logits_are_kept_in_the_order_of_their_ids(top_k: int, step: float) -> None:
    """`np.argpartition` keeps others of them, and on each instruction set different ones."""
    logits = np.random.default_rng(0).normal(0, 3, 5000).astype(np.float32)
    logits = (np.round(logits / step) * step).astype(np.float32)
    logits[::7] = -np.inf
    by_rank = sorted(range(len(logits)), key=lambda token: (-logits[token], token))

    ids, logs = ranked(logits, Sampling(temperature=1.0, top_k=top_k))

    assert ids.tolist() == (by_rank[:top_k] if top_k else by_rank)
    assert (np.isneginf(logs) == np.isneginf(logits[ids])).all()


def test_top_p_keeps_tokens_until_they_reach_it() -> None:
    shares = draws(logits_of(0.1, 0.5, 0.1, 0.3), Sampling(temperature=1.0, top_p=0.6))

    assert shares == pytest.approx([0, 5 / 8, 0, 3 / 8], abs=0.032)


def test_top_p_always_keeps_the_likeliest() -> None:
    assert draws(logits_of(0.3, 0.6, 0.1), Sampling(temperature=1.0, top_p=0.01), 50)[1] == 1


def test_top_p_counts_after_temperature_and_top_k() -> None:
    # At temperature 2 the shares are as the roots: 0.8, 0.4, 0.2 … of which top-k leaves the first
    # two: 2/3 and 1/3. So 0.6 is reached by the first alone, and not with top_k off.
    logits = logits_of(0.64, 0.16, 0.04, 0.04, 0.04, 0.04, 0.04)

    with_top_k = draws(logits, Sampling(temperature=2.0, top_k=2, top_p=0.6), 50)
    without = draws(logits, Sampling(temperature=2.0, top_p=0.6), 500)

    assert with_top_k[0] == 1
    assert (without > 0).sum() > 2


def test_min_p_keeps_tokens_of_that_share_of_the_likeliest() -> None:
    shares = draws(logits_of(0.5, 0.3, 0.12, 0.08), Sampling(temperature=1.0, min_p=0.2))

    assert shares == pytest.approx([50 / 92, 30 / 92, 12 / 92, 0], abs=0.032)


def test_min_p_of_one_keeps_the_likeliest_alone() -> None:
    assert draws(logits_of(0.3, 0.36, 0.34), Sampling(temperature=9.0, min_p=1.0), 50)[1] == 1


def test_min_p_counts_after_temperature() -> None:
    # At temperature 2 a share of 1/16 is one of 1/4.
    logits = logits_of(16 / 17, 1 / 17)

    assert draws(logits, Sampling(temperature=2.0, min_p=0.24), 500)[1] > 0
    assert draws(logits, Sampling(temperature=2.0, min_p=0.26), 500)[1] == 0


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 30),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
)
def test_the_tokens_that_may_be_drawn_are_those_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    torch = pytest.importorskip(
        "torch",
        reason="needs torch (the extra train); without it: the tests of each option above",
    )
    from transformers.generation import logits_process as theirs

    logits = np.random.default_rng(seed).normal(0, 3, 25).astype(np.float32)
    warpers: list[Any] = [theirs.TemperatureLogitsWarper(temperature)]
    if top_k:
        warpers.append(theirs.TopKLogitsWarper(top_k))
    warpers += [theirs.TopPLogitsWarper(top_p), theirs.MinPLogitsWarper(min_p)]
    scores = torch.from_numpy(logits)[None]
    for warper in warpers:
        scores = warper(None, scores)
    sampling = Sampling(temperature, top_k, top_p, min_p=min_p)

    ids, logs = ranked(logits, sampling)

    assume(not near_a_limit(logits, sampling))
    expected = np.flatnonzero(np.isfinite(scores[0].numpy()))
    assert sorted(ids[np.isfinite(logs)]) == expected.tolist()


def near_a_limit(logits: Float32, sampling: Sampling) -> bool:
    """Whether rounding alone may decide that a token stays: torch computes it in float32."""
    _, logs = ranked(logits, replace(sampling, top_p=1.0, min_p=0.0))
    shares = np.exp(logs) / np.exp(logs).sum()
    limits = np.concatenate(
        [np.cumsum(shares) - sampling.top_p, np.exp(logs) / max(sampling.min_p, 1e-9) - 1]
    )
    return bool(np.abs(limits).min() < 1e-5)


# Repetition penalty


def test_a_repeated_token_gets_less_likely_whatever_its_sign() -> None:
    penalty = Sampling(repetition_penalty=2.0)

    positive = one(np.asarray([3.0, 2.0, 1.0], np.float32), penalty, seen=[0])
    negative = one(np.asarray([-3.0, -2.0, -3.5], np.float32), penalty, seen=[1])

    assert positive == 1
    assert negative == 0


def test_a_penalty_below_one_makes_repetition_likelier() -> None:
    assert one(np.asarray([3.0, 2.0], np.float32), Sampling(repetition_penalty=0.5), seen=[1]) == 1


def test_a_token_seen_twice_is_penalised_once() -> None:
    logits = np.asarray([3.0, 1.0], np.float32)

    assert one(logits, Sampling(repetition_penalty=2.0), seen=[0, 0, 0]) == 0


def test_a_penalty_of_one_changes_nothing() -> None:
    assert one(LOGITS, Sampling(repetition_penalty=1.0), seen=[2]) == 2


# Blocked and allowed


def test_a_blocked_token_never_comes() -> None:
    greedy = one(LOGITS, blocked=[2])
    shares = draws(LOGITS, Sampling(temperature=1.0), 500, blocked=[2])

    assert greedy == 3
    assert shares[2] == 0
    assert (shares[[0, 1, 3]] > 0).all()


def test_only_allowed_tokens_come() -> None:
    greedy = one(LOGITS, allowed=[4, 1])
    shares = draws(logits_of(0.1, 0.5, 0.1, 0.3), Sampling(temperature=1.0), allowed=[3, 0])

    assert greedy == 1
    assert shares == pytest.approx([1 / 4, 0, 0, 3 / 4], abs=0.032)


def test_an_allowed_token_comes_even_if_it_is_blocked() -> None:
    assert one(LOGITS, blocked=[4], allowed=[4]) == 4


def test_a_penalty_decides_among_allowed_tokens_too() -> None:
    assert one(LOGITS, Sampling(repetition_penalty=2.0), seen=[2], allowed=[2, 3]) == 3


# Options


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"temperature": -0.1}, "temperature -0.1, expected a finite number, 0 or more"),
        ({"temperature": float("nan")}, "temperature nan, expected a finite number, 0 or more"),
        ({"temperature": float("inf")}, "temperature inf, expected a finite number, 0 or more"),
        ({"top_k": -1}, "top_k -1, expected a whole number, 0 or more"),
        ({"top_p": 0.0}, "top_p 0.0, expected a number above 0, at most 1"),
        ({"top_p": 1.5}, "top_p 1.5, expected a number above 0, at most 1"),
        (
            {"repetition_penalty": 0.0},
            "repetition_penalty 0.0, expected a number from 0.001 to 1000",
        ),
        ({"min_p": 1.5}, "min_p 1.5, expected a number from 0 to 1"),
        ({"seed": -1}, "seed -1, expected a whole number, 0 or more"),
    ],
)
def test_an_option_out_of_its_range_is_refused_with_the_range(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(RequestError) as error:
        Sampling(**options)

    assert str(error.value) == f"reading the sampling options: {complaint}."


def test_all_wrong_options_stand_in_one_message() -> None:
    with pytest.raises(RequestError) as error:
        Sampling(temperature=-1.0, top_p=2.0)

    assert str(error.value).splitlines() == [
        "reading the sampling options: 2 problems:",
        "  - temperature -1.0, expected a finite number, 0 or more",
        "  - top_p 2.0, expected a number above 0, at most 1.",
    ]


@pytest.mark.parametrize("temperature", [1e-30, 1e-45, 1e-300])
def test_a_vanishing_temperature_is_greedy_and_not_a_division_by_zero(temperature: float) -> None:
    assert one(LOGITS, Sampling(temperature=temperature)) == 2


# Requests


@pytest.mark.parametrize(("least", "most"), [(5, 3), (-1, 3), (0, 0)])
def test_a_request_for_an_impossible_length_is_refused_with_both_numbers(
    least: int, most: int
) -> None:
    with pytest.raises(RequestError) as error:
        Request("mood", {}, min_tokens=least, max_tokens=most)

    assert str(error.value) == (
        f"reading a request for task 'mood': min_tokens {least}, max_tokens {most}; "
        "expected whole numbers, 0 <= min_tokens <= max_tokens, and max_tokens at least 1."
    )


def test_an_empty_stop_text_is_refused() -> None:
    with pytest.raises(RequestError) as error:
        Request("mood", {}, stop=("\n", ""))

    assert str(error.value) == (
        "reading a request for task 'mood': an empty stop text. Leave it out."
    )


# The caller's numpy


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 0.001, 1.0, 1e308])
def test_a_draw_does_not_depend_on_what_numpy_does_about_errors(temperature: float) -> None:
    sampling = Sampling(temperature, top_p=0.9, repetition_penalty=1000.0)
    spread = np.asarray([-1e38, 1e-38, 90.0, 89.0, 3e38], np.float32)
    before = one(spread, sampling, seen=[0, 1, 4])

    with np.errstate(all="raise"):
        assert one(spread, sampling, seen=[0, 1, 4]) == before
