"""Rows that come and go, and what tests note of them: logits, results, tokens of each step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from pl_compile.runtime.continuous import Continuous
from pl_compile.runtime.requests import Request, Result
from pl_compile.runtime.rows import Row
from pl_compile.runtime.stepping import Batch, Output


@contextmanager
def logits_noted() -> Iterator[dict[Row, list[bytes]]]:
    """By row the bits of the logits that it looks at, step by step."""
    seen: dict[Row, list[bytes]] = {}
    advance = Row.advance

    def noting(row: Row, output: Output) -> Any:
        # Logits that the row does not look at may not be computed: that depends on other rows.
        looked_at = slice(None) if row.looked_at is None else row.looked_at
        seen.setdefault(row, []).append(output.logits[looked_at].tobytes())
        return advance(row, output)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Row, "advance", noting)
        yield seen


@contextmanager
def feeds_noted() -> Iterator[list[int]]:
    """How many tokens each step fed."""
    seen: list[int] = []
    feed = Batch.feed

    def noting(batch: Batch, ids: Any, *given: Any, **more: Any) -> dict[int, Output]:
        seen.append(sum(map(len, ids.values())))
        return feed(batch, ids, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batch, "feed", noting)
        yield seen


# Before a step: requests that arrive, each with its priority, and which of those under way is
# cancelled, if one is.
Arrival = tuple[Sequence[tuple[Request, int]], int | None]


def answered(
    flow: Continuous, arrivals: Sequence[Arrival], row_of: Callable[[Request], Row]
) -> tuple[dict[Row, Request], dict[Row, Result]]:
    """What was asked and not cancelled, and the results, once nothing is under way any more."""
    asked: dict[Row, Request] = {}
    results: dict[Row, Result] = {}

    def step() -> None:
        for row, event in flow.step():
            if event.result is not None:
                results[row] = event.result

    for new, cancelled in arrivals:
        for request, priority in new:
            row = row_of(request)
            asked[row] = request
            flow.submit(row, priority)
        under_way = [row for row in asked if row not in results]
        if cancelled is not None and cancelled < len(under_way):
            flow.cancel(under_way[cancelled])
            del asked[under_way[cancelled]]
        step()
    while flow.is_busy:
        step()
    assert results.keys() == asked.keys()
    return asked, results
