"""A closed set of answers as a tree of tokens.

Node 0 is the root, where nothing is written yet. One token leads from a parent to each other node.
A label ends at its node. Stored as `labels.json` of a task in a bundle:

    labels     the answers, as they stand in the data
    parents    for each node, its parent; -1 of the root. A parent stands before its children
    tokens     for each node, the token that leads to it; -1 of the root
    ends       for each label, its node
    fixed      whether the tokens are the same after every prompt of the task. They are not where
               blanks at the end of a field move into the answer, or where an answer after an empty
               field opens the text: then this is the tree for empty fields
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class LabelTrie:
    """The tree of a task's choices; the attributes are described above."""

    labels: tuple[str, ...]
    parents: tuple[int, ...]
    tokens: tuple[int, ...]
    ends: tuple[int, ...]
    fixed: bool

    @classmethod
    def of(
        cls, labels: Sequence[str], sequences: Sequence[Sequence[int]], *, fixed: bool
    ) -> "LabelTrie":
        """The tree of labels whose token ids are known, EOS included where the task has one."""
        parents, tokens, ends = [-1], [-1], []
        children: dict[tuple[int, int], int] = {}
        for sequence in sequences:
            node = 0
            for token in sequence:
                if (node, token) not in children:
                    children[node, token] = len(parents)
                    parents.append(node)
                    tokens.append(token)
                node = children[node, token]
            ends.append(node)
        return cls(tuple(labels), tuple(parents), tuple(tokens), tuple(ends), fixed)

    def check(self) -> None:
        """Raises `ValueError` unless this is a tree whose labels all end in it."""
        nodes = len(self.parents)
        sound = (
            nodes == len(self.tokens) > 0
            and (self.parents[0], self.tokens[0]) == (-1, -1)
            and all(0 <= parent < node for node, parent in enumerate(self.parents) if node)
            and all(token >= 0 for token in self.tokens[1:])
            and len(set(zip(self.parents, self.tokens, strict=True))) == nodes
            and len(self.ends) == len(self.labels)
            and all(0 < end < nodes for end in self.ends)
            and set(range(nodes)) - set(self.parents) <= set(self.ends)  # each leaf ends a label
        )
        if not sound:
            raise ValueError("not a tree of labels")

    @cached_property
    def children(self) -> tuple[dict[int, int], ...]:
        """For each node, the node that each token leads to."""
        found: tuple[dict[int, int], ...] = tuple({} for _ in self.parents)
        for node, (parent, token) in enumerate(zip(self.parents, self.tokens, strict=True)):
            if node:
                found[parent][token] = node
        return found

    def path(self, node: int) -> list[int]:
        """The tokens that lead to a node."""
        return [self.tokens[each] for each in self.nodes_to(node)]

    def nodes_to(self, node: int) -> list[int]:
        """The nodes from the one below the root to a node; none for the root itself."""
        nodes: list[int] = []
        while node:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """For each node, the common start of all labels below it; at the end of a label, the label.

        Elsewhere it is made shorter until it is no label: an answer that is not complete never
        looks like one.

        The text is that of the data, without white space at its ends: a tokenizer that normalises
        (to small letters, say) decodes the tokens of a label to another text.
        """
        texts = [""] * len(self.parents)
        labels = {end: label.strip() for end, label in zip(self.ends, self.labels, strict=True)}
        whole = set(labels.values())
        for node in reversed(range(len(texts))):  # a parent stands before its children
            below = [texts[child] for child in self.children[node].values()]
            texts[node] = labels[node] if node in labels else common_start(below)
            while node not in labels and texts[node] in whole and texts[node]:
                texts[node] = texts[node][:-1]
        return tuple(texts)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest answer."""
        return max(len(self.path(end)) for end in self.ends)

    @cached_property
    def inner_nodes(self) -> tuple[int, ...]:
        """The nodes other than the root that have children, each followed by those below it."""
        found: list[int] = []
        waiting = [0]
        while waiting:
            node = waiting.pop()
            children = self.children[node]
            if children and node:
                found.append(node)
            waiting += [children[token] for token in sorted(children, reverse=True)]
        return tuple(found)

    def group(self, order: Iterable[int], most: int) -> "Branches":
        """The first of some nodes, with all nodes that lead to them.

        Args:
            order: nodes other than the root; at least one.
            most: nodes of the group, unless the first one alone needs more.
        """
        wanted: list[int] = []
        held: set[int] = set()
        for node in order:
            path = self.nodes_to(node)
            if held and len(held.union(path)) > most:
                break
            wanted.append(node)
            held.update(path)
        return Branches(tuple(sorted(held)), tuple(sorted(wanted)))

    def below(self, node: int) -> Iterator[int]:
        """The nodes below a node, each after its parent."""
        found = list(self.children[node].values())
        for child in found:  # it grows
            yield child
            found += self.children[child].values()

    def problems(self) -> list[str]:
        """Labels that are never answered, as sentences; empty for a sound set."""
        problems = []
        for index, node in enumerate(self.ends):
            if self.children[node]:
                longer = [
                    self.labels[i] for i, end in enumerate(self.ends) if self._is_below(end, node)
                ]
                problems.append(
                    f"'{self.labels[index]}' opens '{longer[0]}', and no EOS ends it: the longer "
                    "one is never answered"
                )
        return problems

    def _is_below(self, node: int, other: int) -> bool:
        while node > other:  # a parent stands before its children
            node = self.parents[node]
            if node == other:
                return True
        return False


@dataclass(frozen=True)
class Branches:
    """Some nodes of a tree, other than the root.

    Attributes:
        nodes: in ascending order, so that parents stand before their children.
        wanted: those that the group is made for, in ascending order; the others lead to them.
    """

    nodes: tuple[int, ...]
    wanted: tuple[int, ...]


def common_start(texts: Sequence[str]) -> str:
    """What all texts begin with."""
    first, last = min(texts, default=""), max(texts, default="")  # they differ the earliest
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    return first[:length]


class TrieWalk:
    """One answer that is being written, from the root on."""

    def __init__(self, trie: LabelTrie) -> None:
        self._trie = trie
        self._node = 0
        self._ends = frozenset(trie.ends)

    def allowed(self) -> list[int]:
        """The tokens that continue an answer, in ascending order; empty once one is complete.

        Where answers end with EOS, no complete answer can go on. Without EOS, an answer that is
        complete ends, even where a longer label begins with it: no token could say that it ends.
        """
        if self._node in self._ends:
            return []
        return sorted(self._trie.children[self._node])

    @property
    def text(self) -> str:
        """The part of the answer that is certain. It only grows, up to the whole answer."""
        return self._trie.texts[self._node]

    def push(self, token_id: int) -> None:
        """Goes on with one of the allowed tokens."""
        self._node = self._trie.children[self._node][token_id]
