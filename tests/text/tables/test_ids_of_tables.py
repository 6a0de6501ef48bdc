"""The ids of a reader by the page are those of the library."""

import json
import random
from typing import Any

import pytest
from known_tokenizers import PRE_TOKENIZERS, byte_level, sequence, split
from reader import BYTE, NONE, NOT_SPECIAL, SPECIAL, Reader
from tiny_tokenizers import byte_level_tokenizer, hard_texts, with_added, with_parts
from tokenizers import AddedToken
from tokenizers import Tokenizer as HfTokenizer

from pl_compile.testing import byte_fallback_tokenizer
from pl_compile.text.tables import tables_of
from pl_compile.weights.bases import DEFAULT_BASE, cached_base_folder

_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True}


def check_ids(text: str, texts: list[str]) -> Reader:
    """With added tokens found, and with all of them as characters; and back to text."""
    reader, library = Reader(tables_of(text)), HfTokenizer.from_str(text)
    plain = HfTokenizer.from_str(with_parts(text, added_tokens=[]))
    for each in texts:
        ids = library.encode(each, add_special_tokens=False).ids
        assert reader.encode(each) == ids, each
        data = plain.encode(each, add_special_tokens=False).ids
        assert reader.encode(each, markup=False) == data, each
        assert reader.decode(ids) == library.decode(ids, skip_special_tokens=False)
    check_text_of_random_ids(reader, library)
    return reader


def check_text_of_random_ids(reader: Reader, library: HfTokenizer) -> None:
    source = random.Random(1)
    known = sorted(library.get_vocab().values())
    for length in range(60):
        ids = source.choices(known, k=length)
        assert reader.decode(ids) == library.decode(ids, skip_special_tokens=False)


# Byte-level


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_a_known_pre_tokenizer_gives_the_ids_of_the_library(name: str) -> None:
    text = byte_level_tokenizer(name)
    texts = hard_texts(seed=7, count=240)

    reader = check_ids(text, texts)

    pieces = [piece for each in texts for piece in reader.pieces(each)]
    assert name == "no split" or len(pieces) > len(texts)


@pytest.mark.parametrize("name", ["SmolLM2", "o200k", "DeepSeek V3"])
def test_every_block_of_unicode_is_split_as_the_library_splits_it(name: str) -> None:
    text = byte_level_tokenizer(name)
    reader, library = Reader(tables_of(text)), HfTokenizer.from_str(text)
    codes = [code for code in range(0, 0x110000, 97) if not 0xD800 <= code < 0xE000]
    texts = [f"a{chr(code)}1{chr(code)}{chr(code)} {chr(code)}'" for code in codes]

    for each in texts[::7]:
        assert reader.encode(each) == library.encode(each, add_special_tokens=False).ids
    wanted = [[part for part, _ in library.pre_tokenizer.pre_tokenize_str(each)] for each in texts]
    assert [len(reader.pieces(each)) for each in texts] == [len(parts) for parts in wanted]


def test_added_tokens_that_nfc_leaves_where_they_are_are_found() -> None:
    normalized = [
        AddedToken(text, normalized=True) for text in ("  ", "    ", "[1]", "_|_", "\n\n")
    ]
    text = with_added(byte_level_tokenizer("Qwen 2.5"), *normalized)
    parts = (
        "  ",
        "   ",
        "[1]",
        "\n\n",
        "\u0301",
        "\u0338",
        "e",
        "K",
        "\u0344",
        "\u0f73",
        "가",
        "\u11a8",
    )

    check_ids(text, hard_texts(21, 400, parts * 4))


@pytest.mark.parametrize("invert", [True, False])
def test_a_split_that_isolates_is_the_same_inverted(invert: bool) -> None:
    by = sequence(split(r"\p{L}+|\d", invert=invert), byte_level())
    text = with_parts(byte_level_tokenizer("no split"), pre_tokenizer=by)

    assert check_ids(text, hard_texts(22, 120)).pieces("ab, 12c") == ["ab", ", ", "1", "2", "c"]


def test_nfc_is_that_of_the_library_before_all_else() -> None:
    text = byte_level_tokenizer("Qwen 2.5")
    reader, library = Reader(tables_of(text)), HfTokenizer.from_str(text)

    changed = 0
    for each in hard_texts(seed=11, count=900):
        wanted = library.normalizer.normalize_str(each)
        assert reader.normalized(each) == wanted
        changed += wanted != each
    assert changed > 100


def test_a_piece_that_is_a_token_is_not_divided_where_merges_are_ignored() -> None:
    text = byte_level_tokenizer("no split")
    spec = json.loads(text)["model"]
    # No merge makes this token.
    whole = {"vocab": spec["vocab"] | {"Ġquartz": 999}, "ignore_merges": True}
    reader = check_ids(with_parts(text, model=whole), [" quartz", " quartz ", "quartz"])

    assert reader.encode(" quartz") == [999]
    assert len(check_ids(with_parts(text, model=whole | {"ignore_merges": False}), []).whole) == 0


def test_of_a_merge_that_is_listed_twice_the_last_rank_counts() -> None:
    text = byte_level_tokenizer("no split")
    vocab = json.loads(text)["model"]["vocab"] | {"qx": 900, "xz": 901}
    once = with_parts(text, model={"vocab": vocab, "merges": [["q", "x"], ["x", "z"]]})
    merges = [["q", "x"], ["x", "z"], ["q", "x"]]
    twice = with_parts(text, model={"vocab": vocab, "merges": merges})

    assert check_ids(once, ["qxz"]).encode("qxz") == [900, vocab["z"]]
    reader = check_ids(twice, ["qxz"])
    assert reader.encode("qxz") == [vocab["q"], 901]
    assert reader.meta["merges"] == 2


def test_merges_in_the_older_form_are_read_as_the_library_reads_them() -> None:
    text = byte_level_tokenizer("GPT-2")
    merges = ["#version: 0.2", *map(" ".join, json.loads(text)["model"]["merges"])]
    older = with_parts(text, model={"merges": merges})

    check_ids(older, hard_texts(seed=2, count=20))
    assert tables_of(older) == tables_of(text)


def _without_byte(text: str, character: str, unknown: str | None) -> str:
    spec = json.loads(text)["model"]
    kept = {token: key for token, key in spec["vocab"].items() if character not in token}
    merges = [merge for merge in spec["merges"] if character not in "".join(merge)]
    model = {"vocab": kept, "merges": merges, "unk_token": unknown}
    return with_parts(text, model=model, added_tokens=[])


@pytest.mark.parametrize("unknown", [None, "e"])
def test_a_byte_without_a_token_is_left_out_or_the_unknown_token(unknown: str | None) -> None:
    text = _without_byte(byte_level_tokenizer("GPT-2"), "q", unknown)
    e = json.loads(text)["model"]["vocab"]["e"]

    reader = check_ids(text, ["qq", "the quick", "thqn", "qthqqe"])

    assert reader.encode("qq") == ([] if unknown is None else [e, e])


def test_an_added_token_is_decoded_as_the_library_decodes_it() -> None:
    tokens = [AddedToken("éü", normalized=False), AddedToken("“so” ▁", normalized=False)]
    text = with_added(byte_level_tokenizer("GPT-2"), *tokens)
    ends = json.loads(text)["added_tokens"][-5:]

    reader = check_ids(text, ["aéüb “so” ▁x<|end|>", "éü"])

    kinds = {token["content"]: reader.kinds[token["id"]] for token in ends}
    assert (kinds["<|end|>"], kinds["éü"]) == (SPECIAL, NOT_SPECIAL)


def test_the_longest_added_token_is_found_first_and_a_longer_one_hides_the_shorter() -> None:
    tokens = [AddedToken(text, normalized=False) for text in ("ab", "abcd", "bcde", "c")]
    text = with_added(byte_level_tokenizer("GPT-2"), *tokens)

    check_ids(text, ["abcde", "xabcabcdbcdec", "aabcdebcdebc"])


@pytest.mark.parametrize("normalized", [True, False])
def test_added_tokens_are_found_whatever_they_are_called_where_nothing_normalizes(
    normalized: bool,
) -> None:
    token = AddedToken("[the]", normalized=normalized)

    check_ids(with_added(byte_level_tokenizer("GPT-2"), token), ["a[the] x", "[the[the]]<|end|>"])


# Characters, and bytes where there is none


def test_a_tokenizer_with_byte_fallback_gives_the_ids_of_the_library() -> None:
    added: list[dict[str, Any]] = [{"content": text} for text in ("[INST]", "<think>", "▁▁")]
    added[0]["special"] = True
    text = byte_fallback_tokenizer("prepend", added)
    texts = hard_texts(3, 300, ("▁", "▁▁", "[INST]", "<s>", "<0x0A>", "\n"))

    reader = check_ids(text, texts)

    assert reader.kinds.count(BYTE) == 256
    assert reader.decode(reader.encode(" two  blanks")) == " two  blanks"


@pytest.mark.parametrize("splits", [True, False])
@pytest.mark.parametrize("scheme", ["never", "first", "always"])
def test_a_metaspace_is_steps_and_a_split(scheme: str, splits: bool) -> None:
    metaspace = _METASPACE | {"split": splits, "prepend_scheme": scheme}
    added = [{"content": text, "special": text == "[INST]"} for text in ("[INST]", "▁▁", "a b")]
    text = with_parts(
        byte_fallback_tokenizer("first", added), normalizer=None, pre_tokenizer=metaspace
    )
    texts = ["", " ", "▁", "a", "[INST]a", " [INST]a", "[INST][INST]", "a[INST] a[INST]▁a", "\n▁"]

    reader = check_ids(text, [*texts, *hard_texts(5, 240, ("▁", "▁▁", "[INST]", " a", "b"))])

    assert reader.pieces("a▁▁b▁") == (["a", "▁", "▁b", "▁"] if splits else ["a▁▁b▁"])
    in_front = {"never": ["", ""], "first": ["▁", ""], "always": ["▁", "▁"]}[scheme]
    places = (True, False)
    assert [reader.normalized("a", is_first=place) for place in places] == [
        f"{s}a" for s in in_front
    ]
    assert [reader.normalized(" a", is_first=place) for place in places] == ["▁a", "▁a"]


def test_a_metaspace_puts_nothing_before_a_text_that_the_normalizer_emptied() -> None:
    removed = {"type": "Replace", "pattern": {"String": "x"}, "content": ""}
    added = [{"content": "[INST]"}]
    text = with_parts(byte_fallback_tokenizer("always", added), normalizer=removed)

    reader = check_ids(text, ["x", "xx[INST]x", "xa[INST]xa", "x a"])

    assert reader.encode("x") == []


def test_a_metaspace_follows_a_normalizer_that_leaves_the_start_where_it_is() -> None:
    steps = [_REPLACE | {"pattern": {"String": "x"}, "content": "yy"}, {"type": "NFC"}]
    steps.append({"type": "Prepend", "prepend": "z"})
    normalizer = {"type": "Sequence", "normalizers": steps}
    added = [{"content": "[INST]"}]
    text = with_parts(byte_fallback_tokenizer("first", added), normalizer=normalizer)

    check_ids(text, ["x", "xx[INST]x", " xa", *hard_texts(6, 200, ("x", " ", "[INST]"))])


def test_the_split_of_gemma_that_finds_nothing_is_left_out() -> None:
    blanks = split(" ", kind="String", behavior="MergedWithPrevious")
    text = byte_fallback_tokenizer("prepend")
    decoder = json.loads(text)["decoder"]
    del decoder["decoders"][3]  # Strip
    gemma = with_parts(text, normalizer=_REPLACE, pre_tokenizer=blanks, decoder=decoder)

    reader = check_ids(gemma, hard_texts(9, 200, ("▁", "▁▁", "  ")))

    assert reader.tables == []


# The default base


@pytest.mark.real
def test_the_default_base_gives_the_ids_of_the_library() -> None:
    path = cached_base_folder(DEFAULT_BASE) / "tokenizer.json"
    if not path.is_file():
        pytest.skip(
            f"needs the base {DEFAULT_BASE} (plc fetch {DEFAULT_BASE}); on tiny vocabularies: "
            "test_a_known_pre_tokenizer_gives_the_ids_of_the_library"
        )
    text = path.read_text(encoding="utf-8")

    reader = check_ids(text, hard_texts(13, 400, ("<|im_start|>", "<|im_end|>", "<|endoftext|>")))

    assert reader.meta["vocab"] == 49152
    assert sum(map(len, reader.sections.values())) < 3 << 20


# The bytes


def test_each_section_has_the_size_that_the_page_says() -> None:
    reader = Reader(tables_of(byte_level_tokenizer("Qwen 2.5")))
    vocab, classes = reader.meta["vocab"], reader.meta["classes"]
    capacity = len(reader.merges) // 4
    sizes = {tag: len(content) for tag, content in reader.sections.items()}

    assert (sizes["META"], sizes["VTYP"], sizes["BYTE"]) == (32, vocab, 1024)
    assert sizes["VOFF"] == 4 * (vocab + 1)
    assert sizes["CLS1"] == 2 * 0x110000 // 128
    assert sizes["CLS2"] == 128 * (max(reader.blocks) + 1)
    assert max(reader.sections["CLS2"]) == classes - 1
    assert capacity.bit_count() == 1
    assert sum(left != NONE for left in reader.merges[::4]) == reader.meta["merges"] < capacity
    assert sum(sizes.values()) < 200_000


def test_without_splits_there_is_one_class_and_without_nfc_no_table_for_it() -> None:
    reader = Reader(tables_of(byte_level_tokenizer("no split")))

    assert (reader.meta["classes"], reader.sections["DFAS"]) == (1, b"")
    assert "NFCT" not in reader.sections


def test_the_bytes_are_the_same_each_time() -> None:
    text = byte_level_tokenizer("Qwen 2.5")

    assert tables_of(text) == tables_of(text)
