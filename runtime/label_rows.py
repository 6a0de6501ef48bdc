"""Requests for the probabilities of labels, as rows that step among others.

The prompt is fed once. Then the nodes of the tree of labels are fed after it: on branches, many in
one step, where the engine computes branches as if each were alone; else one after the other, and
the row forgets in between what leads to no later node. Both give the logits that an answer meets,
to the last bit.
"""

from collections.abc import Collection
from typing import Annotated

import numpy as np

from pl_compile.errors import RequestError
from pl_compile.runtime.label_search import LabelSearch
from pl_compile.runtime.requests import Event
from pl_compile.runtime.rows import Row, RowFeed
from pl_compile.runtime.sampling import Draw
from pl_compile.runtime.stepping import Output
from pl_compile.shapes import Int64, Shape

# Nodes of one step, which costs about as much as a step of so many rows. For the likeliest label
# alone a few are enough, unless many labels are about as likely: then each step has twice as many.
_MOST, _FIRST_FOR_BEST = 48, 16


class ScoresRow(Row):
    """Looks for the probabilities of all labels of a task."""

    best = False

    def __post_init__(self) -> None:
        """Begins at the root: the logits after the prompt."""
        super().__post_init__()
        assert self.trie is not None
        self._search = LabelSearch(self.trie, best=self.best)
        self._next: list[int] = []  # nodes to feed; before the prompt was fed none
        self._wanted: tuple[int, ...] = (0,)
        self._path: list[int] = []  # nodes that the row holds after its prompt
        self._most = _FIRST_FOR_BEST if self.best else _MOST
        self._is_found = False

    @property
    def is_live(self) -> bool:
        """Whether there is more to find out."""
        return not self._is_found and self.finished is None and super().is_live

    @property
    def left(self) -> int:
        """How many tokens of the prompt, or of the nodes, were not fed."""
        return super().left or len(self._next)

    @property
    def looked_at(self) -> Annotated[Int64, Shape("tokens")] | None:
        """As of `Row`; a probability is a part of the sum over all tokens."""
        return super().looked_at if self.left else None

    def take(self, count: int) -> RowFeed:
        """The next tokens to feed; see `Row.take`."""
        if super().left:
            return super().take(count)
        assert self.trie is not None
        assert count == len(self._next)
        nodes, self._next = self._next, []
        tokens = np.asarray([self.trie.tokens[node] for node in nodes])
        if not self.branches:
            return RowFeed(tokens, after=self.prompt_tokens + len(self._path) - 1)
        place = {node: index for index, node in enumerate(nodes)}
        parents = np.asarray([place.get(self.trie.parents[node], -1) for node in nodes])
        return RowFeed(tokens, np.asarray([place[node] for node in self._wanted]), parents)

    def draw(self, candidates: int, inputs: Collection[str]) -> Draw | None:
        """None: no token is chosen."""
        return None

    def advance(self, output: Output) -> Event:
        """Takes the logits after nodes; with the last ones, the event has what was found."""
        for node, logits in zip(self._wanted, output.after, strict=True):
            self._search.look(node, logits)
        if self.branches:
            group = self._search.group(min(self._most, self.room))
            self._most = min(2 * self._most, _MOST)
            self._next, self._wanted = (
                ([], ()) if group is None else (list(group.nodes), group.wanted)
            )
        else:
            self._walk()
        if self._next:
            return Event(self.index, "")
        self._is_found = True
        found = self._search.best_label() if self.best else self._search.scores()
        return Event(self.index, "", labels=found)

    def time_out(self) -> Event:
        """Ends the search with an error: a part of the probabilities is no answer."""
        self.error = RequestError(
            f"scoring request {self.index}",
            found=f"its time is over: timeout {self.request.timeout} seconds",
            fix="Raise the timeout, or ask again when less is asked for.",
        )
        return Event(self.index, "")

    def _walk(self) -> None:
        """Goes on to the next node, or to one that leads to it."""
        assert self.trie is not None
        target = self._search.next_node(self._path)
        if target is None:
            return
        path, same = self.trie.nodes_to(target), 0
        while same < min(len(path), len(self._path)) and path[same] == self._path[same]:
            same += 1
        self._path = path[: same + 1]
        self._next, self._wanted = [path[same]], (path[same],)


class BestLabelRow(ScoresRow):
    """Looks for the likeliest label of a task, and stops when it is known."""

    best = True
