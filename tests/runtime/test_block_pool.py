"""Which blocks are free, used or kept: none is lost, none is in two hands, few are kept."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pl_compile.runtime.engines.onnxruntime.block_pool import BlockPool

ROWS, WIDTH = 3, 4


class Pool(RuleBasedStateMachine):
    """Rows of some texts come and go, beside a mirror that knows what is in each block."""

    @initialize(keep=st.integers(0, 5))
    def begin(self, keep: int) -> None:
        self.keep = keep
        self.pool = BlockPool(ROWS * WIDTH + keep, keep)
        self.rows: dict[int, tuple[list[int], str]] = {}  # blocks and text, by slot
        self.filled: dict[int, str] = {}  # the text up to its end, by block
        self.wrong: set[str] = set()  # texts that no later row may find

    @precondition(lambda self: len(self.rows) < ROWS)
    @rule(text=st.text("ab", min_size=1, max_size=WIDTH), is_finished=st.booleans())
    def come(self, text: str, is_finished: bool) -> None:
        """A row takes what is there of its text, and fills the rest; then it is named."""
        blocks: list[int] = []
        for end in range(1, len(text) + 1):
            block = self.pool.find(text[:end].encode())
            if block is None:
                break
            assert self.filled[block] == text[:end]
            assert text[:end] not in self.wrong
            blocks.append(block)
        for end in range(len(blocks) + 1, len(text) + 1):
            block = self.pool.take()
            assert all(block not in used for used, _ in self.rows.values())
            self.filled[block] = text[:end]
            blocks.append(block)
        if is_finished:
            for end, block in enumerate(blocks, 1):
                self.pool.name(block, text[:end].encode())
                self.wrong.discard(text[:end])
        slot = min(set(range(ROWS)) - set(self.rows))
        self.rows[slot] = blocks, text

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), is_spoilt=st.booleans())
    def go(self, data: st.DataObject, is_spoilt: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.rows)))
        blocks, text = self.rows.pop(slot)
        if is_spoilt:
            others = {block for used, _ in self.rows.values() for block in used}
            named = {text[:end] for end in range(1, len(text) + 1)}
            assert set(self.pool.forget(blocks)) == set(blocks) - others
            self.wrong |= {each for each in named if self._block_of(each) is None}
        self.pool.give_back(blocks)

    def _block_of(self, text: str) -> int | None:
        return self.pool._named.get(text.encode())

    @invariant()
    def each_block_is_in_one_place(self) -> None:
        if not hasattr(self, "pool"):
            return
        pool = self.pool
        used = {block for blocks, _ in self.rows.values() for block in blocks}
        assert sorted([*pool._free, *pool._kept, *used]) == list(range(ROWS * WIDTH + self.keep))
        assert pool.kept <= self.keep
        assert set(pool._kept) <= set(pool._keys)
        assert {key: block for block, key in pool._keys.items()} == pool._named
        for block, count in pool._users.items():
            assert count == sum(block in blocks for blocks, _ in self.rows.values())

    @invariant()
    def what_is_named_is_what_it_was_filled_with(self) -> None:
        if hasattr(self, "pool"):
            for block, key in self.pool._keys.items():
                assert self.filled[block] == key.decode()


Pool.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestPool = Pool.TestCase


def row(pool: BlockPool, text: str) -> list[int]:
    """A row that computes all of a text."""
    blocks = [pool.take() for _ in text]
    for end, block in enumerate(blocks, 1):
        pool.name(block, text[:end].encode())
    return blocks


def known(pool: BlockPool, text: str) -> int:
    """How many blocks of a text a row would find."""
    found = []
    for end in range(1, len(text) + 1):
        block = pool.find(text[:end].encode())
        if block is None:
            break
        found.append(block)
    pool.give_back(found)
    return len(found)


def test_what_was_used_least_recently_leaves_first_and_ends_before_beginnings() -> None:
    pool = BlockPool(20, keep=6)
    for text in ("abc", "xyz"):
        pool.give_back(row(pool, text))
    assert known(pool, "ab") == 2  # used once more, but not its end

    pool.give_back(row(pool, "k"))
    assert (pool.kept, pool.evicted) == (6, 1)
    pool.give_back(row(pool, "lmn"))

    assert (pool.kept, pool.evicted) == (6, 4)
    assert [known(pool, text) for text in ("abc", "xyz", "k", "lmn")] == [2, 0, 1, 3]


def test_what_a_row_uses_stays_whatever_comes() -> None:
    pool = BlockPool(20, keep=2)
    used = row(pool, "abc")

    for text in ("klmn", "opqr"):
        pool.give_back(row(pool, text))

    assert known(pool, "abc") == 3
    pool.give_back(used)
    assert known(pool, "abc") == 2


def test_blocks_that_are_free_again_are_given_back_but_for_some_of_the_lowest() -> None:
    pool = BlockPool(400, 0)
    rows = [[pool.take() for _ in range(40)] for _ in range(8)]
    idle = []
    for row in rows[1:4]:
        pool.give_back(row)
        idle.append(pool.idle())

    # 280 are in use: 16 may stay, and 8 do. Then 240, and 15 may: 7 do. Then 200, and 7 do.
    assert idle == [[(48, 80)], [(47, 48), (80, 120)], [(120, 160)]]
    assert pool.take() == 40


def test_a_few_free_blocks_stay() -> None:
    pool = BlockPool(400, 0)
    row = [pool.take() for _ in range(9)]

    pool.give_back(row[:8])
    assert pool.idle() == []
    pool.give_back(row[8:])
    assert pool.idle() == [(4, 9)]
    assert pool.idle() == []
    assert pool.take() == 0


def test_a_pool_that_keeps_nothing_has_all_blocks_back() -> None:
    pool = BlockPool(4, keep=0)

    pool.give_back(row(pool, "abcd"))

    assert [pool.take() for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(IndexError):
        pool.take()
