import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pl_compile.cli import prepare as command
from pl_compile.errors import DataError
from pl_compile.training.prepare import PREPARERS
from pl_compile.training.prepare.delimited import DELIMITERS, QUOTES


def test_every_data_set_has_a_command_with_an_example() -> None:
    assert set(command.command.commands) == set(PREPARERS)
    for name in PREPARERS:
        result = CliRunner().invoke(command.command, [name, "--help"])

        assert result.exit_code == 0
        assert f"\n    plc prepare {name} --input " in result.stdout


def test_each_file_is_printed_with_its_rows(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("n\n1\n2\n")
    arguments = ["csv", "--input", f"{tmp_path}/n.csv", "--output", f"{tmp_path}/out"]

    result = CliRunner().invoke(command.command, [*arguments, "--taskname", "t"])

    assert result.stdout == f"{tmp_path}/out/n.jsonl: 2 rows\n"


def test_columns_stand_between_commas_or_are_given_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("id,text,label\n1,a,b\n")
    arguments = ["csv", "--input", f"{tmp_path}/n.csv", "--output", f"{tmp_path}/out"]

    for given in (["--columns", "text, label"], ["--columns", "text", "--columns", "label"]):
        result = CliRunner().invoke(command.command, [*arguments, "--taskname", "t", *given])

        assert result.exit_code == 0
        row = json.loads((tmp_path / "out/n.jsonl").read_text())
        assert row == {"taskname": "t", "text": "a", "label": "b"}


def test_the_fields_are_said_and_what_is_replaced_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "n.csv").write_text("text,label\na,b\n")
    arguments = ["csv", "--input", f"{tmp_path}/n.csv", "--output", f"{tmp_path}/out"]

    for replaced in ([], [f"replaced {tmp_path}/out/n.jsonl"]):
        result = CliRunner().invoke(command.command, [*arguments, "--taskname", "t"])

        assert result.stderr == "fields: text, label\n"
        assert caplog.messages == replaced


@pytest.mark.parametrize("kind", ["", "symlink", "hardlink"])
@pytest.mark.parametrize("split", [[], ["--split", "0.5", "0", "0.5"]])
def test_an_input_is_never_written_over(tmp_path: Path, kind: str, split: list[str]) -> None:
    rows = "text\na\nb\n"
    output = tmp_path / ("n_test.jsonl" if split else "n.jsonl")
    source = tmp_path / "n.csv" if kind or split else output
    source.write_text(rows)
    if kind or split:
        output.hardlink_to(source) if kind == "hardlink" else output.symlink_to(source)
    arguments = ["csv", "--input", str(source), "--output", str(tmp_path), "--taskname", "t"]

    result = CliRunner().invoke(command.command, arguments + split)

    assert f"{output} is the input itself" in str(result.exception)
    assert source.read_text() == rows
    assert not (tmp_path / "n_train.jsonl").exists()


def test_json_prints_one_object(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("n;m\n1;2\n3;4\n")
    arguments = ["csv", "--input", f"{tmp_path}/n.csv", "--output", f"{tmp_path}", "--json"]
    options = ["--taskname", "t", "--split", "0.5", "0", "0.5", "--delimiter", "semicolon"]

    result = CliRunner().invoke(command.command, arguments + options)

    assert json.loads(result.stdout) == {"files": {"n_train.jsonl": 1, "n_test.jsonl": 1}}


def test_the_delimiters_and_quotes_offered_are_those_that_exist() -> None:
    offered = {p.name: p.type for p in command.csv_file.params}

    for name, known in (("delimiter", DELIMITERS), ("quotes", QUOTES)):
        kind = offered[name]
        assert isinstance(kind, click.Choice)
        assert list(kind.choices) == list(known)


@pytest.mark.parametrize("name", ["squad", "phrasebank", "assistant"])
def test_a_missing_input_reaches_the_caller_as_a_data_error(name: str, tmp_path: Path) -> None:
    arguments = [name, "--input", f"{tmp_path}/none", "--output", f"{tmp_path}/out"]

    result = CliRunner().invoke(command.command, arguments)

    assert isinstance(result.exception, DataError)
    assert f"{tmp_path}/none" in str(result.exception)
    assert not (tmp_path / "out").exists()
