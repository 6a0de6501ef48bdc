"""The added tokens of a tokenizer, where a search from left to right finds what the library finds.

The library looks for them twice: for those that are not `normalized` in the text, then for the
others in each section between them, after the normalizer. At each place the longest one is taken.
One search for both is the same where the normalizer leaves the tokens of the second kind where they
are (or there is none), and no token of one kind can overlap with one of the other.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from pl_compile.errors import TablesError


class AddedToken(NamedTuple):
    """A token that is found in a text as it stands there."""

    id: int
    text: str
    special: bool


def added_tokens_of(
    tokens: Mapping[int, Any], stays: Callable[[str], bool]
) -> tuple[AddedToken, ...]:
    """The added tokens, the longest one first.

    Args:
        tokens: those of the library, by their ids.
        stays: whether the normalizer leaves a text where it is, and what is beside it unchanged.

    Raises:
        TablesError: the library finds one of them elsewhere than where its text stands.
    """
    for token in tokens.values():
        _check_settings(token, stays)
    _check_overlaps(
        {token.content for token in tokens.values() if token.normalized},
        {token.content for token in tokens.values() if not token.normalized},
    )
    found = [AddedToken(key, token.content, token.special) for key, token in tokens.items()]
    return tuple(sorted(found, key=lambda token: (-len(token.text.encode()), token.id)))


def _check_settings(token: Any, stays: Callable[[str], bool]) -> None:
    settings = [name for name in ("single_word", "lstrip", "rstrip") if getattr(token, name)]
    if token.normalized and not stays(token.content):
        settings.append("normalized beside a normalizer")
    if settings:
        raise TablesError(f"the added token {token.content!r} with {' and '.join(settings)}")


def _check_overlaps(some: Collection[str], others: Collection[str]) -> None:
    for one, other in _overlaps(some, others):
        raise TablesError(
            f"the added tokens {one!r} and {other!r}, which can overlap, and only one of which is "
            "normalized"
        )


def _overlaps(some: Collection[str], others: Collection[str]) -> Iterator[tuple[str, str]]:
    """Pairs of texts, one of each kind, that can stand in a text so that they share characters."""
    if not some or not others:
        return
    for mine, theirs in ((some, others), (others, some)):
        starts = {text[:end]: text for text in theirs for end in range(1, len(text) + 1)}
        for text in mine:
            for start in range(len(text)):
                for end in range(start + 1, len(text) + 1):
                    found = starts.get(text[start:end])
                    if found and (end == len(text) or end - start == len(found)):
                        yield text, found
