"""Ids that arrive one by one, of every kind of decoder: in the end they are `decode`'s text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HfTokenizer

from pl_compile.runtime.answer_text import AnswerText
from pl_compile.testing import byte_fallback_tokenizer
from pl_compile.text.streaming import TextStream, open_stream
from pl_compile.text.tokenizer import Tokenizer

_BLANKS = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
_BYTES, _FUSE = {"type": "ByteFallback"}, {"type": "Fuse"}
_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": True,
    "trim_offsets": True,
    "use_regex": True,
}


def _strip(content: str, start: int) -> dict[str, Any]:
    return {"type": "Strip", "content": content, "start": start, "stop": 0}


def _metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}


_CHAINS: dict[str, list[dict[str, Any]]] = {
    "llama 2": [_BLANKS, _BYTES, _FUSE, _strip(" ", 1)],
    "gemma": [_BLANKS, _BYTES, _FUSE],
    "blanks at last": [_BYTES, _FUSE, _BLANKS, _strip(" ", 1)],
    "strips three": [_BLANKS, _BYTES, _FUSE, _strip(" ", 3)],
    "strips tokens": [_BLANKS, _BYTES, _strip(" ", 1)],
    "bytes": [_BYTES],
    "metaspace": [_metaspace("always")],
    "metaspace, nothing in front": [_metaspace("never")],
    "metaspace in a sequence": [_BYTES, _metaspace("first"), _FUSE],
    "wordpiece": [{"type": "WordPiece", "prefix": "e", "cleanup": True}],
    "bpe with a suffix": [{"type": "BPEDecoder", "suffix": "e"}],
    "ctc": [{"type": "CTC", "pad_token": "e", "word_delimiter_token": "▁", "cleanup": True}],
    "a pattern over tokens": [
        _BYTES,
        _FUSE,
        {"type": "Replace", "pattern": {"Regex": "e+s"}, "content": "X"},
    ],
    "byte level": [_BYTE_LEVEL],
    "byte level, then more": [_BYTE_LEVEL, _strip("a", 1)],
    "none": [],
}

_ADDED: list[dict[str, Any]] = [
    {"content": "<think>"},
    {"content": "[INST]", "special": True},
    {"content": "é"},  # a byte by itself, for a byte-level decoder
    {"content": "→"},  # and this is not
]


@pytest.fixture(scope="module")
def tokenizers(tiny_bases: dict[str, Path]) -> dict[str, Tokenizer]:
    """A tokenizer for each chain of decoders, and one with GPT-2's alphabet."""
    spec = json.loads(byte_fallback_tokenizer("prepend", _ADDED))
    made = {}
    for name, chain in _CHAINS.items():
        decoder = {"type": "Sequence", "decoders": chain} if chain else None
        made[name] = Tokenizer(json.dumps({**spec, "decoder": decoder}))
    byte_level = HfTokenizer.from_file(str(tiny_bases["gpt2"] / "tokenizer.json"))
    byte_level.add_tokens([token["content"] for token in _ADDED])
    return {**made, "gpt-2": Tokenizer(byte_level.to_str())}


def _streamed(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.push(token_id) for token_id in ids), stream.finish()]


# What breaks naive streams is likely to be drawn: bytes, blanks, and ids that are no text.
_TELLING = st.sampled_from(["▁", "<0x0A>", "<0x41>", "<0xF0>", "<0x9F>", "<s>", "er", "e", "é"])
_IDS = st.lists(st.integers(0, 500) | _TELLING, max_size=14)


def _library_and_ids(
    tokenizer: Tokenizer, drawn: Sequence[int | str]
) -> tuple[HfTokenizer, list[int]]:
    """The library's tokenizer; ids as they are, and those of the tokens that it has."""
    library = HfTokenizer.from_str(tokenizer.text)
    ids = [key if isinstance(key, int) else library.token_to_id(key) for key in drawn]
    return library, [key for key in ids if key is not None]


@pytest.mark.parametrize("name", [*_CHAINS, "gpt-2"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(drawn=_IDS)
def test_what_is_handed_out_stays_and_in_the_end_is_all_of_decode(
    tokenizers: dict[str, Tokenizer], name: str, drawn: list[int | str]
) -> None:
    tokenizer = tokenizers[name]
    library, ids = _library_and_ids(tokenizer, drawn)
    whole = library.decode(ids)

    pieces = _streamed(tokenizer, ids)

    assert tokenizer.decode(ids) == whole
    assert "".join(pieces) == whole


@pytest.mark.parametrize("name", ["llama 2", "gemma", "bytes"])
@settings(max_examples=100, deadline=None, derandomize=True)
@given(drawn=_IDS)
def test_what_is_pending_is_what_would_follow_but_no_unfinished_character(
    tokenizers: dict[str, Tokenizer], name: str, drawn: list[int | str]
) -> None:
    tokenizer = tokenizers[name]
    library, ids = _library_and_ids(tokenizer, drawn)
    stream, given_out = tokenizer.stream(), ""

    for place, token_id in enumerate(ids, start=1):
        given_out += stream.push(token_id)
        expected = library.decode(ids[:place]).rstrip("\ufffd")
        assert (given_out + stream.pending()).rstrip("\ufffd") == expected
        assert not stream.pending().endswith("\ufffd")


@pytest.mark.parametrize("name", [*_CHAINS, "gpt-2"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(drawn=_IDS)
def test_a_peek_shows_the_text_as_if_it_ended_there_and_changes_nothing(
    tokenizers: dict[str, Tokenizer], name: str, drawn: list[int | str]
) -> None:
    tokenizer = tokenizers[name]
    library, ids = _library_and_ids(tokenizer, drawn)
    stream, given_out = tokenizer.stream(), ""

    for place, token_id in enumerate(ids):
        assert stream.peek(5) == stream.peek(5)
        seen = given_out + stream.peek(token_id)
        assert seen.rstrip("\ufffd") == library.decode(ids[: place + 1]).rstrip("\ufffd")
        given_out += stream.push(token_id)
    assert given_out + stream.finish() == library.decode(ids)


@pytest.mark.parametrize("name", ["llama 2", "gemma", "blanks at last", "gpt-2"])
def test_the_text_of_a_token_is_what_it_adds_to_an_answer(
    tokenizers: dict[str, Tokenizer], name: str
) -> None:
    tokenizer = tokenizers[name]
    ids = tokenizer.encode("who was there", opens=True, markup=False)

    texts = [tokenizer.token_text(token_id) for token_id in ids]

    assert "".join(texts).lstrip() == tokenizer.decode(ids).lstrip()
    assert tokenizer.token_text(0) != ""


def test_broken_bytes_before_a_word_are_replaced_and_the_text_goes_on(
    tokenizers: dict[str, Tokenizer],
) -> None:
    tokenizer = tokenizers["llama 2"]
    _, ids = _library_and_ids(tokenizer, ["<0x41>", "<0xF0>", "er", "<0x0A>", "<0xF0>"])

    assert _streamed(tokenizer, ids) == ["", "", "\ufffd\ufffder", "", "", "\ufffd\ufffd"]


def test_words_are_handed_out_as_they_come(tokenizers: dict[str, Tokenizer]) -> None:
    for name in ("llama 2", "gemma", "blanks at last", "none", "gpt-2"):
        tokenizer = tokenizers[name]
        ids = tokenizer.encode("who was there", opens=True, markup=False)

        pieces = _streamed(tokenizer, ids)

        assert all(pieces[:-1]), name
        assert pieces[-1] == ""


class _Counting:
    """A tokenizer that counts the tokens it is asked to decode."""

    def __init__(self, text: str) -> None:
        self._tokenizer = HfTokenizer.from_str(text)
        self.decoder = self._tokenizer.decoder
        self.decoded = 0

    def stream(self) -> TextStream:
        return open_stream(cast(HfTokenizer, self), ())

    def id_to_token(self, token_id: int) -> str | None:
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token

    def decode(self, ids: list[int], **options: Any) -> str:
        self.decoded += len(ids)
        text: str = self._tokenizer.decode(ids, **options)
        return text


@pytest.mark.parametrize("token", ["▁", "er", "<0x41>", "<0xF0>", "</s>"])
@pytest.mark.parametrize("name", [*_CHAINS, "gpt-2"])
def test_a_token_of_a_long_answer_costs_no_more_than_one_of_a_short_one(
    tokenizers: dict[str, Tokenizer], name: str, token: str
) -> None:
    counting = _Counting(tokenizers[name].text)
    token_id = HfTokenizer.from_str(tokenizers[name].text).token_to_id(token) or 5
    stream = counting.stream()

    for _ in range(300):
        stream.push(token_id)
    stream.finish()

    assert counting.decoded <= 12 * 300


@pytest.mark.parametrize("token", ["▁", "er", "<0x41>", "<0xF0>", "<0x80>", "</s>"])
@pytest.mark.parametrize("name", [*_CHAINS, "gpt-2"])
def test_a_stop_text_is_looked_for_in_the_latest_tokens_only(
    tokenizers: dict[str, Tokenizer], name: str, token: str
) -> None:
    counting = _Counting(tokenizers[name].text)
    token_id = HfTokenizer.from_str(tokenizers[name].text).token_to_id(token) or 5
    answer = AnswerText(cast(Tokenizer, counting), ("STOP",))

    for _ in range(600):
        answer.push(token_id)
    answer.finish()

    assert counting.decoded <= 60 * 600
