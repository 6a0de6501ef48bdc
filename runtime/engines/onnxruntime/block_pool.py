"""Which blocks of a cache are free, which ones rows use, and which are kept for later prompts.

A block that is full can be named by a key: what its entries were computed from. A later row that
begins alike then uses the same block (arXiv:2309.06180, section 4.4). It knows no engine and no
numbers.
"""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Sequence

# Idle blocks that are not given back: a few, and more where many blocks are in use.
_FEW, _PART_SPARE = 8, 32


class BlockPool:
    """Blocks by their numbers. Each is free, or used by rows, or kept while no row uses it.

    Args:
        count: how many there are: at least `keep` more than rows can use at once.
        keep: most named blocks that are kept while no row uses them.
    """

    def __init__(self, count: int, keep: int) -> None:
        self.keep = keep
        self.evicted = 0
        self._count = count
        self._touched: set[int] = set()  # blocks whose memory is taken
        self.clear()

    def clear(self) -> None:
        """Makes all blocks free, and forgets all names."""
        self._free = list(range(self._count))  # a heap: the lowest are used first
        self._users: dict[int, int] = {}  # how many rows, by block
        self._keys: dict[int, bytes] = {}  # by block
        self._named: dict[bytes, int] = {}  # blocks by their keys
        self._kept: OrderedDict[int, None] = OrderedDict()  # the next one to leave comes first

    @property
    def kept(self) -> int:
        """How many blocks are kept that no row uses."""
        return len(self._kept)

    def take(self) -> int:
        """A free block, used by one row from now on."""
        block = heapq.heappop(self._free)
        self._users[block] = 1
        self._touched.add(block)
        return block

    def find(self, key: bytes) -> int | None:
        """The block of a name, used by one more row from now on; None where there is none."""
        block = self._named.get(key)
        if block is not None:
            self._kept.pop(block, None)
            self._users[block] = self._users.get(block, 0) + 1
        return block

    def name(self, block: int, key: bytes) -> None:
        """Names a block that is in use, unless another one has the name already."""
        assert block in self._users
        if key not in self._named and block not in self._keys:
            self._named[key] = block
            self._keys[block] = key

    def forget(self, blocks: Sequence[int]) -> list[int]:
        """Takes the names of blocks away, so that no later row finds them.

        Args:
            blocks: of some rows; one that several of them use stands there as often.

        Returns:
            Those that no other rows use.
        """
        for block in blocks:
            key = self._keys.pop(block, None)
            if key is not None:
                del self._named[key]
        return [block for block, users in Counter(blocks).items() if self._users[block] == users]

    def give_back(self, blocks: Sequence[int]) -> None:
        """Ends the use of blocks by a row.

        Args:
            blocks: in the row's order. Of those that are kept, the last ones leave first: without
                those before them no later row could use them.
        """
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                del self._users[block]
                if block in self._keys:
                    self._kept[block] = None
                else:
                    heapq.heappush(self._free, block)
        while len(self._kept) > self.keep:
            block, _ = self._kept.popitem(last=False)
            del self._named[self._keys.pop(block)]
            heapq.heappush(self._free, block)
            self.evicted += 1

    def idle(self) -> list[tuple[int, int]]:
        """Free blocks that were used and are not likely to be used again soon, if there are many.

        Nobody reads them again before they are taken, so their memory can be given back. The lowest
        ones stay: they are taken next, and memory that is taken anew costs time.

        Returns:
            Runs of neighbours: the first one of each, and the one after its last.
        """
        idle = self._touched - self._users.keys() - self._kept.keys()
        spare = _FEW + (len(self._touched) - len(idle)) // _PART_SPARE
        if len(idle) <= spare:
            return []
        last = sorted(idle)[spare // 2 :]
        self._touched.difference_update(last)
        runs: list[tuple[int, int]] = []
        for block in last:
            if runs and runs[-1][1] == block:
                runs[-1] = runs[-1][0], block + 1
            else:
                runs.append((block, block + 1))
        return runs
