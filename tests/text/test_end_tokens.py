"""Which tokens end an answer of a base: whatever its files say, and what they may not say."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pl_compile.errors import BaseModelError, ConfigError
from pl_compile.text.end_tokens import end_tokens, tokens_named
from pl_compile.text.tokenizer import Tokenizer

VOCAB = 397


@pytest.fixture
def base(tiny_bases: dict[str, Path], tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_bases["llama"] / name, folder / name)
    return folder


def say(folder: Path, name: str, content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")


def found_in(folder: Path, vocab: int = VOCAB) -> tuple[int, ...]:
    return end_tokens(folder, Tokenizer.from_folder(folder), vocab)


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer", "expected"),
    [
        ({"eos_token_id": 9}, None, {}, (9,)),
        ({"eos_token_id": [9, 11]}, None, {}, (9, 11)),
        ({"eos_token_id": [9, 11, 9]}, None, {}, (9, 11)),
        ({"eos_token_id": 9}, {"eos_token_id": [11, 9, 12]}, {}, (9, 11, 12)),
        ({"eos_token_id": None}, {"eos_token_id": 11}, {}, (11,)),
        ({}, {}, {"eos_token": "<|end|>"}, (1,)),
        ({"eos_token_id": 9}, None, {"eos_token": {"content": "<|end|>"}}, (9, 1)),
        ({"eos_token_id": 9}, {"eos_token_id": 9}, {"eos_token": None}, (9,)),
        ({"eos_token_id": 9}, None, {"eos_token": "<|not in the vocabulary|>"}, (9,)),
        ({"eos_token_id": []}, {"temperature": 0.6}, {}, ()),
    ],
)
def test_each_token_that_a_file_names_is_found_once(
    base: Path, config: Any, generation: Any, tokenizer: Any, expected: tuple[int, ...]
) -> None:
    say(base, "config.json", config)
    say(base, "tokenizer_config.json", tokenizer)
    if generation is not None:
        say(base, "generation_config.json", generation)

    assert found_in(base) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"eos_token_id": [5, 1]}),
        ("generation_config.json", {"eos_token_id": 5}),
        ("tokenizer_config.json", {"eos_token": "<|end|>"}),
        ("special_tokens_map.json", {"eos_token": {"content": "<|end|>"}}),
    ],
)
def test_a_token_that_the_base_has_no_row_for_ends_nothing(
    base: Path, name: str, content: Any
) -> None:
    """A tokenizer may be larger than its base, which never writes the rest."""
    say(base, "tokenizer_config.json", {})
    say(base, name, content)

    assert found_in(base, vocab=1) == ()


@pytest.mark.parametrize("token", ["<|end|>", {"content": "<|end|>"}])
def test_the_map_of_older_folders_is_read(base: Path, token: Any) -> None:
    say(base, "config.json", {"eos_token_id": 9})
    say(base, "tokenizer_config.json", {})
    say(base, "special_tokens_map.json", {"eos_token": token})

    assert found_in(base) == (9, 1)


@pytest.mark.parametrize("value", [-1, True, 1.0, "1", [9, -1], [9, None], [[9]], [1, 1, True], {}])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_what_is_no_token_of_the_base_is_refused_with_its_file(
    base: Path, name: str, value: Any
) -> None:
    say(base, name, {"eos_token_id": value})

    with pytest.raises(BaseModelError) as error:
        found_in(base)

    assert str(error.value) == (
        f"reading {base / name}: 'eos_token_id' is {value!r}; expected a token's id, or a list of "
        "ids. Correct the file, or leave the key out."
    )


@pytest.mark.parametrize("text", ["[1]", "", '{"eos_token_id": 1, "eos_token_id": 2}', "\x00"])
@pytest.mark.parametrize(
    "name", ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json"]
)
def test_a_file_that_is_no_json_object_is_refused(base: Path, name: str, text: str) -> None:
    say(base, name, text)

    with pytest.raises(BaseModelError, match=f"reading .*{name}: "):
        found_in(base)


def test_an_eos_token_that_is_no_text_is_refused(base: Path) -> None:
    say(base, "tokenizer_config.json", {"eos_token": 1})

    with pytest.raises(BaseModelError, match=r"'eos_token' is 1; expected a token's text"):
        found_in(base)


def test_tokens_are_named_as_the_vocabulary_writes_them(base: Path) -> None:
    tokenizer = Tokenizer.from_folder(base)

    assert tokens_named(["<|end|>", "<|start|>", "<|end|>"], tokenizer, VOCAB) == (1, 0)


@pytest.mark.parametrize("name", ["<|eot_id|>", "", "one two", "\udcff", "1"])
def test_a_name_that_is_no_token_is_refused(base: Path, name: str) -> None:
    tokenizer = Tokenizer.from_folder(base)
    vocab = 1 if tokenizer.token_id(name) is not None else VOCAB

    with pytest.raises(ConfigError, match="token of the base; expected a token of its tokenizer"):
        tokens_named([name], tokenizer, vocab)
