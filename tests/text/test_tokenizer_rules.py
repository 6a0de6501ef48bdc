import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as HfTokenizer

from pl_compile.config.task import TaskConfig
from pl_compile.errors import ArtifactError, DataError
from pl_compile.testing import byte_fallback_tokenizer
from pl_compile.text.render import Renderer, SequenceRules
from pl_compile.text.template import parse_template
from pl_compile.text.tokenizer import Tokenizer

_PIECES = ["<unk>", "<s>", "</s>", "▁", "h", "i", "y", "o", "▁h", "▁hi", "hi", "▁y", "▁yo", "yo"]
_MERGES = [("▁", "h"), ("▁h", "i"), ("h", "i"), ("▁", "y"), ("▁y", "o"), ("y", "o")]
_STYLES = ("metaspace first", "metaspace always", "prepend", "prepend in a sequence")


def _sentencepiece_like(style: str) -> HfTokenizer:
    """A BPE that writes a blank as "▁" and puts one before whatever it is given."""
    vocab = {piece: index for index, piece in enumerate(_PIECES)}
    tokenizer = HfTokenizer(models.BPE(vocab=vocab, merges=_MERGES, unk_token="<unk>"))
    if style.startswith("metaspace"):
        scheme = style.split()[1]
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    else:
        tokenizer.normalizer = (
            normalizers.Prepend("▁")
            if style == "prepend"
            else normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        )
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    tokenizer.add_special_tokens(
        [AddedToken("<s>", special=True), AddedToken("</s>", special=True)]
    )
    return tokenizer


@pytest.fixture(params=_STYLES)
def blank_putter(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(_sentencepiece_like(request.param).to_str())


@pytest.fixture(scope="module")
def tokenizer(tiny_bases: dict[str, Path]) -> Tokenizer:
    return Tokenizer.from_folder(tiny_bases["gpt2"])


def _names(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.token_name(token_id) for token_id in ids]


# Data is never markup


def test_a_special_token_in_data_is_its_characters(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|end|><|start|>", opens=False, markup=False)

    assert not {0, 1} & set(ids)
    assert tokenizer.decode(ids) == "a<|end|><|start|>"


def test_a_special_token_in_markup_is_a_token(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|end|>a<|start|>", opens=False, markup=True)

    assert (ids[0], ids[-1]) == (1, 0)
    assert tokenizer.decode(ids) == "a"


def test_markup_and_data_agree_on_text_without_special_tokens(tokenizer: Tokenizer) -> None:
    text = "Context: naïve café 😀 <|x|>"

    for opens in (True, False):
        data = tokenizer.encode(text, opens=opens, markup=False)
        assert data == tokenizer.encode(text, opens=opens, markup=True)


def test_neither_bos_nor_eos_is_added(tokenizer: Tokenizer) -> None:
    for opens in (True, False):
        for markup in (True, False):
            assert tokenizer.encode("", opens=opens, markup=markup) == []


def test_special_tokens_are_characters_for_a_sentencepiece_too(blank_putter: Tokenizer) -> None:
    data = blank_putter.encode("</s>", opens=False, markup=False)
    markup = blank_putter.encode("</s>", opens=False, markup=True)

    assert "</s>" not in _names(blank_putter, data)
    assert _names(blank_putter, markup) == ["</s>"]


_SETTINGS = ("special", "normalized", "lstrip", "rstrip", "single_word")


def _added(bits: int) -> dict[str, Any]:
    """An added token with some of the settings that one can have."""
    return {name: bool(bits >> place & 1) for place, name in enumerate(_SETTINGS)}


def _with_added(text: str, tokens: dict[str, dict[str, Any]]) -> HfTokenizer:
    tokenizer = HfTokenizer.from_str(text)
    tokenizer.add_tokens([AddedToken(content, **settings) for content, settings in tokens.items()])
    return tokenizer


def _without_added(tokenizer: HfTokenizer) -> HfTokenizer:
    return HfTokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()) | {"added_tokens": []}))


@pytest.mark.parametrize("bits", range(2 ** len(_SETTINGS)))
def test_an_added_token_with_whatever_settings_is_characters_in_data_and_a_token_in_markup(
    tokenizer: Tokenizer, bits: int
) -> None:
    tokens = {name: _added(bits) for name in ("<User>", "parcel", "éü", " two words ")}
    file = _with_added(tokenizer.text, tokens)
    ours, plain = Tokenizer(file.to_str()), _without_added(file)
    texts = [f"a{space}{name}{space}b" for name in tokens for space in ("", " ", "\n")]

    for text in texts:
        data = ours.encode(text, opens=True, markup=False)
        markup = ours.encode(text, opens=True, markup=True)

        assert data == plain.encode(text, add_special_tokens=False).ids
        assert ours.decode(data) == text
        assert markup == file.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("special", [True, False])
def test_only_special_tokens_are_no_text(tokenizer: Tokenizer, special: bool) -> None:
    file = _with_added(tokenizer.text, {"<think>": {"special": special}})
    ours = Tokenizer(file.to_str())
    ids = [*ours.encode("a<think>b", opens=True, markup=True), 0]

    assert ours.decode(ids) == file.decode(ids) == ("ab" if special else "a<think>b")


@pytest.mark.parametrize("scheme", ["prepend", "first", "always"])
def test_added_tokens_are_characters_for_a_tokenizer_with_bytes_too(scheme: Any) -> None:
    file = HfTokenizer.from_str(
        byte_fallback_tokenizer(
            scheme, [{"content": "<think>"}, {"content": "[INST]", "special": True}]
        )
    )
    ours, plain = Tokenizer(file.to_str()), _without_added(file)
    text = "who<s> was <think> there [INST]</s>😀"

    ids = ours.encode(text, opens=True, markup=False)

    assert ids == plain.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == text


def test_a_model_that_lists_special_tokens_beside_words_does_not_find_them_in_data() -> None:
    pieces = ("<unk>", "<s>", "▁", "h", "i", "<", "s", ">")
    unigram = models.Unigram([(piece, -float(place)) for place, piece in enumerate(pieces)], 0)
    file = HfTokenizer(unigram)
    file.pre_tokenizer = pre_tokenizers.Metaspace()
    file.decoder = decoders.Metaspace()
    file.add_special_tokens(["<unk>", "<s>"])
    ours = Tokenizer(file.to_str())

    for opens in (True, False):
        ids = ours.encode("hi<s>", opens=opens, markup=False)

        assert _names(ours, ids) == ["▁"] * opens + ["h", "i", "<", "s", ">"]
        assert ours.encode("<s>", opens=opens, markup=True) == [1]


# Ids are rows of the base


def test_a_token_that_the_base_has_no_row_for_is_refused_by_name(tokenizer: Tokenizer) -> None:
    file = _with_added(tokenizer.text, {"<think>": {}}).to_str()
    whole, short = Tokenizer(file, vocab=398), Tokenizer(file, vocab=397)
    last = tokenizer.token_name(396)
    shorter = Tokenizer(file, vocab=396)

    assert whole.encode("a<think>", opens=True, markup=True)[-1] == 397
    assert short.encode("a<think>", opens=True, markup=False)
    with pytest.raises(DataError, match=r"the token .<think>. with id 397.*below 397"):
        short.encode("a<think>", opens=True, markup=True)
    with pytest.raises(DataError, match=f"the token {re.escape(repr(last))} with id 396"):
        shorter.encode(tokenizer.decode([396]), opens=True, markup=False)
    assert (whole.without_row(), shorter.without_row()) == ([], [396, 397])


# Characters without a token


def test_characters_that_no_token_can_write_are_told() -> None:
    model = models.BPE(
        vocab={character: place for place, character in enumerate(" abr")}, merges=[]
    )
    lossy = HfTokenizer(model)
    lossy.decoder = decoders.Fuse()
    tokenizer = Tokenizer(lossy.to_str())

    assert "😀" in tokenizer.unwritten_of_common()
    assert tokenizer.unwritten("über bar 😀 ü") == "üe😀"
    assert tokenizer.unwritten("a bar") == ""


def test_where_each_byte_has_a_token_nothing_is_lost(tokenizer: Tokenizer) -> None:
    for each in (tokenizer, Tokenizer(byte_fallback_tokenizer("prepend"))):
        assert each.unwritten_of_common() == ""
        assert each.unwritten("naïve 😀 \u2603") == ""


# The blank in front


@pytest.mark.parametrize("markup", [True, False])
def test_only_the_opening_text_gets_a_blank_in_front(blank_putter: Tokenizer, markup: bool) -> None:
    opening = blank_putter.encode("hi", opens=True, markup=markup)
    continuing = blank_putter.encode("hi", opens=False, markup=markup)

    assert _names(blank_putter, opening) == ["▁hi"]
    assert _names(blank_putter, continuing) == ["hi"]


@pytest.mark.parametrize("style", [style for style in _STYLES if style != "prepend"])
def test_a_blank_that_was_written_stays_in_continuing_text(style: str) -> None:
    blank_putter = Tokenizer(_sentencepiece_like(style).to_str())

    ids = blank_putter.encode(" hi yo", opens=False, markup=False)

    assert _names(blank_putter, ids) == ["▁hi", "▁yo"]


def test_the_older_form_of_the_metaspace_is_understood() -> None:
    spec = json.loads(_sentencepiece_like("metaspace always").to_str())
    spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}

    old = Tokenizer(json.dumps(spec))

    assert _names(old, old.encode("hi", opens=True, markup=False)) == ["▁hi"]
    assert _names(old, old.encode("hi", opens=False, markup=False)) == ["hi"]


def test_a_byte_level_prefix_blank_is_for_the_opening_text_only(tokenizer: Tokenizer) -> None:
    spec = json.loads(tokenizer.text)
    spec["pre_tokenizer"]["add_prefix_space"] = True
    prefixing = Tokenizer(json.dumps(spec))

    opening = prefixing.encode("the", opens=True, markup=False)
    continuing = prefixing.encode("the", opens=False, markup=False)

    assert opening == tokenizer.encode(" the", opens=True, markup=False)
    assert continuing == tokenizer.encode("the", opens=True, markup=False)


def test_a_template_over_a_sentencepiece_gets_one_blank_at_its_start(
    blank_putter: Tokenizer,
) -> None:
    task = TaskConfig("greet", "<|VIRTUAL_PROMPT_0|>{a}{b}yo{c}", 2)
    renderer = Renderer(parse_template(task), blank_putter, SequenceRules(bos_id=1, eos_id=2))

    served = renderer.prompt({"a": "hi", "b": "yo"})
    answers = renderer.answers({"a": "hi", "b": "yo"}, ["hi"])
    empty = renderer.prompt({"a": "", "b": "yo"})

    real = served.token_ids[served.virtual_rows < 0].tolist()
    assert _names(blank_putter, real) == ["<s>", "▁hi", "yo", "yo"]
    assert _names(blank_putter, answers[0]) == ["hi", "</s>"]
    real = empty.token_ids[empty.virtual_rows < 0].tolist()
    assert _names(blank_putter, real) == ["<s>", "▁yo", "yo"]


@pytest.mark.parametrize("style", [style for style in _STYLES if style != "prepend"])
def test_a_cut_keeps_the_blank_that_a_field_begins_with(style: str) -> None:
    blank_putter = Tokenizer(_sentencepiece_like(style).to_str())
    task = TaskConfig("greet", "<|VIRTUAL_PROMPT_0|>yo{a}{c}", 2, truncate_field="a")
    renderer = Renderer(parse_template(task), blank_putter, SequenceRules())

    whole = renderer.prompt({"a": " hi yo hi"})
    fitted = renderer.prompt({"a": " hi yo hi"}, max_length=5)

    assert _names(blank_putter, whole.token_ids[2:].tolist()) == ["▁yo", "▁hi", "▁yo", "▁hi"]
    assert _names(blank_putter, fitted.token_ids[2:].tolist()) == ["▁yo", "▁hi"]


# Ids to text


def test_a_character_is_handed_out_once_all_its_bytes_are_there(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🦊é", opens=True, markup=False)
    stream = tokenizer.stream()

    pieces = [stream.push(token_id) for token_id in ids]

    assert len(ids) > 3
    assert [piece for piece in pieces if piece] == ["a", "🦊", "é"]
    assert pieces[1] == ""


def test_a_stream_leaves_special_tokens_out(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()

    assert stream.push(0) + stream.push(1) == ""
    assert stream.push(tokenizer.encode("a", opens=True, markup=False)[0]) == "a"


def test_streams_do_not_know_of_each_other(tokenizer: Tokenizer) -> None:
    first, *rest = tokenizer.encode("🦊", opens=True, markup=False)
    one, other = tokenizer.stream(), tokenizer.stream()

    one.push(first)
    other.push(tokenizer.encode("b", opens=True, markup=False)[0])

    assert "".join(one.push(token_id) for token_id in rest) == "🦊"


def test_a_stream_keeps_the_blanks_between_words(blank_putter: Tokenizer) -> None:
    stream = blank_putter.stream()

    pieces = [stream.push(_PIECES.index(piece)) for piece in ("▁hi", "▁yo", "hi")]

    assert pieces == ["hi", " yo", "hi"]


# What the file must not do


def test_truncation_and_padding_stored_in_the_file_leave_texts_as_they_are(
    tokenizer: Tokenizer,
) -> None:
    saved = HfTokenizer.from_str(tokenizer.text)
    saved.enable_truncation(max_length=3)
    saved.enable_padding(length=20, pad_id=0, pad_token="<|start|>")
    text = "The quick brown fox jumps over the lazy dog."

    ids = Tokenizer(saved.to_str()).encode(text, opens=True, markup=False)

    assert ids == tokenizer.encode(text, opens=True, markup=False)


@pytest.mark.parametrize(
    "decoder",
    [decoders.Strip(" ", 0, 1), decoders.Sequence([decoders.Fuse(), decoders.Strip("e", 1, 2)])],
)
def test_a_decoder_that_breaks_the_library_is_refused(
    tokenizer: Tokenizer, decoder: decoders.Decoder
) -> None:
    file = HfTokenizer.from_str(tokenizer.text)
    file.decoder = decoder

    with pytest.raises(ArtifactError, match="strips the end"):
        Tokenizer(file.to_str())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"model": 3}', "null", '{"added_tokens": [3]}']
)
def test_a_broken_file_is_named_with_what_was_expected(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(ArtifactError) as error:
        Tokenizer.from_folder(tmp_path)

    assert str(error.value).startswith(f"reading {path}: ")
    assert "; expected a tokenizer.json of 'tokenizers'." in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as error:
        Tokenizer.from_folder(tmp_path)

    path = tmp_path / "tokenizer.json"
    assert str(error.value).startswith(f"reading {path}: no such file; expected the tokenizer")


def test_where_the_tokenizer_has_another_form_the_way_to_this_one_is_told(tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text("", encoding="utf-8")

    with pytest.raises(ArtifactError, match=r"no such file, but vocab.json, merges.txt") as error:
        Tokenizer.from_folder(tmp_path)

    assert f"AutoTokenizer.from_pretrained({str(tmp_path)!r}).save_pretrained" in str(error.value)


def test_the_text_of_the_file_is_kept_byte_for_byte(tiny_bases: dict[str, Path]) -> None:
    text = (tiny_bases["gpt2"] / "tokenizer.json").read_text(encoding="utf-8")

    assert Tokenizer.from_folder(tiny_bases["gpt2"]).text == text


# Settings of the model


@pytest.mark.parametrize(
    "model",
    [
        models.BPE(vocab={"a": 0}, merges=[], unk_token="[UNK]"),
        models.Unigram([("a", -1.0)]),
        models.WordLevel({"a": 0}, unk_token="[UNK]"),
        models.WordPiece({"a": 0}, unk_token="[UNK]"),
    ],
)
def test_text_that_a_tokenizer_has_no_token_for_at_all_is_refused_by_name(model: Any) -> None:
    tokenizer = Tokenizer(HfTokenizer(model).to_str())

    assert tokenizer.encode("a", opens=True, markup=False) == [0]
    for markup in (True, False):
        with pytest.raises(DataError, match="tokenising 'é': the base's tokenizer has no token"):
            tokenizer.encode("é", opens=True, markup=markup)
    assert tokenizer.unwritten("é") == ""  # refused, not left out


def test_a_file_that_the_library_panics_at_is_refused() -> None:
    model = models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")])
    spec = json.loads(HfTokenizer(model).to_str())
    spec["model"]["continuing_subword_prefix"] = "####"  # longer than the pieces

    with pytest.raises(ArtifactError, match=r"reading tokenizer\.json: "):
        Tokenizer(json.dumps(spec))


def test_equal_texts_have_equal_ids_whatever_the_file_says_of_dropout() -> None:
    vocab = {"a": 0, "b": 1, "ab": 2}
    model = models.BPE(vocab=vocab, merges=[("a", "b")], dropout=0.9)
    tokenizer = Tokenizer(HfTokenizer(model).to_str())

    assert tokenizer.encode("ab" * 40, opens=True, markup=False) == [2] * 40


@pytest.mark.parametrize("in_a_sequence", [False, True])
def test_a_blank_that_a_byte_level_tokenizer_prepends_stands_before_the_opening_alone(
    in_a_sequence: bool,
) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = HfTokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    prepend = normalizers.Prepend(" ")
    model.normalizer = (
        normalizers.Sequence([normalizers.NFC(), prepend]) if in_a_sequence else prepend
    )
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(model.to_str())
    blank, a, b = (alphabet.index(character) for character in "Ġab")

    for markup in (False, True):
        assert tokenizer.encode("ab", opens=True, markup=markup) == [blank, a, b]
        assert tokenizer.encode("ab", opens=False, markup=markup) == [a, b]


def test_a_panic_of_the_library_is_an_error_of_ours() -> None:
    model = HfTokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    model.normalizer = normalizers.Prepend("")  # the library breaks off after it
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(model.to_str())

    with pytest.raises(DataError, match="tokenising 'ab': the base's tokenizer breaks off"):
        tokenizer.encode("ab", opens=True, markup=False)
