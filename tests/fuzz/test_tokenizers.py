"""Tokenizers of strangers, of every kind, with added tokens of every kind.

The oracle is the `tokenizers` library: on the whole string, and on the same file without its added
tokens.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fuzzing import attempt, damaged, fuzzed, json_texts, utf8
from hypothesis import assume
from hypothesis import strategies as st
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers

from pl_compile.config.task import TaskConfig
from pl_compile.errors import PlcError
from pl_compile.runtime.answer_text import AnswerText
from pl_compile.text.render import Renderer, SequenceRules
from pl_compile.text.template import parse_template
from pl_compile.text.tokenizer import Tokenizer

_LETTERS = "abcdehilnorst .,:\n"
_PAIRS = (("h", "e"), ("l", "o"), ("a", "n"), ("he", "lo"), ("t", "he"), ("i", "n"))
_CONTROL = ("<unk>", "<s>", "</s>")
_UNKNOWN = 0


def _byte_level() -> HfTokenizer:
    """GPT-2's kind: bytes written as characters, "Ġ" for a blank."""
    pieces = [*_CONTROL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pairs = [*_PAIRS, ("Ġ", "a"), ("Ġ", "the"), ("Ġ", "Ġ"), ("Ð", "°")]
    merged = [first + second for first, second in pairs]
    vocab = {piece: number for number, piece in enumerate(pieces + merged)}
    tokenizer = HfTokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_fallback(*, metaspace: str | None, fallback: bool = True) -> HfTokenizer:
    """SentencePiece's kind: "▁" for a blank, tokens of single bytes for the rest.

    Args:
        metaspace: "first", "always" or "never"; None for Llama 2's normaliser that prepends.
        fallback: whether it has tokens of bytes: what it cannot write is else unknown.
    """
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if fallback else []
    pairs = [*_PAIRS, ("▁", "a"), ("▁", "the"), ("▁", "▁")]
    merged = [first + second for first, second in pairs]
    pieces = [*_CONTROL, *bytes_, *_LETTERS.replace(" ", "▁").replace("\n", ""), *merged]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    model = models.BPE(
        vocab=vocab, merges=pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=fallback
    )
    tokenizer = HfTokenizer(model)
    blank = decoders.Replace("▁", " ")
    if metaspace is None:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=metaspace, split=False)
    tokenizer.decoder = decoders.Sequence(
        [blank, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _word_piece() -> HfTokenizer:
    """BERT's kind: unknown words, "##" for what continues one."""
    letters = _LETTERS.replace(" ", "").replace("\n", "")
    pieces = [*_CONTROL, *letters, *(f"##{letter}" for letter in letters), "the", "##lo"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = HfTokenizer(models.WordPiece(vocab=vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece("##", cleanup=True)
    return tokenizer


def _unigram(*, fallback: bool) -> HfTokenizer:
    """T5's kind."""
    bytes_ = [(f"<0x{byte:02X}>", -20.0) for byte in range(256)] if fallback else []
    letters = [(letter, -5.0) for letter in _LETTERS.replace(" ", "▁").replace("\n", "")]
    words = [("▁the", -3.0), ("lo", -4.0), ("▁a", -4.0)]
    control = [(name, 0.0) for name in _CONTROL]
    tokenizer = HfTokenizer(models.Unigram([*control, *bytes_, *letters, *words], 0, fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = (
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
        if fallback
        else decoders.Metaspace()
    )
    return tokenizer


_KINDS = {
    "byte level": _byte_level(),
    "prepend": _byte_fallback(metaspace=None),
    "prepend, no bytes": _byte_fallback(metaspace=None, fallback=False),
    "metaspace first": _byte_fallback(metaspace="first"),
    "metaspace always": _byte_fallback(metaspace="always"),
    "metaspace never": _byte_fallback(metaspace="never"),
    "word piece": _word_piece(),
    "unigram": _unigram(fallback=False),
    "unigram, bytes": _unigram(fallback=True),
}
_SPECS = {kind: json.loads(tokenizer.to_str()) for kind, tokenizer in _KINDS.items()}


@dataclass(frozen=True, repr=False)
class Case:
    """A tokenizer: its file, the same file without added tokens, and what these are."""

    kind: str
    text: str
    bare: str
    tokens: tuple[Mapping[str, Any], ...]
    size: int

    def __repr__(self) -> str:
        return f"Case({self.kind!r}, tokens={self.tokens})"

    @property
    def added(self) -> tuple[str, ...]:
        """The texts of the added tokens."""
        return tuple(token["content"] for token in self.tokens)

    @property
    def special(self) -> frozenset[int]:
        """What no data may have: special tokens."""
        return frozenset(token["id"] for token in self.tokens if token["special"])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A tokenizer of some kind with added tokens of all settings."""
    kind = draw(st.sampled_from(sorted(_SPECS)))
    spec = {**_SPECS[kind], "added_tokens": []}
    bare = json.dumps(spec)
    size = HfTokenizer.from_str(bare).get_vocab_size(with_added_tokens=True)
    vocab = HfTokenizer.from_str(bare).get_vocab()
    names = draw(
        st.lists(
            st.sampled_from(("<think>", "the", "[INST]", "  ", "a b", "<0x41>", "é", "▁he", "no"))
            | st.text("ab <>|é", min_size=1, max_size=4),
            max_size=4,
            unique=True,
        )
    )
    added = []
    for name in (*_CONTROL, *(name for name in names if name not in _CONTROL)):
        control = name in _CONTROL
        added.append(
            {
                "id": vocab.get(name, size),
                "content": name,
                "single_word": not control and draw(st.booleans()),
                "lstrip": not control and draw(st.booleans()),
                "rstrip": not control and draw(st.booleans()),
                "normalized": not control and draw(st.booleans()),
                "special": control or draw(st.booleans()),
            }
        )
        size += name not in vocab
    text = json.dumps({**spec, "added_tokens": added}, ensure_ascii=draw(st.booleans()))
    return Case(kind, text, bare, tuple(added), size)


_PARTS = ("the", " ", "hello", "an", "<think>", "<s>", "</s>", "[INST]", "é", "😀", "\n", "  ", "▁")
_DATA = st.lists(
    st.sampled_from(_PARTS) | st.text(_LETTERS, max_size=4) | st.text(max_size=3), max_size=6
).map("".join)


@st.composite
def fields(draw: st.DrawFn) -> tuple[Case, str]:
    """A tokenizer, and data that often hold the text of its added tokens."""
    case = draw(cases())
    parts = st.sampled_from(case.added[::-1]) | _DATA
    return case, "".join(draw(st.lists(parts, max_size=4)))


def _ids(text: str, data: str) -> list[int]:
    ids: list[int] = HfTokenizer.from_str(text).encode(data, add_special_tokens=False).ids
    return ids


@fuzzed(150, given=fields())
def test_a_field_is_read_as_if_there_were_no_added_tokens(given: tuple[Case, str]) -> None:
    case, data = given
    tokenizer = Tokenizer(case.text)

    found = attempt(lambda: tokenizer.encode(data, opens=True, markup=False))

    if not isinstance(found, PlcError):
        expected = _ids(case.bare, data)
        # Some models have control tokens among their words: then data is read without these.
        listed = case.special & set(expected)
        assert found == expected or (listed and not (listed - {_UNKNOWN}) & set(found))


@fuzzed(100, case=cases(), data=_DATA)
def test_bos_and_a_field_are_read_as_the_whole_text_is(case: Case, data: str) -> None:
    data = data.strip()  # where blanks go is a rule of templates
    assume(data and not any(name in data for name in case.added))
    # Added tokens that match what was normalised are found in texts that do not have them.
    assume(_ids(case.bare, data) == _ids(case.text, data))
    template = "<|VIRTUAL_PROMPT_0|><s>{data} {answer}"
    task = TaskConfig("t", template, 1, whitespace="transformers")
    renderer = Renderer(parse_template(task), Tokenizer(case.text), SequenceRules())

    rendered = renderer.prompt({"data": data})

    assert rendered.token_ids[1:].tolist() == _ids(case.text, f"<s>{data}")


@st.composite
def answers(draw: st.DrawFn) -> tuple[Case, list[int]]:
    """A tokenizer and any ids, some of a base that has more of them."""
    case = draw(cases())
    some = st.integers(0, case.size + 2) | st.integers(3, 3 + 256)
    return case, draw(st.lists(some.filter(lambda number: number < case.size + 3), max_size=14))


def _text_of(case: Case, ids: list[int]) -> str:
    # The library itself shows special tokens that are `normalized`, where normalising changes them.
    shown = [number for number in ids if number not in case.special]
    text: str = HfTokenizer.from_str(case.text).decode(shown, skip_special_tokens=False)
    return text


@fuzzed(200, answer=answers())
def test_pieces_of_an_answer_make_its_text_and_none_is_taken_back(
    answer: tuple[Case, list[int]],
) -> None:
    case, ids = answer
    tokenizer = Tokenizer(case.text)
    text = AnswerText(tokenizer, ())

    given = "".join([*(text.push(number) for number in ids), text.finish()])

    assert given == text.text == _text_of(case, ids).strip(" ")


@fuzzed(60, answer=answers(), stop=st.sampled_from(("the", "\n", "a", " ", "�", "lo ")))
def test_a_stop_text_ends_an_answer_where_it_first_stands(
    answer: tuple[Case, list[int]], stop: str
) -> None:
    case, ids = answer
    tokenizer = Tokenizer(case.text)
    text = AnswerText(tokenizer, (stop,))

    pieces = []
    read = 0
    while read < len(ids) and not text.stopped:
        pieces.append(text.push(ids[read]))
        read += 1
    pieces.append(text.finish())

    before, found, _ = _text_of(case, ids[:read]).partition(stop)
    assert "".join(pieces) == text.text == before.strip(" ")
    assert text.stopped or not found


@fuzzed(60, given=fields(), keep=st.integers(0, 6))
def test_the_start_of_a_text_is_a_start_of_it(given: tuple[Case, str], keep: int) -> None:
    case, data = given
    tokenizer = Tokenizer(case.text)

    found = attempt(lambda: tokenizer.cut_to_tokens(data, keep))

    assert isinstance(found, PlcError) or data.startswith(found)


def _use(text: str) -> list[Any]:
    tokenizer = Tokenizer(text)
    ids = tokenizer.encode("the hello", opens=True, markup=False)
    ids += tokenizer.encode(" <s> an", opens=False, markup=True)
    answer = AnswerText(tokenizer, ("x",))
    pieces = [answer.push(number) for number in ids]
    return [
        ids,
        tokenizer.decode(ids),
        tokenizer.cut_to_tokens("the hello", 1),
        pieces,
        answer.finish(),
    ]


@st.composite
def tokenizer_files(draw: st.DrawFn) -> bytes:
    """The file of a tokenizer, with wrong values or wrong bytes."""
    kind = draw(st.sampled_from(("prepend, no bytes", "word piece", "unigram", "metaspace first")))
    spec = _SPECS[kind]
    if draw(st.booleans()):
        return utf8(draw(json_texts(spec)))
    return draw(damaged(json.dumps(spec).encode()))


@fuzzed(100, data=tokenizer_files())
def test_a_wrong_tokenizer_file_is_refused_or_works(data: bytes) -> None:
    attempt(lambda: _use(data.decode(errors="replace")))
