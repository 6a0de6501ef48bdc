"""Logits that no row looks at are not computed, and no answer tells."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pl_compile.artifact.bundle import read_bundle
from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import LOGIT_TILES, GraphContract
from pl_compile.config.kernel_layout import TILE
from pl_compile.driver import export_inputs
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import ConfigError
from pl_compile.runtime import Request, Sampling, Session, kernels
from pl_compile.runtime.engines.onnxruntime.graph import OnnxGraph
from pl_compile.runtime.requests import Event
from pl_compile.runtime.rows import Row
from pl_compile.runtime.stepping import Batch, Output
from pl_compile.testing import random_table, write_tiny_base

needs_kernels = pytest.mark.skipif(
    kernels.library_path() is None,
    reason="needs the C++ kernels (g++ or Clang); without them: "
    "test_without_kernels_all_logits_are_computed",
)

OPTIONS = {
    "int8": BuildOptions("int8"),
    "int4": BuildOptions("int4"),
    "a table of 4 bits": BuildOptions("int4", table_bits=4),
    "sampling in the graph": BuildOptions("int4", sampling="graph", candidates=40),
}
WORDS = "so cold a parcel the bill login now or never who was there at".split()  # noqa: SIM905
NO_TOKENS = np.zeros(0, np.int64)


def exported(folder: Path, options: BuildOptions) -> Path:
    base = write_tiny_base(folder / "base", "llama", seed=8, blocks=True)
    table = random_table(base, folder / "table.safetensors", prefix=True)
    request = ExportRequest(
        table,
        base,
        folder / "bundle",
        target="native-cpu",
        options=options,
        measure_parity=False,
    )
    return export_bundle(request).bundle


@pytest.fixture(scope="module", params=OPTIONS)
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    bundle = exported(tmp_path_factory.mktemp("tiles"), OPTIONS[request.param])
    return Session.open(bundle, max_batch=3)


@dataclass
class Watched:
    """The tiles that each run is given, and by row the bits of what it chooses from.

    Steps of different rows are in no order: a later call shares prompts of an earlier one.
    """

    tiles: list[list[int]] = field(default_factory=list)
    seen: dict[int, list[bytes]] = field(default_factory=dict)


@contextmanager
def watched(*, cut: bool = True) -> Iterator[Watched]:
    """Watches runs.

    Args:
        cut: whether rows say what they look at.
    """
    found, give, advance = Watched(), OnnxGraph.give, Row.advance

    def giving(graph: OnnxGraph, name: str, array: Any) -> None:
        if name == LOGIT_TILES:
            found.tiles.append(array.tolist())
        give(graph, name, array)

    def advancing(row: Row, output: Output) -> Event:
        logits = output.logits
        if row.trie is not None and row.request.log_probs is None:
            logits = logits[row._choices.allowed()]  # type: ignore[union-attr]
        found.seen.setdefault(row.index, []).append(logits.tobytes())
        return advance(row, output)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxGraph, "give", giving)
        patch.setattr(Row, "advance", advancing)
        if not cut:
            patch.setattr(Row, "looked_at", None)
        yield found


def sentence(first: int, count: int) -> str:
    return " ".join(WORDS[(first + n) % len(WORDS)] for n in range(count))


SENTENCES = st.builds(sentence, st.integers(0, 13), st.integers(1, 12))
SAMPLINGS = st.builds(
    Sampling,
    st.sampled_from([0.0, 1.0, 3.0]),
    top_k=st.sampled_from([0, 2, 30]),
    seed=st.integers(0, 9),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
)
CLOSED = st.builds(
    Request,
    st.just("tone"),
    st.fixed_dictionaries({"sentence": SENTENCES}),
    sampling=SAMPLINGS,
    log_probs=st.sampled_from([None, None, None, 2]),
)
OPEN = st.builds(
    Request,
    st.just("ask"),
    st.fixed_dictionaries({"question": SENTENCES, "place": st.just("the kitchen")}),
    max_tokens=st.integers(1, 4),
    sampling=SAMPLINGS,
)


@settings(max_examples=25, deadline=None)
@given(requests=st.lists(CLOSED | CLOSED | OPEN, min_size=1, max_size=6))
def test_answers_and_what_they_are_chosen_from_have_the_bits_of_all_logits(
    session: Session, requests: list[Request]
) -> None:
    with watched(cut=False) as whole:
        expected = session.generate(requests)
    with watched() as cut:
        found = session.generate(requests)

    assert found == expected
    assert cut.seen == whole.seen
    assert not any(whole.tiles)
    if all(each.task == "tone" and each.log_probs is None for each in requests):
        assert all(cut.tiles)


@needs_kernels
def test_rows_of_closed_sets_get_the_tiles_of_what_may_follow_and_a_free_row_gets_all(
    session: Session,
) -> None:
    closed = Request("tone", {"sentence": "so cold"})
    trie = session.tasks["tone"].trie
    assert trie is not None
    first = sorted({token // TILE for token in trie.children[0]})

    with watched() as found:
        session.generate([closed, Request("tone", {"sentence": "a bill"})])
    with watched() as beside:
        session.generate([closed, Request("ask", {"question": "who?", "place": "x"}, 2)])
    with watched() as noted:
        session.generate([Request("tone", {"sentence": "so cold"}, log_probs=0)])
    with watched() as scored:
        session.score([closed])

    assert found.tiles[0] == first
    assert beside.tiles[0] == noted.tiles[0] == scored.tiles[0] == []


@needs_kernels
def test_a_part_of_a_prompt_asks_for_one_tile(session: Session) -> None:
    free = Request("ask", {"question": "who?", "place": "x"}, max_tokens=1)

    with pytest.MonkeyPatch.context() as patch, watched() as found:
        assert session._flow is not None
        patch.setattr(session._flow._scheduler, "_piece", 2)
        patch.setattr(session._flow._scheduler, "_budget", 2)
        session.generate([free])

    assert len(found.tiles) > 1
    assert found.tiles == [*[[0]] * (len(found.tiles) - 1), []]


@needs_kernels
def test_other_logits_are_minus_infinity_and_what_is_no_number_is_seen(session: Session) -> None:
    engine = session.engine
    ids, looked_at = np.asarray([5, 9, 7]), np.asarray([40, 3, 44])

    def after(rows: np.ndarray, **given: Any) -> Output:
        batch = Batch(engine)
        batch.admit(0, Prompt(rows))
        return batch.feed({0: np.asarray([engine.vocab, *ids])}, **given)[0]

    rows = np.ones_like(session.tasks["tone"].rows[:1])
    whole = after(rows).logits.copy()
    cut = after(rows, looked_at={0: looked_at})

    assert np.isfinite(whole).all()
    computed = np.isin(np.arange(engine.vocab) // TILE, looked_at // TILE)
    assert np.array_equal(cut.logits[computed], whole[computed])
    assert (cut.logits[~computed] == -np.inf).all()
    assert cut.is_finite
    assert not after(np.full_like(rows, np.nan), looked_at={0: looked_at}).is_finite
    assert not after(np.full_like(rows, np.nan), looked_at={0: NO_TOKENS}).is_finite


@dataclass(frozen=True)
class Prompt:
    """Rows for an engine."""

    rows: np.ndarray
    prefix_kv: None = None
    task_id: int = 0


def requests_of_both() -> list[Request]:
    closed = [Request("tone", {"sentence": sentence(n, 1 + n)}) for n in range(4)]
    return [*closed, Request("ask", {"question": "who was there?", "place": "x"}, max_tokens=3)]


def test_without_kernels_all_logits_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "library_path", lambda: None)
    with Session.open(exported(tmp_path, BuildOptions("int8"))) as session:
        batch = Batch(session.engine)
        batch.admit(0, session.tasks["tone"].without_prefix())
        ids = np.asarray([5, 6])

        logits = batch.feed({0: ids}, looked_at={0: np.asarray([3])})[0].logits

        assert np.isfinite(logits).all()


def test_a_bundle_without_the_input_is_served_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier releases wrote it: there is no such key in its manifest."""
    newer = exported(tmp_path, BuildOptions("int8"))
    monkeypatch.setattr(export_inputs, "_with_logit_tiles", lambda contract, _: contract)
    (tmp_path / "earlier").mkdir()
    earlier = exported(tmp_path / "earlier", BuildOptions("int8"))
    path = earlier / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["graph"].pop("logit_tiles") is False
    assert content["kernels"] == 4
    path.write_text(json.dumps(content), encoding="utf-8")

    with Session.open(earlier) as session, watched() as found:
        answers = session.generate(requests_of_both())

    assert not found.tiles
    assert read_bundle(newer).manifest.graph.logit_tiles
    with Session.open(newer) as session:
        assert session.generate(requests_of_both()) == answers


@pytest.mark.parametrize("options", [BuildOptions("none"), BuildOptions("int8", table_bits=0)])
def test_a_head_of_floats_has_no_tiles(tmp_path: Path, options: BuildOptions) -> None:
    bundle = exported(tmp_path, options)

    assert not read_bundle(bundle).manifest.graph.logit_tiles
    with Session.open(bundle) as session, watched() as found:
        session.generate(requests_of_both())
    assert not found.tiles


def test_rows_that_are_padded_have_no_tiles() -> None:
    with pytest.raises(ConfigError, match="logit_tiles, and rows that are padded"):
        GraphContract(1, 1, 16, 32, 24, 80, "input", logit_tiles=True)
