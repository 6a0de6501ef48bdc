"""A reader that was written from `docs/artifact-format.md` alone answers as the runtime does."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing_by_the_page import Options
from files_by_the_page import json_text
from hypothesis import given
from hypothesis import strategies as st
from rendering_by_the_page import text_of
from serving_by_the_page import Asked, PageReader

from pl_compile.runtime import Request, Sampling, Session
from pl_compile.testing import TASKS, random_table

COPYING = {
    "taskname": "copy",
    "prompt_template": "<|VIRTUAL_PROMPT_0|> {text} {question}: {answer}",
    "total_virtual_tokens": 2,
    "truncate_field": "text",
    "answer": {"span": "text"},
}

_KINDS = {
    "folded": ("--fold", "always", "--task", "tone", "--task", "ask"),
    "as learned": ("--fold", "never", "--no-parity"),
    "sampled in the graph": ("--sampling", "graph", "--candidates", "24", "--no-parity"),
    "baked": ("--prompts-mode", "baked", "--no-parity"),
}


@pytest.fixture(scope="module")
def bundles(
    tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    base = tiny_bases["llama"]
    table = random_table(base, folder / "table.safetensors", prefix=True, tasks=(*TASKS, COPYING))
    export: list[str | Path] = [sys.executable, "-m", "pl_compile.cli", "export"]
    export += ["--prompts", table, "--base", base, "--target", "onnx-cpu", "--quantize", "none"]
    made = {}
    for kind, options in _KINDS.items():
        made[kind] = folder / kind
        subprocess.run([*export, *options, "--output", made[kind]], check=True, capture_output=True)
    return made


_REQUESTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("tone", {"sentence": "so cold "}, {}),
    ("tone", {"sentence": "who was there? " * 12}, {}),
    ("tone", {"sentence": ""}, {"constrain": False, "max_tokens": 9}),
    ("ask", {"question": "who <|x|> was there?", "place": 1e-7}, {"max_tokens": 12}),
    ("ask", {"question": "é one " * 60, "place": "a"}, {"max_tokens": 12}),
    ("ask", {"question": "dog", "place": "café 😀"}, {"use_prompt": False, "max_tokens": 7}),
    ("ask", {"question": "dog", "place": ""}, {"stop": ("e", "th", "a "), "max_tokens": 40}),
    ("ask", {"question": "dog", "place": "é"}, {"max_tokens": 500, "min_tokens": 80}),
    ("order", {"request": "lights kitchen off"}, {"max_tokens": 16, "min_tokens": 8}),
    ("order", {"request": " "}, {"max_tokens": 5, "use_prompt": False}),
    ("ask", {"question": "dog", "place": "é"}, {"bad_words": ("a", " ", "e"), "max_tokens": 20}),
    ("copy", {"text": "The lazy dog, née 1987 (J.D.).", "question": "who"}, {"max_tokens": 12}),
    ("copy", {"text": "so 🦊日本 cold " * 9, "question": ""}, {"min_tokens": 3, "stop": ("d ",)}),
    ("copy", {"text": "a dog was there", "question": "a"}, {"bad_words": ("as",)}),
    ("copy", {"text": "a dog was", "question": "a"}, {"constrain": False, "max_tokens": 5}),
    ("tone", {"sentence": "so"}, {"bad_words": ("zz",), "max_tokens": 9}),
]
_OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "seed": 5},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "seed": 2**70},
    {"temperature": 0.5, "top_k": 3, "repetition_penalty": 1.4, "seed": 1},
    {"repetition_penalty": 1.2},
    {"temperature": 2.0, "top_k": 5, "no_repeat_ngram": 1, "seed": 3},
    {"no_repeat_ngram": 2},
]


@pytest.mark.parametrize("kind", _KINDS)
def test_a_reader_that_follows_the_page_answers_as_the_runtime_does(
    bundles: dict[str, Path], kind: str
) -> None:
    reader, session = PageReader(bundles[kind]), Session.open(bundles[kind])
    reasons, cut = set(), 0
    asked: list[Asked] = []
    requests: list[Request] = []
    for (task, fields, settings), options in product(_REQUESTS, _OPTIONS):
        if task not in reader.tasks:
            continue  # nothing of it can be folded
        asked.append(Asked(task, fields, **settings, options=Options(**options)))
        requests.append(Request(task, fields, **settings, sampling=Sampling(**options)))
    for ours, theirs in zip(asked, session.generate(requests), strict=True):
        answer = reader.answer(ours)
        assert answer == {name: getattr(theirs, name) for name in answer}, ours
        reasons.add(theirs.finish_reason)
        cut += theirs.cut_tokens
    assert reasons == {"stop", "length"}
    assert cut > 0
    assert [name for name in reader.tasks if reader.tasks[name].folded is None] == (
        [] if kind == "folded" else [*reader.tasks]
    )


@pytest.mark.parametrize("kind", ["folded", "as learned"])
def test_a_reader_that_follows_the_page_has_the_probabilities_of_the_runtime(
    bundles: dict[str, Path], kind: str
) -> None:
    fields = {"sentence": "the year 1987 was cold"}
    (scores,) = Session.open(bundles[kind]).score([Request("tone", fields)])
    ours = PageReader(bundles[kind]).log_probabilities(Asked("tone", fields))

    np.testing.assert_allclose([each.log_probability for each in scores], ours, rtol=1e-5)


def test_a_reader_that_follows_the_page_passes_the_self_tests(bundles: dict[str, Path]) -> None:
    reader = PageReader(bundles["folded"])

    assert [name for name in reader.tasks if reader.selftest(name) > 0.001] == []


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_text_for_sums_is_that_of_the_page(value: object) -> None:
    assert json_text(value, text_of) == json.dumps(value, sort_keys=True)
