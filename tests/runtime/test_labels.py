"""Labels: forced tokens are written, all probabilities are exact, and the likeliest one is found
early."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import RequestError
from pl_compile.runtime import AsyncSession, Request, Sampling, Session
from pl_compile.runtime.label_search import LabelSearch
from pl_compile.runtime.stepping import Batch, Output
from pl_compile.testing import random_table, write_tiny_base
from pl_compile.text.label_trie import LabelTrie

VOCAB = 6
# Labels as token sequences that end with EOS, which is 0.
SEQUENCES = st.lists(
    st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=4).map(lambda ids: (*ids, 0)),
    min_size=1,
    max_size=9,
    unique=True,
)


def trie_of(sequences: list[tuple[int, ...]]) -> LabelTrie:
    return LabelTrie.of([str(each) for each in sequences], sequences, fixed=True)


def logits_after(path: tuple[int, ...], seed: int, spread: float) -> np.ndarray:
    """The same numbers for the same path."""
    generator = np.random.default_rng([seed, *path])
    return (generator.normal(size=VOCAB) * spread).astype(np.float32)


def log_probability(sequence: tuple[int, ...], seed: int, spread: float) -> float:
    total = 0.0
    for index, token in enumerate(sequence):
        wide = logits_after(sequence[:index], seed, spread).astype(np.float64)
        total += wide[token] - np.log(np.exp(wide - wide.max()).sum()) - wide.max()
    return total


@settings(max_examples=200, deadline=None)
@given(
    sequences=SEQUENCES,
    seed=st.integers(0, 99),
    spread=st.sampled_from([0.0, 1.0, 5.0]),
    best=st.booleans(),
    most=st.sampled_from([1, 3, 16]),
)
def test_a_search_finds_what_looking_at_every_label_finds(
    sequences: list[tuple[int, ...]], seed: int, spread: float, best: bool, most: int
) -> None:
    trie = trie_of(sequences)
    search = LabelSearch(trie, best=best)
    search.look(0, logits_after((), seed, spread))
    looked = {0}
    while group := search.group(most):
        assert group.wanted
        assert set(group.wanted) <= set(group.nodes)
        assert {trie.parents[node] for node in group.nodes} <= {0, *group.nodes}
        assert looked.isdisjoint(group.wanted)
        for node in group.wanted:
            assert trie.parents[node] in looked
            search.look(node, logits_after(tuple(trie.path(node)), seed, spread))
            looked.add(node)

    expected = [log_probability(sequence, seed, spread) for sequence in sequences]
    if best:
        found = search.best_label()
        assert found.log_probability == pytest.approx(max(expected), abs=1e-5)
        if spread:
            assert found.label == str(sequences[int(np.argmax(expected))])
    else:
        scores = search.scores()
        assert [each.log_probability for each in scores] == pytest.approx(expected, abs=1e-5)
        assert sum(each.probability for each in scores) == pytest.approx(1)


@settings(max_examples=100, deadline=None)
@given(
    sequences=SEQUENCES,
    seed=st.integers(0, 99),
    spread=st.sampled_from([0.0, 1.0, 5.0]),
    best=st.booleans(),
)
def test_a_search_node_by_node_finds_the_same(
    sequences: list[tuple[int, ...]], seed: int, spread: float, best: bool
) -> None:
    trie = trie_of(sequences)
    together, single = LabelSearch(trie, best=best), LabelSearch(trie, best=best)
    for search in (together, single):
        search.look(0, logits_after((), seed, spread))
    while group := together.group(16):
        for each in group.wanted:
            together.look(each, logits_after(tuple(trie.path(each)), seed, spread))
    looked = [0]
    while (node := single.next_node(trie.nodes_to(looked[-1]))) is not None:
        assert trie.parents[node] in looked
        assert node not in looked
        single.look(node, logits_after(tuple(trie.path(node)), seed, spread))
        looked.append(node)

    if best:
        assert single.best_label() == together.best_label()
    else:
        assert single.scores() == together.scores()


@pytest.mark.parametrize("best", [False, True])
def test_to_choose_a_node_does_not_take_longer_with_more_labels(
    best: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task may have thousands of them, and steps wait meanwhile."""
    trie = trie_of([(*each, 0) for each in product(range(1, VOCAB), repeat=4)])
    search, read = LabelSearch(trie, best=best), 0
    nodes_to = LabelTrie.nodes_to

    def counted(self: LabelTrie, node: int) -> list[int]:
        nonlocal read
        read += 1
        return nodes_to(self, node)

    monkeypatch.setattr(LabelTrie, "nodes_to", counted)
    search.look(0, logits_after((), 0, 0.0))
    steps = 0
    while group := search.group(16):
        steps += 1
        for node in group.wanted:
            search.look(node, logits_after((), 0, 0.0))

    assert steps > 10
    assert read <= 18 * steps


def test_what_cannot_be_likelier_is_not_looked_at() -> None:
    """The first token of one label is nearly certain, and so is what follows it."""
    trie = trie_of([(1, 2, 0), (3, 4, 0), (3, 5, 0), (5, 1, 2, 3, 0)])
    search = LabelSearch(trie, best=True)
    likely = {(): 1, (1,): 2, (1, 2): 0}

    looked = [0]
    search.look(0, 20 * np.eye(VOCAB, dtype=np.float32)[1])
    while (node := search.next_node(trie.nodes_to(looked[-1]))) is not None:
        path = tuple(trie.path(node))
        search.look(node, 20 * np.eye(VOCAB, dtype=np.float32)[likely[path]])
        looked.append(node)

    assert search.best_label().label == "(1, 2, 0)"
    assert len(looked) == 3


# On engines


@dataclass
class Steps:
    """How many steps an engine ran, and how many tokens it was fed."""

    count: int = 0
    tokens: int = 0


@contextmanager
def steps_counted() -> Iterator[Steps]:
    steps, feed = Steps(), Batch.feed

    def counting(batch: Batch, ids: Any, *given: Any, **more: Any) -> dict[int, Output]:
        steps.count += 1
        steps.tokens += sum(map(len, ids.values()))
        return feed(batch, ids, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batch, "feed", counting)
        yield steps


@pytest.fixture(
    scope="module", params=["native-cpu int4", "native-cpu none", "onnx-cpu none", "onnx-cpu int8"]
)
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    target, _, quantize = request.param.partition(" ")
    folder = tmp_path_factory.mktemp("labels")
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
    return Session.open(export_bundle(asked).bundle, max_batch=3)


def requests(count: int = 6) -> list[Request]:
    words = "so cold a parcel the bill login now or never who was there at".split()  # noqa: SIM905
    return [Request("tone", {"sentence": " ".join(words[n : n + 1 + n % 5])}) for n in range(count)]


def test_scores_are_the_log_probabilities_that_answers_are_written_with(session: Session) -> None:
    scores = session.score(requests())

    for request, labels in zip(requests(), scores, strict=True):
        by_label = {each.label: each.log_probability for each in labels}
        for seed in range(4):
            asked = replace(request, log_probs=0, sampling=Sampling(5.0, seed=seed))
            (answer,) = session.generate([asked])
            assert answer.log_probs is not None
            assert by_label[answer.text] == pytest.approx(
                sum(each.log_prob for each in answer.log_probs), abs=1e-9
            )
        assert sum(each.probability for each in labels) == pytest.approx(1)


def test_the_likeliest_label_is_that_of_the_scores_with_the_same_number(session: Session) -> None:
    scores, best = session.score(requests(12)), session.classify(requests(12))

    for labels, found in zip(scores, best, strict=True):
        first = max(labels, key=lambda each: each.log_probability)
        assert (found.label, found.log_probability) == (first.label, first.log_probability)


def test_forced_tokens_change_no_answer_and_are_not_computed(session: Session) -> None:
    """With log probabilities each token is computed."""
    for sampling in (Sampling(), Sampling(2.0, top_k=3, seed=4), Sampling(1.0, seed=5)):
        asked = [replace(request, sampling=sampling) for request in requests()]
        with steps_counted() as computed:
            every = session.generate([replace(request, log_probs=0) for request in asked])
        with steps_counted() as forced:
            answers = session.generate(asked)

        assert [replace(each, log_probs=None) for each in every] == answers
        assert forced.tokens < computed.tokens


def test_scores_and_answers_run_beside_each_other_and_are_themselves(session: Session) -> None:
    import asyncio

    asked = requests(5)
    scores, best, answers = session.score(asked), session.classify(asked), session.generate(asked)

    async def all_at_once() -> list[Any]:
        face = AsyncSession(session)
        calls = [
            call(each) for each in asked for call in (face.score, face.generate, face.classify)
        ]
        return await asyncio.gather(*calls)

    found = asyncio.run(all_at_once())

    assert found[0::3] == scores
    assert found[1::3] == answers
    assert found[2::3] == best


def test_a_search_whose_time_is_over_is_an_error_that_says_so(session: Session) -> None:
    late = replace(requests(1)[0], timeout=1e-9)

    with pytest.raises(RequestError, match=r"scoring request 0: its time is over"):
        session.score([late])

    assert session.score(requests(1))


def test_a_task_without_choices_has_no_labels(session: Session) -> None:
    with pytest.raises(RequestError, match="task 'ask' has no choices"):
        session.classify([Request("ask", {"question": "who?", "place": "x"})])


@pytest.mark.parametrize("target", ["native-cpu", "onnx-cpu"])
def test_few_steps_find_one_of_sixty_labels(tmp_path: Path, target: str, many_labels: Path) -> None:
    """A random base knows nothing, so this is no easy case; one step would do for a clear one."""
    bundle = export_bundle(
        ExportRequest(
            many_labels / "table.safetensors",
            many_labels / "base",
            tmp_path / "bundle",
            target=target,
            options=BuildOptions("int4"),
            measure_parity=False,
        )
    ).bundle
    asked = Request("tone", {"sentence": "so cold"})
    with Session.open(bundle) as session:
        with steps_counted() as for_all:
            (scores,) = session.score([asked])
        with steps_counted() as for_best:
            (best,) = session.classify([asked])
        branches = session.engine.branches

    first = max(scores, key=lambda each: each.log_probability)
    assert (best.label, best.log_probability) == (first.label, first.log_probability)
    assert len(scores) == 60
    if branches:
        assert for_all.count <= 8
        assert for_best.count <= for_all.count + 2
    else:
        assert for_best.tokens <= for_all.tokens


@pytest.fixture(scope="module")
def many_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table whose task has 60 labels of a few tokens."""
    from pl_compile.artifact.prompt_table import read_prompt_table, write_prompt_table

    folder = tmp_path_factory.mktemp("many-labels")
    base = write_tiny_base(folder / "base", "llama", seed=8, blocks=True)
    path = random_table(base, folder / "table.safetensors")
    table = read_prompt_table(path)
    entry = table.entry("tone")
    words = ["set", "get", "stop", "dim", "play", "send"]
    labels = tuple(
        f"{first} {second} {n}" for first in words for second in words[:5] for n in (1, 2)
    )
    task = replace(entry.task, choices=labels)
    write_prompt_table(
        replace(table, entries={**table.entries, "tone": replace(entry, task=task)}), path
    )
    assert json.dumps(labels)
    return folder
