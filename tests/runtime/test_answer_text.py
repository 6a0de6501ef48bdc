from itertools import combinations, product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pl_compile.runtime.answer_text import AnswerText
from pl_compile.testing import byte_fallback_tokenizer
from pl_compile.text.tokenizer import Tokenizer

EOS = 1
VOCAB = 397
_FIRST_BYTE = 3  # in the tokenizer with byte fallback


@pytest.fixture(scope="module")
def tokenizer(tiny_bases: dict[str, Path]) -> Tokenizer:
    return Tokenizer.from_folder(tiny_bases["llama"])


def _ids(tokenizer: Tokenizer, *texts: str) -> list[int]:
    """The ids of texts, each tokenised by itself."""
    return [
        token_id for text in texts for token_id in tokenizer.encode(text, opens=False, markup=False)
    ]


def _write(answer: AnswerText, ids: list[int]) -> list[str]:
    """What a session hands out: a piece a token until a stop text, then what was held."""
    pieces = []
    for token_id in ids:
        pieces.append(answer.push(token_id))
        if answer.stopped:
            break
    return [*pieces, answer.finish()]


def _answer(tokenizer: Tokenizer, *texts: str, stops: tuple[str, ...] = ()) -> str:
    answer = AnswerText(tokenizer, stops)
    _write(answer, _ids(tokenizer, *texts))
    return answer.text


# Pieces


def test_pieces_are_handed_out_as_tokens_come(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, ())

    pieces = _write(answer, _ids(tokenizer, " nobody", " was", " there"))

    assert "".join(pieces) == answer.text == "nobody was there"
    assert len([piece for piece in pieces if piece]) > 2


def test_a_character_is_held_until_it_is_complete(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, ())
    ids = _ids(tokenizer, "🦊")

    pieces = [answer.push(token_id) for token_id in ids]

    assert len(ids) > 1
    assert pieces == [""] * (len(ids) - 1) + ["🦊"]


def test_a_character_that_never_becomes_complete_is_what_decode_makes_of_it(
    tokenizer: Tokenizer,
) -> None:
    answer = AnswerText(tokenizer, ())
    ids = [*_ids(tokenizer, "a"), *_ids(tokenizer, "🦊")[:-1]]

    pieces = _write(answer, ids)

    assert "".join(pieces) == answer.text == tokenizer.decode(ids) == "a\ufffd"


def test_special_tokens_are_not_part_of_the_text(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, ())

    _write(answer, [0, *_ids(tokenizer, "a"), EOS, *_ids(tokenizer, "b")])

    assert answer.text == "ab"


# Blanks


def test_blanks_around_an_answer_are_dropped_and_those_inside_kept(tokenizer: Tokenizer) -> None:
    assert _answer(tokenizer, "  ", " who", "  ", " was", "  ", " ") == "who   was"


def test_blanks_at_the_end_are_held_until_something_follows(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, ())

    first = [answer.push(token_id) for token_id in _ids(tokenizer, "a", " ", " ")]
    then = [answer.push(token_id) for token_id in _ids(tokenizer, "b")]

    assert "".join(first) == "a"
    assert "".join(then) == "  b"


def test_line_ends_are_no_blanks(tokenizer: Tokenizer) -> None:
    assert _answer(tokenizer, "\n", "who", "\n") == "\nwho\n"


def test_an_answer_of_blanks_is_empty(tokenizer: Tokenizer) -> None:
    assert _answer(tokenizer, " ", "  ") == ""


# Stop texts


def test_a_stop_text_in_bytes_that_are_not_certain_yet_ends_the_answer_at_once() -> None:
    tokenizer = Tokenizer(byte_fallback_tokenizer("prepend"))
    answer = AnswerText(tokenizer, ("\n",))

    pieces = [answer.push(token_id) for token_id in _ids(tokenizer, "who", "\n")]

    assert answer.stopped
    assert "".join(pieces) == answer.text == "who"
    assert answer.finish() == ""


@pytest.mark.parametrize("before", ["é", "日", "😀", "a😀é日"])
def test_a_stop_text_after_many_held_bytes_ends_the_answer_at_once(before: str) -> None:
    tokenizer = Tokenizer(byte_fallback_tokenizer("prepend"))
    answer = AnswerText(tokenizer, ("é\n",))
    text = before * 60

    for byte in f"{text}é\n".encode():
        assert not answer.stopped
        answer.push(_FIRST_BYTE + byte)

    assert (answer.text, answer.stopped) == (text, True)


def test_an_unfinished_character_in_bytes_is_no_stop_text_yet() -> None:
    tokenizer = Tokenizer(byte_fallback_tokenizer("prepend"))
    answer = AnswerText(tokenizer, ("\ufffd",))

    _write(answer, [_FIRST_BYTE + byte for byte in "😀".encode()])

    assert (answer.text, answer.stopped) == ("😀", False)


def test_a_stop_text_inside_a_token_ends_the_answer_before_it(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, ("stion",))

    pieces = _write(answer, _ids(tokenizer, "who", "question", "was"))

    assert answer.stopped
    assert "".join(pieces) == answer.text == "whoque"


def test_a_stop_text_over_several_tokens_is_found_and_none_of_it_is_handed_out(
    tokenizer: Tokenizer,
) -> None:
    answer = AnswerText(tokenizer, ("STOP",))

    pieces = _write(answer, _ids(tokenizer, "whoS", "T", "O", "P", "was"))

    assert answer.stopped
    assert "".join(pieces) == answer.text == "who"


def test_the_start_of_a_stop_text_is_held_and_given_when_it_was_none(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, ("STOP",))

    held = [answer.push(token_id) for token_id in _ids(tokenizer, "a", "S", "T")]
    given_back = [answer.push(token_id) for token_id in _ids(tokenizer, "a")]

    assert "".join(held) == "a"
    assert "".join(given_back) == "STa"
    assert not answer.stopped


def test_the_start_of_a_stop_text_is_given_at_the_end(tokenizer: Tokenizer) -> None:
    assert _answer(tokenizer, "aST", stops=("STOP",)) == "aST"


def test_a_stop_text_that_begins_anew_inside_itself_is_found(tokenizer: Tokenizer) -> None:
    assert _answer(tokenizer, "x", "a", "a", "b", stops=("aab",)) == "x"
    assert _answer(tokenizer, "x", "a", "a", "a", "b", stops=("aab",)) == "xa"


def test_of_several_stop_texts_in_a_token_the_earliest_counts(tokenizer: Tokenizer) -> None:
    assert len(_ids(tokenizer, "estion")) == 1

    assert _answer(tokenizer, "qu", "estion", stops=("on", "sti")) == "que"


def test_a_stop_text_at_once_makes_an_empty_answer(tokenizer: Tokenizer) -> None:
    assert _answer(tokenizer, "\n", "who", stops=("\n",)) == ""


def test_blanks_before_a_stop_text_are_dropped(tokenizer: Tokenizer) -> None:
    assert _answer(tokenizer, "who", " ", "\n", stops=("\n",)) == "who"


def test_blanks_before_a_stop_text_of_several_tokens_are_dropped(tokenizer: Tokenizer) -> None:
    assert _answer(tokenizer, "who", " ", "\n", "\n", stops=("\n\n",)) == "who"


def test_a_stop_text_of_blanks_is_found_between_words(tokenizer: Tokenizer) -> None:
    assert _answer(tokenizer, "who", " ", " ", "was", stops=("  ",)) == "who"


# For all answers

_STOPS = ("\n\n", "\n", "ab", "aba", "a b", " a", "  ", "b\n", "\n a")


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
@settings(derandomize=True, deadline=None, max_examples=300, database=None)
@given(
    ids=st.lists(
        st.integers(0, VOCAB - 1) | st.sampled_from((_FIRST_BYTE + 0x0A, _FIRST_BYTE + 0xF0)),
        max_size=12,
    ),
    stops=st.lists(st.sampled_from(_STOPS), max_size=2).map(tuple),
)
def test_pieces_of_any_tokens_make_up_what_decode_gives_of_them(
    tokenizer: Tokenizer, kind: str, ids: list[int], stops: tuple[str, ...]
) -> None:
    if kind == "byte fallback":
        tokenizer = Tokenizer(byte_fallback_tokenizer("prepend"))
    answer = AnswerText(tokenizer, stops)

    *pieces, rest = _write(answer, ids)

    assert "".join([*pieces, rest]) == answer.text
    decoded = tokenizer.decode(ids[: len(pieces)])
    assert answer.text == _up_to_a_stop((decoded,), stops)


@pytest.mark.parametrize("stops", [(), *combinations(_STOPS, 1), ("\n\n", "ab"), ("aba", " a")])
def test_an_answer_is_its_text_up_to_the_first_stop_without_outer_blanks(
    tokenizer: Tokenizer, stops: tuple[str, ...]
) -> None:
    tokens = {text: _ids(tokenizer, text) for text in ("a", "b", " ", "\n")}
    wrong = []

    for texts in product(tokens, repeat=5):
        answer = AnswerText(tokenizer, stops)
        pieces = _write(answer, [token_id for text in texts for token_id in tokens[text]])
        expected = _up_to_a_stop(texts, stops)
        if not "".join(pieces) == answer.text == expected:
            wrong.append(("".join(texts), answer.text, expected))

    assert wrong == [], f"{len(wrong)} of {4**5}: (written, got, expected)"


def _up_to_a_stop(texts: tuple[str, ...], stops: tuple[str, ...]) -> str:
    """The text up to the stop text that is complete first, without outer blanks."""
    written = ""
    for text in texts:
        written += text
        places = [written.find(stop) for stop in stops if stop in written]
        if places:
            return written[: min(places)].strip(" ")
    return written.strip(" ")
