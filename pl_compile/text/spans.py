"""Answers that are copied from a field: which tokens may come next.

A span is a part of a text from where one of its words begins to where one ends (`text/words.py`).
Its tokens are those that rendering gives it as an answer: the ones that training learns. They need
not be the tokens that the same characters have in the prompt. So a span is found by its text, and
its tokens are made by the tokenizer:

- From each place where a word begins, the text that follows is tokenised as an answer. Where one of
  its tokens ends with a word, the tokens up to there are those of the shorter span: tokens do not
  depend on a text that comes later, unless they join with it.
- Where a word ends within a token (the "J.D" of "J.D., a lawyer", whose ".," may be one token), or
  before white space that tokens may take in (a line end), the shorter span is tokenised by itself.

Only a few words are tokenised from each place, and more of them once the answer comes near: after
the first token few places are left.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from pl_compile.text.label_trie import common_start
from pl_compile.text.words import words_of

# Words that are tokenised from each place at first, and tokens that are known ahead of an answer.
_WORDS, _AHEAD = 3, 4

# Words after those, up to white space: what touches a word may be in one token with it.
_TOUCHING = 64


class Piece(NamedTuple):
    """A token of a text, and the characters from `begin` to before `end` that it writes."""

    token_id: int
    begin: int
    end: int


@dataclass(frozen=True)
class _Path:
    """Tokens of an answer that begins at one place.

    Attributes:
        start: the place, in characters of the field.
        ids: the tokens.
        known: for each count of tokens, from 0, the place up to which they write whole characters.
        ends: the counts of tokens after which the answer is a span.
        words: of how many words all shorter spans are known; 0 where more would add nothing.
        sure: the place where those words end.
    """

    start: int
    ids: tuple[int, ...]
    known: tuple[int, ...]
    ends: frozenset[int]
    words: int = 0
    sure: int = 0

    @classmethod
    def of(
        cls, start: int, pieces: list[Piece], ends: frozenset[int], words: int = 0, sure: int = 0
    ) -> "_Path":
        """A path of some tokens.

        Args:
            start: the place.
            pieces: in characters from the place on; what lies before it is 0 or below.
            ends: the places of the field where a span may end.
            words: as above.
            sure: as above.
        """
        known, counts, seen = [start], [], set()
        for count, piece in enumerate(pieces, start=1):
            # Tokens of the same character say the same places: it is whole after the last of them.
            begin_next = pieces[count].begin if count < len(pieces) else piece.end
            place = start + max(piece.end, 0)
            is_whole = begin_next >= piece.end
            known.append(max(known[-1], place if is_whole else start + max(begin_next, 0)))
            if is_whole and place in ends and place not in seen:
                seen.add(place)
                counts.append(count)
        ids = tuple(piece.token_id for piece in pieces)
        return cls(start, ids, tuple(known), frozenset(counts), words, sure)

    def reaches(self, count: int) -> bool:
        """Whether all is known that so many tokens can write."""
        return not self.words or (count < len(self.known) and self.known[count] <= self.sure)


class SpanWalk:
    """One answer that is being written: a span of a text. It is the stream of its own text.

    Args:
        text: of the field, as it was rendered.
        pieces: gives the tokens of a part of the text as an answer, with places in that part; none
            where the base cannot be given it.
    """

    def __init__(self, text: str, pieces: Callable[[str], list[Piece]]) -> None:
        self._text, self._pieces = text, pieces
        self._words = words_of(text)
        self._index = {word.begin: index for index, word in enumerate(self._words)}
        self._ids: list[int] = []
        self._given = 0
        paths = [path for word in self._words for path in self._from(word.begin, _WORDS)]
        self._live = [path for path in paths if path.ids]

    def allowed(self) -> list[int]:
        """The tokens that continue a span, in ascending order; none at the end of the text."""
        count = len(self._ids)
        return sorted({path.ids[count] for path in self._live if count < len(path.ids)})

    @property
    def is_span(self) -> bool:
        """Whether the answer so far is a span: it may end here."""
        return any(len(self._ids) in path.ends for path in self._live)

    @property
    def places(self) -> int:
        """How many places of the text the answer may begin at."""
        return len({path.start for path in self._live})

    def ahead(self, count: int) -> list[int]:
        """The next tokens of the longest span that begins at the first place.

        Args:
            count: most of them.
        """
        self._look_ahead(count)
        start = min((path.start for path in self._live), default=0)
        longest = max((path.ids for path in self._live if path.start == start), key=len, default=())
        return list(longest[len(self._ids) :][:count])

    def stream(self) -> "SpanWalk":
        """The walk: its text is that of the field, whatever the tokens decode to."""
        return self

    def push(self, token_id: int) -> str:
        """Goes on with one of the allowed tokens; gives the text that became certain.

        A tokenizer that normalises gives equal tokens to texts that differ. Then certain is what
        they begin with alike.
        """
        self._live = self._after(token_id)
        self._ids.append(token_id)
        self._look_ahead(_AHEAD)
        count = len(self._ids)
        alike = common_start([self._up_to(path, count) for path in self._live])
        piece = alike[self._given :]
        self._given = len(alike)
        return piece

    def peek(self, token_id: int) -> str:
        """The text that was not handed out yet, if a token were the last one."""
        paths, count = self._after(token_id), len(self._ids) + 1
        return self._up_to(paths[0], count)[self._given :] if paths else ""

    def pending(self, last: int | None = None) -> str:
        """The text that would follow if no more tokens came."""
        count = len(self._ids)
        ended = [path for path in self._live if count in path.ends] or self._live
        return self._up_to(ended[0], count)[self._given :] if self._ids else ""

    def finish(self) -> str:
        """The rest: of equal answers, the first of the text is given."""
        piece = self.pending()
        self._given += len(piece)
        return piece

    def _up_to(self, path: _Path, count: int) -> str:
        return self._text[path.start : path.known[count]]

    def _after(self, token_id: int) -> list[_Path]:
        count = len(self._ids)
        return [path for path in self._live if path.ids[count : count + 1] == (token_id,)]

    def _look_ahead(self, count: int) -> None:
        """Tokenises more words until so many tokens are known at each place, if there are."""
        written = tuple(self._ids)
        known: list[_Path] = []
        for path in self._live:
            longer = [path]
            while not longer[0].reaches(len(written) + count):
                longer = self._from(path.start, 2 * longer[0].words)
            # What is written stays possible, whatever a tokenizer makes of the longer text.
            fitting = [each for each in longer if each.ids[: len(written)] == written]
            known += fitting or [path]
        self._live = list(dict.fromkeys(known))

    def _from(self, start: int, count: int) -> list[_Path]:
        """The paths from a place on, over so many words; the one of all of them is the first."""
        index = self._index[start]
        reach = min(index + count, len(self._words))
        known = self._words[index:reach]
        for _ in range(_TOUCHING):
            if reach < len(self._words) and self._words[reach - 1].end == self._words[reach].begin:
                reach += 1
        words = self._words[index:reach]
        stop = words[-1].end
        more = count if index + count < len(self._words) else 0
        # A span that ends before white space other than a blank is tokenised by itself.
        after = {word.end: self._text[word.end : word.end + 1] for word in words}
        ends = frozenset(end for end, next_ in after.items() if next_ == " " or not next_.isspace())
        ends |= {stop}
        pieces = self._pieces(self._text[start:stop])
        main = _Path.of(start, pieces, ends, more, known[-1].end)
        reached = {main.known[each] for each in main.ends}
        return [main] + [
            _Path.of(start, self._pieces(self._text[start : word.end]), frozenset({word.end}))
            for word in known
            if word.end not in reached
        ]
