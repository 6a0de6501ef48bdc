import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pl_compile.errors import DataError
from pl_compile.training.prepare import prepare_squad

Reader = Callable[[Path], list[dict[str, Any]]]
FORM = "the form of SQuAD, or a row for each question as the library datasets has it"


def question(text: str, *answers: str) -> dict[str, Any]:
    return {
        "id": text,
        "question": text,
        "answers": [{"text": answer, "answer_start": 0} for answer in answers],
    }


def write_squad(path: Path, *questions: dict[str, Any]) -> None:
    paragraph = {"context": "Red warns.\u2028It stops.", "qas": list(questions)}
    path.write_text(
        json.dumps({"version": "1.1", "data": [{"title": "Red", "paragraphs": [paragraph]}]})
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_squad(tmp_path / "train-v1.1.json", question("What warns?", "Red"))
    write_squad(tmp_path / "dev-v1.1.json", question("Why?", "It stops", "stops", "stops"))
    return tmp_path


def test_each_split_gets_the_answers_that_belong_to_it(
    folder: Path, tmp_path: Path, read_jsonl: Reader
) -> None:
    out = tmp_path / "my_test"  # NeMo dropped labels wherever a path held "_test"

    counts = prepare_squad(folder, out)

    assert counts == {
        "squad_train.jsonl": 1,
        "squad_val.jsonl": 1,
        "squad_test.jsonl": 1,
        "squad_test_ground_truth.jsonl": 1,
    }
    given = {"taskname": "squad", "context": "Red warns.\u2028It stops.", "question": "Why?"}
    assert read_jsonl(out / "squad_train.jsonl")[0]["answer"] == "Red"
    assert read_jsonl(out / "squad_val.jsonl") == [{**given, "answer": "It stops"}]
    assert read_jsonl(out / "squad_test.jsonl") == [given]
    assert read_jsonl(out / "squad_test_ground_truth.jsonl") == [
        {**given, "answer": ["It stops", "stops", "stops"]}
    ]
    assert {path.name for path in out.iterdir()} == set(counts)


def test_no_reader_can_take_a_character_of_a_text_for_the_end_of_a_line(
    folder: Path, tmp_path: Path
) -> None:
    prepare_squad(folder, tmp_path / "out")

    assert len((tmp_path / "out" / "squad_train.jsonl").read_text().splitlines()) == 1


def test_the_topic_is_added_on_request(folder: Path, tmp_path: Path, read_jsonl: Reader) -> None:
    prepare_squad(folder, tmp_path / "out", include_topic=True)

    for name in ("train", "val", "test", "test_ground_truth"):
        assert read_jsonl(tmp_path / "out" / f"squad_{name}.jsonl")[0]["topic"] == "Red"


def test_questions_without_an_answer_stay_in_the_test_only_and_are_counted(
    folder: Path, tmp_path: Path, read_jsonl: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    write_squad(folder / "dev-v1.1.json", question("Why?", "It stops"), question("Who?"))

    counts = prepare_squad(folder, tmp_path / "out")

    assert counts["squad_val.jsonl"] == 1
    assert [
        row["answer"] for row in read_jsonl(tmp_path / "out" / "squad_test_ground_truth.jsonl")
    ] == [
        ["It stops"],
        [],
    ]
    assert caplog.messages == [
        "dev-v1.1.json: 1 of 2 questions have no answer and are left out of training and validation"
    ]


# Relatives of SQuAD


def test_what_is_not_used_is_not_required(folder: Path, tmp_path: Path) -> None:
    paragraph = {"context": "c", "qas": [{"question": "q", "answers": [{"text": "a"}]}]}
    (folder / "train-v1.1.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))

    assert prepare_squad(folder, tmp_path / "out")["squad_train.jsonl"] == 1
    with pytest.raises(DataError, match=r"data\[0\]: 'title' is missing"):
        prepare_squad(folder, tmp_path / "out", include_topic=True)


ROWS = [
    {"title": "Red", "context": "c", "question": f"q{i}", "answers": {"text": [f"a{i}", "b"]}}
    for i in range(2)
]
ALONE = {"title": "Red", "context": "c", "qas": [{"question": "q0", "answers": ["a0", "b"]}]}


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(map(json.dumps, ROWS)),
        "\r\n" + "\r\n\r\n".join(map(json.dumps, ROWS)),
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        json.dumps({"data": ROWS}),
        json.dumps({"version": "1", "data": [ROWS[0], ALONE]}),
        json.dumps(ROWS[0]),
        json.dumps([ALONE]),
    ],
)
def test_a_row_for_each_question_is_read_in_all_its_forms(
    folder: Path, tmp_path: Path, read_jsonl: Reader, text: str
) -> None:
    (folder / "dev-v1.1.json").unlink()
    (folder / "validation.jsonl").write_text(text)

    prepare_squad(folder, tmp_path / "out", include_topic=True)

    truth = read_jsonl(tmp_path / "out" / "squad_test_ground_truth.jsonl")
    assert truth[0] == {
        "taskname": "squad",
        "context": "c",
        "question": "q0",
        "answer": ["a0", "b"],
        "topic": "Red",
    }


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"text": ["a", "b"], "answer_start": [1, 2]}, ["a", "b"]),
        ({"text": "a", "answer_start": 1}, ["a"]),
        ([{"text": "a"}, {"text": "b"}], ["a", "b"]),
        (["a", "b"], ["a", "b"]),
        ("a", ["a"]),
        ([{"text": ["a"]}], ["a"]),
        ([], []),
        (None, []),
        ("", []),
        ({"text": [], "answer_start": []}, []),
        ({"text": [""], "answer_start": [-1]}, []),
        ([{"text": " ", "answer_start": -1}], []),
    ],
)
def test_answers_are_read_in_all_their_forms(
    folder: Path, tmp_path: Path, read_jsonl: Reader, answers: Any, expected: list[str]
) -> None:
    row = {"context": "c", "question": "q", "answers": answers}
    (folder / "dev-v1.1.json").write_text(json.dumps([ROWS[0], row]))

    counts = prepare_squad(folder, tmp_path / "out")

    truth = read_jsonl(tmp_path / "out" / "squad_test_ground_truth.jsonl")
    assert truth[1]["answer"] == expected
    assert counts["squad_val.jsonl"] == 1 + bool(expected)


def test_a_question_that_is_impossible_has_no_answer_whatever_is_listed(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    impossible = {**question("Who?", "plausible"), "is_impossible": True}
    without = {"question": "Who?", "is_impossible": True}
    write_squad(folder / "train-v1.1.json", question("What?", "Red"), impossible, without)

    assert prepare_squad(folder, tmp_path / "out")["squad_train.jsonl"] == 1
    assert "2 of 3 questions have no answer" in caplog.messages[0]


def test_files_can_be_named(folder: Path, tmp_path: Path) -> None:
    (folder / "train-v1.1.json").rename(folder / "a.json")
    (folder / "dev-v1.1.json").rename(folder / "b.json")

    counts = prepare_squad(
        folder, tmp_path / "out", train_file="a.json", dev_file=str(folder / "b.json")
    )

    assert set(counts.values()) == {1}


def test_two_candidates_are_named_with_the_option_that_decides(
    folder: Path, tmp_path: Path
) -> None:
    write_squad(folder / "train-v2.0.json", question("Who?", "Red"))

    with pytest.raises(DataError) as error:
        prepare_squad(folder, tmp_path / "out")

    assert str(error.value) == (
        f"looking for SQuAD in {folder}: train-v1.1.json, train-v2.0.json; "
        "expected one *train*.json. Name the file with --train-file."
    )


def test_a_missing_file_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \*train\*\.json; expected one \*train\*\.json\. Name"):
        prepare_squad(tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match=r"reading .*x\.json: no such file\. Check the path\."):
        prepare_squad(tmp_path, tmp_path / "out", train_file="x.json", dev_file="y.json")


def test_a_file_in_place_of_the_folder_is_told_how_to_be_given(
    folder: Path, tmp_path: Path
) -> None:
    path = next(folder.glob("*train*"))

    with pytest.raises(DataError, match=rf"a file; expected .* Give --input {folder}, and both"):
        prepare_squad(path, tmp_path / "out")


def test_what_is_learned_from_is_not_what_is_measured_on(folder: Path, tmp_path: Path) -> None:
    path = next(folder.glob("*train*"))
    (folder / "link.json").symlink_to(path)

    with pytest.raises(DataError, match=f"{path.name} both for training and for development"):
        prepare_squad(folder, tmp_path / "out", train_file=path.name, dev_file="link.json")


def test_all_problems_of_a_file_are_listed_with_their_json_paths(
    folder: Path, tmp_path: Path
) -> None:
    bad = {
        "data": [
            {"title": 7, "paragraphs": [{"context": "c", "qas": {"question": "q"}}, "text"]},
            {"title": "t", "paragraphs": [{"qas": [{"question": "q", "answers": [{}]}]}]},
        ]
    }
    (folder / "dev-v1.1.json").write_text(json.dumps(bad))

    with pytest.raises(DataError) as error:
        prepare_squad(folder, tmp_path / "out", include_topic=True)

    assert str(error.value).splitlines() == [
        f"reading {folder / 'dev-v1.1.json'}: 5 problems:",
        "  - data[0].title: 7, expected a text",
        "  - data[0].paragraphs[0].qas: an object, expected a list",
        '  - data[0].paragraphs[1]: "text", expected an object',
        "  - data[1].paragraphs[0]: 'context' is missing",
        f"  - data[1].paragraphs[0].qas[0].answers[0]: 'text' is missing; expected {FORM}.",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"data": [\n{"title" "x"}]}',
            "line 2 column 10: Expecting ':' delimiter; expected JSON.",
        ),
        ("7", f"the top level: 7, expected an object; expected {FORM}."),
        ("{}", f"the top level: 'data' is missing; expected {FORM}."),
        ('{"data": []}', f"no questions; expected {FORM}."),
        ("[]", f"no questions; expected {FORM}."),
        (
            '{"data": [{"question": 1e999}]}',
            "line 1 column 24: the number 1e999 is beyond the range of a double; expected JSON.",
        ),
        (
            '{"data": [],\r"data": []}',
            "line 2 column 1: the key 'data' is given twice; expected JSON.",
        ),
        (
            '{"question": "q", "context": "c", "answers": NaN}\n{"question": "q", "question": "r"}',
            "2 problems:\n"
            "  - line 1 column 46: NaN is not JSON: write a number, a text or null\n"
            f"  - line 2 column 19: the key 'question' is given twice; expected {FORM}.",
        ),
        (
            '{"question": "q", "context": "c", "answers": "a"}\n{"question": 3, "answers": []}',
            "2 problems:\n  - line 2: 'context' is missing\n"
            f"  - line 2.question: 3, expected a text; expected {FORM}.",
        ),
        (
            '[{"context": "c", "question": "q", "answers": {"answer_start": [1]}}]',
            f"[0].answers: 'text' is missing; expected {FORM}.",
        ),
        (
            '[{"context": "c", "question": "q"}]',
            f"[0]: 'answers' is missing; expected {FORM}.",
        ),
    ],
)
def test_what_is_no_squad_at_all_says_so(
    folder: Path, tmp_path: Path, text: str, message: str
) -> None:
    (folder / "train-v1.1.json").write_text(text)

    with pytest.raises(DataError) as error:
        prepare_squad(folder, tmp_path / "out")

    assert str(error.value) == f"reading {folder / 'train-v1.1.json'}: {message}"


def test_real_squad_has_all_its_questions(
    shared_data: Callable[[str], Path], tmp_path: Path, read_jsonl: Reader
) -> None:
    counts = prepare_squad(shared_data("squad"), tmp_path)

    assert list(counts.values()) == [5473, 1409, 1409, 1409]
    truth = read_jsonl(tmp_path / "squad_test_ground_truth.jsonl")
    assert {len(row["answer"]) for row in truth} == {2, 3, 4}
    assert all(answer in row["context"] for row in truth for answer in row["answer"])
