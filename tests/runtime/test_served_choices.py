"""A closed set of answers as it is served: whole choices, whatever the prompt's length."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pl_compile.artifact.prompt_table import PromptTable, read_prompt_table, write_prompt_table
from pl_compile.driver.evaluate import EvalOptions, evaluate
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import DataError, RequestError
from pl_compile.runtime import Request, Sampling, Session
from pl_compile.testing import byte_fallback_tokenizer, random_table, write_jsonl, write_tiny_base
from pl_compile.text.label_trie import LabelTrie

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
    tasks: dict[str, dict[str, object]] = {
        name: {
            "prompt_template": f"<|VIRTUAL_PROMPT_0|>{template}",
            "truncate_field": field,
            "choices": CHOICES,
        }
        for name, (template, field) in TEMPLATES.items()
    }
    write_prompt_table(with_choices(read_prompt_table(path), **tasks), path)
    request = ExportRequest(path, base, folder / "bundle", capacity=CAPACITY, measure_parity=False)
    return Session.open(export_bundle(request).bundle)


def with_choices(table: PromptTable, **tasks: dict[str, object]) -> PromptTable:
    """A table of tasks like 'tone', each with some of its settings changed."""
    tone = table.entry("tone")
    entries = {
        name: replace(tone, task=replace(tone.task, taskname=name, **changes))  # type: ignore[arg-type]
        for name, changes in tasks.items()
    }
    return replace(table, entries=entries)


def longest(session: Session, task: str) -> int:
    return session.tasks[task].renderer.label_trie({"sentence": "["}).longest


def prompt_length(session: Session, request: Request) -> int:
    return len(session.tasks[request.task].renderer.prompt(request.fields))


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
def test_choices_after_a_field_that_is_cut_are_those_that_were_learned(
    session: Session, sentence: str
) -> None:
    """Blanks that end what is left of a field move into the answer; those of the whole may not."""
    (result,) = session.generate([Request("close", {"sentence": sentence})])

    renderer = session.tasks["close"].renderer
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


# Tokenizers that decode a choice to another text

WRITTEN_OTHERWISE = ("Yes", "NO", "\uff21\uff11", "\uff21\uff12", "no\tone\n", "e\u0301")


def normalising(tokenizer: str) -> str:
    """A `tokenizer.json` that knows no capitals and no wide characters."""
    spec = json.loads(tokenizer)
    parts = [{"type": "NFKC"}, {"type": "Lowercase"}, *filter(None, [spec["normalizer"]])]
    spec["normalizer"] = {"type": "Sequence", "normalizers": parts}
    return json.dumps(spec)


@pytest.fixture(scope="module", params=["byte level", "byte fallback"])
def base_of_small_letters(
    tiny_bases: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Path:
    tokenizer = (tiny_bases["llama"] / "tokenizer.json").read_text(encoding="utf-8")
    if request.param == "byte fallback":
        tokenizer = byte_fallback_tokenizer("prepend")
    folder = tmp_path_factory.mktemp("small") / "base"
    return write_tiny_base(folder, "llama", tokenizer=normalising(tokenizer))


def table_of_choices(base: Path, path: Path, *choices: str) -> Path:
    table = read_prompt_table(random_table(base, path))
    write_prompt_table(with_choices(table, tone={"choices": choices}), path)
    return path


def test_the_answer_is_the_choice_itself_however_its_tokens_are_decoded(
    base_of_small_letters: Path, tmp_path: Path
) -> None:
    base = base_of_small_letters
    path = table_of_choices(base, tmp_path / "table.safetensors", *WRITTEN_OTHERWISE)
    request = ExportRequest(path, base, tmp_path / "bundle", measure_parity=False)
    session = Session.open(export_bundle(request).bundle)
    asked = [
        Request("tone", {"sentence": "x"}, sampling=Sampling(temperature=50.0, seed=seed))
        for seed in range(40)
    ]
    pieces: list[list[str]] = [[] for _ in asked]
    results = {}

    for event in session.stream(asked):
        pieces[event.index].append(event.text)
        if event.result is not None:
            results[event.index] = event.result

    labels = [choice.strip() for choice in WRITTEN_OTHERWISE]
    assert {result.text for result in results.values()} == set(labels)
    assert ["".join(each) for each in pieces] == [results[index].text for index in range(40)]
    assert [score.label for score in session.score(asked[:1])[0]] == labels
    assert any(each[0] for each in pieces)  # what is certain is handed out as it comes
    # The tokens are those of the choice, as the task learned them.
    trie = session.tasks["tone"].trie
    assert trie is not None
    for result in results.values():
        assert list(result.token_ids) == trie.path(trie.ends[labels.index(result.text)])


def test_right_choices_are_scored_as_right(base_of_small_letters: Path, tmp_path: Path) -> None:
    base = base_of_small_letters
    path = table_of_choices(base, tmp_path / "table.safetensors", "Yes", "NO")
    request = ExportRequest(path, base, tmp_path / "bundle", measure_parity=False)
    session = Session.open(export_bundle(request).bundle)
    rows = [{"taskname": "tone", "sentence": "x", "label": label} for label in ("Yes", "NO")]

    (score,) = evaluate(session, [write_jsonl(tmp_path / "data.jsonl", rows)], EvalOptions())

    assert score.with_prompt["accuracy"] == 50.0


def test_a_bias_on_a_token_decides_which_choice_is_written(session: Session) -> None:
    request = Request("cut", {"sentence": "who was there"})
    texts = {
        session.tokenizer.decode([token]).strip() or session.tokenizer.token_name(token)
        for token in longest_trie(session).tokens[1:]
    }
    (plain,) = session.generate([request])
    other = next(choice for choice in CHOICES if choice != plain.text)

    biased = {}
    for text in texts:
        sampling = Sampling(logit_bias={text: 100})
        (result,) = session.generate([replace(request, sampling=sampling)])
        biased[text] = result.text

    assert set(biased.values()) == {plain.text, other}
    assert session.generate([replace(request, sampling=Sampling(logit_bias={}))]) == [plain]


def test_a_bias_names_tokens_of_the_choices_only(session: Session) -> None:
    request = Request("cut", {"sentence": "x"}, sampling=Sampling(logit_bias={"xyzzy": 1}))

    with pytest.raises(RequestError) as error:
        session.generate([request])

    assert str(error.value).startswith(
        "serving request 0: logit_bias: token 'xyzzy' does not exist in the choices. Known tokens: "
    )


def test_a_bias_on_an_open_answer_is_refused(session: Session) -> None:
    sampling = Sampling(logit_bias={"nobody": 1})

    with pytest.raises(RequestError, match="and an open answer; expected a task with choices"):
        session.generate([Request("cut", {"sentence": "x"}, sampling=sampling, constrain=False)])


@pytest.mark.parametrize("bias", [{"a": 101}, {"a": "1"}, {1: 1}, {"a": float("nan")}, [("a", 1)]])
def test_a_bias_of_another_kind_is_refused(bias: Any) -> None:
    with pytest.raises(RequestError, match="expected numbers from -100 to 100 by the texts"):
        Sampling(logit_bias=bias)


def longest_trie(session: Session) -> LabelTrie:
    return session.tasks["cut"].renderer.label_trie({"sentence": "["})


def test_choices_that_the_tokenizer_makes_one_are_refused(
    base_of_small_letters: Path, tmp_path: Path
) -> None:
    base = base_of_small_letters
    path = table_of_choices(base, tmp_path / "table.safetensors", "no", "Yes", "yes")

    with pytest.raises(DataError) as error:
        export_bundle(ExportRequest(path, base, tmp_path / "bundle", measure_parity=False))

    assert str(error.value) == (
        "reading task 'tone': tokenising its choices: 'Yes' and 'yes' are the same tokens; "
        "expected choices that have different tokens in the base's tokenizer. The tokenizer may "
        "ignore capitals, or lack a character: change a choice."
    )
