"""The Python runtime answers the conformance vectors, and they are what is written today."""

import json
from typing import Any

import pytest
from python_answers import VECTORS, answer_to
from write_vectors import FILES, FORMAT, TOKENIZERS, VERSION, text_of

MOST_BYTES = 100_000


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", FILES)
def test_the_python_runtime_conforms(name: str) -> None:
    cases = read(name)["cases"]

    assert len(cases) >= 20
    for case in cases:
        assert answer_to(case["kind"], case["given"]) == case["expected"], case


@pytest.mark.parametrize("name", FILES)
def test_writing_the_vectors_again_changes_nothing(name: str) -> None:
    assert text_of(name) == (VECTORS / f"{name}.json").read_text(encoding="utf-8")


def test_each_file_says_what_it_is_and_is_small() -> None:
    files = {path.name for path in VECTORS.iterdir()}

    assert files == {*(f"{n}.json" for n in FILES), *(f"tokenizer_{n}.json" for n in TOKENIZERS)}
    assert all(path.stat().st_size <= MOST_BYTES for path in VECTORS.iterdir())
    for name in FILES:
        head = read(name)
        assert (head["format"], head["version"]) == (FORMAT, VERSION)
        assert len(head["holds"]) > 80
