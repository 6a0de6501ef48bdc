"""Rows that come and go at any time give the numbers that they give alone, to the last bit."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows_noted import answered, logits_noted

from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.runtime import Request, Sampling, Session
from pl_compile.runtime.continuous import Continuous
from pl_compile.runtime.engines.engine import Feed, Rows
from pl_compile.runtime.row_maker import RowMaker
from pl_compile.runtime.rows import Row
from pl_compile.testing import random_table, write_tiny_base

SLOTS = 3


class Served:
    """A bundle under test, and what each request gives alone."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.alone: dict[str, tuple[Any, list[bytes]]] = {}

    def row(self, request: Request) -> Row:
        engine = self.session.engine
        maker = RowMaker(self.session.tokenizer, self.session.tasks, engine)
        return maker.row(0, request, "testing")

    def answer_alone(self, request: Request) -> tuple[Any, list[bytes]]:
        key = repr(request)
        if key not in self.alone:
            flow, row = Continuous(self.session.engine), self.row(request)
            with logits_noted() as seen:
                flow.submit(row)
                (result,) = [e.result for e in until_idle(flow) if e.result is not None]
            self.alone[key] = result, seen[row]
        return self.alone[key]


def until_idle(flow: Continuous) -> Iterator[Any]:
    while flow.is_busy:
        for _, event in flow.step():
            yield event


@pytest.fixture(scope="module", params=["native-cpu int4", "native-cpu none", "onnx-cpu int8"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    target, _, quantize = request.param.partition(" ")
    folder = tmp_path_factory.mktemp("continuous")
    base = write_tiny_base(folder / "base", "llama", seed=8, blocks=True)
    config = json.loads((base / "config.json").read_text())
    config["max_position_embeddings"] = 900  # for prompts of more than one piece
    (base / "config.json").write_text(json.dumps(config))
    table = random_table(base, folder / "table.safetensors", prefix=True)
    bundle = export_bundle(
        ExportRequest(
            table,
            base,
            folder / "bundle",
            target=target,
            options=BuildOptions(quantize),
            measure_parity=False,
        )
    ).bundle
    return Served(Session.open(bundle, max_batch=SLOTS))


TASKS = {
    "tone": lambda text: {"sentence": text},
    "ask": lambda text: {"question": text, "place": "a field"},
    "order": lambda text: {"request": text},
}
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.9, top_k=30, seed=3),
    Sampling(temperature=1.0, min_p=0.05),
]
# A request: its task, characters of its text, tokens, sampling, and two options.
REQUESTS = st.tuples(
    st.sampled_from(sorted(TASKS)),
    st.sampled_from([3, 9, 40, 300, 700, 1200]),
    st.integers(1, 9),
    st.integers(0, len(SAMPLINGS) - 1),
    st.booleans(),
    st.sampled_from([True, True, False]),
)


def request_of(drawn: tuple[str, int, int, int, bool, bool]) -> Request:
    task, characters, tokens, sampling, constrain, use_prompt = drawn
    return Request(
        task,
        TASKS[task](("the lazy dog is not here " * 120)[:characters]),
        max_tokens=tokens,
        sampling=SAMPLINGS[sampling],
        constrain=constrain,
        use_prompt=use_prompt,
    )


# Before each step: requests that arrive, with a priority; which of those under way is cancelled.
ARRIVALS = st.lists(
    st.tuples(
        st.lists(st.tuples(REQUESTS.map(request_of), st.integers(0, 1)), max_size=3),
        st.none() | st.integers(0, 6),
    ),
    max_size=14,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(arrivals=ARRIVALS)
def test_a_row_has_the_bits_that_it_has_alone(served: Served, arrivals: list[Any]) -> None:
    flow = Continuous(served.session.engine)
    with logits_noted() as seen:
        asked, results = answered(flow, arrivals, served.row)

    assert flow.batch.entries == {}
    for row, result in results.items():
        alone, logits = served.answer_alone(asked[row])
        assert result == alone
        assert seen[row] == logits


def test_a_long_prompt_is_fed_in_pieces_between_the_tokens_of_others(served: Served) -> None:
    engine = served.session.engine
    flow = Continuous(engine)
    short = served.row(Request("tone", {"sentence": "fine"}, max_tokens=8, constrain=False))
    long = served.row(Request("ask", {"question": "the lazy dog " * 130, "place": "here"}))
    assert len(long.input_ids) > 2 * engine.piece
    lengths: list[dict[int, int]] = []

    flow.submit(short)
    flow.step()
    flow.submit(long)
    with pytest.MonkeyPatch.context() as patch:
        rows: Rows = flow.batch._rows
        real = rows.step

        def step(feeds: Sequence[Feed]) -> Any:
            lengths.append({feed.slot: len(feed.ids) for feed in feeds})
            return real(feeds)

        patch.setattr(rows, "step", step)
        while not long.token_ids:
            flow.step()

    whole, rest = divmod(len(long.input_ids), engine.piece)
    pieces = [engine.piece] * whole + [rest] * bool(rest)
    assert [each[1] for each in lengths] == pieces
    answering = lengths[: 8 - 1]
    assert all(each[0] == 1 for each in answering)


def test_a_cancelled_row_frees_its_slot_at_once_and_nothing_else_changes(served: Served) -> None:
    flow = Continuous(served.session.engine)
    asked = [Request("order", {"request": "go " * n}, max_tokens=6) for n in (1, 2, 3, 4)]
    rows = [served.row(request) for request in asked]
    for row in rows:
        flow.submit(row)
    flow.step()
    assert sorted(flow.batch.entries) == [0, 1, 2]

    flow.cancel(rows[1])  # it runs
    flow.cancel(rows[3])  # it waits

    assert sorted(flow.batch.entries) == [0, 2]
    results = {event.result.text for event in until_idle(flow) if event.result is not None}
    assert results == {served.answer_alone(asked[i])[0].text for i in (0, 2)}
    assert rows[1].finished is None
    assert not np.isnan(rows[0].token_ids).any()
