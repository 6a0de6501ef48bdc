"""Which nodes of a tree of labels are looked at, until all labels or the likeliest one are known.

A node is looked at when the logits after it are known: these give the probability of each token
that may follow. A label's probability is that of its tokens, EOS included, as the base gives them.
Along a path it only falls, so a node's is a bound for all labels below it: the likeliest label is
known as soon as it is likelier than each node that was not looked at.
"""

import heapq
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np

from pl_compile.runtime.log_probs import log_total
from pl_compile.runtime.requests import BestLabel, LabelScore
from pl_compile.shapes import Float32, Shape
from pl_compile.text.label_trie import Branches, LabelTrie


class LabelSearch:
    """A search for the labels of a tree.

    Args:
        trie: the labels.
        best: whether only the likeliest label is looked for.
    """

    def __init__(self, trie: LabelTrie, *, best: bool) -> None:
        self._trie = trie
        self._best = best
        self._reached = np.full(len(trie.parents), np.nan)  # log-probability of the path to a node
        self._reached[0] = 0.0
        self._left = {0, *trie.inner_nodes}  # not looked at
        # Those of known probability, the likeliest first: a heap, with some that were looked at.
        self._open = [(-0.0, 0)]
        self._ends = frozenset(trie.ends)
        self._best_known = -np.inf  # of the labels
        self._passed = 0  # so many of `inner_nodes` are not left

    def look(self, node: int, logits: Annotated[Float32, Shape("vocab")]) -> None:
        """Takes the logits after a node; its parent was looked at before, or it is the root."""
        if node not in self._left:
            return
        self._left.remove(node)
        total = log_total(logits)
        for token, child in self._trie.children[node].items():
            reached = float(self._reached[node]) + (float(logits[token]) - total)
            self._reached[child] = reached
            if child in self._left:
                heapq.heappush(self._open, (-reached, child))
            if child in self._ends:
                self._best_known = max(self._best_known, reached)

    def group(self, most: int) -> Branches | None:
        """The nodes to look at next, together; None where all that is asked for is known.

        Args:
            most: how many nodes, with those that lead to them; one that needs more comes alone.
        """
        return None if self._is_over() else self._trie.group(self._in_order(), most)

    def next_node(self, path: Sequence[int]) -> int | None:
        """The node to look at next, where nodes come one by one; None as for `group`.

        Args:
            path: nodes from the root down, of which a row holds the tokens. What is near them comes
                first: then no more is fed again than where all nodes are looked at in their order.
        """
        if self._is_over():
            return None
        if self._best:
            for node in (*reversed(path), 0):
                children = self._trie.children[node].values()
                open_ = [each for each in children if each in self._left and self._may_win(each)]
                if open_:
                    return max(open_, key=lambda each: float(self._reached[each]))
        return next(self._in_order())

    def _may_win(self, node: int) -> bool:
        """Whether a label below a node may be the likeliest; false below what was not looked at."""
        return bool(self._reached[node] >= self._best_known)

    def _in_order(self) -> Iterator[int]:
        """The nodes that are left: each after its parent, and the most promising first."""
        inner = self._trie.inner_nodes
        if not self._best:  # neighbours share what leads to them
            while self._passed < len(inner) and inner[self._passed] not in self._left:
                self._passed += 1
            yield from (node for node in inner[self._passed :] if node in self._left)
            return
        waiting = self._open.copy()
        while waiting:
            _, node = heapq.heappop(waiting)
            if node in self._left:
                # All below it too: what follows a likely token is likely to be asked for next.
                yield node
                yield from (each for each in self._trie.below(node) if each in self._left)

    def _is_over(self) -> bool:
        """Whether all that is asked for is known."""
        while self._open and self._open[0][1] not in self._left:
            heapq.heappop(self._open)
        if not self._best or not self._open:
            return not self._left
        # As likely is not enough: of several, the first one is the answer.
        return self._best_known > -self._open[0][0]

    def scores(self) -> tuple[LabelScore, ...]:
        """The probability of every label, in their order; all nodes were looked at."""
        log = self._reached[list(self._trie.ends)]
        shares = np.exp(log - log.max())
        shares /= shares.sum()
        return tuple(
            LabelScore(label.strip(), float(share), float(of_all))
            for label, share, of_all in zip(self._trie.labels, shares, log, strict=True)
        )

    def best_label(self) -> BestLabel:
        """The likeliest label: the first of several that are as likely."""
        log = self._reached[list(self._trie.ends)]
        index = int(np.nanargmax(log))
        return BestLabel(self._trie.labels[index].strip(), float(log[index]))
