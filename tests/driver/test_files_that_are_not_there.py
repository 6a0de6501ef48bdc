"""What a clone without Git LFS holds instead of weights and tokenizers is told by its name."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pl_compile.artifact.prompt_table import read_prompt_table
from pl_compile.errors import PlcError
from pl_compile.importers.peft import read_peft_adapter, write_peft_adapter
from pl_compile.testing import random_table
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.weights.open_base import open_base

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:5eed\nsize 9\n"


def _read_tokenizer(folder: Path) -> None:
    Tokenizer.from_folder(folder)


def _read_adapter(folder: Path) -> None:
    read_peft_adapter(folder)


def _read_base(folder: Path) -> None:
    open_base(folder)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("model.safetensors", _read_base),
        ("tokenizer.json", _read_tokenizer),
        ("adapter_model.safetensors", _read_adapter),
    ],
)
def test_a_pointer_of_git_lfs_is_told(
    tiny_bases: dict[str, Path], tmp_path: Path, name: str, read: Callable[[Path], None]
) -> None:
    folder = tmp_path / "folder"
    if name.startswith("adapter"):
        table = read_prompt_table(random_table(tiny_bases["llama"], tmp_path / "t.safetensors"))
        write_peft_adapter(table, "tone", folder, "base")
    else:
        shutil.copytree(tiny_bases["llama"], folder)
    (folder / name).write_text(POINTER)

    with pytest.raises(PlcError, match="a pointer of Git LFS, not the file") as error:
        read(folder)

    assert name in str(error.value)
    assert "git lfs pull" in str(error.value)


def test_a_tokenizer_of_a_form_that_the_library_does_not_know_may_be_newer() -> None:
    with pytest.raises(PlcError, match=r"newer release than tokenizers \d.*, which is installed"):
        Tokenizer('{"model": {"type": "Newest", "vocab": {}}}')
