"""Writes the base that joint tuning (`lm_finetune`) trained: a new Hugging Face folder."""

import shutil
from collections.abc import Collection
from functools import partial
from pathlib import Path

from pl_compile.artifact.files import check_replaceable, folder_written_whole
from pl_compile.training.base_model import FrozenBase
from pl_compile.weights.fingerprint import fingerprint_base
from pl_compile.weights.open_base import open_base

# Endings of files of weights. All other files (tokenizer, templates, settings) are copied.
_WEIGHTS = (".safetensors", ".index.json", ".bin", ".gguf")

# Files that transformers writes with any model.
_SETTINGS = ("config.json", "generation_config.json")


def check_new_base(old: Path, new: Path) -> None:
    """Raises `ArtifactError` unless `write_new_base` may write there. Called before training."""
    check_replaceable(new, partial(_files_of_new_base, old))


def write_new_base(base: FrozenBase, old: Path, new: Path) -> str:
    """Writes the trained base and returns its fingerprint.

    Args:
        base: as trained.
        old: the folder it was read from.
        new: the folder to write; one that this function wrote is replaced.

    Raises:
        ArtifactError: it cannot be written, or there are other files in `new`.
    """
    with folder_written_whole(new, ours=partial(_files_of_new_base, old)) as at:
        for file in old.iterdir():
            if file.is_file() and not file.name.endswith(_WEIGHTS):
                shutil.copyfile(file, at / file.name)
        base.model.save_pretrained(at)
        return fingerprint_base(*open_base(at))


def _files_of_new_base(old: Path, new: Path) -> Collection[str]:
    """The files that `write_new_base` may have written; empty where there is no base."""
    if not (new / "config.json").is_file():
        return ()
    copied = {file.name for file in old.iterdir()}
    weights = {file.name for file in new.iterdir() if file.name.endswith(_WEIGHTS)}
    return {*_SETTINGS, *copied, *weights}
