"""The bits of the logits that rows choose by, for tests of rows that come and go."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pl_compile.runtime.rows import Row
from pl_compile.runtime.stepping import Output


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
