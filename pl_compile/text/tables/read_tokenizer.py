"""The text of a `tokenizer.json` as what the tables say, in a frozen dataclass.

The library reads it first: it knows the defaults of all settings and refuses what is damaged.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pl_compile.errors import TablesError, first_line_of
from pl_compile.text.tables.added_tokens import AddedToken, added_tokens_of
from pl_compile.text.tables.components import (
    Component,
    Nfc,
    PreTokenizer,
    Step,
    check_decoder,
    pre_tokenizer_of,
    steps_of,
    trims_of,
)
from pl_compile.text.tables.normal_forms import stays
from pl_compile.text.tables.patterns import Node
from pl_compile.text.tables.vocabulary import byte_ids, check_byte_tokens
from pl_compile.text.tokenizer import is_of_tokenizers

_MOST_SPLITS = 16
_MOST_IDS = 1 << 24


@dataclass(frozen=True)
class TokenizerParts:
    """A tokenizer that the tables can say.

    Attributes:
        vocabulary: the model's id of each token, by the text that the model knows it by.
        merges: pairs of such texts, the one to merge first in front.
        added: the added tokens, the longest one first.
        steps: what is done to a text before all else.
        splits: what divides a text into pieces, each after the other.
        byte_level: whether the model is given a character for each byte; else it is given the
            characters, and the bytes of those that it has no token for (byte_fallback).
        prefix_space: whether a blank is put before a text that does not begin with one.
        ignore_merges: whether a piece that is a token as a whole is not divided.
        unknown: the id that stands for a byte without a token; None where such a byte is left out.
        strips: blanks that decoding takes off the start of a text.
        front: the ids that are put before a whole text (often BOS).
        trims: the passes that take blanks off the place in the text of each token. True for one
            that keeps a blank at the start of the text.
    """

    vocabulary: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    added: tuple[AddedToken, ...]
    steps: tuple[Step, ...]
    splits: tuple[Node, ...]
    byte_level: bool
    prefix_space: bool
    ignore_merges: bool
    unknown: int | None
    strips: int
    front: tuple[int, ...]
    trims: tuple[bool, ...]


def read_tokenizer(tokenizer_json: str) -> TokenizerParts:
    """Reads the text of a `tokenizer.json`.

    Truncation and padding are not a part of the tables.

    Raises:
        TablesError: the library cannot read it, or a part of it is not supported.
    """
    tokenizer = _loaded(tokenizer_json)
    model = tokenizer.model
    _check_model(model)
    normalizer = steps_of(_state(tokenizer.normalizer))
    made = pre_tokenizer_of(_state(tokenizer.pre_tokenizer), normalizer)
    _check_splits(made)
    _check_bytes(model, byte_level=made.byte_level)
    tokens = tokenizer.get_added_tokens_decoder()
    added = added_tokens_of(tokens, lambda text: _stays(text, normalizer))
    spec = json.loads(tokenizer_json)["model"]
    vocabulary = spec["vocab"]
    _check_ids(vocabulary, added)
    check_byte_tokens(vocabulary, added, byte_level=made.byte_level)
    return TokenizerParts(
        vocabulary=vocabulary,
        merges=list(_merges(spec["merges"])),
        added=added,
        steps=tuple(made.steps),
        splits=tuple(made.splits),
        byte_level=made.byte_level,
        prefix_space=made.prefix_space,
        ignore_merges=model.ignore_merges,
        unknown=_unknown(model, vocabulary, byte_level=made.byte_level),
        strips=check_decoder(_state(tokenizer.decoder), byte_level=made.byte_level),
        front=_front(tokenizer),
        trims=trims_of(_state(tokenizer.post_processor)),
    )


def _loaded(tokenizer_json: str) -> Any:
    from tokenizers import Tokenizer as HfTokenizer

    try:
        return HfTokenizer.from_str(tokenizer_json)
    except BaseException as error:
        if not is_of_tokenizers(error):
            raise
        raise TablesError(f"a text that is no tokenizer.json ({first_line_of(error)})") from error


def _state(component: Any) -> Component | None:
    """A component of the library with all its settings."""
    return None if component is None else json.loads(component.__getstate__())


def _front(tokenizer: Any) -> tuple[int, ...]:
    """The ids before those of a text, as `text.tokenizer.Tokenizer.in_front`."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    whole = tokenizer.encode("a", add_special_tokens=True)
    ours = whole.sequence_ids
    return tuple(whole.ids[: ours.index(0)]) if 0 in ours else ()


def _check_model(model: Any) -> None:
    kind = type(model).__name__
    if kind != "BPE":
        raise TablesError(f"the model {kind}", expected="BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if getattr(model, name):
            raise TablesError(f"a BPE with {name}")


def _stays(text: str, normalizer: Sequence[Step]) -> bool:
    """Whether a normalizer leaves a text where it is, and what is beside it unchanged."""
    return all(isinstance(step, Nfc) for step in normalizer) and (not normalizer or stays(text))


def _check_splits(made: PreTokenizer) -> None:
    if len(made.splits) > _MOST_SPLITS:
        raise TablesError(f"{len(made.splits)} splits", expected=f"at most {_MOST_SPLITS}")


def _check_bytes(model: Any, *, byte_level: bool) -> None:
    if not byte_level and not model.byte_fallback:
        raise TablesError("a BPE without bytes", expected="ByteLevel or byte_fallback")
    if not byte_level and model.ignore_merges:
        raise TablesError("a BPE with ignore_merges and byte_fallback")


def _check_ids(vocabulary: Mapping[str, int], added: Sequence[AddedToken]) -> None:
    texts = {key: text for text, key in vocabulary.items()}
    if len(texts) < len(vocabulary):
        raise TablesError("a vocabulary with two tokens of one id")
    for token in added:
        if texts.get(token.id, token.text) != token.text:
            raise TablesError(f"the added token {token.text!r} with the id of {texts[token.id]!r}")
    if max([*texts, *(token.id for token in added)], default=0) >= _MOST_IDS:
        raise TablesError("a vocabulary with too large an id", expected=f"below {_MOST_IDS:,}")
    if not vocabulary:
        raise TablesError("a vocabulary without tokens")


def _merges(merges: Iterable[str | Sequence[str]]) -> Iterator[tuple[str, str]]:
    for merge in merges:
        if isinstance(merge, str) and merge.startswith("#version"):
            continue  # a line of the older form of the file, which the library leaves out
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        yield first, second


def _unknown(model: Any, vocabulary: Mapping[str, int], *, byte_level: bool) -> int | None:
    """The id that stands for a byte without a token."""
    unknown = vocabulary.get(model.unk_token)
    if not byte_level or -1 not in byte_ids(vocabulary, byte_level=True):
        return unknown
    problems = {
        "byte_fallback": model.byte_fallback,
        "fuse_unk": model.fuse_unk and model.unk_token is not None,
        "an unknown token that it lacks": model.unk_token is not None and unknown is None,
    }
    for problem, found in problems.items():
        if found:
            raise TablesError(f"a byte-level vocabulary that lacks bytes, with {problem}")
    return unknown
