"""Which nodes of a tree of labels are looked at, until all labels or the likeliest one are known.

A node is looked at when the logits after it are known: these give the probability of each token
that may follow. A label's probability is that of its tokens, EOS included, as the base gives them.
Along a path it only falls, so a node's is a bound for all labels below it: the likeliest label is
known as soon as it is likelier than each node that was not looked at.
"""

from collections.abc import Sequence
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

    def look(self, node: int, logits: Annotated[Float32, Shape("vocab")]) -> None:
        """Takes the logits after a node; its parent was looked at before, or it is the root."""
        if node not in self._left:
            return
        self._left.remove(node)
        total = log_total(logits)
        for token, child in self._trie.children[node].items():
            self._reached[child] = self._reached[node] + (float(logits[token]) - total)

    def group(self, most: int) -> Branches | None:
        """The nodes to look at next, together; None where all that is asked for is known.

        Args:
            most: how many nodes, with those that lead to them; one that needs more comes alone.
        """
        if not self._left or (self._best and self._is_found()):
            return None
        return self._trie.group(self._in_order(), most)

    def next_node(self, path: Sequence[int]) -> int | None:
        """The node to look at next, where nodes come one by one; None as for `group`.

        Args:
            path: nodes from the root down, of which a row holds the tokens. What is near them comes
                first: then no more is fed again than where all nodes are looked at in their order.
        """
        least = self._best_known() if self._best else -np.inf
        open_ = [node for node in self._frontier() if self._reached[node] >= least]
        if not open_ or (self._best and self._is_found()):
            return None
        return max(open_, key=lambda node: (self._common(path, node), self._reached[node]))

    def _common(self, path: Sequence[int], node: int) -> int:
        """How many nodes of a path lead to a node."""
        own = self._trie.nodes_to(node)
        return next(
            (i for i, (a, b) in enumerate(zip(path, own, strict=False)) if a != b), len(path)
        )

    def _in_order(self) -> list[int]:
        """The nodes that are left: each after its parent, and the most promising first."""
        if not self._best:
            return sorted(self._left, key=self._trie.path)  # neighbours share what leads to them
        order: list[int] = []
        for node in sorted(self._frontier(), key=lambda node: -self._reached[node]):
            # All below it too: what follows a likely token is likely to be asked for next.
            order += [node, *(each for each in self._trie.below(node) if each in self._left)]
        return order

    def _frontier(self) -> list[int]:
        """The nodes that are left and whose probability is known."""
        return [node for node in self._left if not np.isnan(self._reached[node])]

    def _best_known(self) -> float:
        known = self._reached[list(self._trie.ends)]
        return float(np.nanmax(np.append(known, -np.inf)))

    def _is_found(self) -> bool:
        bound = max((self._reached[node] for node in self._frontier()), default=-np.inf)
        # As likely is not enough: of several, the first one is the answer.
        return self._best_known() > bound

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
