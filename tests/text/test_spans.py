"""Spans of a text: words, and the tokens that may write them."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pl_compile.artifact.prompt_table import TaskEntry
from pl_compile.config.task import CopiedAnswer, TaskConfig
from pl_compile.errors import ConfigError
from pl_compile.testing import byte_fallback_tokenizer
from pl_compile.text.render import Renderer, SequenceRules
from pl_compile.text.spans import SpanWalk
from pl_compile.text.template import parse_template
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.text.words import words_of

TEXTS = st.lists(
    st.sampled_from(
        [
            "the",
            " ",
            "  ",
            "\n",
            "J.D.",
            ",",
            "cold",
            "Cold",
            "1987",
            "née",
            "🦊",
            "日本",
            "(",
            ").",
        ]
    ),
    max_size=9,
).map("".join)


def lower_case_words() -> str:
    """A WordPiece that knows no capitals: equal tokens for texts that differ."""
    from tokenizers import Tokenizer as HfTokenizer
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,()é日本"
    words = ["[UNK]", "the", "cold", "19", "##87", *letters, *(f"##{each}" for each in letters)]
    model = models.WordPiece({word: key for key, word in enumerate(words)}, unk_token="[UNK]")
    tokenizer = HfTokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    text: str = tokenizer.to_str()
    return text


def joining_bytes() -> str:
    """A byte-level BPE with tokens over the ends of words, such as '.,'."""
    from tokenizers import Tokenizer as HfTokenizer
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), (".", ","), (")", "."), (".", "Ċ")]
    merges += [("c", "o"), ("co", "ld"), ("l", "d"), ("Ġ", "cold"), ("Ġ", "Ġ")]
    merges.sort(key=lambda pair: sum(map(len, pair)))
    vocab = {piece: key for key, piece in enumerate([*alphabet, *map("".join, merges)])}
    tokenizer = HfTokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    text: str = tokenizer.to_str()
    return text


TOKENIZERS = {
    "bytes": joining_bytes(),
    "prepended": byte_fallback_tokenizer("prepend"),
    "first": byte_fallback_tokenizer("first"),
    "lower case": lower_case_words(),
}


def renderer_of(kind: str, template: str = "{text} => {answer}") -> Renderer:
    task = TaskConfig("copy", f"<|VIRTUAL_PROMPT_0|>{template}", 3, answer=CopiedAnswer("text"))
    return Renderer(parse_template(task), Tokenizer(TOKENIZERS[kind]), SequenceRules())


def spans_of(text: str) -> Iterator[str]:
    words = words_of(text)
    for index, first in enumerate(words):
        for last in words[index:]:
            yield text[first.begin : last.end]


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, template=st.sampled_from(["{text} => {answer}", "{text} =>{answer}"]))
@example(text="J.D., cold", template="{text} => {answer}")
@example(text="cold.\nthe", template="{text} => {answer}")
@example(text="the cold the cold the 1987", template="{text} => {answer}")
def test_the_tokens_of_spans_are_those_that_training_learns(
    kind: str, text: str, template: str
) -> None:
    """Allowed is what any span goes on with, and an end where one is whole: no more, no less."""
    if kind == "lower case":  # of a word with an unknown character, it knows no part
        text = text.replace("🦊", "")
    renderer = renderer_of(kind, template)
    fields = {"text": text}
    expected: dict[tuple[int, ...], set[str]] = {}
    for span in spans_of(text):
        expected.setdefault(tuple(renderer.answers(fields, [span])[0]), set()).add(span)
    goes_on: dict[tuple[int, ...], set[int]] = {(): set()}
    for ids in expected:
        for count, token in enumerate(ids):
            goes_on.setdefault(ids[:count], set()).add(token)

    for ids in goes_on | expected:
        _, walk = renderer.prompt_and_spans(fields)
        said = "".join(map(walk.push, ids))
        assert walk.allowed() == sorted(goes_on.get(ids, ()))
        assert walk.is_span == (ids in expected)
        if ids in expected:
            assert said + walk.finish() in expected[ids]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n", []),
        ("the cold,", ["the", "cold", ","]),
        ("$40 (J.D.)", ["$", "40", "(", "J", ".", "D", ".", ")"]),
        ("x_1 10km", ["x_1", "10km"]),
        ("ne\u0301e 🦊\ufe0f", ["ne\u0301e", "🦊\ufe0f"]),
        ("日本a b", ["日", "本", "a", "b"]),
        ("กำ", ["ก", "ำ"]),
        ("\u0301a", ["\u0301", "a"]),
    ],
)
def test_words_of_a_text(text: str, expected: list[str]) -> None:
    assert [text[word.begin : word.end] for word in words_of(text)] == expected


def test_the_text_is_that_of_the_field_and_is_never_taken_back() -> None:
    """Two places with equal tokens: their common start is certain, the first is taken."""
    renderer = renderer_of("lower case")
    (ids,) = renderer.answers({"text": ""}, ["the cold 1987"])
    _, walk = renderer.prompt_and_spans({"text": "(the Cold the cold 1987"})

    pieces = [walk.push(token) for token in ids]

    assert pieces[:2] == ["the", " "]
    assert "".join(pieces) == "the cold 1987"
    _, walk = renderer.prompt_and_spans({"text": "(the Cold the cold 1987"})
    assert [walk.push(token) for token in ids[:2]] == ["the", " "]
    assert walk.finish() == "Cold"


def test_one_place_left_says_what_follows() -> None:
    renderer = renderer_of("bytes")
    fields = {"text": "the cold the 1987 the end of it all, and more"}
    _, walk = renderer.prompt_and_spans(fields)
    (ids,) = renderer.answers(fields, ["1987 the end of it all"])
    assert walk.places > 1

    walk.push(ids[0])
    walk.push(ids[1])

    assert walk.places == 1
    assert walk.ahead(12) == ids[2:14]
    assert walk.ahead(400)[: len(ids) - 2] == ids[2:]


def test_spans_are_those_of_the_text_that_was_left_after_a_cut() -> None:
    task = TaskConfig(
        "copy",
        "<|VIRTUAL_PROMPT_0|>{text} => {answer}",
        3,
        truncate_field="text",
        answer=CopiedAnswer("text"),
    )
    renderer = Renderer(parse_template(task), Tokenizer(TOKENIZERS["bytes"]), SequenceRules())
    fields = {"text": "cold " * 9 + "the the"}
    whole, _ = renderer.prompt_and_spans(fields)
    (ids,) = renderer.answers(fields, ["the"])

    cut, walk = renderer.prompt_and_spans(fields, max_length=len(whole) - 6)

    assert len(cut) <= len(whole) - 6
    assert ids[0] not in walk.allowed()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"answer": CopiedAnswer("txt")}, r"answer\.span: .*'txt'.*Did you mean 'text'"),
        ({"answer": CopiedAnswer("answer")}, "'answer' does not stand before the answer"),
        ({"prompt_template": "<|VIRTUAL_PROMPT_0|>{text} x"}, "no field is the answer"),
        (
            {"prompt_template": "<|VIRTUAL_PROMPT_0|>{answer} {text}", "answer_field": "answer"},
            "'text' does not stand before the answer",
        ),
    ],
)
def test_a_field_that_cannot_be_copied_from_is_refused(
    changes: dict[str, object], told: str
) -> None:
    given: dict[str, object] = {
        "taskname": "copy",
        "prompt_template": "<|VIRTUAL_PROMPT_0|>{text} => {answer}",
        "total_virtual_tokens": 3,
        "answer": CopiedAnswer("text"),
        "answer_only_loss": "prompt_template" not in changes,
    }
    with pytest.raises(ConfigError, match=told):
        parse_template(TaskConfig(**{**given, **changes}))  # type: ignore[arg-type]


def test_choices_are_not_copied() -> None:
    with pytest.raises(ConfigError, match="choices, and an answer that is copied from 'text'"):
        TaskConfig("copy", "{text}{answer}", 3, choices=("a",), answer=CopiedAnswer("text"))


def test_the_record_of_a_task_that_copies_nothing_is_that_of_earlier_releases() -> None:
    plain = TaskConfig("plain", "<|VIRTUAL_PROMPT_0|>{text}{answer}", 3)
    rows = np.zeros((3, 4), np.float32)
    record = TaskEntry(plain, rows, SequenceRules(), "random").record()

    assert "answer" not in record["task"]
    assert json.dumps(record)


def test_a_tokenizer_from_a_folder_makes_pieces(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(TOKENIZERS["bytes"], encoding="utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path)

    pieces = tokenizer.pieces("the é", opens=True)

    assert (pieces[0].begin, pieces[0].end) == (0, 3)
    assert [piece.token_id for piece in pieces] == tokenizer.encode(
        "the é", opens=True, markup=False
    )
    assert isinstance(renderer_of("bytes").prompt_and_spans({"text": "a"})[1], SpanWalk)
