"""What the tables cannot say exactly is refused by its name."""

import json
import re
from typing import Any

import pytest
from known_tokenizers import byte_level, digits, sequence, split
from reader import Reader
from tiny_tokenizers import byte_level_tokenizer, with_added, with_parts
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as HfTokenizer

from pl_compile.errors import ExportError, TablesError
from pl_compile.testing import byte_fallback_tokenizer
from pl_compile.text.tables import tables_of

_NFC = {"type": "NFC"}
_BLANKS = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def _refusal(text: str) -> str:
    with pytest.raises(TablesError) as error:
        tables_of(text)
    return error.value.found


def _metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}


@pytest.mark.parametrize("kind", [models.WordPiece, models.WordLevel, models.Unigram])
def test_a_model_that_is_no_bpe_is_refused(kind: Any) -> None:
    assert _refusal(HfTokenizer(kind()).to_str()) == f"the model {kind.__name__}"


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"dropout": 0.1}, "a BPE with dropout"),
        ({"continuing_subword_prefix": "##"}, "a BPE with continuing_subword_prefix"),
        ({"end_of_word_suffix": "</w>"}, "a BPE with end_of_word_suffix"),
    ],
)
def test_settings_of_a_bpe_that_change_its_tokens_are_refused(
    settings: dict[str, Any], found: str
) -> None:
    # Without merges: those of this vocabulary do not fit the prefix.
    text = with_parts(byte_level_tokenizer("GPT-2"), model=settings | {"merges": []})

    assert _refusal(text) == found


@pytest.mark.parametrize(
    ("pre_tokenizer", "found"),
    [
        (None, "a BPE without bytes"),
        ({"type": "Whitespace"}, "the pre-tokenizer Whitespace"),
        ({"type": "Punctuation", "behavior": "Isolated"}, "the pre-tokenizer Punctuation"),
        (sequence({"type": "BertPreTokenizer"}), "the pre-tokenizer BertPreTokenizer"),
        (split("a", behavior="Removed"), "the pre-tokenizer Split with behavior Removed"),
        (split("", kind="String"), "the pre-tokenizer Split by ''"),
        (
            split("a", behavior="Removed", invert=True),
            "the pre-tokenizer Split with behavior Removed and invert",
        ),
        (
            split(r"\s+(?!\S)|\S+", behavior="Removed", invert=True),
            "the pre-tokenizer Split with behavior Removed and invert",
        ),
        (
            split("a", kind="String", behavior="MergedWithNext", invert=True),
            "the pre-tokenizer Split with behavior MergedWithNext and invert",
        ),
        (
            split(" ", kind="String", behavior="MergedWithPrevious"),
            "the pre-tokenizer Split with behavior MergedWithPrevious",
        ),
        (
            sequence(byte_level(), digits(one_by_one=True)),
            "the pre-tokenizer Digits after ByteLevel",
        ),
        (sequence(byte_level(), byte_level()), "the pre-tokenizer ByteLevel after ByteLevel"),
        (
            sequence(digits(one_by_one=True), byte_level(add_prefix_space=True)),
            "the pre-tokenizer ByteLevel with add_prefix_space after a split",
        ),
        (
            sequence(digits(one_by_one=True), _metaspace("never")),
            "the pre-tokenizer Metaspace after a split",
        ),
        (sequence(*[digits(one_by_one=True)] * 17, byte_level()), "17 splits"),
    ],
)
def test_a_pre_tokenizer_that_no_table_can_say_is_refused(pre_tokenizer: Any, found: str) -> None:
    assert _refusal(with_parts(byte_level_tokenizer("GPT-2"), pre_tokenizer=pre_tokenizer)) == found


@pytest.mark.parametrize(
    ("normalizer", "found"),
    [
        ({"type": "NFKC"}, "the normalizer NFKC"),
        ({"type": "Lowercase"}, "the normalizer Lowercase"),
        ({"type": "Sequence", "normalizers": [_NFC, {"type": "NFD"}]}, "the normalizer NFD"),
        (
            {"type": "Replace", "pattern": {"Regex": " +"}, "content": ""},
            "the normalizer Replace of {'Regex': ' +'}",
        ),
        ({"type": "Prepend", "prepend": ""}, "the normalizer Prepend of ''"),
        (
            {
                "type": "Sequence",
                "normalizers": [_BLANKS | {"content": ""}, {"type": "Prepend", "prepend": "▁"}],
            },
            "the normalizer Prepend after a Replace by nothing",
        ),
    ],
)
def test_a_normalizer_that_no_table_can_say_is_refused(normalizer: Any, found: str) -> None:
    assert _refusal(with_parts(byte_level_tokenizer("GPT-2"), normalizer=normalizer)) == found


@pytest.mark.parametrize(("old", "new"), [("x", ""), ("ab", "c")])
def test_a_metaspace_for_the_first_text_is_refused_where_its_start_may_move(
    old: str, new: str
) -> None:
    step = _BLANKS | {"pattern": {"String": old}, "content": new}
    text = with_parts(byte_fallback_tokenizer("first"), normalizer=step)

    assert _refusal(text).startswith(
        "the pre-tokenizer Metaspace with prepend_scheme 'first' after"
    )
    tables_of(with_parts(byte_fallback_tokenizer("always"), normalizer=step))


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [_BLANKS, _NFC],
        [_BLANKS, {"type": "Prepend", "prepend": " x"}],
        [_BLANKS, _BLANKS | {"pattern": {"String": "x"}, "content": " "}],
        [_BLANKS | {"content": " ▁"}],
        [_BLANKS | {"pattern": {"String": "  "}}],
    ],
)
def test_a_split_that_merges_is_refused_where_it_may_find_something(steps: list[Any]) -> None:
    text = with_parts(
        byte_fallback_tokenizer("prepend"),
        normalizer={"type": "Sequence", "normalizers": steps},
        pre_tokenizer=split(" ", kind="String", behavior="MergedWithPrevious"),
    )

    assert _refusal(text) == "the pre-tokenizer Split with behavior MergedWithPrevious"


@pytest.mark.parametrize("setting", ["lstrip", "rstrip", "single_word"])
def test_an_added_token_that_looks_beside_itself_is_refused(setting: str) -> None:
    token = AddedToken("<mask>", normalized=False, **{setting: True})

    found = _refusal(with_added(byte_level_tokenizer("GPT-2"), token))

    assert found == f"the added token '<mask>' with {setting}"


# The signs of kelvins and of ohms, "≮" and the syllable "가" are made of the first ones, or become
# them; a mark at the start would be moved or become a part of what stands before.
@pytest.mark.parametrize("content", ["<mask>", "K", "1Ω2", "1<", "ᄀ1", "\u0301", "é", ";", "가"])
def test_an_added_token_that_nfc_may_change_is_refused(content: str) -> None:
    text = with_added(byte_level_tokenizer("Qwen 2.5"), AddedToken(content, normalized=True))

    assert _refusal(text) == f"the added token {content!r} with normalized beside a normalizer"


def test_an_added_token_that_is_looked_for_after_other_steps_is_refused() -> None:
    text = byte_fallback_tokenizer("prepend", [{"content": "  ", "normalized": True}])

    assert _refusal(text) == "the added token '  ' with normalized beside a normalizer"


@pytest.mark.parametrize("other", ["abc", "bc", "b", "cd", "xab", "xabcd"])
def test_added_tokens_that_are_found_one_after_the_other_must_not_overlap(other: str) -> None:
    tokens = (AddedToken("abc", normalized=False), AddedToken(other, normalized=True))
    text = with_added(byte_level_tokenizer("GPT-2"), *tokens)

    if other == "abc":
        tables_of(text)  # one token
    else:
        assert "which can overlap" in _refusal(text)


def test_added_tokens_of_both_kinds_are_taken_where_they_cannot_overlap() -> None:
    tokens = (AddedToken("<a>", normalized=False), AddedToken("<b>", normalized=True))
    text = with_added(byte_level_tokenizer("GPT-2"), *tokens)
    library = HfTokenizer.from_str(text)

    for each in ("<a><b>", "<<b>a><a>>", "<a<b>>"):
        assert Reader(tables_of(text)).encode(each) == library.encode(each).ids


def test_an_added_token_with_the_id_of_another_is_refused() -> None:
    spec = json.loads(byte_level_tokenizer("GPT-2"))
    del spec["model"]["vocab"]["q"]
    merges = [merge for merge in spec["model"]["merges"] if "q" not in "".join(merge)]
    kept = {token: key for token, key in spec["model"]["vocab"].items() if "q" not in token}
    text = with_parts(json.dumps(spec), model={"vocab": kept, "merges": merges})

    assert re.match(r"the added token '<\|end\|>' with the id of ", _refusal(text))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"unk_token": "!", "fuse_unk": True}, "fuse_unk"),
        ({"unk_token": "nothing"}, "an unknown token that it lacks"),
        ({"byte_fallback": True}, "byte_fallback"),
    ],
)
def test_a_byte_without_a_token_is_refused_where_no_table_can_say_what_stands_for_it(
    settings: dict[str, Any], problem: str
) -> None:
    spec = json.loads(byte_level_tokenizer("GPT-2"))["model"]
    kept = {token: key for token, key in spec["vocab"].items() if "q" not in token}
    merges = [merge for merge in spec["merges"] if "q" not in "".join(merge)]
    model = {"vocab": kept, "merges": merges, **settings}
    text = with_parts(byte_level_tokenizer("GPT-2"), model=model, added_tokens=[])

    assert _refusal(text) == f"a byte-level vocabulary that lacks bytes, with {problem}"


@pytest.mark.parametrize(
    "decoder", [None, {"type": "Fuse"}, {"type": "Sequence", "decoders": [{"type": "Fuse"}]}]
)
def test_a_decoder_that_is_not_that_of_the_tokenizer_is_refused(decoder: Any) -> None:
    byte_level_found = _refusal(with_parts(byte_level_tokenizer("GPT-2"), decoder=decoder))
    fallback_found = _refusal(with_parts(byte_fallback_tokenizer("prepend"), decoder=decoder))

    expected = "the decoder Fuse or its settings" if decoder else "no decoder"
    assert byte_level_found == fallback_found == expected


@pytest.mark.parametrize(
    ("place", "settings"),
    [
        (0, {"content": "_"}),
        (0, {"pattern": {"String": "_"}}),
        (3, {"content": "_"}),
        (3, {"stop": 1}),
    ],
)
def test_other_settings_of_the_decoder_are_refused(place: int, settings: dict[str, Any]) -> None:
    text = byte_fallback_tokenizer("prepend")
    decoder = json.loads(text)["decoder"]
    decoder["decoders"][place] |= settings

    found = _refusal(with_parts(text, decoder=decoder))

    assert found == "the decoder Replace, ByteFallback, Fuse, Strip or its settings"


def test_byte_fallback_that_lacks_a_byte_or_ignores_merges_is_refused() -> None:
    text = byte_fallback_tokenizer("prepend")
    vocab = json.loads(text)["model"]["vocab"]
    lacking = {token: key for token, key in vocab.items() if token != "<0x41>"}

    found = _refusal(with_parts(text, model={"vocab": lacking}, added_tokens=[]))
    assert found == "a BPE with byte_fallback without the token <0x41>"
    found = _refusal(with_parts(text, model={"ignore_merges": True}))
    assert found == "a BPE with ignore_merges and byte_fallback"


@pytest.mark.parametrize("content", ["<0xab>", "<0x0A>", "<0x+1>"])
def test_a_token_that_looks_like_a_byte_is_refused(content: str) -> None:
    text = byte_fallback_tokenizer("prepend", [{"content": content}])

    assert _refusal(text).startswith(f"the token {content}, which is decoded as a byte")


def test_a_vocabulary_with_two_tokens_of_one_id_or_too_large_an_id_is_refused() -> None:
    text = byte_level_tokenizer("GPT-2")
    vocab = json.loads(text)["model"]["vocab"]

    twice = with_parts(text, model={"vocab": vocab | {"qqq": vocab["q"]}})
    large = with_parts(text, model={"vocab": vocab | {"qqq": 1 << 24}})
    assert _refusal(twice) == "a vocabulary with two tokens of one id"
    assert _refusal(large) == "a vocabulary with too large an id"
    empty: dict[str, Any] = {"vocab": {}, "merges": []}
    assert _refusal(with_parts(text, model=empty, added_tokens=[])) == "a vocabulary without tokens"


def test_more_classes_than_a_byte_can_say_are_refused() -> None:
    letters = [chr(code) for code in range(0x4E00, 0x4E00 + 260)]
    text = with_parts(
        byte_level_tokenizer("GPT-2"),
        pre_tokenizer=sequence(split("|".join(letters)), byte_level()),
    )

    assert _refusal(text) == "splits that divide code points into 261 classes"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"model": {}}'])
def test_what_the_library_cannot_read_is_refused_with_its_reason(text: str) -> None:
    assert _refusal(text).startswith("a text that is no tokenizer.json (")


def test_the_refusal_is_an_error_of_an_export_and_says_what_still_works() -> None:
    with pytest.raises(ExportError, match="writing the tokenizer as tables") as error:
        tables_of(with_parts(byte_level_tokenizer("GPT-2"), normalizer={"type": "NFKC"}))

    assert "expected Prepend, Replace or NFC" in str(error.value)
    assert "the Python runtime" in str(error.value)
