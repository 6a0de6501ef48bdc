"""The benchmark of questions on one context asks what it says."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.runtime import Session, kernels
from pl_compile.testing import random_table, write_tiny_base

HOME = Path(__file__).parents[2]


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(HOME / "benchmarks"))
    import contexts

    return contexts


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    base = write_tiny_base(tmp_path / "base", "llama", blocks=True)
    config = json.loads((base / "config.json").read_text())
    config["max_position_embeddings"] = 400
    (base / "config.json").write_text(json.dumps(config))
    table = random_table(base, tmp_path / "table.safetensors")
    options = BuildOptions("int8")
    request = ExportRequest(
        table, base, tmp_path / "bundle", target="native-cpu", options=options, measure_parity=False
    )
    return export_bundle(request).bundle


def test_questions_have_one_context_of_the_length_that_was_asked_for(
    contexts: ModuleType, bundle: Path
) -> None:
    with Session.open(bundle) as session:
        questions = contexts.Questions.of(session, "ask", 200, 3)
        requests = questions.requests(seed=1)
        renderer = session.tasks["ask"].renderer
        lengths = [len(renderer.prompt(request.fields)) for request in requests]

    texts = [request.fields["question"] for request in requests]
    assert len(set(texts)) == 3
    context = contexts.words(questions.context_words, 1)
    assert all(text.startswith(f"{context} ") for text in texts)
    # The tiny tokenizer has several tokens for a word, of the context and of its 6 questions.
    assert all(190 < length < 260 for length in lengths)
    assert not questions.requests(seed=2)[0].fields["question"].startswith(context)


@pytest.mark.skipif(
    kernels.library_path() is None,
    reason="needs the C++ kernels (g++ or Clang); without them: "
    "test_questions_have_one_context_of_the_length_that_was_asked_for",
)
def test_both_ways_of_both_sessions_are_timed(contexts: ModuleType, bundle: Path) -> None:
    with (
        Session.open(bundle, max_batch=3) as shared,
        Session.open(bundle, max_batch=3, context_mib=0) as alone,
    ):
        questions = contexts.Questions.of(shared, None, 100, 3)
        found = contexts.measure({"shared": shared, "alone": alone}, questions, turns=1)
        use = shared.load.shared
        assert use is not None
        # Two turns, two ways, and each time all but the first question.
        assert use.hits == 2 * 2 * 2

    assert list(found) == [
        f"{way}, {figure}" for way in contexts.WAYS for figure in ("mean", "longest")
    ]
    for figures in found.values():
        assert min(figures.values()) > 0
        assert figures["part"] == round(figures["shared"] / figures["alone"], 3)
