"""A closed set of answers as it is served: whole choices, whatever the prompt's length."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pl_compile.artifact.prompt_table import read_prompt_table, write_prompt_table
from pl_compile.driver.evaluate import EvalOptions, evaluate
from pl_compile.driver.export import ExportRequest, export_bundle
from pl_compile.errors import RequestError
from pl_compile.runtime import Request, Session
from pl_compile.testing import random_table, write_jsonl

CAPACITY = 40
CHOICES = ("nobody at all", "nobody")
TEMPLATES = {
    "cut": ("Tone of {sentence}: {label}", "sentence"),
    "kept": ("Tone of {sentence}: {label}", None),
    "close": ("Tone of {sentence}{label}", "sentence"),  # blanks of the field move into the answer
}
# Prompts of 20 to 40 tokens with choices of up to 10, and ones that are much too long.
COUNTS = (*range(10, 32), 200)


@pytest.fixture(scope="module")
def session(tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("choices")
    base = tiny_bases["llama"]
    path = random_table(base, folder / "table.safetensors")
    table = read_prompt_table(path)
    tone = table.entry("tone")
    entries = {
        name: replace(
            tone,
            task=replace(
                tone.task,
                taskname=name,
                prompt_template=f"<|VIRTUAL_PROMPT_0|>{template}",
                truncate_field=field,
                choices=CHOICES,
            ),
        )
        for name, (template, field) in TEMPLATES.items()
    }
    write_prompt_table(replace(table, entries=entries), path)
    request = ExportRequest(path, base, folder / "bundle", capacity=CAPACITY, measure_parity=False)
    return Session.open(export_bundle(request).bundle)


def longest(session: Session, task: str) -> int:
    return session.prompts[task].renderer.label_trie({"sentence": "["}).longest


def prompt_length(session: Session, request: Request) -> int:
    return len(session.prompts[request.task].renderer.prompt(request.fields))


def requests(task: str, counts: Sequence[int] = COUNTS, **options: object) -> list[Request]:
    return [Request(task, {"sentence": "[" * count}, **options) for count in counts]  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["cut", "close"])
@pytest.mark.parametrize("max_tokens", [1, 64])
def test_a_field_is_cut_until_the_longest_choice_fits(
    session: Session, task: str, max_tokens: int
) -> None:
    asked = requests(task, max_tokens=max_tokens)
    lengths = [prompt_length(session, request) for request in asked]
    room = CAPACITY - longest(session, task)
    assert any(room < length < CAPACITY for length in lengths)

    for request, length, result in zip(asked, lengths, session.generate(asked), strict=True):
        assert result.text in CHOICES
        assert result.finish_reason == "stop"
        assert session.check(request) == result.cut_tokens == length - result.prompt_tokens
        # Not cut where it fits, nor by more than is needed, and one.
        least, most = (length, length) if length <= room else (room - 2, room)
        assert least <= result.prompt_tokens <= most
        assert len(session.score([request])[0]) == len(CHOICES)


def test_scores_make_the_same_room_where_answers_are_free(session: Session) -> None:
    asked = requests("cut", constrain=False)

    scores = session.score(asked)

    assert scores == session.score(requests("cut"))


def test_a_prompt_that_leaves_no_room_for_a_choice_is_refused(session: Session) -> None:
    told = (
        r"rendering task 'kept': \d+ tokens with the longest choice, no truncate_field; expected "
        r"at most 40\. Shorten the example"
    )
    for request in requests("kept"):
        if prompt_length(session, request) + longest(session, "kept") <= CAPACITY:
            assert session.generate([request])[0].text in CHOICES
            continue
        for doing, call in {
            "serving request 0": session.generate,
            "scoring request 0": session.score,
        }.items():
            with pytest.raises(RequestError, match=f"^{doing}: {told}"):
                call([request])
        with pytest.raises(RequestError, match=f"^checking a request: {told}"):
            session.check(request)


def test_free_answers_need_no_room_for_a_choice(session: Session) -> None:
    fitting = [
        request
        for request in requests("kept", constrain=False)
        if prompt_length(session, request) < CAPACITY
    ]

    results = session.generate(fitting)

    assert max(result.prompt_tokens for result in results) == CAPACITY - 1
    assert {result.cut_tokens for result in results} == {0}


@pytest.mark.parametrize(
    "sentence", ["cold" + " " * 60, "cold " + " " * 12 + "[" * 60, "cold " * 40, " " * 60]
)
def test_choices_behind_a_field_that_is_cut_are_those_that_were_learned(
    session: Session, sentence: str
) -> None:
    """Blanks that end what is left of a field move into the answer; those of the whole may not."""
    (result,) = session.generate([Request("close", {"sentence": sentence})])

    renderer = session.prompts["close"].renderer
    learned = {
        tuple(example.token_ids[example.answer_start :].tolist())
        for size in range(len(sentence) + 1)
        for choice in CHOICES
        if (example := renderer.example({"sentence": sentence[:size], "label": choice}))
        and example.answer_start == result.prompt_tokens
    }
    assert result.token_ids in learned
    assert result.text in CHOICES
    assert len(session.score([Request("close", {"sentence": sentence})])[0]) == len(CHOICES)


def test_scored_examples_are_cut_or_refused_likewise(session: Session, tmp_path: Path) -> None:
    def data(task: str) -> list[Path]:
        rows = [
            {"taskname": task, "sentence": "[" * count, "label": CHOICES[0]} for count in COUNTS
        ]
        return [write_jsonl(tmp_path / f"{task}.jsonl", rows)]

    (score,) = evaluate(session, data("cut"), EvalOptions())

    assert set(score.predictions) <= set(CHOICES)
    with pytest.raises(RequestError, match=r"kept.jsonl:23: .* tokens with the longest choice, no"):
        evaluate(session, data("kept"), EvalOptions())
