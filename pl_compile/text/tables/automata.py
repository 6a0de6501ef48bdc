"""The tree of a regular expression as a table of states over classes of code points.

An engine that tries options in order takes the first one that lets the rest match, not the longest.
So a state is a list of threads in the order in which such an engine would try them (Russ Cox,
"Regular Expression Matching: the Virtual Machine Approach", 2009): where one of them matches, those
after it are dropped. Threads go on only once the class of the next code point is known, which is
all that a look-ahead of one code point asks for.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from pl_compile.errors import TablesError
from pl_compile.text.tables.code_points import Classes
from pl_compile.text.tables.patterns import Either, InOrder, Node, NotAhead, OneOf, Repeat

MATCHED = 0x8000  # of an entry: what was read before this code point is a match
DEAD, START = 0, 1

# Many times what known tokenizers need: none has 200 steps or 100 states.
_MOST_STEPS = 5_000
_MOST_STATES = 4_000

Table = tuple[tuple[int, ...], ...]
Threads = tuple[int, ...]  # steps of a program, the one to try first in front


class _Read(NamedTuple):
    """Reads a code point of some classes."""

    classes: frozenset[int]
    after: int


class _NotAhead(NamedTuple):
    """Goes on where the next code point is not of some classes, or the text ends."""

    classes: frozenset[int]
    after: int


class _Fork(NamedTuple):
    """Tries one step, then another."""

    first: int
    second: int


_MATCH = 0  # the place of the step that matches


@dataclass
class _Program:
    """Steps; each names those that come after it by their places."""

    classes: Classes
    steps: list[_Read | _NotAhead | _Fork | None] = field(default_factory=lambda: [None])

    def add(self, step: _Read | _NotAhead | _Fork) -> int:
        if len(self.steps) == _MOST_STEPS:
            raise TablesError(
                "a regular expression that is too large", expected=f"at most {_MOST_STEPS:,} steps"
            )
        self.steps.append(step)
        return len(self.steps) - 1

    def build(self, node: Node, after: int) -> int:
        """The first step of a tree, whose last step leads to `after`."""
        match node:
            case OneOf(codes):
                return self.add(_Read(self.classes.of_set(codes), after))
            case NotAhead(codes):
                return self.add(_NotAhead(self.classes.of_set(codes), after))
            case InOrder(parts):
                for part in reversed(parts):
                    after = self.build(part, after)
                return after
            case Either(options):
                return self._any_of([self.build(option, after) for option in options])
            case Repeat():
                return self._repeat(node, after)

    def _any_of(self, starts: list[int]) -> int:
        *others, start = starts
        for other in reversed(others):
            start = self.add(_Fork(other, start))
        return start

    def _repeat(self, node: Repeat, after: int) -> int:
        start = after
        if node.most is None:
            start = self.add(_Fork(_MATCH, after))  # its first way is known once the part is built
            self.steps[start] = _Fork(self.build(node.part, start), after)
        else:
            for _ in range(node.most - node.least):
                start = self.add(_Fork(self.build(node.part, start), after))
        for _ in range(node.least):
            start = self.build(node.part, start)
        return start

    def advance(self, threads: Threads, key: int) -> tuple[Threads, bool]:
        """The threads after a code point of class `key`, and whether what is behind it matches.

        A `key` that is no class is the end of the text.
        """
        found: dict[int, None] = {}  # in order, each once
        seen: set[int] = set()
        waiting = list(reversed(threads))
        while waiting:
            place = waiting.pop()
            if place == _MATCH:
                return tuple(found), True
            if place in seen:
                continue
            seen.add(place)
            step = self.steps[place]
            if isinstance(step, _Fork):
                waiting += (step.second, step.first)
            elif isinstance(step, _NotAhead) and key not in step.classes:
                waiting.append(step.after)
            elif isinstance(step, _Read) and key in step.classes:
                found[step.after] = None
        return tuple(found), False


def table_of(node: Node, classes: Classes) -> Table:
    """The smallest table for a tree.

    Args:
        node: the tree.
        classes: a division that respects its sets.

    Returns:
        A row for each state, an entry for each class and one for the end of the text; an entry is
        the next state, plus `MATCHED` where what was read before is a match. State 0 is dead, 1 the
        start.

    Raises:
        TablesError: it is too large, matches nothing or matches the empty text.
    """
    table = _minimised(_determined(node, classes))
    if any(entry & MATCHED for entry in table[START]):
        raise TablesError("a regular expression that matches the empty text")
    return table


def matches_everywhere(table: Table) -> bool:
    """Whether a match begins at each place of each text, so that nothing lies between matches."""
    seen = [START]  # states that are reached without a match
    for state in seen:  # it grows
        *entries, at_end = table[state]
        if state != START and not at_end & MATCHED:
            return False
        after = {entry for entry in entries if not entry & MATCHED}
        if DEAD in after:
            return False
        seen += sorted(after.difference(seen))
    return True


def _determined(node: Node, classes: Classes) -> Table:
    program = _Program(classes)
    start = program.build(node, _MATCH)
    numbers: dict[Threads, int] = {(): DEAD, (start,): START}
    states = list(numbers)
    rows = []
    for state in states:  # it grows
        row = []
        for key in range(len(classes.examples) + 1):
            after, matched = program.advance(state, key)
            if after not in numbers:
                numbers[after] = len(states)
                states.append(after)
            row.append(numbers[after] | (MATCHED if matched else 0))
        rows.append(tuple(row))
        if len(states) > _MOST_STATES:
            raise TablesError(
                "a regular expression with too many states", expected=f"at most {_MOST_STATES:,}"
            )
    return tuple(rows)


def _minimised(table: Table) -> Table:
    """The same table with equal states merged (Moore's algorithm); 0 and 1 stay what they are."""
    groups = [0] * len(table)
    known = 1
    while True:
        numbers: dict[tuple[int, ...], int] = {}
        groups = [
            numbers.setdefault((group, *_by_groups(row, groups)), len(numbers))
            for group, row in zip(groups, table, strict=True)
        ]
        if len(numbers) == known:
            break
        known = len(numbers)
    if groups[START] == groups[DEAD]:
        raise TablesError("a regular expression that matches nothing")
    # Numbers are given in the order of first use, so that of state 0 is 0, and that of 1 is 1.
    rows = dict(zip(reversed(groups), reversed(table), strict=True))
    return tuple(_by_groups(rows[group], groups) for group in range(known))


def _by_groups(row: tuple[int, ...], groups: list[int]) -> tuple[int, ...]:
    return tuple(groups[entry & ~MATCHED] | entry & MATCHED for entry in row)
