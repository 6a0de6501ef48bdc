"""A batch: rows that come and go while others run, each as it is alone, to the last bit."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pl_compile.config.build import BuildOptions, Quantization
from pl_compile.config.contract import CacheBits
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.runtime import Session, kernels
from pl_compile.runtime.engines.padded import pad_right, slots_of_steps
from pl_compile.runtime.served_task import ServedTask
from pl_compile.runtime.stepping import Batch
from pl_compile.testing import random_table, write_tiny_base

CAPACITY, MAX_BATCH, VOCAB = 40, 4, 390

built = pytest.mark.skipif(
    kernels.library_path() is None,
    reason="needs the C++ kernels (g++ or Clang); without them: "
    "test_a_row_is_itself_whenever_it_comes_and_whatever_runs_beside_it, on onnx-cpu",
)


@dataclass
class Life:
    """A row from its prompt to its last token, and what came out of it."""

    prompt: ServedTask
    pieces: list[np.ndarray]
    tokens: int
    seen: list[np.ndarray] = field(default_factory=list)

    def next_ids(self) -> np.ndarray:
        """A piece of the prompt, or the likeliest token after what came before."""
        fed = len(self.seen)
        return self.pieces[fed] if fed < len(self.pieces) else np.asarray([self.seen[-1].argmax()])

    @property
    def is_over(self) -> bool:
        """Whether all was fed."""
        return len(self.seen) == len(self.pieces) + self.tokens


def exported(folder: Path, target: str, quantize: Quantization, cache_bits: CacheBits = 32) -> Path:
    """A bundle with virtual tokens, folded openings and a learned prefix."""
    base = write_tiny_base(folder / "base", "llama", blocks=True)
    table = random_table(base, folder / "table.safetensors", prefix=True)
    request = ExportRequest(
        table,
        base,
        folder / "bundle",
        target=target,
        options=BuildOptions(quantize, cache_bits=cache_bits),
        capacity=CAPACITY,
        measure_parity=False,
    )
    return export_bundle(request).bundle


@pytest.fixture(
    scope="module",
    params=[
        ("onnx-cpu", "none"),
        pytest.param(("native-cpu", "none"), marks=built),
        pytest.param(("native-cpu", "int8"), marks=built),
        pytest.param(("native-cpu", "int8", 16), marks=built),
    ],
    ids=lambda each: "-".join(map(str, each)),
)
def sessions(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Session, Session]:
    """One for a batch, and one for a row alone."""
    bundle = exported(tmp_path_factory.mktemp("bundle"), *request.param)
    return Session.open(bundle, max_batch=MAX_BATCH), Session.open(bundle, max_batch=1)


def lives(session: Session, random: Random) -> Iterator[Life]:
    """Rows of any task, length, number of pieces and of tokens that their cache has room for."""
    prompts = [*session.tasks.values(), *(p.without_prefix() for p in session.tasks.values())]
    for _ in range(random.randint(1, 9)):
        prompt = random.choice(prompts)
        room = CAPACITY - (0 if prompt.prefix_kv is None else prompt.prefix_kv.shape[3])
        given = random.randint(1, room)
        ids = np.asarray([random.randrange(VOCAB + len(prompt.rows)) for _ in range(given)])
        ends = sorted(random.sample(range(1, given), min(given - 1, random.randint(0, 3))))
        tokens = random.randint(0, min(room - given, 9))
        yield Life(prompt, np.split(ids, ends), tokens)


def alone(session: Session, life: Life) -> list[np.ndarray]:
    """What comes out of the same row where it has an engine for itself."""
    batch, again = Batch(session.engine), replace(life, seen=[])
    batch.admit(0, life.prompt)
    while not again.is_over:
        again.seen.append(batch.feed({0: again.next_ids()})[0].logits.copy())
    return again.seen


@settings(max_examples=60, deadline=None)
@given(random=st.randoms(use_true_random=False))
def test_a_row_is_itself_whenever_it_comes_and_whatever_runs_beside_it(
    sessions: tuple[Session, Session], random: Random
) -> None:
    shared, single = sessions
    waiting = list(lives(shared, random))
    everyone = list(waiting)
    batch, running = Batch(shared.engine), dict[int, Life]()

    while waiting or running:
        for row in range(MAX_BATCH):
            if waiting and row not in running and random.random() < 0.5:
                running[row] = waiting.pop()
                batch.admit(row, running[row].prompt)
        fed = [row for row in running if random.random() < 0.7]
        for row, output in batch.feed({row: running[row].next_ids() for row in fed}).items():
            running[row].seen.append(output.logits.copy())
            if running[row].is_over:
                batch.retire([row])
                del running[row]

    for life in everyone:
        np.testing.assert_array_equal(life.seen, alone(single, life))


@built
def test_a_prompt_in_pieces_is_the_prompt_in_one_piece(tmp_path: Path) -> None:
    """Where all products are our kernels': those of ONNX Runtime look at how many tokens come."""
    session = Session.open(exported(tmp_path, "native-cpu", "int8"))
    prompt, ids = session.tasks["order"], np.random.default_rng(0).integers(0, VOCAB, 30)

    whole = alone(session, Life(prompt, [ids], 3))

    for ends in ([1], [29], [7, 8, 20]):
        pieces = alone(session, Life(prompt, np.split(ids, ends), 3))
        np.testing.assert_array_equal(pieces[len(ends) :], whole)


def test_a_row_that_is_rewound_goes_on_as_one_that_never_went_further(
    sessions: tuple[Session, Session],
) -> None:
    shared, single = sessions
    prompt = shared.tasks["order"]
    ids, ends = np.arange(5, 14), [[20], [21, 22, 23], [24, 25]]
    batch = Batch(shared.engine)
    batch.admit(0, prompt)
    batch.feed({0: ids})
    entries = batch.entries[0]

    for end in ends:
        batch.rewind(0, entries)
        output = batch.feed({0: np.asarray(end)})[0]

        life = Life(prompt, [ids, np.asarray(end)], 0)
        np.testing.assert_array_equal(output.logits, alone(single, life)[1])


def test_rows_that_were_cleared_leave_zeros(sessions: tuple[Session, Session]) -> None:
    batch = Batch(sessions[0].engine)
    for row in range(2):
        batch.admit(row, sessions[0].tasks["order"].without_prefix())
    batch.feed({0: np.arange(3), 1: np.arange(4)})

    batch.clear([1])

    assert batch.cached(0, 3).any()
    assert not batch.cached(1, 4).any()


# Which rows share a step


@pytest.mark.parametrize(
    ("lengths", "held", "steps"),
    [
        ({}, {}, []),
        ({0: 3}, {0: 0}, [(0, 1)]),
        ({0: 3, 1: 4, 2: 5}, {0: 0, 1: 0, 2: 0}, [(0, 3)]),
        ({0: 3, 1: 9}, {0: 2, 1: 0}, [(0, 1), (1, 2)]),
        ({0: 3, 1: 8}, {0: 2, 1: 0}, [(0, 2)]),
        ({0: 9, 1: 3, 2: 3}, {0: 0, 1: 2, 2: 2}, [(0, 1), (1, 3)]),
        ({0: 8, 1: 2}, {0: 2, 1: 8}, [(0, 1), (1, 2)]),
        ({0: 10, 1: 10}, {0: 0, 1: 0}, [(0, 2)]),
        ({0: 1, 1: 1, 2: 7, 3: 1}, {0: 9, 1: 9, 2: 0, 3: 5}, [(0, 2), (2, 3), (3, 4)]),
        ({1: 1, 3: 1, 4: 1}, {1: 9, 3: 2, 4: 0}, [(1, 2), (3, 5)]),
    ],
)
def test_neighbours_share_a_step_where_none_is_written_beyond_its_cache(
    lengths: dict[int, int], held: dict[int, int], steps: list[tuple[int, int]]
) -> None:
    found = slots_of_steps(lengths, held, capacity=10)

    assert [(rows.start, rows.stop) for rows in found] == steps


@given(
    st.dictionaries(
        st.integers(0, 12),
        st.integers(1, 20).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, 20 - n))),
    )
)
def test_every_row_is_in_one_step_and_padding_fits(rows: dict[int, tuple[int, int]]) -> None:
    lengths = {row: rows[row][0] for row in sorted(rows)}
    held = {row: rows[row][1] for row in rows}

    steps = slots_of_steps(lengths, held, capacity=20)

    assert [row for step in steps for row in step] == list(lengths)
    for step in steps:
        longest = max(lengths[row] for row in step)
        assert all(held[row] + longest <= 20 for row in step)
        assert len({lengths[row] == 1 for row in step}) == 1


def test_rows_are_padded_on_the_right() -> None:
    padded, lengths = pad_right([np.asarray([1]), np.asarray([2, 3, 4])])

    assert padded.tolist() == [[1, 0, 0], [2, 3, 4]]
    assert lengths.tolist() == [1, 3]
