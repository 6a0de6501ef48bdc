r"""Text to token ids and back: the `tokenizers` library with rules of ours.

1. Data is never markup: in plain text the characters of an added token are characters, whatever
   the token's settings.
2. Some tokenizers put a blank before each text (SentencePiece style). Only the text that opens a
   sequence may get it, not the pieces that continue one.
3. An id of text is a row of the base. A tokenizer may have tokens that its base has no row for; in
   a graph, virtual tokens stand there.
4. Generated ids become text piece by piece (`streaming.py`).
"""

import json
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pl_compile.config import lfs
from pl_compile.config.utf8 import read_text
from pl_compile.errors import ArtifactError, DataError, reason_of
from pl_compile.text.spans import Piece
from pl_compile.text.streaming import TextStream, decoders_of, open_stream
from pl_compile.text.tokenizer_json import (
    parts_of,
    prefix_of,
    with_all_special,
    without_prefix,
    without_prefix_where_marked,
    without_special,
)

# Several times the size of the largest known tokenizers.
_MOST_BYTES = 128 << 20

# Other forms of a tokenizer, from which transformers can make a `tokenizer.json`.
_OTHER_FORMS = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model")

# Characters that need every byte of UTF-8: each lead byte, and each byte that may follow one.
_ALL_BYTES = "".join(
    map(chr, [*range(0xC0), *range(0xC0, 0x800, 0x40), *range(0x800, 0xD800, 0x1000), 0xFFFD])
) + "".join(map(chr, range(0x10000, 0x110000, 0x40000)))


# Characters that people write, of many scripts and lengths in bytes.
_COMMON = "aZ09éüñßøčżяЖλ€—“中日あ한אعहไ😀"

# Put before a text that continues one, for `_joining`. A character for private use.
_MARK = "\ue000"


# The version of the rules of rendering. By version 2, the text of any added token in a field is
# plain characters. By version 1 it was the token, if that was not special.
RENDERING = 2


class TemplateText(NamedTuple):
    """A text of a template, tokenised as a part of one whole text.

    Attributes:
        ids: of its tokens.
        opens: whether the text that follows opens a section.
        strips: whether its last token takes the white space that follows.
    """

    ids: list[int]
    opens: bool
    strips: bool


class Tokenizer:
    """The tokenizer of a base.

    Args:
        text: the content of a `tokenizer.json`.
        name: what to call it in messages.
        vocab: rows of the base. A text with this id or a larger one is refused. None where no
            base will get the ids.

    Raises:
        ArtifactError: the library cannot read the text as a tokenizer.
    """

    def __init__(
        self, text: str, *, name: str = "tokenizer.json", vocab: int | None = None
    ) -> None:
        from tokenizers import Tokenizer as HfTokenizer  # some MiB: only where there is text

        self.text = text
        self.vocab = vocab
        # The library's object has a switch for parsing added tokens, but only the special ones. So
        # all are made special. One object is switched back and forth: a second one would take some
        # 30 MiB and most of a runtime's time to start.
        self._switching = threading.Lock()
        try:
            marked, special = with_all_special(text)
            self._opening = HfTokenizer.from_str(marked)
            self._continuing = self._opening
            if any(map(prefix_of, self._parts())):
                self._continuing = HfTokenizer.from_str(without_prefix(marked))
            decoders_of(self._opening)
        except BaseException as error:
            if not is_of_tokenizers(error):
                raise
            raise ArtifactError(
                f"reading {name}",
                found=lfs.FOUND if lfs.is_pointer(text) else str(error),
                expected="a tokenizer.json of 'tokenizers'",
                fix=lfs.FIX if lfs.is_pointer(text) else _of_newer_form(error),
            ) from error
        for tokenizer in (self._opening, self._continuing):
            _without_settings(tokenizer)
        self._added = self._opening.get_added_tokens_decoder()
        self._special = {key for key, token in self._added.items() if token.content in special}
        self._special_texts = special
        self._is_bpe = type(self._opening.model).__name__ == "BPE"
        self._written: set[str] = set()  # characters that were seen to survive
        self._unlisted: dict[bool, Any] = {}  # by `opens`; rarely needed

    @classmethod
    def from_folder(cls, folder: Path, *, vocab: int | None = None) -> "Tokenizer":
        """The tokenizer of a Hugging Face folder or a bundle.

        Args:
            folder: holds a `tokenizer.json`.
            vocab: rows of the base.

        Raises:
            ArtifactError: there is no readable `tokenizer.json`.
        """
        path = folder / "tokenizer.json"
        try:
            return cls(read_text(path, most_bytes=_MOST_BYTES), name=str(path), vocab=vocab)
        except FileNotFoundError:
            raise ArtifactError(
                f"reading {path}",
                found=_other_forms(folder),
                expected="the tokenizer of the base in one file",
                fix="Where transformers can read the folder, Python makes it: "
                + as_saved_by_transformers(folder),
            ) from None
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"reading {path}", found=reason_of(error), expected="a UTF-8 text file"
            ) from error

    def encode(self, text: str, *, opens: bool, markup: bool) -> list[int]:
        """The ids of a piece of text; no BOS or EOS is added.

        Args:
            text: any text; may be empty.
            opens: whether it is the first text of its sequence.
            markup: whether added tokens in it are parsed (templates) or are characters (data).

        Raises:
            DataError: the base has no row for a token of the text, or there is no token for it.
        """
        return self._checked(self._encoding(text, opens=opens, markup=markup).ids, text)

    def pieces(self, text: str, *, opens: bool) -> list[Piece]:
        """The tokens of a piece of data text, with the characters that each of them writes.

        Raises:
            DataError: as for `encode`.
        """
        encoding = self._encoding(text, opens=opens, markup=False)
        ids = self._checked(encoding.ids, text)
        return [Piece(key, *place) for key, place in zip(ids, encoding.offsets, strict=True)]

    def encode_template(self, text: str, *, opens: bool, first: bool) -> TemplateText:
        """A text of a template, tokenised as a part of the whole text of its sequence.

        This differs from `encode` in the blanks that are put before a text. Added tokens divide a
        text into sections, and many tokenizers put a blank before each section. Where the
        normalizer does that, `normalized` tokens divide nothing: they are looked for after
        normalising, in a form that has a blank too. What the tokenizer itself puts before a text
        (BOS) is not a part of the text: if the text begins with it, the rest is the one that opens.

        Args:
            text: any text.
            opens: whether it opens a section.
            first: whether it is the first text of its sequence.

        Raises:
            DataError: the base has no row for a token of the text, or there is no token for it.
        """
        encoding = self._encoding(text, opens=opens, markup=True)
        ids = self._checked(encoding.ids, text)
        front = self.in_front
        if first and front and ids[: len(front)] == front:
            rest = text[encoding.offsets[len(front) - 1][1] :]
            if not rest:
                return TemplateText(front, True, self._added[front[-1]].rstrip)
            later = self.encode_template(rest, opens=True, first=False)
            return later._replace(ids=front + later.ids)
        if not opens and self._joining is not None:
            with self._switching:
                ids = self._checked(_encoded(self._joining, _MARK + text).ids, text)
        elif not opens and self._opens_sections:
            start = self._first_added(ids)
            opened: list[int] = self._encoding(text, opens=True, markup=True).ids
            ids = ids[:start] + opened[self._first_added(opened) :]
        last = self._added.get(ids[-1]) if ids else None
        if last is None:
            return TemplateText(ids, False, False)
        opens_after = self._opens_sections and not (last.normalized and self._is_normalised_open)
        return TemplateText(ids, opens_after, last.rstrip and self._finds_blanks(last))

    def takes_white_space(self, text: str) -> bool:
        """Whether a template's text opens with a token that takes the white space before it.

        Raises:
            DataError: the base has no row for a token of the text, or there is no token for it.
        """
        ids = self.encode_template(text, opens=False, first=False).ids
        first = self._added.get(ids[0]) if ids else None
        return first is not None and bool(first.lstrip)

    def count(self, text: str) -> int:
        """How many tokens a data text has."""
        return len(self._encoding(text, opens=False, markup=False).ids)

    def cut_to_tokens(self, text: str, keep: int) -> str:
        """The start of a data text: the whole characters that its first `keep` tokens cover."""
        offsets = self._encoding(text, opens=False, markup=False).offsets
        return text if keep >= len(offsets) else text[: offsets[keep][0]]

    def decode(self, ids: list[int]) -> str:
        """The text of generated ids, special tokens left out."""
        shown = [token_id for token_id in ids if token_id not in self._special]
        text: str = self._opening.decode(shown, skip_special_tokens=False)
        return text

    @property
    def added_texts(self) -> list[str]:
        """The texts of the tokens that were added to the vocabulary, special or not."""
        return [token.content for token in self._added.values()]

    @property
    def rendering(self) -> int:
        """The version of the rules (`RENDERING`) that a task's record names.

        It is 1 where both versions make the same tokens: all added tokens are special.
        """
        plain = set(self.added_texts) - set(self._special_texts)
        return RENDERING if plain else 1

    def token_text(self, token_id: int) -> str:
        """The text of a token inside an answer, blanks included; the name of a special one.

        What is only a part of a character is U+FFFD.
        """
        once = self.decode([token_id])
        if not once and token_id in self._special:
            return self.token_name(token_id)
        # Many decoders take a blank off the start of a text: the second of two tokens keeps it.
        twice = self.decode([token_id, token_id])
        return twice[len(once) :] if twice.startswith(once) else once

    def token_name(self, token_id: int) -> str:
        """How the vocabulary writes an id, for reports."""
        return str(self._opening.id_to_token(token_id))

    def difference(self, other: "Tokenizer") -> str:
        """An example of a difference from another tokenizer; empty if none was found."""
        mine, others = self._opening.get_vocab(), other._opening.get_vocab()
        for name in sorted(mine.keys() | others.keys()):
            if mine.get(name) != others.get(name):
                return f"{name!r} is {_id_named(mine.get(name))}, and {_id_named(others.get(name))}"
        for text in sorted({*self.added_texts} ^ {*other.added_texts}):
            return f"{text!r} is an added token of one alone"
        for markup in (True, False):
            for each in (f"The year 2024, it's\n  a  {_COMMON}.", *self.added_texts):
                ids = [
                    tokenizer._encoding(each, opens=True, markup=markup).ids
                    for tokenizer in (self, other)
                ]
                if ids[0] != ids[1]:
                    return f"{each!r} is {ids[0]}, and {ids[1]}"
        return ""

    def token_id(self, name: str) -> int | None:
        """The id of the token with this name in the vocabulary; None where it has no such token."""
        try:
            found: int | None = self._opening.token_to_id(name)
        except UnicodeEncodeError:  # half of a surrogate pair, which no vocabulary can hold
            return None
        return found

    def stream(self) -> TextStream:
        """A decoder for ids that arrive one by one."""
        return open_stream(self._opening, self._special)

    def without_row(self) -> list[int]:
        """The tokens that the base has no row for."""
        if self.vocab is None:
            return []
        return sorted(key for key in self._opening.get_vocab().values() if key >= self.vocab)

    def unwritten(self, text: str) -> str:
        """The characters of a data text that no token can write, each once.

        A tokenizer without a token for every byte leaves them out, or writes an unknown token.
        """
        if self._writes_everything or (self._is_bpe and self._written.issuperset(text)):
            return ""
        normalizer = self._opening.normalizer
        written = self.decode(self._encoding(text, opens=False, markup=False).ids)
        # What the normalizer changes on purpose (case, accents, forms of a character) is not lost.
        wanted = set(normalizer.normalize_str(text) if normalizer else text) - set(written)
        lost = (c for c in text if c in wanted and not c.isspace() and c != "▁")
        found = "".join(dict.fromkeys(lost))
        if not found:
            self._written.update(text)
        return found

    def unwritten_of_common(self) -> str:
        """Examples of characters that people write and no token can write; empty if none.

        Only common characters are tried: the tokenizers of many bases lack control characters and
        unused planes of Unicode.
        """
        return self.unwritten(_COMMON)

    @cached_property
    def _writes_everything(self) -> bool:
        """Whether no character is lost, judged by a text that needs every byte of UTF-8."""
        try:
            ids = self._encoding(_ALL_BYTES, opens=False, markup=False).ids
        except DataError:
            return True  # a text that it cannot write is refused
        return self.decode(ids) == _ALL_BYTES

    @cached_property
    def in_front(self) -> list[int]:
        """The ids that the tokenizer puts before a whole text (often BOS)."""
        with self._switching:
            whole = _encoded(self._opening, "a", add_special_tokens=True)
        ours = whole.sequence_ids
        return list(whole.ids[: ours.index(0)]) if 0 in ours else []

    @cached_property
    def _opens_sections(self) -> bool:
        """Whether a blank is put before each section between added tokens, not only the text."""
        return "section" in map(prefix_of, self._parts())

    @cached_property
    def _is_normalised_open(self) -> bool:
        """Whether the normalizer is what puts a blank before each section."""
        return "section" in map(prefix_of, _parts_of(self._opening.normalizer))

    @cached_property
    def _joining(self) -> Any:
        """The tokenizer of a template's text that continues one; None where `_continuing` serves.

        A normalizer that puts the blank puts it into the form of `normalized` tokens too. A
        tokenizer without that blank would not find them.
        """
        if not self._is_normalised_open or not any(t.normalized for t in self._added.values()):
            return None
        marked, _ = with_all_special(self.text)
        joining = type(self._opening).from_str(without_prefix_where_marked(marked, _MARK))
        _without_settings(joining)
        return joining

    def _finds_blanks(self, token: Any) -> bool:
        """Whether a token can strip blanks: the normalizer may have replaced them by then."""
        normalizer = self._opening.normalizer
        return not token.normalized or normalizer is None or " " in normalizer.normalize_str("a a")

    def _first_added(self, ids: list[int]) -> int:
        return next((place for place, key in enumerate(ids) if key in self._added), len(ids))

    def _parts(self) -> Iterator[dict[str, Any]]:
        for component in (self._opening.normalizer, self._opening.pre_tokenizer):
            yield from _parts_of(component)

    def _encoding(self, text: str, *, opens: bool, markup: bool) -> Any:
        tokenizer = self._opening if opens else self._continuing
        with self._switching:
            tokenizer.encode_special_tokens = not markup
            encoding = _encoded(tokenizer, text)
            if markup or self._is_bpe or self._special.isdisjoint(encoding.ids):
                return encoding
            # The model itself found a special token, since its vocabulary lists it like a word.
            # (A BPE cannot: it makes only what its merges make.)
            if opens not in self._unlisted:
                unlisted = without_special(self.text, self._special_texts)
                self._unlisted[opens] = type(tokenizer).from_str(
                    unlisted if opens else without_prefix(unlisted)
                )
            return _encoded(self._unlisted[opens], text)

    def _checked(self, ids: list[int], text: str) -> list[int]:
        if self.vocab is not None and ids and max(ids) >= self.vocab:
            self.check_row(max(ids), f"tokenising {text!r:.60}")
        return ids

    def check_row(self, token_id: int, doing: str) -> None:
        """Raises `DataError` if the base has no row for a token."""
        if self.vocab is not None and not 0 <= token_id < self.vocab:
            known = self._opening.id_to_token(token_id)
            token = f"the token {known!r} with id" if known else "the id"
            raise DataError(
                doing,
                found=f"{token} {token_id}, which the base has no row for",
                expected=f"ids below {self.vocab}",
                fix="Leave it out, or give the base a row for it (resize_token_embeddings in "
                "transformers) and save it again.",
            )


def _without_settings(tokenizer: Any) -> None:
    """Removes settings that were saved with it; the renderer handles lengths."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if type(tokenizer.model).__name__ == "BPE":
        tokenizer.model.dropout = None  # a setting for training; equal texts must have equal ids


def _parts_of(component: Any) -> Iterator[dict[str, Any]]:
    """The parts of a normalizer or a pre-tokenizer of the library; nothing where it is None."""
    if component is not None:
        yield from parts_of(json.loads(component.__getstate__()))


def _encoded(tokenizer: Any, text: str, *, add_special_tokens: bool = False) -> Any:
    """What the library makes of a text.

    Raises:
        DataError: a part of it has no token, and there is no token for unknown characters.
    """
    try:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    except BaseException as error:
        if not is_of_tokenizers(error):
            raise
        doing = f"tokenising {text!r:.60}"
        if not isinstance(error, Exception):
            raise DataError(
                doing,
                found=f"the base's tokenizer breaks off ({error})",
                fix="The text is fine: parts of the base's tokenizer.json do not work together.",
            ) from error
        raise DataError(
            doing,
            found=f"the base's tokenizer has no token for a part of it ({error})",
            fix="Leave it out, or give the tokenizer a token for unknown characters (unk_token).",
        ) from error


def _id_named(token_id: int | None) -> str:
    return "no token" if token_id is None else f"id {token_id}"


def as_saved_by_transformers(folder: Path) -> str:
    """Python code that has transformers write a `tokenizer.json` into a tokenizer's folder."""
    path = repr(str(folder))
    return (
        "from transformers import AutoTokenizer; "
        f"AutoTokenizer.from_pretrained({path}).save_pretrained({path})"
    )


def is_of_tokenizers(error: BaseException) -> bool:
    """Whether the library can have raised it: bare `Exception`s, and panics of Rust.

    The class of a panic is not exported and does not derive from `Exception`.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _of_newer_form(error: BaseException) -> str:
    """What to do about a part of the file that the library does not know."""
    if "untagged enum" not in str(error):
        return ""
    from tokenizers import __version__

    return (
        f"A newer release than tokenizers {__version__}, which is installed, may have written it: "
        "pip install -U tokenizers; or save it with an older one."
    )


def _other_forms(folder: Path) -> str:
    """What is there instead of a `tokenizer.json`."""
    others = [name for name in _OTHER_FORMS if (folder / name).is_file()]
    return f"no such file, but {', '.join(others)}" if others else "no such file"
