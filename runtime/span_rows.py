"""Requests whose answer is copied from a field: only tokens that continue a span may come.

Where one token alone may follow, it is written, and nothing is computed for it. Where few places of
the field are left, what follows there is drafted: mostly the answer goes on as the field does, and
the question is where it ends.
"""

from collections.abc import Collection

from pl_compile.runtime.draft_rows import DraftRow
from pl_compile.runtime.requests import Event
from pl_compile.runtime.sampling import Draw, pass_over
from pl_compile.runtime.stepping import Output

# Tokens of the first draft, and of those that follow drafts that were right.
_FIRST, _MOST = 6, 16


class SpanRow(DraftRow):
    """Writes a span of a field."""

    def __post_init__(self) -> None:
        """Begins with a short draft."""
        super().__post_init__()
        self._length = _FIRST

    def propose(self, most: int) -> list[int]:
        """What follows in the field, where one place is left. See `DraftRow.propose`."""
        assert self.spans is not None
        return self.spans.ahead(min(most, self._length)) if self.spans.places == 1 else []

    def note(self, drafted: int, taken: int) -> None:
        """A draft that was right to its end is followed by a longer one."""
        self._length = _MOST if taken == drafted else _FIRST

    def choose(self, output: Output) -> Event:
        """Takes the next token, and those that alone may follow it. See `Row.advance`."""
        event = super().choose(output) if self._allowed() else self._stop()
        while self.is_live:
            allowed = self._allowed()
            if len(allowed) > 1 or (allowed and self.request.log_probs is not None):
                break
            later = self._forced(allowed[0]) if allowed else self._stop()
            event = Event(self.index, event.text + later.text, later.result)
        return event

    def draw(self, candidates: int, inputs: Collection[str]) -> Draw | None:
        """None: a graph chooses among all tokens."""
        return None

    def _forced(self, token_id: int) -> Event:
        """Writes the only token that may follow."""
        pass_over(self.request.sampling, self._generator)
        return self._write(token_id)

    def _allowed(self) -> list[int]:
        """The tokens that continue a span, and those that end it where it may end."""
        assert self.spans is not None
        allowed = self.spans.allowed()
        if self.spans.is_span and len(self.token_ids) >= self.request.min_tokens:
            allowed = sorted({*allowed, *self._ends})
        return allowed if self.bad_words is None else [*filter(self._fits, allowed)]
