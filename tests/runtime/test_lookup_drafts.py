"""Drafts of what stood before: the same answers, to the last bit, in fewer steps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows_noted import feeds_noted

from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import RequestError
from pl_compile.runtime import Request, Sampling, Session
from pl_compile.runtime.lookup_rows import Lookup
from pl_compile.runtime.step_costs import StepCosts
from pl_compile.testing import random_table, write_tiny_base


@pytest.fixture(scope="module", params=["native-cpu int8", "onnx-cpu none"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target, _, quantize = request.param.partition(" ")
    folder = tmp_path_factory.mktemp("drafts")
    base = write_tiny_base(folder / "base", "llama", seed=8, blocks=True)
    table = random_table(base, folder / "table.safetensors", prefix=True)
    asked = ExportRequest(
        table,
        base,
        folder / "bundle",
        target=target,
        options=BuildOptions(quantize),
        measure_parity=False,
    )
    return export_bundle(asked).bundle


@pytest.fixture(scope="module")
def plain(bundle: Path) -> Session:
    return Session.open(bundle, max_batch=4)


@pytest.fixture(scope="module")
def drafting(bundle: Path) -> Session:
    return Session.open(bundle, max_batch=4, drafts=True)


REQUESTS = st.builds(
    lambda task, text, **options: Request(task[0], {**task[1], task[2]: text}, **options),
    task=st.sampled_from([("ask", {"place": "a"}, "question"), ("order", {}, "request")]),
    text=st.sampled_from(["the lazy dog. the lazy", "cold cold cold", "who was there?", "a"]),
    max_tokens=st.sampled_from([1, 4, 30, 90]),
    min_tokens=st.sampled_from([0, 1]),
    stop=st.sampled_from([(), ("o",)]),
    bad_words=st.sampled_from([(), ("e",)]),
    log_probs=st.sampled_from([None, 1]),
    use_prompt=st.booleans(),
    sampling=st.sampled_from(
        [
            Sampling(),
            Sampling(repetition_penalty=1.2),
            Sampling(repetition_penalty=0.6),
            Sampling(no_repeat_ngram=3),
            Sampling(temperature=0.7, seed=2),
        ]
    ),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests=st.lists(REQUESTS, min_size=1, max_size=5))
def test_drafts_change_no_answer(
    plain: Session, drafting: Session, requests: list[Request]
) -> None:
    assert drafting.generate(requests) == plain.generate(requests)


# A penalty below 1 makes the base repeat itself.
REPEATING = Request(
    "ask",
    {"question": "cold", "place": "a"},
    max_tokens=60,
    min_tokens=60,
    sampling=Sampling(repetition_penalty=0.2),
)


def steps_of(session: Session, request: Request) -> list[int]:
    """How many tokens each step fed."""
    with feeds_noted() as seen:
        session.generate([request])
    return seen


def test_an_answer_that_repeats_takes_fewer_steps(
    plain: Session, drafting: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without branches each token has its step."""
    monkeypatch.setattr(StepCosts, "of_token", 0.05)
    slow, fast = (steps_of(each, REPEATING) for each in (plain, drafting))

    if plain.engine.branches:
        assert len(fast) < len(slow) * 2 / 3
    else:
        assert fast == slow


def test_where_steps_cost_much_nothing_is_drafted(
    plain: Session, drafting: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepCosts, "of_token", 1.0)

    assert steps_of(drafting, REPEATING) == steps_of(plain, REPEATING)


@settings(max_examples=100, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 3), max_size=30),
    cut=st.integers(0, 30),
    most=st.integers(1, 5),
)
def test_a_lookup_finds_what_followed_last(tokens: list[int], cut: int, most: int) -> None:
    """Compared with a search from the end."""
    lookup = Lookup(tokens[:cut])
    lookup.extend(tokens[cut:])

    expected: list[int] = []
    for length in (2, 3):
        for place in range(length, len(tokens)):
            if tokens[place - length : place] == tokens[-length:]:
                expected = tokens[place : place + most]
    assert lookup.following(most) == expected


def test_costs_are_those_of_a_line_through_the_steps() -> None:
    costs = StepCosts()
    assert costs.of_token == 0.1
    for tokens in (1, 1, 1):
        costs.note(tokens, 0.011)
    assert costs.of_token == 0.1  # of one size
    for tokens in (1, 5, 9, 5, 1):
        costs.note(tokens, 0.010 + 0.001 * tokens)
        costs.note(500, 9.0)  # a prompt says nothing

    np.testing.assert_allclose(costs.of_token, 1 / 11, rtol=1e-6)


def test_costs_that_cannot_be_are_not_believed() -> None:
    costs = StepCosts()
    for tokens, seconds in ((1, 5.0), (9, 0.1), (1, 5.0), (9, 0.1)):
        costs.note(tokens, seconds)
    assert costs.of_token == 0.0
    costs = StepCosts()
    for tokens in (1, 9, 1, 9):
        costs.note(tokens, 0.0)
    assert costs.of_token == 0.1


def test_drafts_are_true_or_false(bundle: Path) -> None:
    with pytest.raises(RequestError, match="drafts 1, expected True or False"):
        Session.open(bundle, drafts=1)  # type: ignore[arg-type]


def test_the_command_line_switches_drafts_on(
    bundle: Path, plc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[bool] = []
    opened = Session.open.__func__  # type: ignore[attr-defined]

    def noting(cls: Any, /, *bundles: Any, drafts: bool = False, **options: Any) -> Session:
        given.append(drafts)
        session: Session = opened(cls, *bundles, drafts=drafts, **options)
        return session

    monkeypatch.setattr(Session, "open", classmethod(noting))
    command = ("generate", bundle, "--task", "order", "--field", "request=cold", "--json")

    first, second = plc(*command), plc(*command, "--drafts")

    assert (first[0], first[1]) == (second[0], second[1])
    assert given == [False, True]
