"""Requests that begin alike compute the beginning once; each has the bits that it has alone."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows_noted import answered, logits_noted

from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import AnswerError, RequestError
from pl_compile.runtime import Request, Result, Sampling, Session, kernels
from pl_compile.runtime.continuous import Continuous
from pl_compile.runtime.engines.engine import Shared
from pl_compile.runtime.engines.onnxruntime.ragged import RaggedEngine, RaggedRows
from pl_compile.runtime.row_maker import RowMaker
from pl_compile.runtime.rows import Row
from pl_compile.runtime.stepping import Batch
from pl_compile.testing import random_table, write_tiny_base

CAPACITY, SLOTS, BLOCK = 900, 3, 16

built = pytest.mark.skipif(
    kernels.library_path() is None,
    reason="the kernels were not built: no compiler; "
    "test_others_share_nothing_and_answer_as_ever runs without them",
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Exports the tiny tasks and one with a learned prefix, of a base with a long context."""
    root = tmp_path_factory.mktemp("contexts")
    base = write_tiny_base(root / "base", "llama", seed=8, blocks=True)
    config = json.loads((base / "config.json").read_text())
    config["max_position_embeddings"] = CAPACITY
    (base / "config.json").write_text(json.dumps(config))

    def export(target: str, quantize: Any, *, seed: int = 0, **changes: Any) -> Path:
        name = "-".join(map(str, (target, quantize, seed, *changes.values())))
        if not (root / name).exists():
            table = random_table(base, root / f"{name}.table", seed=seed, prefix=True)
            options = BuildOptions(quantize)
            request = ExportRequest(
                table, base, root / name, target=target, options=options, measure_parity=False
            )
            export_bundle(replace(request, **changes))
        return root / name

    return export


@pytest.fixture(scope="module")
def shared(exported: Callable[..., Path]) -> Session:
    """A session whose requests share what they begin with."""
    return Session.open(exported("native-cpu", "int4"), max_batch=SLOTS)


def engine_of(session: Session) -> RaggedEngine:
    assert isinstance(session.engine, RaggedEngine)
    return session.engine


def use_of(session: Session) -> Shared:
    assert session.load.shared is not None
    return session.load.shared


def row_of(session: Session, request: Request) -> Row:
    return RowMaker(session.tokenizer, session.tasks, session.engine).row(0, request, "testing")


class Alone:
    """What each request gives on an engine for itself that shares nothing."""

    def __init__(self, bundle: Path) -> None:
        self.session = Session.open(bundle, max_batch=1, context_mib=0)
        self.known: dict[str, tuple[Result, list[bytes]]] = {}

    def answer(self, request: Request) -> tuple[Result, list[bytes]]:
        key = repr(request)
        if key not in self.known:
            with logits_noted() as seen:
                (result,) = self.session.generate([request])
            (logits,) = seen.values()
            self.known[key] = result, logits
        return self.known[key]


# Contexts, and where each is cut before a question follows.
CONTEXTS = [("the lazy dog is not here " * 60), ("so cold was the year " * 60)]
FIELDS = {
    "tone": lambda text: {"sentence": text},
    "ask": lambda text: {"question": text, "place": "a field"},
    "order": lambda text: {"request": text},
}
REQUESTS = st.builds(
    lambda task, context, length, question, tokens, use_prompt, heat: Request(
        task,
        FIELDS[task](CONTEXTS[context][:length] + question),
        max_tokens=tokens,
        constrain=task == "tone" and tokens % 2 == 0,
        use_prompt=use_prompt,
        sampling=Sampling(temperature=heat, seed=tokens),
    ),
    task=st.sampled_from(sorted(FIELDS)),
    context=st.integers(0, 1),
    length=st.sampled_from([0, 5, 60, 90, 500]),
    question=st.sampled_from(["who?", "", "where was the cat, and when?"]),
    tokens=st.integers(1, 20),
    use_prompt=st.sampled_from([True, True, False]),
    heat=st.sampled_from([0.0, 0.9]),
)
# Before each step: requests that arrive, with a priority; which of those under way is cancelled.
ARRIVALS = st.lists(
    st.tuples(
        st.lists(st.tuples(REQUESTS, st.integers(0, 1)), max_size=4),
        st.none() | st.integers(0, 6),
    ),
    max_size=12,
)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("native-cpu", "int4", {}), marks=built),
        pytest.param(("native-cpu", "int8", {"fold": "never"}), marks=built),
        pytest.param(("native-cpu", "int8", {"prompts": "baked", "fold": "never"}), marks=built),
        ("native-cpu", "none", {}),
        ("onnx-cpu", "int8", {}),
    ],
    ids=lambda given: "-".join([*given[:2], *given[2].values()]),
)
def pair(
    request: pytest.FixtureRequest, exported: Callable[..., Path]
) -> tuple[Session, Alone, bool]:
    """A session with many slots, what is alone, and whether requests share anything."""
    target, quantize, changes = request.param
    bundle = exported(target, quantize, **changes)
    shares = target == "native-cpu" and quantize != "none"
    return Session.open(bundle, max_batch=SLOTS), Alone(bundle), shares


@settings(max_examples=30, deadline=None)
@given(arrivals=ARRIVALS, keep=st.integers(1, 60))
def test_a_request_has_the_bits_that_it_has_alone_whatever_came_before(
    pair: tuple[Session, Alone, bool], arrivals: list[Any], keep: int
) -> None:
    session, alone, shares = pair
    if isinstance(session.engine, RaggedEngine) and shares:
        session.engine.caches.pool.keep = keep  # fewer than there are: so some are evicted
    flow = Continuous(session.engine)
    with logits_noted() as seen:
        asked, results = answered(flow, arrivals, lambda request: row_of(session, request))

    for row, result in results.items():
        expected, logits = alone.answer(asked[row])
        assert result == expected
        assert seen[row] == logits
        assert 0 <= result.shared_tokens < result.prompt_tokens - result.prefix_tokens
        assert shares or not result.shared_tokens
    use = flow.load.shared
    assert (use is not None) == shares
    assert use is None or use.entries <= use.most == keep * BLOCK


def test_others_share_nothing_and_answer_as_ever(exported: Callable[..., Path]) -> None:
    """Without our kernels for all products, a token's bits depend on how a prompt is cut."""
    requests = [Request("order", {"request": CONTEXTS[0][:300] + end}) for end in "abc"]
    for target, quantize in [("onnx-cpu", "none"), ("native-cpu", "none")]:
        bundle = exported(target, quantize)
        alone = Alone(bundle)
        with Session.open(bundle) as session:
            results = session.generate(requests)
            assert session.load.shared is None
        assert results == [alone.answer(request)[0] for request in requests]
        assert {result.shared_tokens for result in results} == {0}
        with pytest.raises(RequestError) as error:
            Session.open(bundle, context_mib=3)
        assert "context_mib 3, and an engine whose requests share nothing" in str(error.value)


@built
def test_questions_that_come_together_compute_their_context_once(shared: Session) -> None:
    alone = Alone(shared._bundle.folder)  # type: ignore[union-attr]
    context = "which year was it, and was the dog here? " * 9
    requests = [Request("order", {"request": context + end}) for end in ("who", "why", "a", "b c")]
    lengths = [len(row_of(shared, request).input_ids) for request in requests]
    begun = use_of(shared)

    results = shared.generate(requests)

    common = min(result.shared_tokens for result in sorted_by_share(results)[1:])
    assert common > min(lengths) - 40 > 100
    assert sorted_by_share(results)[0].shared_tokens == 0
    assert results == [alone.answer(request)[0] for request in requests]
    use = use_of(shared)
    assert use.hits - begun.hits == len(requests) - 1
    assert use.tokens - begun.tokens == sum(result.shared_tokens for result in results)


def sorted_by_share(results: Sequence[Result]) -> list[Result]:
    return sorted(results, key=lambda result: result.shared_tokens)


@built
def test_later_requests_feed_only_what_is_new(
    shared: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request("ask", {"question": "was it here? " * 30, "place": "one"}, max_tokens=1)
    fed: list[int] = []
    step = RaggedRows.step

    def noted(rows: RaggedRows, feeds: Any) -> Any:
        fed.append(sum(len(feed.ids) for feed in feeds))
        return step(rows, feeds)

    monkeypatch.setattr(RaggedRows, "step", noted)
    (first,) = shared.generate([request])
    computed = sum(fed)
    fed.clear()
    (second,) = shared.generate([replace(request, fields={**request.fields, "place": "the sea"})])

    assert first.shared_tokens == 0
    assert computed == first.prompt_tokens - first.prefix_tokens
    assert second.shared_tokens >= computed - 2 * BLOCK
    assert sum(fed) == second.prompt_tokens - second.prefix_tokens - second.shared_tokens


@built
def test_probabilities_of_labels_are_the_same_after_a_context_that_is_there(
    shared: Session,
) -> None:
    alone = Alone(shared._bundle.folder).session  # type: ignore[union-attr]
    requests = [Request("tone", {"sentence": "we were so cold " * 12 + end}) for end in "abc"]
    hits = use_of(shared).hits

    assert shared.score(requests) == alone.score(requests)
    assert shared.classify(requests) == alone.classify(requests)
    assert use_of(shared).hits - hits == 2 + 3


@built
def test_a_task_that_is_replaced_finds_nothing_of_the_old_one(
    exported: Callable[..., Path],
) -> None:
    old, new = (exported("native-cpu", "int8", seed=seed) for seed in (1, 2))
    for task in ("ask", "order"):
        request = Request(task, FIELDS[task]("the lazy dog " * 20), max_tokens=8)
        expected = Alone(new).answer(request)[0]
        with Session.open(old) as session:
            session.generate([request])
            assert session.generate([request])[0].shared_tokens > 0
            session.remove_task(task)
            session.add_tasks(new, [task])

            (result,) = session.generate([request])

        assert result == expected
        assert result.shared_tokens == 0


@built
def test_a_switch_turns_it_off(exported: Callable[..., Path]) -> None:
    request = Request("order", {"request": CONTEXTS[0][:200]})
    with Session.open(exported("native-cpu", "int4"), context_mib=0) as session:
        results = [session.generate([request])[0] for _ in range(2)]

        assert [result.shared_tokens for result in results] == [0, 0]
        assert session.load.shared is None


@built
@pytest.mark.parametrize(("max_batch", "rows"), [(1, 1), (8, 1), (32, 4)])
def test_an_eighth_of_the_cache_is_kept_by_default_and_one_row_at_least(
    exported: Callable[..., Path], max_batch: int, rows: int
) -> None:
    with Session.open(exported("native-cpu", "int4"), max_batch=max_batch) as session:
        assert use_of(session).most == rows * -(-CAPACITY // BLOCK) * BLOCK


@built
def test_a_limit_in_mib_is_a_limit_of_entries(exported: Callable[..., Path]) -> None:
    with Session.open(exported("native-cpu", "int4"), context_mib=2) as session:
        use, graph = use_of(session), engine_of(session).contract

    assert use.entry_bytes == 2 * graph.layers * graph.kv_heads * graph.head_dim * 4
    assert 0 <= use.most * use.entry_bytes - 2 * 2**20 < BLOCK * use.entry_bytes


@pytest.mark.parametrize("wrong", [-1, 1.5, "9", True, 1 << 21])
def test_a_limit_that_is_none_is_refused(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(RequestError) as error:
        Session.open(tmp_path, context_mib=wrong)

    assert "context_mib" in str(error.value)
    assert "a whole number, at least 0 and at most 1048576" in str(error.value)


# Rows of an engine, without a session.


@dataclass(frozen=True)
class Bare:
    """The prompt of rows of ids."""

    rows: Any
    prefix_kv: Any = None
    task_id: int = 0


def random_prefix(engine: RaggedEngine, length: int, seed: int) -> Any:
    c = engine.contract
    shape = (c.layers, 2, c.kv_heads, length, c.head_dim)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def virtual_rows(engine: RaggedEngine, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((3, engine.contract.hidden), np.float32)


def some_ids(engine: RaggedEngine, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, engine.vocab, count)


class Fed:
    """A row from its admission to its end."""

    def __init__(self, batch: Batch, prompt: Any, ids: np.ndarray, piece: int = 1000) -> None:
        batch.admit(0, prompt)
        begin = batch.entries[0]
        self.shared = fed = batch.share(0, ids)
        while fed < len(ids):
            output = batch.feed({0: ids[fed : fed + piece]})[0]
            fed += piece
        entries = batch.cached(0, begin + len(ids))[..., begin:, :]
        self.found = output.logits.tobytes(), entries.tobytes()
        batch.retire([0])

    @classmethod
    def alone(cls, engine: RaggedEngine, prompt: Any, ids: np.ndarray) -> tuple[bytes, bytes]:
        """What it computes where there was none before it."""
        row = cls(Batch(engine), prompt, ids)
        assert row.shared == 0
        return row.found


@built
@settings(max_examples=60, deadline=None)
@given(
    prefix=st.integers(0, 40),
    common=st.integers(0, 70),
    ends=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    piece=st.integers(1, 50),
)
def test_entries_are_those_that_a_row_computes_for_any_length_of_its_prefix(
    shared: Session, prefix: int, common: int, ends: list[int], piece: int
) -> None:
    engine = engine_of(shared)
    rows = virtual_rows(engine, 0)
    prompt = Bare(rows, random_prefix(engine, prefix, 1) if prefix else None)
    context = some_ids(engine, common)
    if common > 3:
        context[2] = engine.vocab + 1  # a virtual token
    asked = [np.concatenate([context, some_ids(engine, end, i + 1)]) for i, end in enumerate(ends)]
    expected = [Fed.alone(engine, prompt, ids) for ids in asked]

    batch = Batch(engine)
    for number, (ids, alone) in enumerate(zip(asked, expected, strict=True)):
        row = Fed(batch, prompt, ids, piece)
        blocks = (prefix + common) // BLOCK - prefix // BLOCK
        least = max(0, (prefix // BLOCK + blocks) * BLOCK - prefix) if number and blocks else 0
        assert least <= row.shared < len(ids)
        assert row.found == alone


@built
def test_only_what_was_computed_from_the_same_is_shared(shared: Session) -> None:
    engine = engine_of(shared)
    ids = some_ids(engine, 64)
    virtual = ids.copy()
    virtual[1] = engine.vocab
    rows, others = virtual_rows(engine, 0), virtual_rows(engine, 1)
    prefixes = [random_prefix(engine, 16, seed) for seed in (0, 1)]
    batch = Batch(engine)
    cases = [
        (Bare(rows), ids, 0),
        (Bare(others), ids, 48),  # no virtual token is in it
        (Bare(rows, prefixes[0]), ids, 0),
        (Bare(rows, prefixes[1]), ids, 0),
        (Bare(rows, prefixes[1]), ids, 48),
        (Bare(rows), virtual, 0),
        (Bare(others), virtual, 0),
        (Bare(rows.copy()), virtual, 48),
        (Bare(rows), np.append(ids[:40], ids[:9]), 32),
        (Bare(rows), np.append(ids[1:], 3), 0),
        (Bare(rows), ids[:48], 32),  # one token must be fed
    ]

    assert [Fed(batch, prompt, given).shared for prompt, given, _ in cases] == [
        found for _, _, found in cases
    ]


@built
def test_a_row_that_was_admitted_early_finds_what_others_computed_since(shared: Session) -> None:
    engine = engine_of(shared)
    ids, prompt = some_ids(engine, 60), Bare(virtual_rows(engine, 0))
    batch = Batch(engine)
    for slot in (0, 1):
        batch.admit(slot, prompt)
        assert batch.share(slot, ids) == 0
    batch.feed({0: ids[:50]})
    assert batch.share(1, ids) == 0  # the prompt is not complete
    batch.feed({0: ids[50:]})

    assert batch.share(1, ids) == 48
    assert batch.share(1, ids) == 48


@built
def test_a_row_that_ends_early_leaves_nothing_of_its_own(shared: Session) -> None:
    engine = engine_of(shared)
    ids, prompt = some_ids(engine, 60), Bare(virtual_rows(engine, 0))
    batch = Batch(engine)
    batch.admit(0, prompt)
    batch.share(0, ids)
    batch.feed({0: ids[:50]})

    batch.retire([0])

    assert Fed(batch, prompt, ids).shared == 0


@built
def test_a_step_that_fails_names_no_block(shared: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(shared)
    ids, prompt = some_ids(engine, 60), Bare(virtual_rows(engine, 0))
    rows = engine.rows()
    batch = Batch(engine)
    batch.admit(0, prompt)
    batch.share(0, ids)

    def fails() -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(engine.graph, "run", fails)
        with pytest.raises(MemoryError):
            batch.feed({0: ids})
    batch.retire([0])

    assert rows.shared is not None
    assert rows.shared.entries == 0
    assert Fed(batch, prompt, ids).shared == 0


@built
def test_after_a_failed_step_a_session_answers_as_before(
    shared: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request("order", {"request": "who was there, and why? " * 9}, max_tokens=9)
    (expected,) = shared.generate([request])

    def fails() -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(engine_of(shared).graph, "run", fails)
        with pytest.raises(MemoryError):
            shared.generate([request])

    results = [shared.generate([request])[0] for _ in range(2)]
    assert results == [expected] * 2
    assert results[0].shared_tokens == 0 < results[1].shared_tokens


@built
@pytest.mark.parametrize("is_late", [False, True])
def test_a_row_without_numbers_leaves_nothing_and_spoils_no_other(
    shared: Session, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """Two rows use a context; one of them fails after its prompt, or at its first token."""
    engine = engine_of(shared)
    prompt, context = Bare(virtual_rows(engine, 0)), some_ids(engine, 50)
    bad, good = (np.append(context, some_ids(engine, 20, seed)) for seed in (1, 2))
    expected = Fed.alone(engine, prompt, np.append(good, [7, 8]))
    batch = Batch(engine)
    Fed(batch, prompt, context)
    for slot, ids in enumerate((bad, good)):
        batch.admit(slot, prompt)
        assert batch.share(slot, ids) == 48
    run = engine.graph.run

    def spoilt() -> None:
        run()
        engine._logits[0, 3] = np.nan

    if is_late:
        batch.feed({0: bad[48:], 1: good[48:]})
    with monkeypatch.context() as patch:
        patch.setattr(engine.graph, "run", spoilt)
        fed = {0: bad[48:]} if not is_late else {0: np.asarray([5])}
        assert not batch.feed(fed)[0].is_finite
    batch.clear([0])
    batch.retire([0])

    if not is_late:
        batch.feed({1: good[48:]})
    for token in (7, 8):
        output = batch.feed({1: np.asarray([token])})[1]
    entries = batch.cached(1, len(good) + 2)
    assert (output.logits.tobytes(), entries.tobytes()) == expected
    batch.retire([1])
    # The context is found again only where a row has shown since that its numbers are finite.
    assert Fed(batch, prompt, bad).shared == (0 if is_late else 48)


@built
def test_what_a_base_overflows_on_is_asked_again_and_fails_again(
    shared: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [Request("order", {"request": "timer 12 minutes " * 15}, max_tokens=4)] * 2
    (expected,) = Alone(shared._bundle.folder).session.generate(requests[:1])  # type: ignore[union-attr]
    run = engine_of(shared).graph.run

    def spoilt() -> None:
        run()
        engine_of(shared)._logits[:, 0] = np.inf

    with monkeypatch.context() as patch:
        patch.setattr(engine_of(shared).graph, "run", spoilt)
        for _ in range(2):
            with pytest.raises(AnswerError):
                shared.generate(requests)

    (result,) = shared.generate(requests[:1])
    assert result == expected
    assert result.shared_tokens == 0
