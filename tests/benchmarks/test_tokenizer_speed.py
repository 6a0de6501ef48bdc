"""benchmarks/tokenizer_speed.py in small: it measures what it says, on equal terms."""

import shutil
from pathlib import Path
from types import ModuleType

import pytest

from pl_compile.testing import byte_fallback_tokenizer

HOME = Path(__file__).parents[2]


@pytest.fixture
def tokenizer_speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(HOME / "benchmarks"))
    import tokenizer_speed

    return tokenizer_speed


@pytest.mark.skipif(
    shutil.which("g++") is None,
    reason="needs g++; the ids alone, in Python: tests/text/tables/test_ids_of_tables.py",
)
def test_both_tokenize_the_same_texts_to_as_many_ids(tokenizer_speed: ModuleType) -> None:
    texts = ["a text\n", " <s> é😀" * 200]

    found = tokenizer_speed.measured(byte_fallback_tokenizer("first"), texts, 2)

    size = sum(len(text.encode()) for text in texts)
    assert (found["texts"], found["bytes"]) == (2, size)
    assert isinstance(found["ids"], int)
    assert found["tokenizers, MB/s"] > 0
    assert found["plc, MB/s"] > 0


def test_texts_are_taken_once_and_up_to_a_size(tokenizer_speed: ModuleType) -> None:
    assert tokenizer_speed._up_to(5, iter(["é", "", "é", "abc", "d"])) == ["é", "abc"]
