"""The reference's tokens: a prompt as tokenised by `transformers`' own tokenizer.

In: a template and the values of its fields. Out: its pieces, each with its tokens. This is a second
implementation of the rules in `docs/templates.md`, on purpose: a mistake of the renderer, or in a
bundle's tokenizer, is then not on both sides of a comparison.

A tokenizer that puts a blank before each text (as SentencePiece does) has no switch for that in
`transformers`. For a text that continues another one, the blank is removed before the model sees
it. Where that may differ from a text without the blank, the tokens of the piece are unknown.

What a tokenizer puts after an added token depends on its kind. So a task whose text is tokenised as
one whole (`whitespace: transformers`) is also given to `transformers` as one whole.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

from pl_compile.errors import BaseModelError
from pl_compile.text.template import Field, Template, Virtual
from pl_compile.text.tokenizer import is_of_tokenizers

# How SentencePiece and byte-level tokenizers write a blank.
_SENTENCEPIECE, _BYTE_LEVEL = "▁", "Ġ"

_TOKENISING = "tokenising a prompt with transformers"

# How many characters of a text a message shows.
_SHOWN_TEXT = 60


@dataclass(frozen=True)
class Piece:
    """A part of a prompt that is tokenised by itself.

    Attributes:
        name: its name in messages, with its text.
        tokens: pairs: a token's id and -1, or 0 and the row of a virtual token. None where
            `transformers` cannot tell them.
    """

    name: str
    tokens: tuple[tuple[int, int], ...] | None


@dataclass(frozen=True)
class Whole:
    """A prompt whose text is tokenised as one whole.

    Attributes:
        pieces: the text is one of them.
        ends_where_parts_do: whether each part has the same tokens by itself, so that cutting the
            text there changes nothing.
    """

    pieces: list[Piece]
    ends_where_parts_do: bool


@dataclass(frozen=True)
class _Text:
    """A part of a prompt before it is tokenised; `is_data` where a field filled it."""

    text: str
    is_data: bool


class ReferenceTokenizer:
    """The tokenizer that `transformers` makes of a base's folder.

    Args:
        folder: a Hugging Face folder.

    Raises:
        BaseModelError: `transformers` cannot make one, or makes one that is not a fast tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._load(
            folder,
            lambda: AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            ),
        )

    @classmethod
    def of_file(cls, path: Path) -> "ReferenceTokenizer":
        """The tokenizer that `transformers` makes of a `tokenizer.json` alone.

        Raises:
            BaseModelError: it cannot make one.
        """
        from transformers import PreTrainedTokenizerFast

        new = cls.__new__(cls)
        new._load(path, lambda: PreTrainedTokenizerFast(tokenizer_file=str(path)))
        return new

    def _load(self, path: Path, make: Callable[[], Any]) -> None:
        self.name = f"transformers {version('transformers')}"
        with _errors_of_transformers(f"loading the tokenizer of {path}"):
            self._tokenizer: Any = make()
            self._backend: Any = self._tokenizer.backend_tokenizer
            if hasattr(self._backend.model, "dropout"):
                # A setting for training, which makes tokens random.
                self._backend.model.dropout = None
            self._added = set(self._tokenizer.get_added_vocab().values())
            whole = self._tokenizer("a", return_special_tokens_mask=True)
            in_front = takewhile(bool, whole["special_tokens_mask"])
            self._front: list[int] = whole["input_ids"][: sum(in_front)]
            self._front_text = "".join(self._tokenizer.convert_ids_to_tokens(self._front))
        first = "".join(self._words("a"))
        self._marker = first[0] if first.startswith((_SENTENCEPIECE, _BYTE_LEVEL)) else ""
        self._puts_always = "".join(self._words(" a")).startswith(2 * _SENTENCEPIECE)

    def pieces(
        self, template: Template, fields: Mapping[str, str], bos_id: int | None
    ) -> list[Piece]:
        """A prompt, up to its answer, cut where its segments begin and end.

        Args:
            template: of its task.
            fields: a text for each input field.
            bos_id: the id before everything, or None.

        Raises:
            BaseModelError: the tokenizer fails.
        """
        pieces = [] if bos_id is None else [Piece("BOS", ((bos_id, -1),))]
        parts = _parts(template, fields)
        as_one = template.task.whitespace == "transformers"
        is_first = as_one and not pieces
        # In other modes the tokens of a piece depend on what stands before it.
        is_by_itself = template.task.whitespace in ("keep", "nemo")
        opens, after_markup = True, False
        for index, part in enumerate(parts):
            if isinstance(part, Virtual):
                pieces.append(_rows(part))
                continue
            if is_first and not part.is_data and self._has_markup(part.text):
                ids: list[int] | None = self._ids_at_start(part.text)
            else:
                ids = self._ids(part, goes_on=self._marker != "" and not opens)
            is_first = False
            if after_markup and (self._marker or not is_by_itself):
                ids = None  # each kind of tokenizer has its own rule for the blank there
            if (
                as_one
                and part.text != part.text.rstrip()
                and self._may_be_taken(parts[index + 1 :])
            ):
                ids = None
            tokens = None if ids is None else tuple((token, -1) for token in ids)
            pieces.append(Piece(f"the text {_shown(part.text)}", tokens))
            opens = opens and not part.text.strip(" ")
            # An added token may take all white space after it, over several parts.
            is_white = after_markup and not part.text.strip()
            after_markup = is_white or (not part.is_data and self._ends_in_markup(part.text))
        return pieces

    def whole(
        self, template: Template, fields: Mapping[str, str], bos_id: int | None
    ) -> Whole | None:
        """The same prompt, with all its text in one piece.

        None where the task's text is not tokenised as one whole. Also where `transformers` cannot
        be asked: there are virtual tokens inside, or a field holds the text of an added token.

        Raises:
            BaseModelError: the tokenizer fails.
        """
        if template.task.whitespace != "transformers":
            return None
        parts = _parts(template, fields)
        texts = [part for part in parts if isinstance(part, _Text)]
        start = parts.index(texts[0]) if texts else 0
        end = start + len(texts)
        data = [part.text for part in texts if part.is_data]
        if not texts or parts[start:end] != texts or any(map(self._has_markup, data)):
            return None
        ids_of = self._ids_at_start if bos_id is None else self._ids_of_text
        text = "".join(part.text for part in texts)
        ids = ids_of(text)
        pieces = [] if bos_id is None else [Piece("BOS", ((bos_id, -1),))]
        pieces += [_rows(part) for part in parts[:start] if isinstance(part, Virtual)]
        pieces.append(Piece(f"the text {_shown(text)}", tuple((token, -1) for token in ids)))
        pieces += [_rows(part) for part in parts[end:] if isinstance(part, Virtual)]
        cuts = accumulate(len(part.text) for part in texts[:-1])
        return Whole(pieces, all(self._ends_at(cut, text, ids, ids_of) for cut in cuts))

    def _ends_at(
        self, cut: int, text: str, ids: list[int], ids_of: Callable[[str], list[int]]
    ) -> bool:
        """Whether a text has the same tokens if it is cut at a place."""
        before, rest = ids_of(text[:cut]), text[cut:]
        after = ids[len(before) :]
        # SentencePiece puts a blank before it, and has no other rule for what stands there.
        is_apart = self._marker == _SENTENCEPIECE or after in (
            self._ids_of_text(rest),
            self._ids_of_text(rest.lstrip(" ")),  # an added token may take the blanks
        )
        return is_apart and before + after == ids

    def _may_be_taken(self, later: Sequence[Virtual | _Text]) -> bool:
        """Whether an added token in later parts may take the white space that ends this one.

        Parts of nothing but white space may lie between them.
        """
        part = next(
            (part for part in later if isinstance(part, Virtual) or part.text.strip()), None
        )
        if part is None or isinstance(part, Virtual) or part.is_data:
            return False
        return not self._added.isdisjoint(self._ids_of_text(part.text.lstrip())[:1])

    def _ids(self, part: _Text, *, goes_on: bool) -> list[int] | None:
        """The ids of a text; without the blank before it where it `goes_on`; None if unknown."""
        if part.is_data or not self._has_markup(part.text):
            return self._ids_of_data(part.text, goes_on=goes_on)
        # Some tokenizers put a blank after each added token too.
        return None if goes_on else self._ids_of_text(part.text)

    def _ids_of_text(self, text: str) -> list[int]:
        with _errors_of_transformers(_TOKENISING):
            ids: list[int] = self._tokenizer(
                text, add_special_tokens=False, split_special_tokens=False, verbose=False
            )["input_ids"]
        return ids

    def _ids_at_start(self, text: str) -> list[int]:
        """The ids of a text with nothing before it, not even BOS.

        What the tokenizer itself puts there is not a part of the text: the text opens after it.
        """
        if not self._front or not text.startswith(self._front_text):
            return self._ids_of_text(text)
        return self._front + self._ids_of_text(text.removeprefix(self._front_text))

    def _has_markup(self, text: str) -> bool:
        """Whether an added token is found in a text (tokens of the model itself do not count)."""
        return self._ids_of_text(text) != self._ids_of_data(text, goes_on=False)

    def _ends_in_markup(self, text: str) -> bool:
        return self._has_markup(text) and not self._added.isdisjoint(self._ids_of_text(text)[-1:])

    def _ids_of_data(self, text: str, *, goes_on: bool) -> list[int] | None:
        """The ids of data, as if the vocabulary had no added tokens: data is never markup.

        Args:
            text: of the data.
            goes_on: whether the blank that is put before it is removed.
        """
        words = self._words(text)
        if goes_on and (self._puts_always or not text.startswith(" ")):
            if self._marker == _BYTE_LEVEL and not text[:1].isalpha():
                return None  # with the blank, the first word may end elsewhere
            words[:1] = [word.removeprefix(self._marker) for word in words[:1]]
        with _errors_of_transformers(_TOKENISING):
            return [token.id for word in words for token in self._backend.model.tokenize(word)]

    def _words(self, text: str) -> list[str]:
        """The words of a text that the model is given: normalised and divided."""
        with _errors_of_transformers(_TOKENISING):
            if self._backend.normalizer is not None:
                text = self._backend.normalizer.normalize_str(text)
            if self._backend.pre_tokenizer is None:
                return [text]
            return [word for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(text)]


@contextmanager
def _errors_of_transformers(doing: str) -> Iterator[None]:
    """Turns errors of transformers into ours. It raises many kinds, even bare `Exception`."""
    try:
        yield
    except BaseException as error:
        if not is_of_tokenizers(error):
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise BaseModelError(doing, found=f"{type(error).__name__}: {reason}") from error


def _rows(part: Virtual) -> Piece:
    name = f"the row of virtual tokens from {part.start} on"
    return Piece(name, tuple((0, row) for row in range(part.start, part.start + part.count)))


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_TEXT else text[:_SHOWN_TEXT] + "…")


def _parts(template: Template, fields: Mapping[str, str]) -> list[Virtual | _Text]:
    """All parts before the answer, with each blank in the part it belongs to."""
    task = template.task
    parts: list[Virtual | _Text] = []
    for segment in template.segments:
        if isinstance(segment, Field) and segment.name == template.answer_field:
            break
        if isinstance(segment, Virtual):
            parts.append(segment)
        elif isinstance(segment, Field):
            parts.append(_Text(str(fields[segment.name]), is_data=True))
        else:
            parts.append(_Text(segment.text, is_data=False))
    if task.whitespace == "nemo":
        parts = [_without_white_space_at_virtual(parts, index) for index in range(len(parts))]
    return _blanks_moved(parts, keep_at_virtual=task.whitespace != "nemo")


def _without_white_space_at_virtual(parts: list[Virtual | _Text], index: int) -> Virtual | _Text:
    part = parts[index]
    if isinstance(part, Virtual):
        return part
    if index > 0 and isinstance(parts[index - 1], Virtual):
        part = replace(part, text=part.text.lstrip())
    if index + 1 < len(parts) and isinstance(parts[index + 1], Virtual):
        part = replace(part, text=part.text.rstrip())
    return part


def _blanks_moved(parts: list[Virtual | _Text], *, keep_at_virtual: bool) -> list[Virtual | _Text]:
    """Blanks that end a text belong to the next one; those before virtual tokens stay there."""
    moved: list[Virtual | _Text] = []
    blanks = ""
    for part in parts:
        if isinstance(part, Virtual):
            moved += [_Text(blanks, is_data=True)] if blanks and keep_at_virtual else []
            moved.append(part)
            blanks = ""
            continue
        text = blanks + part.text
        text = text if moved else text.lstrip(" ")  # blanks that begin the prompt are dropped
        body = text.rstrip(" ")
        blanks = text[len(body) :]
        if body:
            moved.append(replace(part, text=body))
    return moved
