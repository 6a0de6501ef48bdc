"""Tokens that may not come next: those that repeat a sequence, or make a text that must not be."""

from collections.abc import Iterable

from pl_compile.text.tokenizer import Tokenizer


class Ngrams:
    """The sequences of `size` tokens so far; each may stand once.

    The same as transformers' `NoRepeatNGramLogitsProcessor`, at a cost that does not grow with the
    answer.

    Args:
        size: at least 1.
        tokens: of the prompt.
    """

    def __init__(self, size: int, tokens: Iterable[int]) -> None:
        self._size = size
        self._last: tuple[int, ...] = ()  # the latest `size - 1` tokens
        self._followers: dict[tuple[int, ...], set[int]] = {}
        for token in tokens:
            self.push(token)

    def push(self, token_id: int) -> None:
        """Takes the next token."""
        if len(self._last) == self._size - 1:
            self._followers.setdefault(self._last, set()).add(token_id)
        self._last = (*self._last, token_id)[-(self._size - 1) :] if self._size > 1 else ()

    def blocked(self) -> set[int]:
        """The tokens that would repeat a sequence."""
        return self._followers.get(self._last, set())


class BadWords:
    """Texts that must not appear in an answer, over whatever tokens they come.

    It reads the decoded text, so it holds for every way in which tokens can write a text. After
    each token that it lets pass, the text would not contain a bad word if the answer ended there.

    Args:
        tokenizer: the base's.
        words: the texts; at least one, none empty.
    """

    def __init__(self, tokenizer: Tokenizer, words: Iterable[str]) -> None:
        self._words = tuple(words)
        self._stream = tokenizer.stream()
        self._longest = max(map(len, self._words))
        self._certain = ""  # the end of the text that no later token changes

    def allows(self, token_id: int) -> bool:
        """Whether a token may come next."""
        text = self._certain + self._stream.peek(token_id)
        return not any(word in text for word in self._words)

    def push(self, token_id: int) -> None:
        """Takes the next token."""
        text = self._certain + self._stream.push(token_id)
        self._certain = text[max(0, len(text) - self._longest + 1) :]
