"""Closed sets of answers: their tree in the bundle, and exact probabilities of all of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pl_compile.artifact.bundle import read_bundle, task_folder
from pl_compile.artifact.prompt_table import read_prompt_table, write_prompt_table
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import ArtifactError, RequestError
from pl_compile.runtime import Request, Session
from pl_compile.runtime.stepping import Batch
from pl_compile.testing import random_table, sign_bundle
from pl_compile.text.label_trie import LabelTrie

CHOICES = ("positive", "negative", "neutral", "nobody at all", "nobody")


@pytest.fixture(scope="module")
def bundle(tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    base = tiny_bases["llama"]
    path = random_table(base, folder / "table.safetensors", prefix=True)
    table = read_prompt_table(path)
    tone = table.entry("tone")
    entry = replace(tone, task=replace(tone.task, choices=CHOICES))
    write_prompt_table(replace(table, entries={**table.entries, "tone": entry}), path)
    request = ExportRequest(path, base, folder / "bundle", capacity=60, measure_parity=False)
    return export_bundle(request).bundle


@pytest.fixture
def session(bundle: Path) -> Session:
    return Session.open(bundle, max_batch=4)


def test_the_tree_is_stored_and_is_what_the_renderer_makes(bundle: Path, session: Session) -> None:
    stored = read_bundle(bundle).labels("tone")

    assert stored is not None
    assert stored == session.tasks["tone"].renderer.label_trie()
    assert stored.labels == CHOICES
    assert stored.fixed
    assert read_bundle(bundle).labels("ask") is None
    content = json.loads((task_folder(bundle, "tone") / "labels.json").read_text())
    assert set(content) == {"labels", "parents", "tokens", "ends", "fixed"}


def by_hand(session: Session, request: Request) -> np.ndarray:
    """Log-probability of each choice, token by token, each as a prompt of its own."""
    prompt = session.tasks[request.task]
    rendered = prompt.renderer.prompt(request.fields)
    found = []
    for ids in prompt.renderer.answers(request.fields, CHOICES):
        total = 0.0
        for count, token in enumerate(ids):
            batch = Batch(session.engine)
            batch.admit(0, prompt.without_prefix())
            given = np.concatenate([rendered.input_ids(session.engine.vocab), ids[:count]])
            logits = batch.feed({0: given.astype(np.int64)})[0].logits.astype(np.float64)
            total += logits[token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        found.append(total)
    return np.asarray(found)


@pytest.mark.parametrize("sentence", ["the year was cold", "", "a parcel, a bill or a login"])
def test_scores_are_the_probabilities_of_writing_each_label(
    session: Session, sentence: str
) -> None:
    request = Request("tone", {"sentence": sentence})

    (scores,) = session.score([request])

    expected = by_hand(session, request)
    assert [score.label for score in scores] == list(CHOICES)
    np.testing.assert_allclose([s.log_probability for s in scores], expected, rtol=1e-4)
    shares = np.exp(expected - expected.max())
    np.testing.assert_allclose(
        [score.probability for score in scores], shares / shares.sum(), rtol=1e-3
    )


def test_the_batch_does_not_change_scores(bundle: Path) -> None:
    requests = [Request("tone", {"sentence": text}) for text in ("cold", "a bill was there")]

    small, large = (Session.open(bundle, max_batch=size) for size in (1, 16))

    for one, other in zip(small.score(requests), large.score(requests), strict=True):
        np.testing.assert_allclose(
            [s.log_probability for s in one], [s.log_probability for s in other], rtol=1e-5
        )


def test_scores_on_torch_are_those_of_the_bundle(bundle: Path, tiny_bases: dict[str, Path]) -> None:
    from pl_compile.text.tokenizer import Tokenizer
    from pl_compile.training.reference import TorchEngine

    engine = TorchEngine(tiny_bases["llama"], capacity=60, max_batch=3)
    entries = read_bundle(bundle).entries
    torch = Session.of_entries(Tokenizer.from_folder(bundle), entries, engine)
    requests = [Request("tone", {"sentence": "cold"})]

    (one,), (other,) = Session.open(bundle).score(requests), torch.score(requests)

    np.testing.assert_allclose(
        [s.log_probability for s in one], [s.log_probability for s in other], rtol=1e-4
    )


def test_a_session_goes_on_after_scoring(session: Session) -> None:
    requests = [Request("tone", {"sentence": "cold"}), Request("order", {"request": "off"})]
    before = session.generate(requests)

    session.score(requests[:1])

    assert session.generate(requests) == before


def test_a_task_with_open_answers_has_no_scores(session: Session) -> None:
    with pytest.raises(RequestError) as error:
        session.score([Request("order", {"request": "off"})])

    assert str(error.value) == (
        "scoring request 0: task 'order' has no choices; expected a task with a closed set of "
        "answers."
    )


def test_a_label_that_the_cache_cannot_hold_is_refused(session: Session) -> None:
    fields = {"sentence": "cold"}
    length = session.generate([Request("tone", fields)])[0].prompt_tokens
    many = next(
        {"sentence": "cold " * count}
        for count in range(20, 60)
        if len(session.tasks["tone"].renderer.prompt({"sentence": "cold " * count})) == 59
    )

    assert length < 59
    with pytest.raises(RequestError, match=r"with the longest choice, no.*expected at most 60"):
        session.score([Request("tone", many)])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda c: c.update(parents=[0, *c["parents"][1:]]), "damaged (not a tree of labels)"),
        (lambda c: c.update(ends=[999, *c["ends"][1:]]), "damaged (not a tree of labels)"),
        (lambda c: c.update(tokens=c["tokens"][:-1]), "damaged (not a tree of labels)"),
        (lambda c: c.update(labels=["good", *c["labels"][1:]]), "labels ('good', 'negative'"),
        (lambda c: c.update(ends=[0, *c["ends"][1:]]), "damaged (not a tree of labels)"),
        (lambda c: c.update(tokens=[-1, 999, *c["tokens"][2:]]), "damaged (token 999, and 397 ids"),
        (lambda c: c.pop("ends"), "damaged ("),
        # Trees of these labels, whose paths spell something else or end otherwise.
        (
            lambda c: c.update(tokens=[-1, 80, *c["tokens"][2:]]),
            "another tree of labels than template",
        ),
        (
            lambda c: c.update(ends=[*c["ends"][1:], c["ends"][0]]),
            "another tree of labels than template",
        ),
        (lambda c: c.update(fixed=False), "another tree of labels than template"),
    ],
)
def test_a_damaged_tree_is_refused(bundle: Path, tmp_path: Path, damage: object, said: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    path = task_folder(copy, "tone") / "labels.json"
    content = json.loads(path.read_text())
    damage(content)  # type: ignore[operator]
    path.write_text(json.dumps(content))
    sign_bundle(copy)

    with pytest.raises(ArtifactError) as error:
        Session.open(copy)

    assert str(error.value).startswith(f"reading {path}: ")
    assert said in str(error.value)


# Lint


def trie(labels: list[str], sequences: list[list[int]]) -> LabelTrie:
    return LabelTrie.of(labels, sequences, fixed=True)


def test_a_label_that_opens_another_is_found_where_no_eos_tells_them_apart() -> None:
    assert trie(["a", "ab"], [[7], [7, 3]]).problems() == [
        "'a' opens 'ab', and no EOS ends it: the longer one is never answered"
    ]
    assert trie(["a", "ab"], [[7, 1], [7, 3, 1]]).problems() == []


def test_answers_after_a_field_are_not_fixed_and_are_made_anew(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_bases["llama"]
    path = random_table(base, tmp_path / "table.safetensors")
    table = read_prompt_table(path)
    tone = table.entry("tone")
    text = "<|VIRTUAL_PROMPT_0|> Tone of {sentence}{label}"
    entry = replace(tone, task=replace(tone.task, prompt_template=text, choices=(" a", " b")))
    write_prompt_table(replace(table, entries={"tone": entry}), path)
    bundle = export_bundle(
        ExportRequest(path, base, tmp_path / "bundle", measure_parity=False)
    ).bundle
    session = Session.open(bundle)

    prompt = session.tasks["tone"]
    assert prompt.trie is not None
    assert not prompt.trie.fixed
    without, with_blank = (prompt.trie_after({"sentence": text}) for text in ("cold", "cold "))
    assert without != with_blank
    for text in ("cold", "cold "):
        (scores,) = session.score([Request("tone", {"sentence": text})])
        assert sum(score.probability for score in scores) == pytest.approx(1.0)
    report = json.loads((bundle / "report.json").read_text())
    assert "no text stands between a field and its answer" in report["lint"][0]["findings"][-1]
