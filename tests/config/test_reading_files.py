"""Files that are read in one piece: a pipe, one without end and one of no text are refused."""

import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pl_compile.artifact.bundle import read_bundle
from pl_compile.checkpoints.checkpoint import open_checkpoint
from pl_compile.config.read import read_yaml
from pl_compile.config.strict_json import read_json_object
from pl_compile.config.task import TaskConfig
from pl_compile.config.utf8 import read_text
from pl_compile.errors import BaseModelError, PlcError
from pl_compile.families.read import read_decoder_config
from pl_compile.importers.peft import read_peft_adapter
from pl_compile.testing import byte_fallback_tokenizer
from pl_compile.text.end_tokens import end_tokens
from pl_compile.text.examples import read_examples
from pl_compile.text.template import parse_template
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.prepare import prepare_csv, prepare_phrasebank


def _end_tokens(folder: Path) -> object:
    return end_tokens(folder, Tokenizer(byte_fallback_tokenizer("first")), 397)


READERS: list[tuple[str, Callable[[Path], object]]] = [
    ("config.json", read_decoder_config),
    ("config.json", _end_tokens),
    ("generation_config.json", _end_tokens),
    ("tokenizer_config.json", _end_tokens),
    ("special_tokens_map.json", _end_tokens),
    ("tokenizer.json", Tokenizer.from_folder),
    ("model.safetensors", open_checkpoint),
    ("model.safetensors.index.json", open_checkpoint),
    ("adapter_config.json", read_peft_adapter),
    ("manifest.json", read_bundle),
    ("run.yaml", lambda folder: read_yaml(folder / "run.yaml")),
]

each_reader = pytest.mark.parametrize(("name", "read"), READERS)


@each_reader
def test_a_pipe_a_device_and_a_folder_are_refused_by_name(
    tmp_path: Path, name: str, read: Callable[[Path], object]
) -> None:
    path = tmp_path / name
    for make in (os.mkfifo, lambda link: link.symlink_to("/dev/zero"), os.mkdir):
        make(path)

        with pytest.raises(PlcError) as error:
            read(tmp_path)

        assert name in str(error.value)
        assert "a pipe, a device" in str(error.value) or "s a directory" in str(error.value)
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("name", "read"), [each for each in READERS if each[0] != "model.safetensors"]
)
def test_a_file_without_end_is_refused_by_name(
    tmp_path: Path, name: str, read: Callable[[Path], object]
) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk

    with pytest.raises(PlcError, match=name.replace(".", r"\.")):
        read(tmp_path)


def test_a_text_has_at_most_the_bytes_that_its_kind_has(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb")

    assert read_text(path, most_bytes=7) == "a\r\nb"
    with pytest.raises(ValueError, match="which no file of this kind has"):
        read_text(path, most_bytes=6)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"[]", "other JSON"),
        (b"null", "other JSON"),
        (b"", "Expecting value"),
        (b"[" * 100_000, "values nested too deep"),
        (b'{"a": 1, "a": 2}', "the key 'a' is given twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{\n"a": "\xff"}', "line 2: the byte 0xff"),
    ],
)
def test_what_is_no_json_object_is_the_callers_error(
    tmp_path: Path, data: bytes, found: str
) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(data)

    with pytest.raises(BaseModelError, match=f"^doing it: .*{found}.*; expected a JSON object. Do"):
        read_json_object(path, BaseModelError, "doing it", fix="Do so.")


@pytest.mark.parametrize("name", ["none.json", "a file/none.json"])
def test_that_there_is_no_file_is_for_the_caller_to_say(tmp_path: Path, name: str) -> None:
    (tmp_path / "a file").write_text("")

    with pytest.raises(FileNotFoundError):
        read_json_object(tmp_path / name, BaseModelError, "doing it")


def test_utf_16_and_pointers_of_git_lfs_are_told(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "llama"}', encoding="utf-16")
    with pytest.raises(BaseModelError, match="UTF-16, as some editors save texts: save it as"):
        read_json_object(path, BaseModelError, "reading")

    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(BaseModelError, match=r"a pointer of Git LFS.*git lfs pull"):
        read_json_object(path, BaseModelError, "reading")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"PK\x03\x04\x14\0\xf9", "a zip archive or an Excel workbook"),
        (gzip.compress(b"text,label\n", mtime=0), "a gzip file: unpack it first"),
        (bz2.compress(b"text,label\n"), "a bzip2 file: unpack it first"),
        (lzma.compress(b"text,label\n"), "an xz file: unpack it first"),
        (b"PAR1\x15\x04\x15\xc2", "a Parquet file: write its rows as CSV or JSON lines"),
        (b"ARROW1\0\0\xff", "an Arrow file: write its rows as CSV or JSON lines"),
        (b"\xd0\xcf\x11\xe0\xa1", "an old Excel workbook"),
        ("text".encode("utf-16"), "UTF-16, as some editors save texts"),
    ],
)
def test_a_file_of_another_form_is_called_by_it(tmp_path: Path, data: bytes, what: str) -> None:
    path = tmp_path / "Sentences_AllAgree.txt"
    path.write_bytes(data)
    template = parse_template(TaskConfig("t", "<|VIRTUAL_PROMPT_0|>{a}{b}", 1))

    def train() -> object:
        return read_examples([path], {"t": template})

    def csv() -> object:
        return prepare_csv(path, tmp_path / "out", taskname="t")

    def latin() -> object:  # which has a character for each byte
        return prepare_phrasebank(path, tmp_path / "out")

    for read in (train, csv, latin, lambda: read_yaml(path)):
        with pytest.raises(PlcError) as error:
            read()

        assert what in str(error.value)
        assert "byte" not in str(error.value)


def test_a_text_that_opens_like_a_file_of_another_form_is_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in ("PAR1,label", "PK,label", "BZh9 is a word", "ARROW1"):
        path.write_text(text)

        assert read_text(path) == text
