"""The tokens that end an answer of a base: all that its folder names.

Chat models have several: one ends a text, another a turn. Which of them a base writes depends on
what it was asked, and the files of one folder often name different ones. transformers' `generate`
takes those of `generation_config.json`, or of `config.json` where that file is missing. Here each
token that any file names ends an answer, since none of them is ever a part of one. A token without
a row in the base is left out: the base never writes it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pl_compile.config.strict_json import read_json_object
from pl_compile.errors import BaseModelError, ConfigError
from pl_compile.text.tokenizer import Tokenizer

_KEY = "eos_token_id"


def end_tokens(folder: Path, tokenizer: Tokenizer, vocab: int) -> tuple[int, ...]:
    """The ids that end an answer, each once; the first is the one that training learns.

    Args:
        folder: of the base. Looked into, in this order: `config.json`, `generation_config.json`,
            and the `eos_token` of `tokenizer_config.json` and, in older folders, of
            `special_tokens_map.json`.
        tokenizer: of the base.
        vocab: ids it knows.

    Raises:
        BaseModelError: a file that is not a JSON object, or that names something else than a token.
    """
    found: list[int] = []
    for name in ("config.json", "generation_config.json"):
        found += _listed(folder / name)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        found += _named(folder / name, tokenizer)
    return tuple(dict.fromkeys(each for each in found if each < vocab))


def tokens_named(names: Sequence[str], tokenizer: Tokenizer, vocab: int) -> tuple[int, ...]:
    """The ids of tokens that a user names, each once.

    Raises:
        ConfigError: a name that is not a token of the base.
    """
    found = []
    for name in names:
        token_id = tokenizer.token_id(name)
        if token_id is None or token_id >= vocab:
            raise ConfigError(
                "reading the tokens that end an answer",
                found=f"{name!r}, which is {'no' if token_id is None else 'beyond any'} token "
                "of the base",
                expected="a token of its tokenizer.json, such as '<|eot_id|>'",
                fix="A text of several tokens is a stop text of a request.",
            )
        found.append(token_id)
    return tuple(dict.fromkeys(found))


def _read(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none."""
    try:
        return read_json_object(path, BaseModelError, f"reading {path}")
    except FileNotFoundError:
        return {}


def _listed(path: Path) -> list[int]:
    """The ids under `_KEY`: one or a list, or none."""
    value = _read(path).get(_KEY)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(each) is int and each >= 0 for each in ids):
        raise BaseModelError(
            f"reading {path}",
            found=f"'{_KEY}' is {value!r:.80}",
            expected="a token's id, or a list of ids",
            fix="Correct the file, or leave the key out.",
        )
    return ids


def _named(path: Path, tokenizer: Tokenizer) -> list[int]:
    """The id of the `eos_token` of a tokenizer's settings, if they name a token."""
    token = _read(path).get("eos_token")
    # Older files write the token with its settings.
    name = token.get("content") if isinstance(token, dict) else token
    if name is not None and not isinstance(name, str):
        raise BaseModelError(
            f"reading {path}", found=f"'eos_token' is {token!r:.80}", expected="a token's text"
        )
    token_id = None if name is None else tokenizer.token_id(name)
    return [] if token_id is None else [token_id]
